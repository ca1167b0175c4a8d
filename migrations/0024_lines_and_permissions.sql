-- Less to decide for the same safety: identical calls that wait are decided as one line, and an approval can be given for the next
-- identical calls too, for a counted number and a time.

-- An approval is still for one call. The attached ones bear the times of the head of their line, and copies of its tiers,
-- escalations and votes, so that each is held against all of it by itself before its call is sent.
ALTER TABLE toolgate.approvals
    -- Keyed digest over everything that an approver is shown of the call; null on approvals from before.
    ADD COLUMN same_as       text COLLATE "C",
    -- The head of the line; null on the head itself. Written once: what is attached stays so.
    ADD COLUMN attached_to   text COLLATE "C" REFERENCES toolgate.approvals,
    -- The standing permission that approved it in the moment in which it was parked.
    ADD COLUMN permission_id text COLLATE "C",
    ADD CHECK (attached_to IS NULL OR permission_id IS NULL),
    ADD CHECK (permission_id IS NULL OR state <> 'pending');
CREATE INDEX approvals_heads ON toolgate.approvals (same_as) WHERE state = 'pending' AND attached_to IS NULL;
CREATE INDEX approvals_attached ON toolgate.approvals (attached_to) WHERE attached_to IS NOT NULL;

ALTER TABLE toolgate.votes
    -- On how many calls it was.
    ADD COLUMN calls        integer NOT NULL DEFAULT 1 CHECK (calls > 0),
    -- For how many identical calls more, and for how long, where the voter gave that.
    ADD COLUMN next_calls   integer CHECK (next_calls > 0),
    ADD COLUMN next_seconds integer CHECK (next_seconds > 0),
    ADD CHECK ((next_calls IS NULL) = (next_seconds IS NULL)),
    ADD CHECK (next_calls IS NULL OR vote = 'approve');
-- Statistics over a time.
CREATE INDEX votes_by_time ON toolgate.votes (voted_at);

CREATE TABLE toolgate.standing_permissions (
    permission_id  text COLLATE "C" PRIMARY KEY,
    -- With whose votes it was given; it counts exactly as long as they do.
    approval_id    text COLLATE "C" NOT NULL UNIQUE REFERENCES toolgate.approvals,
    run_id         text COLLATE "C" NOT NULL,
    agent          text COLLATE "C" NOT NULL,
    api            text COLLATE "C" NOT NULL,
    tool           text COLLATE "C" NOT NULL,
    consequence    text COLLATE "C" NOT NULL,
    -- Which calls it is for: those with this digest, which binds agent, run, tool, contract and arguments.
    digest         text COLLATE "C" NOT NULL,
    given_by       text[] NOT NULL CHECK (cardinality(given_by) > 0),
    calls          integer NOT NULL CHECK (calls > 0),
    used           integer NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND calls),
    created_at     timestamptz NOT NULL DEFAULT now(),
    ends_at        timestamptz NOT NULL,
    last_used_at   timestamptz,
    revoked_at     timestamptz,
    revoked_by     text COLLATE "C",
    revoke_reason  text,
    CHECK (ends_at > created_at),
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX standing_permissions_in_force ON toolgate.standing_permissions (digest) WHERE revoked_at IS NULL AND used < calls;
CREATE INDEX standing_permissions_by_run ON toolgate.standing_permissions (run_id, permission_id);
ALTER TABLE toolgate.approvals ADD FOREIGN KEY (permission_id) REFERENCES toolgate.standing_permissions;
GRANT SELECT, INSERT ON toolgate.standing_permissions TO toolgate_gateway;
GRANT UPDATE (used, last_used_at, revoked_at, revoked_by, revoke_reason) ON toolgate.standing_permissions TO toolgate_gateway;

-- A line is told of as one: when its head begins to wait and when it is decided. Nobody is told that a call waits which a standing
-- permission has approved. What becomes of each call is told of each.
CREATE OR REPLACE FUNCTION toolgate.tell(what text, about toolgate.approvals, more jsonb DEFAULT '{}') RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waits_in text[];
    deciders text[];
    voted_on text;
BEGIN
    SELECT coalesce(array_agg(tier ORDER BY tier), '{}') INTO waits_in
    FROM toolgate.approval_tiers WHERE approval_id = about.approval_id;
    SELECT coalesce(min(p.approval_id), about.approval_id) INTO voted_on
    FROM toolgate.standing_permissions AS p WHERE p.permission_id = about.permission_id;
    SELECT coalesce(array_agg(operator ORDER BY voted_at, operator), '{}') INTO deciders
    FROM toolgate.votes
    WHERE approval_id = voted_on
      AND vote = CASE what WHEN 'approval.approved' THEN 'approve' WHEN 'approval.denied' THEN 'deny' END;
    INSERT INTO toolgate.outbox (type, subject, tiers, data)
    VALUES (what, coalesce(about.attached_to, about.approval_id), waits_in, jsonb_build_object(
        'approval', about.approval_id, 'call', about.call_id, 'run', about.run_id, 'agent', about.agent,
        'api', about.api, 'tool', about.tool, 'consequence', about.consequence, 'digest', about.digest,
        'expires_at', toolgate.rfc3339(about.expires_at), 'decided_by', to_jsonb(deciders))
        || jsonb_strip_nulls(jsonb_build_object('attached_to', about.attached_to, 'permission', about.permission_id)) || more);
