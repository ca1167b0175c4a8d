-- What a person reads. One row a call, a run, an approval, a halt.
CREATE VIEW audit.calls AS
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
    ending.detail                                                  AS outcome_detail
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

COMMENT ON VIEW audit.calls IS 'One row for each call that reached the gateway, refused ones included.';
COMMENT ON COLUMN audit.calls.call_id IS 'The id that every answer carries in Toolgate-Call.';
COMMENT ON COLUMN audit.calls.run_id IS 'The run in which the call was made; join with audit.runs.';
COMMENT ON COLUMN audit.calls.agent IS 'Who called; null where the caller could not be identified.';
COMMENT ON COLUMN audit.calls.api IS 'The API that the tool belongs to.';
COMMENT ON COLUMN audit.calls.tool IS 'The tool; null where the request matched none.';
COMMENT ON COLUMN audit.calls.consequence IS 'What a call of this tool does to the world.';
COMMENT ON COLUMN audit.calls.surface IS 'How the call came in: transparent (the API''s own path) or tool_call.';
COMMENT ON COLUMN audit.calls.decision IS 'The decision when the call arrived: permit, park or deny.';
COMMENT ON COLUMN audit.calls.reasons IS 'Problem codes: why it was refused, failed or was not executed.';
COMMENT ON COLUMN audit.calls.policies IS 'Ids of the policies that made the decision; their texts stand in audit.versions under policy_digest.';
COMMENT ON COLUMN audit.calls.received_at IS 'When the request arrived.';
COMMENT ON COLUMN audit.calls.decided_at IS 'When the decision fell.';
COMMENT ON COLUMN audit.calls.forwarded_at IS 'When the request was handed to the API; null if it never was.';
COMMENT ON COLUMN audit.calls.finished_at IS 'When the answer was complete, or the call ended without one.';
COMMENT ON COLUMN audit.calls.status IS 'The HTTP status of the API''s answer.';
COMMENT ON COLUMN audit.calls.outcome IS 'completed (the API answered), failed (certainly not executed, or an unusable answer), indeterminate (sent, answer lost), denied, expired or voided (not executed); null while it is under way.';
COMMENT ON COLUMN audit.calls.executed IS 'True: the API executed it. False: it was certainly not sent. Null: under way or not known.';
COMMENT ON COLUMN audit.calls.approval_id IS 'The approval the call waited for, if it was parked.';
COMMENT ON COLUMN audit.calls.kill_switch_id IS 'The kill switch that stopped it, if one did.';
COMMENT ON COLUMN audit.calls.arguments IS 'The arguments, with every marked value replaced by its class and keyed digest.';
COMMENT ON COLUMN audit.calls.arguments_digest IS 'Keyed digest over agent, run, tool, contract and the real arguments.';
COMMENT ON COLUMN audit.calls.contract_digest IS 'The contract that was applied; its text stands in audit.versions.';
COMMENT ON COLUMN audit.calls.policy_digest IS 'The policies that decided last; their texts stand in audit.versions.';
COMMENT ON COLUMN audit.calls.agent_words IS 'Why the agent said it makes the call. The agent''s words, not a fact.';
COMMENT ON COLUMN audit.calls.permitted_by IS 'Ids of the policies that permitted the forward, after approval if there was one.';
COMMENT ON COLUMN audit.calls.intent_at IS 'When the intent to forward was recorded: always before forwarded_at.';
COMMENT ON COLUMN audit.calls.outcome_at IS 'When the outcome was recorded.';
COMMENT ON COLUMN audit.calls.outcome_detail IS 'What went wrong, in words.';

CREATE VIEW audit.runs AS
SELECT
    opened.run_id,
    opened.agent,
    opened.detail ->> 'triggered_by'                       AS triggered_by,
    opened.detail ->> 'purpose'                            AS purpose,
    (opened.detail ->> 'implicit')::boolean                AS implicit,
    opened.detail -> 'scopes'                              AS scopes,
    opened.recorded_at                                     AS opened_at,
    (opened.detail ->> 'expires_at')::timestamptz          AS expires_at,
    ended.recorded_at                                      AS ended_at,
    counts.calls,
    counts.refused,
    counts.parked,
    counts.last_call_at
FROM audit.entries AS opened
LEFT JOIN LATERAL (
    SELECT recorded_at FROM audit.entries
    WHERE run_id = opened.run_id AND kind = 'run_ended' LIMIT 1
) AS ended ON true
LEFT JOIN LATERAL (
    SELECT count(*)                                    AS calls,
           count(*) FILTER (WHERE decision = 'deny')   AS refused,
           count(*) FILTER (WHERE decision = 'park')   AS parked,
           max(received_at)                            AS last_call_at
    FROM audit.entries WHERE run_id = opened.run_id AND opens_call
) AS counts ON true
WHERE opened.kind = 'run_opened';

COMMENT ON VIEW audit.runs IS 'One row for each run of an agent.';
COMMENT ON COLUMN audit.runs.run_id IS 'The run.';
COMMENT ON COLUMN audit.runs.agent IS 'The agent that runs.';
COMMENT ON COLUMN audit.runs.triggered_by IS 'Who or what started the run.';
COMMENT ON COLUMN audit.runs.purpose IS 'What the run is for.';
COMMENT ON COLUMN audit.runs.implicit IS 'True where the agent opened no run and the gateway opened one for its calls.';
COMMENT ON COLUMN audit.runs.scopes IS 'The scopes of the run: at most the agent''s own.';
COMMENT ON COLUMN audit.runs.opened_at IS 'When the run began.';
COMMENT ON COLUMN audit.runs.expires_at IS 'When the run ends by itself, if it does.';
COMMENT ON COLUMN audit.runs.ended_at IS 'When the run was ended, if it was.';
COMMENT ON COLUMN audit.runs.calls IS 'Calls made in the run, refused ones included.';
COMMENT ON COLUMN audit.runs.refused IS 'Calls refused.';
COMMENT ON COLUMN audit.runs.parked IS 'Calls that waited for approval.';
COMMENT ON COLUMN audit.runs.last_call_at IS 'When the last call arrived.';

