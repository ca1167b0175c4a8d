-- Three roles, so that no one password can both act and rewrite what was recorded:
--   the owner (who runs this) has the tables, toolgate_gateway works with them, toolgate_auditor reads.
-- Roles belong to the whole server, so another database of the same server may have made them already.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['toolgate_gateway', 'toolgate_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END
$$;

CREATE SCHEMA audit;
COMMENT ON SCHEMA audit IS 'What happened: append-only entries and the views a person reads. Nothing here is ever changed.';

CREATE SCHEMA toolgate;
COMMENT ON SCHEMA toolgate IS 'What is: runs, keys, parked calls, approvals and kill switches as they stand now.';

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA audit TO toolgate_gateway, toolgate_auditor;
GRANT USAGE ON SCHEMA toolgate TO toolgate_gateway;

-- Everybody may make temporary tables unless told otherwise; nobody here needs one.
DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'the database belongs to another role: temporary tables stay allowed';
END
$$;
