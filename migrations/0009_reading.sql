-- Reading what was recorded, filter by filter, on a table of any size. What a call that goes through writes costs no more than
-- before: the new indexes hold refusals, acts and waiting calls, and the one over names keeps a summary of whole stretches.
CREATE INDEX entries_kinds ON audit.entries (kind, recorded_at) WHERE kind NOT IN ('refusal', 'intent', 'outcome');
CREATE INDEX entries_parked ON audit.entries (recorded_at) WHERE decision = 'park';
CREATE INDEX entries_reasons ON audit.entries USING gin (reasons) WITH (gin_pending_list_limit = 256)
    WHERE reasons IS NOT NULL;

-- A digest is that of a call, of its intent after approval, and of what an approver saw.
DROP INDEX audit.entries_digest;
CREATE INDEX entries_digest ON audit.entries USING hash (arguments_digest) WHERE arguments_digest IS NOT NULL;

DROP INDEX audit.entries_names;
CREATE INDEX entries_names ON audit.entries
    USING brin (agent text_bloom_ops, tool text_bloom_ops, api text_bloom_ops, consequence text_bloom_ops)
    WITH (pages_per_range = 64, autosummarize = on);

COMMENT ON TYPE audit.entry_kind IS 'What an entry tells of: refusal (a call was refused before anything was sent), parked (a call waits for people), intent (a call is about to be sent), outcome (what became of it), ended (a parked call ended unsent), run_opened, run_ended, approval_vote, approval_viewed (an operator was shown real arguments), halt, resume (a kill switch was pulled, released), key_created, gateway_started, gateway_stopped, operator_refused, audit_read (an operator read what was recorded or what is halted), agent_refused (an agent was refused something other than a call), signing_key_changed.';
COMMENT ON TYPE audit.decision IS 'permit (it may be sent), park (it waits for people), deny (it is refused).';
COMMENT ON TYPE audit.outcome IS 'How a call ended: completed (the API answered), failed (certainly not executed, or an unusable answer), indeterminate (sent, and nobody knows), denied, expired or voided (a parked call that was not executed).';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 9';
