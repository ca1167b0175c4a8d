-- What a tier asks for, as it stood when the call was parked: requirements that all must be met, how many denials end the call,
-- and whose people may fill its seats as well after a time.
ALTER TABLE toolgate.approval_tiers
    ADD COLUMN requires jsonb   NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(requires) = 'array'),
    ADD COLUMN denials  integer NOT NULL DEFAULT 1 CHECK (denials > 0),
    -- The state of the approval, copied by the trigger below, so that a tier's queue is one stretch of an index.
    ADD COLUMN state    text    NOT NULL DEFAULT 'pending';
COMMENT ON COLUMN toolgate.approval_tiers.needed IS 'The seats of all requirements together. Rows from before requirements have none, so that nothing fills them: such calls can be denied, or expire.';

CREATE TABLE toolgate.approval_escalations (
    approval_id  text COLLATE "C" NOT NULL REFERENCES toolgate.approvals,
    -- The tier whose seats are opened to more people …
    tier         text COLLATE "C" NOT NULL,
    step         integer NOT NULL CHECK (step > 0),
    -- … and the tier whose people those are, with its requirements as they stood.
    to_tier      text COLLATE "C" NOT NULL,
    requires     jsonb NOT NULL CHECK (jsonb_typeof(requires) = 'array'),
    -- Moved by the time for which a kill switch stops the approval's clock.
    escalates_at timestamptz NOT NULL,
    escalated_at timestamptz,
    -- False once it has happened, or cannot any more because the approval was decided.
    open         boolean NOT NULL DEFAULT true,
    PRIMARY KEY (approval_id, tier, step),
    FOREIGN KEY (approval_id, tier) REFERENCES toolgate.approval_tiers,
    CHECK (escalated_at IS NULL OR NOT open)
);
CREATE INDEX approval_escalations_due ON toolgate.approval_escalations (escalates_at) WHERE open;

-- A right to vote, lent to a named person until a moment. Never changed but for its end.
CREATE TABLE toolgate.delegations (
    delegation_id  text COLLATE "C" PRIMARY KEY,
    from_operator  text COLLATE "C" NOT NULL,
    to_operator    text COLLATE "C" NOT NULL,
    roles          text[] NOT NULL,
    groups         text[] NOT NULL,
    tiers          text[] NOT NULL,
    reason         text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    ends_at        timestamptz NOT NULL,
    revoked_at     timestamptz,
    revoked_by     text COLLATE "C",
    revoke_reason  text,
    CHECK (from_operator <> to_operator),
    CHECK (ends_at > created_at),
    CHECK (cardinality(roles) + cardinality(groups) + cardinality(tiers) > 0),
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX delegations_to ON toolgate.delegations (to_operator, ends_at) WHERE revoked_at IS NULL;
CREATE INDEX delegations_from ON toolgate.delegations (from_operator, ends_at) WHERE revoked_at IS NULL;

-- On whose right a vote rests, and the seats it can take: [{"tier", "role" or "group", "delegation"?}]. Votes from before have no
-- seat, so they fill none.
ALTER TABLE toolgate.votes
    ADD COLUMN authority   text COLLATE "C",
    ADD COLUMN seats       jsonb  NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(seats) = 'array'),
    ADD COLUMN delegations text[] NOT NULL DEFAULT '{}';

CREATE FUNCTION toolgate.approval_moved() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    UPDATE toolgate.approval_tiers SET state = NEW.state WHERE approval_id = NEW.approval_id;
    UPDATE toolgate.approval_escalations SET open = false WHERE approval_id = NEW.approval_id AND open;
    RETURN NULL;
END
$$;
CREATE TRIGGER approval_moved AFTER UPDATE OF state ON toolgate.approvals
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION toolgate.approval_moved();
UPDATE toolgate.approval_tiers AS t SET state = a.state FROM toolgate.approvals AS a WHERE a.approval_id = t.approval_id;

-- Each way of narrowing the queue is one stretch of one index, in the order in which the list gives it.
DROP INDEX toolgate.approvals_pending_agent;
CREATE INDEX approvals_by_agent ON toolgate.approvals (agent, state, approval_id);
CREATE INDEX approvals_by_run ON toolgate.approvals (run_id, state, approval_id);
CREATE INDEX approvals_by_tool ON toolgate.approvals (tool, state, approval_id);
CREATE INDEX approvals_by_consequence ON toolgate.approvals (consequence, state, approval_id);
CREATE INDEX approval_tiers_queue ON toolgate.approval_tiers (tier, state, approval_id);

