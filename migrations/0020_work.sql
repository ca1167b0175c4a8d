-- What people must do: find out what became of a call whose answer was lost (reconcile), and do by hand what may not be sent
-- (manual). A work item is named by its call.
CREATE TABLE toolgate.work (
    call_id         text COLLATE "C" PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('reconcile', 'manual')),
    -- Why it is here: its answer was lost, a kill switch covers it, or its tier is worked off by people.
    because         text NOT NULL CHECK (because IN ('indeterminate', 'halted', 'tier')),
    state           text NOT NULL CHECK (state IN ('open', 'claimed', 'resolved', 'withdrawn')),
    run_id          text COLLATE "C",
    agent           text COLLATE "C",
    api             text COLLATE "C",
    tool            text COLLATE "C",
    kill_switch_id  text COLLATE "C",
    listed_at       timestamptz NOT NULL DEFAULT now(),
    claimed_by      text COLLATE "C",
    claimed_at      timestamptz,
    -- Until when nobody else may claim it. The claim itself has no end: see store/work.
    lease_until     timestamptz,
    found           text CHECK (found IN ('executed', 'not_executed')),
    status          smallint,
    evidence        text,
    note            text,
    resolved_by     text COLLATE "C",
    resolved_at     timestamptz,
    CHECK (state <> 'claimed' OR num_nulls(claimed_by, claimed_at, lease_until) = 0),
    CHECK (CASE state WHEN 'resolved' THEN num_nulls(found, evidence, note, resolved_by, resolved_at) = 0
                      ELSE num_nonnulls(found, status, evidence, note, resolved_by, resolved_at) = 0 END)
);
CREATE INDEX work_waiting ON toolgate.work (kind, call_id) WHERE state IN ('open', 'claimed');
CREATE INDEX work_of_agent ON toolgate.work (agent) WHERE kind = 'manual' AND state IN ('open', 'claimed');
GRANT SELECT, INSERT, UPDATE ON toolgate.work TO toolgate_gateway;

-- Every indeterminate outcome becomes a work item in the transaction that records it, whichever part of the gateway records it:
-- so no list can miss one. Of an item that was worked off by hand or withdrawn before, this is the new state.
CREATE FUNCTION toolgate.list_indeterminate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO toolgate.work (call_id, kind, because, state, run_id, agent, api, tool)
    VALUES (NEW.call_id, 'reconcile', 'indeterminate', 'open', NEW.run_id, NEW.agent, NEW.api, NEW.tool)
    ON CONFLICT (call_id) DO UPDATE
        SET kind = 'reconcile', because = 'indeterminate', state = 'open', listed_at = now(),
            claimed_by = NULL, claimed_at = NULL, lease_until = NULL
        WHERE work.state <> 'resolved' AND work.kind = 'manual';
    RETURN NULL;
END
$$;
CREATE TRIGGER entries_indeterminate AFTER INSERT ON audit.entries
    FOR EACH ROW WHEN (NEW.outcome = 'indeterminate') EXECUTE FUNCTION toolgate.list_indeterminate();

-- The history so far.
INSERT INTO toolgate.work (call_id, kind, because, state, run_id, agent, api, tool, listed_at)
SELECT DISTINCT ON (lost.call_id)
       lost.call_id, 'reconcile', 'indeterminate', 'open', lost.run_id, lost.agent, lost.api, lost.tool, lost.recorded_at
FROM audit.entries AS lost
WHERE lost.outcome = 'indeterminate'
  AND NOT EXISTS (SELECT FROM audit.entries AS later
                  WHERE later.call_id = lost.call_id AND later.kind IN ('outcome', 'ended')
                    AND later.outcome <> 'indeterminate')
ORDER BY lost.call_id, lost.recorded_at;

-- `by_hand`: an operator has claimed the call, and no gateway will ever send it. `resolved_as` says whose word the ending is: an
-- operator did it by hand, or found out what had become of it.
ALTER TABLE toolgate.calls
    ADD COLUMN resolved_as   text CHECK (resolved_as IN ('by_hand', 'found')),
    -- The idempotency key was given and has been erased after its time.
    ADD COLUMN key_forgotten boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT calls_state_check,
    ADD CONSTRAINT calls_state_check CHECK (state IN ('parked', 'approved', 'executing', 'by_hand', 'completed', 'failed',
                                                      'indeterminate', 'denied', 'expired', 'voided')),
    DROP CONSTRAINT calls_check1,
    ADD CONSTRAINT calls_check1 CHECK (state IN ('parked', 'approved', 'executing', 'by_hand') OR sealed IS NULL),
    DROP CONSTRAINT calls_check2,
    ADD CONSTRAINT calls_check2 CHECK (state <> 'completed'
                                       OR (executed AND (status IS NOT NULL OR resolved_as IS NOT NULL)));
-- What is erased after its time (workers/forget).
CREATE INDEX calls_kept ON toolgate.calls (updated_at)
    WHERE state IN ('completed', 'failed', 'denied', 'expired', 'voided')
      AND (idempotency_key IS NOT NULL OR answer IS NOT NULL);

