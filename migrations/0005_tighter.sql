-- A CHECK that comes to NULL lets a row pass: these say the same without that hole.
ALTER TABLE audit.entries
    ADD CONSTRAINT entries_refusal_is_told CHECK (
        kind <> 'refusal' OR (decision IS NOT DISTINCT FROM 'deny' AND COALESCE(cardinality(reasons), 0) > 0)),
    ADD CONSTRAINT entries_parked_is_told CHECK (kind <> 'parked' OR decision IS NOT DISTINCT FROM 'park'),
    ADD CONSTRAINT entries_intent_is_told CHECK (kind <> 'intent' OR decision IS NOT DISTINCT FROM 'permit');

-- Everybody may make temporary tables unless told otherwise; nobody here needs one.
DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'the database belongs to another role: temporary tables stay allowed';
END
$$;

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 5';