GRANT SELECT, INSERT ON toolgate.approval_escalations, toolgate.delegations TO toolgate_gateway;
GRANT UPDATE (escalates_at, escalated_at, open) ON toolgate.approval_escalations TO toolgate_gateway;
GRANT UPDATE (revoked_at, revoked_by, revoke_reason) ON toolgate.delegations TO toolgate_gateway;

CREATE VIEW audit.delegations AS
SELECT
    granted.detail ->> 'delegation'                AS delegation,
    granted.operator                               AS from_operator,
    granted.detail ->> 'to'                        AS to_operator,
    granted.detail -> 'roles'                      AS roles,
    granted.detail -> 'groups'                     AS groups,
    granted.detail -> 'tiers'                      AS tiers,
    granted.words                                  AS reason,
    granted.recorded_at                            AS granted_at,
    (granted.detail ->> 'until')::timestamptz      AS until,
    revoked.operator                               AS revoked_by,
    revoked.words                                  AS revoke_reason,
    revoked.recorded_at                            AS revoked_at
FROM audit.entries AS granted
LEFT JOIN LATERAL (
    SELECT operator, words, recorded_at FROM audit.entries
    WHERE kind = 'delegation_revoked' AND detail ->> 'delegation' = granted.detail ->> 'delegation'
    ORDER BY recorded_at LIMIT 1
) AS revoked ON true
WHERE granted.kind = 'delegation_granted';

COMMENT ON VIEW audit.delegations IS 'One row for each delegation of the right to vote.';
COMMENT ON COLUMN audit.delegations.delegation IS 'The delegation, as votes name it.';
COMMENT ON COLUMN audit.delegations.from_operator IS 'Whose right it is.';
COMMENT ON COLUMN audit.delegations.to_operator IS 'Who may use it.';
COMMENT ON COLUMN audit.delegations.roles IS 'The roles that were lent.';
COMMENT ON COLUMN audit.delegations.groups IS 'The groups that were lent.';
COMMENT ON COLUMN audit.delegations.tiers IS 'The tiers in which everything held was lent.';
COMMENT ON COLUMN audit.delegations.reason IS 'Why.';
COMMENT ON COLUMN audit.delegations.granted_at IS 'When.';
COMMENT ON COLUMN audit.delegations.until IS 'When it ends by itself.';
COMMENT ON COLUMN audit.delegations.revoked_by IS 'Who ended it before.';
COMMENT ON COLUMN audit.delegations.revoke_reason IS 'Why it was ended before.';
COMMENT ON COLUMN audit.delegations.revoked_at IS 'When it was ended before.';

CREATE VIEW audit.votes AS
SELECT
    approval_id,
    call_id,
    run_id,
    agent,
    tool,
    operator,
    COALESCE(detail ->> 'for', operator)           AS on_authority_of,
    detail ->> 'vote'                              AS vote,
    detail -> 'tiers'                              AS tiers,
    detail -> 'seats'                              AS seats,
    words                                          AS reason,
    arguments_digest                               AS digest,
    recorded_at                                    AS voted_at
FROM audit.entries WHERE kind = 'approval_vote';

COMMENT ON VIEW audit.votes IS 'One row for each vote on a parked call.';
COMMENT ON COLUMN audit.votes.approval_id IS 'The approval.';
COMMENT ON COLUMN audit.votes.call_id IS 'The call.';
COMMENT ON COLUMN audit.votes.run_id IS 'The run of that call.';
COMMENT ON COLUMN audit.votes.agent IS 'The agent that asked.';
COMMENT ON COLUMN audit.votes.tool IS 'The tool it wants to call.';
COMMENT ON COLUMN audit.votes.operator IS 'Who voted.';
COMMENT ON COLUMN audit.votes.on_authority_of IS 'On whose right: another operator''s where the vote used a delegation.';
COMMENT ON COLUMN audit.votes.vote IS 'approve or deny.';
COMMENT ON COLUMN audit.votes.tiers IS 'The tiers in which the voter had a say.';
COMMENT ON COLUMN audit.votes.seats IS 'The seats the vote could take; it takes one of them at the most.';
COMMENT ON COLUMN audit.votes.reason IS 'Why.';
COMMENT ON COLUMN audit.votes.digest IS 'The digest of what was seen.';
COMMENT ON COLUMN audit.votes.voted_at IS 'When it was recorded.';

GRANT SELECT ON audit.delegations, audit.votes TO toolgate_auditor, toolgate_gateway;

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 16';
