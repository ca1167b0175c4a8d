-- What makes a change show, and what a call did: the hash chain, the state before, what was changed, what was answered.
ALTER TABLE audit.entries
    ADD COLUMN answer        jsonb,
    ADD COLUMN answer_digest text COLLATE "C",
    ADD COLUMN before        jsonb,
    ADD COLUMN changed       jsonb,
    ADD COLUMN value_tokens  text[],
    ADD COLUMN hash          bytea;

-- Entries from before the chain have no hash; every new one must have it. NOT VALID leaves the old ones alone.
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
        WHEN 'outcome' THEN NOT opens_call AND num_nulls(call_id, outcome) = 0
        WHEN 'ended' THEN NOT opens_call AND num_nulls(call_id, outcome) = 0
        WHEN 'approval_vote' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'approval_viewed' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'audit_read' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'halt' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'resume' THEN NOT opens_call AND operator IS NOT NULL
        WHEN 'agent_refused' THEN NOT opens_call AND decision IS NOT DISTINCT FROM 'deny'
            AND COALESCE(cardinality(reasons), 0) > 0
        ELSE NOT opens_call
    END) NOT VALID;

-- Lists go from the newest entry back, so time is a tree; rows come in its order, which keeps it cheap to write.
DROP INDEX audit.entries_recorded;
CREATE INDEX entries_recorded ON audit.entries (recorded_at, instance_id, seq);
CREATE INDEX entries_approval ON audit.entries (approval_id) WHERE approval_id IS NOT NULL;
CREATE INDEX entries_operator ON audit.entries (operator, recorded_at) WHERE operator IS NOT NULL;
CREATE INDEX entries_denied ON audit.entries (recorded_at) WHERE decision = 'deny';
CREATE INDEX entries_digest ON audit.entries USING hash (arguments_digest) WHERE opens_call;
-- The waiting list is kept short, so that no commit has to work off a long one.
CREATE INDEX entries_values ON audit.entries USING gin (value_tokens) WITH (gin_pending_list_limit = 256)
    WHERE value_tokens IS NOT NULL;
-- Common names are found along the time; for rare and unknown ones this rules out whole stretches of the table.
CREATE INDEX entries_names ON audit.entries USING brin (agent text_bloom_ops, tool text_bloom_ops)
    WITH (pages_per_range = 64, autosummarize = on);

COMMENT ON TABLE audit.entries IS 'The one durable history: every call, decision and act of an operator, in the order in which each gateway start recorded them. Only ever inserted.';
COMMENT ON COLUMN audit.entries.instance_id IS 'The start of the gateway that recorded it. Each start numbers its own entries from 1.';
COMMENT ON COLUMN audit.entries.seq IS 'The number of the entry within its instance: without gaps.';
COMMENT ON COLUMN audit.entries.recorded_at IS 'When it was handed to the database; never falls within an instance.';
COMMENT ON COLUMN audit.entries.kind IS 'What the entry tells of.';
COMMENT ON COLUMN audit.entries.opens_call IS 'True on the first entry of a call.';
COMMENT ON COLUMN audit.entries.call_id IS 'The call.';
COMMENT ON COLUMN audit.entries.run_id IS 'The run.';
COMMENT ON COLUMN audit.entries.approval_id IS 'The approval, for parked calls.';
COMMENT ON COLUMN audit.entries.kill_switch_id IS 'The kill switch that was pulled or released, or that stopped the call.';
COMMENT ON COLUMN audit.entries.agent IS 'The agent that called.';
COMMENT ON COLUMN audit.entries.operator IS 'The operator who acted or read.';
COMMENT ON COLUMN audit.entries.surface IS 'How the call came in.';
COMMENT ON COLUMN audit.entries.api IS 'The API of the tool.';
COMMENT ON COLUMN audit.entries.tool IS 'The tool.';
COMMENT ON COLUMN audit.entries.consequence IS 'What a call of this tool does to the world.';
COMMENT ON COLUMN audit.entries.contract_digest IS 'The contract that was applied; its text stands in audit.versions.';
COMMENT ON COLUMN audit.entries.policy_digest IS 'The policies that decided; their texts stand in audit.versions.';
COMMENT ON COLUMN audit.entries.arguments IS 'The arguments, with every sensitive value replaced by its class and keyed digest.';
COMMENT ON COLUMN audit.entries.arguments_digest IS 'Keyed digest over agent, run, tool, contract and the real arguments.';
COMMENT ON COLUMN audit.entries.decision IS 'permit, park or deny.';
COMMENT ON COLUMN audit.entries.reasons IS 'Problem codes.';
COMMENT ON COLUMN audit.entries.policies IS 'Ids of the policies that determined the decision.';
COMMENT ON COLUMN audit.entries.received_at IS 'When the request arrived.';
COMMENT ON COLUMN audit.entries.decided_at IS 'When the decision fell.';
COMMENT ON COLUMN audit.entries.forwarded_at IS 'When the request was handed to the API.';
COMMENT ON COLUMN audit.entries.finished_at IS 'When the answer was complete, or the call ended without one.';
COMMENT ON COLUMN audit.entries.status IS 'The HTTP status of the API''s answer.';
COMMENT ON COLUMN audit.entries.executed IS 'True: executed. False: certainly not sent. Null: not known or not said here.';
COMMENT ON COLUMN audit.entries.outcome IS 'How the call ended.';
COMMENT ON COLUMN audit.entries.words IS 'What the agent or the operator gave as the reason, without sensitive values.';
COMMENT ON COLUMN audit.entries.detail IS 'What else belongs to an entry of this kind.';
COMMENT ON COLUMN audit.entries.answer IS 'What the API answered, with every sensitive value replaced; shortened where it is long.';
COMMENT ON COLUMN audit.entries.answer_digest IS 'Keyed digest over the whole answer as it came.';
COMMENT ON COLUMN audit.entries.before IS 'What the contract''s before read found just before the call was sent: its call, status and state.';
COMMENT ON COLUMN audit.entries.changed IS 'What the call changed, as the contract''s pointers into the answer name it.';
COMMENT ON COLUMN audit.entries.value_tokens IS 'Keyed digests of the sensitive values that stood in this entry; toolgate audit hash gives that of a known value.';
COMMENT ON COLUMN audit.entries.hash IS 'SHA-256 over the hash of the entry before it in its instance and this entry''s columns as RFC 8785 JSON.';

COMMENT ON TABLE audit.versions IS 'Contracts and policies as they stood when they decided, once for each digest.';
COMMENT ON COLUMN audit.versions.digest IS 'SHA-256 over the content.';
COMMENT ON COLUMN audit.versions.kind IS 'contract or policies.';
COMMENT ON COLUMN audit.versions.name IS 'The tool, or "policies".';
COMMENT ON COLUMN audit.versions.content IS 'The whole text, as RFC 8785 JSON.';
COMMENT ON COLUMN audit.versions.first_used IS 'When a gateway first started with it.';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 6';
