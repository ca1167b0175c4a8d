-- What nobody is sure of is work for a person, and must be found at once.
CREATE INDEX entries_indeterminate ON audit.entries (recorded_at) WHERE outcome = 'indeterminate';

COMMENT ON TYPE audit.entry_kind IS 'What an entry tells of: refusal (a call was refused before anything was sent), parked (a call waits for people), intent (a call is about to be sent), outcome (what became of it), ended (a parked call ended unsent), run_opened, run_ended, approval_vote, approval_viewed (an operator was shown real arguments), halt, resume (a kill switch was pulled, released), key_created, gateway_started, gateway_stopped, operator_refused, audit_read (an operator read what was recorded or what is halted), agent_refused (an agent was refused something other than a call), signing_key_changed, partition_dropped (a month is about to be dropped, and its export holds it).';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 14';
