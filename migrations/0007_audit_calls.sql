-- One row tells the whole call: who or what set it off, what was there before, what it changed, what was answered, who approved
-- and on what, the texts that decided, and how long each step took. What costs a query of its own is a subquery in the list of
-- columns, so that it costs nothing where nobody asks for it.
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
                'operator', operator, 'vote', detail ->> 'vote', 'reason', words,
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

COMMENT ON COLUMN audit.calls.surface IS 'How the call came in: transparent (the API''s own path), tool_call, or before (made by the gateway to read the state before another call).';
COMMENT ON COLUMN audit.calls.before IS 'What the contract''s before read found just before the call was sent: its call, status and state.';
COMMENT ON COLUMN audit.calls.changed IS 'What the call changed, as the contract''s pointers into the answer name it.';
COMMENT ON COLUMN audit.calls.answer IS 'What the API answered, cut to what the contract names, with every sensitive value replaced; null where the answer did not fit or the contract says nothing of it.';
COMMENT ON COLUMN audit.calls.answer_digest IS 'Keyed digest over the whole answer as it came.';
COMMENT ON COLUMN audit.calls.before_of IS 'The call for which this one read the state before.';
COMMENT ON COLUMN audit.calls.triggered_by IS 'Who or what started the run of this call.';
COMMENT ON COLUMN audit.calls.purpose IS 'What that run is for.';
COMMENT ON COLUMN audit.calls.votes IS 'Every vote on the call: operator, vote, reason, the digest that was seen, when.';
COMMENT ON COLUMN audit.calls.policy_texts IS 'The texts of the policies that decided, by id.';
COMMENT ON COLUMN audit.calls.contract IS 'The contract that was applied, whole.';
COMMENT ON COLUMN audit.calls.deciding_took IS 'From the arrival of the request to the decision.';
COMMENT ON COLUMN audit.calls.waiting_took IS 'How long a parked call waited until it was decided again or ended.';
COMMENT ON COLUMN audit.calls.recording_took IS 'From the decision to the sending: the commit of the intent, and the read before where there is one.';
COMMENT ON COLUMN audit.calls.api_took IS 'From the sending to the end of the answer.';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 7';
