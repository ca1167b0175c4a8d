CREATE TYPE audit.entry_kind AS ENUM (
    'refusal', 'parked', 'intent', 'outcome', 'ended',
    'run_opened', 'run_ended',
    'approval_vote', 'approval_viewed', 'halt', 'resume',
    'key_created', 'gateway_started', 'gateway_stopped', 'operator_refused');
CREATE TYPE audit.decision AS ENUM ('permit', 'park', 'deny');
CREATE TYPE audit.outcome AS ENUM ('completed', 'failed', 'indeterminate', 'denied', 'expired', 'voided');

-- The one durable history. Rows are only ever inserted; each gateway start (instance) numbers its own from 1.
CREATE TABLE audit.entries (
    instance_id        text        COLLATE "C" NOT NULL,
    seq                bigint      NOT NULL,
    recorded_at        timestamptz NOT NULL,
    kind               audit.entry_kind NOT NULL,
    opens_call         boolean     NOT NULL DEFAULT false,
    call_id            text        COLLATE "C",
    run_id             text        COLLATE "C",
    approval_id        text        COLLATE "C",
    kill_switch_id     text        COLLATE "C",
    agent              text        COLLATE "C",
    operator           text        COLLATE "C",
    surface            text        COLLATE "C",
    api                text        COLLATE "C",
    tool               text        COLLATE "C",
    consequence        text        COLLATE "C",
    contract_digest    text        COLLATE "C",
    policy_digest      text        COLLATE "C",
    arguments          jsonb,
    arguments_digest   text        COLLATE "C",
    decision           audit.decision,
    reasons            text[],
    policies           text[],
    received_at        timestamptz,
    decided_at         timestamptz,
    forwarded_at       timestamptz,
    finished_at        timestamptz,
    status             smallint,
    executed           boolean,
    outcome            audit.outcome,
    words              text,
    detail             jsonb,
    PRIMARY KEY (instance_id, seq, recorded_at),
    -- Which rows make sense. One CHECK, because PostgreSQL reads each anew for every statement, and this table takes one
    -- statement for every commit. It never comes to NULL, which would let a row pass.
    CONSTRAINT entries_shape CHECK (
        seq > 0 AND CASE kind
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
            WHEN 'halt' THEN NOT opens_call AND operator IS NOT NULL
            WHEN 'resume' THEN NOT opens_call AND operator IS NOT NULL
            ELSE NOT opens_call
        END)
) PARTITION BY RANGE (recorded_at);

CREATE INDEX entries_call ON audit.entries (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX entries_run ON audit.entries (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX entries_kill_switch ON audit.entries (kill_switch_id) WHERE kill_switch_id IS NOT NULL;
CREATE INDEX entries_recorded ON audit.entries USING brin (recorded_at);

CREATE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on audit.% is refused: entries are append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

-- A row trigger on the parent is carried to every partition; a statement trigger for TRUNCATE is not, so each
-- partition gets its own when it is made.
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON audit.entries
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER entries_not_truncated BEFORE TRUNCATE ON audit.entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

-- Partitions are made ahead by the gateway, which may call this and nothing else that creates.
CREATE FUNCTION audit.ensure_partitions(months_ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month date;
    name  text;
    made  integer := 0;
BEGIN
    IF months_ahead NOT BETWEEN 0 AND 24 THEN
        RAISE EXCEPTION 'months_ahead must be between 0 and 24';
    END IF;
    FOR ahead IN 0..months_ahead LOOP
        month := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead))::date;
        name := 'entries_' || to_char(month, 'YYYY_MM');
        IF to_regclass('audit.' || name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE audit.%I PARTITION OF audit.entries FOR VALUES FROM (%L) TO (%L)',
                name, month::text || ' 00:00:00+00', (month + interval '1 month')::date::text || ' 00:00:00+00');
            EXECUTE format(
                'CREATE TRIGGER entries_not_truncated BEFORE TRUNCATE ON audit.%I
                 FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change()', name);
            EXECUTE format('GRANT SELECT ON audit.%I TO toolgate_auditor', name);
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;
REVOKE ALL ON FUNCTION audit.ensure_partitions(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.ensure_partitions(integer) TO toolgate_gateway;
SELECT audit.ensure_partitions(3);

-- Contracts and policies as they stood when they decided, once for each digest.
CREATE TABLE audit.versions (
    digest      text        COLLATE "C" PRIMARY KEY,
    kind        text        NOT NULL CHECK (kind IN ('contract', 'policies')),
    name        text        NOT NULL,
    content     text        NOT NULL,
    first_used  timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER versions_append_only BEFORE UPDATE OR DELETE ON audit.versions
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER versions_not_truncated BEFORE TRUNCATE ON audit.versions
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

GRANT SELECT, INSERT ON audit.entries, audit.versions TO toolgate_gateway;
GRANT SELECT ON audit.entries, audit.versions TO toolgate_auditor;