CREATE VIEW audit.approvals AS
SELECT
    parked.approval_id,
    parked.call_id,
    parked.run_id,
    parked.agent,
    parked.tool,
    parked.arguments,
    parked.arguments_digest                                AS digest,
    parked.detail -> 'tiers'                               AS tiers,
    parked.policies,
    parked.recorded_at                                     AS parked_at,
    (parked.detail ->> 'expires_at')::timestamptz          AS expires_at,
    votes.votes,
    votes.decided_by,
    ending.outcome::text                                   AS outcome,
    ending.executed,
    ending.recorded_at                                     AS ended_at
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

COMMENT ON VIEW audit.approvals IS 'One row for each call that was parked until people approved.';
COMMENT ON COLUMN audit.approvals.approval_id IS 'The approval.';
COMMENT ON COLUMN audit.approvals.call_id IS 'The call that waited; join with audit.calls.';
COMMENT ON COLUMN audit.approvals.run_id IS 'The run the call was made in.';
COMMENT ON COLUMN audit.approvals.agent IS 'The agent that asked.';
COMMENT ON COLUMN audit.approvals.tool IS 'The tool it wants to call.';
COMMENT ON COLUMN audit.approvals.arguments IS 'The arguments, with marked values replaced.';
COMMENT ON COLUMN audit.approvals.digest IS 'What an approval had to name: the digest over exactly this call.';
COMMENT ON COLUMN audit.approvals.tiers IS 'The tiers that had to approve, and how many people each.';
COMMENT ON COLUMN audit.approvals.policies IS 'Ids of the policies that parked the call.';
COMMENT ON COLUMN audit.approvals.parked_at IS 'When the call was parked.';
COMMENT ON COLUMN audit.approvals.expires_at IS 'When it would expire, as set at parking; a kill switch stops this clock.';
COMMENT ON COLUMN audit.approvals.votes IS 'Every vote: operator, vote, reason, the digest that was seen, when.';
COMMENT ON COLUMN audit.approvals.decided_by IS 'The operators who voted, in order.';
COMMENT ON COLUMN audit.approvals.outcome IS 'How the call ended; null while it waits or runs.';
COMMENT ON COLUMN audit.approvals.executed IS 'Whether the API executed it.';
COMMENT ON COLUMN audit.approvals.ended_at IS 'When it ended.';

CREATE VIEW audit.halts AS
SELECT
    pulled.kill_switch_id,
    pulled.detail ->> 'kind'          AS kind,
    pulled.detail ->> 'id'            AS target,
    pulled.operator                   AS pulled_by,
    pulled.words                      AS reason,
    (pulled.detail ->> 'pulled_at')::timestamptz AS pulled_at,
    pulled.recorded_at,
    released.operator                 AS released_by,
    released.words                    AS release_reason,
    released.recorded_at              AS released_at,
    (SELECT count(*) FROM audit.entries AS stopped
     WHERE stopped.kill_switch_id = pulled.kill_switch_id AND stopped.call_id IS NOT NULL) AS calls_stopped
FROM audit.entries AS pulled
LEFT JOIN LATERAL (
    SELECT operator, words, recorded_at FROM audit.entries
    WHERE kill_switch_id = pulled.kill_switch_id AND kind = 'resume' LIMIT 1
) AS released ON true
WHERE pulled.kind = 'halt';

COMMENT ON VIEW audit.halts IS 'One row for each pull of the kill switch.';
COMMENT ON COLUMN audit.halts.kill_switch_id IS 'The kill switch.';
COMMENT ON COLUMN audit.halts.kind IS 'What it stops: everything, an api, a tool, a consequence, an agent or a run.';
COMMENT ON COLUMN audit.halts.target IS 'Which one; null for everything.';
COMMENT ON COLUMN audit.halts.pulled_by IS 'The operator who pulled it.';
COMMENT ON COLUMN audit.halts.reason IS 'Why.';
COMMENT ON COLUMN audit.halts.pulled_at IS 'From when on nothing it covers was sent.';
COMMENT ON COLUMN audit.halts.recorded_at IS 'When it was recorded; later than pulled_at when the database was away.';
COMMENT ON COLUMN audit.halts.released_by IS 'The operator who released it; null while it holds.';
COMMENT ON COLUMN audit.halts.release_reason IS 'Why it was released.';
COMMENT ON COLUMN audit.halts.released_at IS 'When it was released.';
COMMENT ON COLUMN audit.halts.calls_stopped IS 'Calls it refused or stopped before they were sent.';

GRANT SELECT ON audit.calls, audit.runs, audit.approvals, audit.halts TO toolgate_auditor, toolgate_gateway;

-- The gateway's role cannot read the owner's book-keeping of migrations; it asks this. Each later migration
-- replaces it with its own number.
CREATE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 4';
GRANT EXECUTE ON FUNCTION toolgate.schema_version() TO toolgate_gateway;