ALTER TABLE audit.entries DROP CONSTRAINT entries_shape;
ALTER TABLE audit.entries ADD CONSTRAINT entries_shape CHECK (
    seq > 0 AND hash IS NOT NULL AND octet_length(hash) = 32 AND CASE kind
        WHEN 'refusal' THEN call_id IS NOT NULL AND decision IS NOT DISTINCT FROM 'deny'
            AND COALESCE(cardinality(reasons), 0) > 0
        WHEN 'parked' THEN decision IS NOT DISTINCT FROM 'park'
            AND num_nulls(call_id, run_id, agent, tool, arguments, arguments_digest, contract_digest, policy_digest,
                          approval_id) = 0
        WHEN 'intent' THEN decision IS NOT DISTINCT FROM 'permit'
            AND num_nulls(call_id, run_id, agent, tool, arguments, arguments_digest, contract_digest, policy_digest) = 0
        -- Opens a call that was never parked; of a parked one it tells more.
        WHEN 'work_listed' THEN decision IS NOT DISTINCT FROM 'permit'
            AND num_nulls(call_id, run_id, agent, tool, arguments, arguments_digest, contract_digest, policy_digest) = 0
        WHEN 'outcome' THEN NOT opens_call AND num_nulls(call_id, outcome) = 0
        WHEN 'ended' THEN NOT opens_call AND num_nulls(call_id, outcome) = 0
        WHEN 'approval_vote' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'approval_viewed' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'audit_read' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'work_viewed' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'work_claimed' THEN NOT opens_call AND num_nulls(call_id, operator) = 0
        WHEN 'work_released' THEN NOT opens_call AND num_nulls(call_id, operator) = 0
        WHEN 'halt' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'resume' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'agent_refused' THEN NOT opens_call AND decision IS NOT DISTINCT FROM 'deny'
            AND COALESCE(cardinality(reasons), 0) > 0
        ELSE NOT opens_call
    END) NOT VALID;

-- What becomes of an approved call is told with who executed it, where that was not the gateway. That a call goes onto the work list,
-- or is claimed there, is no event.
DROP FUNCTION toolgate.tell(text, toolgate.approvals);
CREATE FUNCTION toolgate.tell(what text, about toolgate.approvals, more jsonb DEFAULT '{}') RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waits_in text[];
    deciders text[];
BEGIN
    SELECT coalesce(array_agg(tier ORDER BY tier), '{}') INTO waits_in
    FROM toolgate.approval_tiers WHERE approval_id = about.approval_id;
    SELECT coalesce(array_agg(operator ORDER BY voted_at, operator), '{}') INTO deciders
    FROM toolgate.votes
    WHERE approval_id = about.approval_id
      AND vote = CASE what WHEN 'approval.approved' THEN 'approve' WHEN 'approval.denied' THEN 'deny' END;
    INSERT INTO toolgate.outbox (type, subject, tiers, data)
    VALUES (what, about.approval_id, waits_in, jsonb_build_object(
        'approval', about.approval_id, 'call', about.call_id, 'run', about.run_id, 'agent', about.agent,
        'api', about.api, 'tool', about.tool, 'consequence', about.consequence, 'digest', about.digest,
        'expires_at', toolgate.rfc3339(about.expires_at), 'decided_by', to_jsonb(deciders)) || more);
END
$$;

CREATE OR REPLACE FUNCTION toolgate.tell_of_call() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parked toolgate.approvals;
BEGIN
    SELECT * INTO parked FROM toolgate.approvals WHERE call_id = NEW.call_id;
    -- A call that was never parked waits for nobody.
    IF FOUND THEN
        PERFORM toolgate.tell('call.' || NEW.state, parked, CASE
            WHEN NEW.state <> 'completed' OR NEW.resolved_as IS NULL THEN '{}'::jsonb
            WHEN NEW.resolved_as = 'by_hand' THEN '{"executed_by": "operator"}'::jsonb
            ELSE '{"executed_by": "unknown, found executed by operator"}'::jsonb END);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON TYPE audit.entry_kind IS 'What an entry tells of: refusal (a call was refused before anything was sent), parked (a call waits for people), intent (a call is about to be sent), outcome (what became of it), ended (a parked call ended unsent), run_opened, run_ended, approval_vote, approval_viewed (an operator was shown real arguments), halt, resume (a kill switch was pulled, released), key_created, gateway_started, gateway_stopped, operator_refused, audit_read (an operator read what was recorded or what is halted), agent_refused (an agent was refused something other than a call), signing_key_changed, partition_dropped (a month is about to be dropped, and its export holds it), approval_escalated (a parked call was opened to more people), delegation_granted, delegation_revoked, stream_opened (an operator began to follow the approvals), delivery_dead (a message to people was given up), delivery_redelivered, destination_disabled, destination_enabled, work_listed (a call that may not be sent goes to the work list), work_viewed (an operator was shown the work list, or the real arguments of what they have claimed), work_claimed, work_released.';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 20';
