-- For whom a vote was cast stands beside who cast it, wherever votes are shown.
CREATE OR REPLACE VIEW audit.calls AS
SELECT
    opening.call_id,
    opening.run_id,
    opening.agent,
    opening.api,
    opening.tool,
    opening.consequence,
    opening.surface,
    opening.decision::text                                         AS decision,
    CASE WHEN ending.reasons IS NULL THEN opening.reasons
         ELSE opening.reasons || ending.reasons END                AS reasons,
    opening.policies,
    opening.received_at,
    opening.decided_at,
    ending.forwarded_at,
    COALESCE(ending.finished_at, CASE opening.kind WHEN 'refusal' THEN opening.finished_at END) AS finished_at,
    ending.status,
    CASE opening.kind
        WHEN 'refusal' THEN 'denied'
        ELSE ending.outcome::text
    END                                                            AS outcome,
    CASE opening.kind
        WHEN 'refusal' THEN false
        ELSE ending.executed
    END                                                            AS executed,
    opening.approval_id,
    COALESCE(ending.kill_switch_id, opening.kill_switch_id)        AS kill_switch_id,
    opening.arguments,
    opening.arguments_digest,
    opening.contract_digest,
    COALESCE(going.policy_digest, opening.policy_digest)           AS policy_digest,
    opening.words                                                  AS agent_words,
    going.policies                                                 AS permitted_by,
    going.recorded_at                                              AS intent_at,
    ending.recorded_at                                             AS outcome_at,
    ending.detail                                                  AS outcome_detail,
    going.before,
    ending.changed,
    ending.answer,
    ending.answer_digest,
    opening.detail ->> 'before_of'                                 AS before_of,
    (SELECT detail ->> 'triggered_by' FROM audit.entries
     WHERE run_id = opening.run_id AND kind = 'run_opened' LIMIT 1) AS triggered_by,
    (SELECT detail ->> 'purpose' FROM audit.entries
     WHERE run_id = opening.run_id AND kind = 'run_opened' LIMIT 1) AS purpose,
    (SELECT jsonb_agg(jsonb_build_object(
                'operator', operator, 'on_authority_of', COALESCE(detail ->> 'for', operator), 'vote', detail ->> 'vote',
                'reason', words,
                'digest', arguments_digest, 'at', recorded_at) ORDER BY recorded_at, seq)
     FROM audit.entries
     WHERE call_id = opening.call_id AND kind = 'approval_vote')   AS votes,
    (SELECT jsonb_object_agg(policy ->> 0, policy ->> 1)
     FROM audit.versions AS texts, jsonb_array_elements(texts.content::jsonb -> 'policies') AS policy
     WHERE texts.digest = ANY (ARRAY[opening.policy_digest, going.policy_digest])
       AND policy ->> 0 = ANY (COALESCE(opening.policies, '{}') || COALESCE(going.policies, '{}'))) AS policy_texts,
    (SELECT texts.content::jsonb FROM audit.versions AS texts
     WHERE texts.digest = opening.contract_digest)                 AS contract,
    opening.decided_at - opening.received_at                       AS deciding_took,
    CASE opening.kind WHEN 'parked' THEN
        COALESCE(going.decided_at, ending.recorded_at) - opening.decided_at END AS waiting_took,
    ending.forwarded_at - going.decided_at                         AS recording_took,
    ending.finished_at - ending.forwarded_at                       AS api_took
FROM audit.entries AS opening
LEFT JOIN LATERAL (
    SELECT * FROM audit.entries AS later
    WHERE later.call_id = opening.call_id AND later.kind IN ('outcome', 'ended')
    ORDER BY later.recorded_at DESC, later.seq DESC LIMIT 1
) AS ending ON opening.kind <> 'refusal'
LEFT JOIN LATERAL (
    SELECT * FROM audit.entries AS intent
    WHERE intent.call_id = opening.call_id AND intent.kind = 'intent'
    ORDER BY intent.recorded_at DESC, intent.seq DESC LIMIT 1
) AS going ON opening.kind <> 'refusal'
WHERE opening.opens_call;

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
               'operator', operator, 'on_authority_of', COALESCE(detail ->> 'for', operator), 'vote', detail ->> 'vote',
               'reason', words,
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

COMMENT ON COLUMN audit.calls.votes IS 'Every vote on the call: operator, on whose right (on_authority_of), vote, reason, the digest that was seen, when.';
COMMENT ON COLUMN audit.approvals.votes IS 'Every vote: operator, on whose right (on_authority_of), vote, reason, the digest that was seen, when.';
COMMENT ON COLUMN audit.approvals.decided_by IS 'The operators who voted, in order; votes says on whose right.';

-- No function looks for its tables where its caller says.
ALTER FUNCTION audit.refuse_change() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION toolgate.list_indeterminate() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION toolgate.approval_moved() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION toolgate.erase_references() SET search_path = pg_catalog, pg_temp;

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 25';
