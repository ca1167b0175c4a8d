-- Where a contract has a preview, people approve the call together with what they saw of what it will touch, so the digest that they
-- name is of both.
CREATE OR REPLACE VIEW audit.approvals AS
SELECT
    parked.approval_id,
    parked.call_id,
    parked.run_id,
    parked.agent,
    parked.tool,
    parked.arguments,
    COALESCE(parked.detail ->> 'digest', parked.arguments_digest) AS digest,
    parked.detail -> 'tiers'                               AS tiers,
    parked.policies,
    parked.recorded_at                                     AS parked_at,
    (parked.detail ->> 'expires_at')::timestamptz          AS expires_at,
    votes.votes,
    votes.decided_by,
    ending.outcome::text                                   AS outcome,
    ending.executed,
    ending.recorded_at                                     AS ended_at,
    parked.detail -> 'preview'                             AS preview
FROM audit.entries AS parked
LEFT JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_object(
               'operator', operator, 'vote', detail ->> 'vote', 'reason', words,
               'digest', arguments_digest, 'at', recorded_at) ORDER BY recorded_at, seq) AS votes,
           array_agg(operator ORDER BY recorded_at, seq)                                AS decided_by
    FROM audit.entries
    WHERE call_id = parked.call_id AND kind = 'approval_vote'
) AS votes ON true
LEFT JOIN LATERAL (
    SELECT outcome, executed, recorded_at FROM audit.entries
    WHERE call_id = parked.call_id AND kind IN ('outcome', 'ended')
    ORDER BY recorded_at DESC, seq DESC LIMIT 1
) AS ending ON true
WHERE parked.kind = 'parked';

COMMENT ON COLUMN audit.approvals.digest IS 'What an approver had to name: the digest over exactly this call, and over its preview where there is one.';
COMMENT ON COLUMN audit.approvals.preview IS 'What approvers were shown of what the call will touch: the call that read it, its status, and its digest. The answer stands with that call.';
COMMENT ON COLUMN audit.calls.surface IS 'How the call came in: transparent (the API''s own path), tool_call, or one that the gateway made by itself: before (to read the state before another call) and preview (to show approvers what another call will touch, or to see whether that is still there).';
COMMENT ON COLUMN audit.calls.before_of IS 'The call for which the gateway made this one.';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 22';