END
$$;

CREATE OR REPLACE FUNCTION toolgate.tell_of_approval() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    attached bigint;
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- Deferred to the end of the transaction, in which a standing permission may have approved it.
        IF NEW.attached_to IS NULL AND EXISTS (SELECT FROM toolgate.approvals
                                               WHERE approval_id = NEW.approval_id AND permission_id IS NULL) THEN
            PERFORM toolgate.tell('approval.created', NEW);
        END IF;
    ELSIF NEW.attached_to IS NULL OR OLD.state <> 'pending' THEN
        SELECT count(*) INTO attached FROM toolgate.approvals WHERE attached_to = NEW.approval_id;
        PERFORM toolgate.tell('approval.' || NEW.state, NEW, CASE
            WHEN attached = 0 OR OLD.state <> 'pending' THEN '{}'::jsonb
            ELSE jsonb_build_object('calls', attached + 1) END);
    END IF;
    RETURN NULL;
END
$$;

CREATE VIEW audit.permissions AS
SELECT
    granted.detail ->> 'permission'                AS permission,
    granted.approval_id,
    granted.call_id,
    granted.run_id,
    granted.agent,
    granted.tool,
    granted.arguments_digest                       AS digest,
    granted.detail -> 'given_by'                   AS given_by,
    (granted.detail ->> 'calls')::integer          AS calls,
    granted.recorded_at                            AS granted_at,
    (granted.detail ->> 'until')::timestamptz      AS until,
    COALESCE(uses.used, 0)                         AS used,
    uses.used_by,
    revoked.operator                               AS revoked_by,
    revoked.words                                  AS revoke_reason,
    revoked.recorded_at                            AS revoked_at
FROM audit.entries AS granted
LEFT JOIN LATERAL (
    SELECT count(*) AS used,
           jsonb_agg(jsonb_build_object('call', call_id, 'approval', approval_id, 'at', recorded_at)
                     ORDER BY recorded_at, instance_id, seq) AS used_by
    FROM audit.entries
    WHERE run_id = granted.run_id AND kind = 'permission_used' AND detail ->> 'permission' = granted.detail ->> 'permission'
) AS uses ON true
LEFT JOIN LATERAL (
    SELECT operator, words, recorded_at FROM audit.entries
    WHERE run_id = granted.run_id AND kind = 'permission_revoked' AND detail ->> 'permission' = granted.detail ->> 'permission'
    ORDER BY recorded_at LIMIT 1
) AS revoked ON true
WHERE granted.kind = 'permission_granted';

COMMENT ON VIEW audit.permissions IS 'One row for each standing permission: an approval that was given for the next identical calls of the run too.';
COMMENT ON COLUMN audit.permissions.permission IS 'The permission, as the calls that used it name it.';
COMMENT ON COLUMN audit.permissions.approval_id IS 'The approval with whose votes it was given.';
COMMENT ON COLUMN audit.permissions.call_id IS 'The call that waited for that approval.';
COMMENT ON COLUMN audit.permissions.run_id IS 'The run in which it counts.';
COMMENT ON COLUMN audit.permissions.agent IS 'The agent that asked.';
COMMENT ON COLUMN audit.permissions.tool IS 'The tool it calls.';
COMMENT ON COLUMN audit.permissions.digest IS 'The digest over exactly such a call.';
COMMENT ON COLUMN audit.permissions.given_by IS 'The operators who gave it; all who approved.';
COMMENT ON COLUMN audit.permissions.calls IS 'For how many calls.';
COMMENT ON COLUMN audit.permissions.granted_at IS 'When.';
COMMENT ON COLUMN audit.permissions.until IS 'When it ends by itself.';
COMMENT ON COLUMN audit.permissions.used IS 'How many calls it has approved.';
COMMENT ON COLUMN audit.permissions.used_by IS 'Those calls: call, approval, when.';
COMMENT ON COLUMN audit.permissions.revoked_by IS 'Who took it back before.';
COMMENT ON COLUMN audit.permissions.revoke_reason IS 'Why it was taken back before.';
COMMENT ON COLUMN audit.permissions.revoked_at IS 'When it was taken back before.';
GRANT SELECT ON audit.permissions TO toolgate_auditor, toolgate_gateway;

-- Added to, whatever stands there.
DO $$
BEGIN
    EXECUTE format('COMMENT ON TYPE audit.entry_kind IS %L',
        rtrim(obj_description('audit.entry_kind'::regtype, 'pg_type'), '.')
        || ', permission_granted (an approval was given for the next identical calls too), permission_used (a call that was parked was approved by it at once), permission_revoked.');
END
$$;

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 24';
