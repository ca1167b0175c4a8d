-- Which master secret made a hash, a digest and a seal, so that an older one can be retired once nothing depends on it; and the
-- values that agents know only by a reference.
ALTER TABLE toolgate.keys ADD COLUMN secret_id text COLLATE "C";
ALTER TABLE toolgate.calls ADD COLUMN secret_id text COLLATE "C";
COMMENT ON COLUMN toolgate.keys.secret_id IS 'The id of the master secret under which hash was made; null for keys from before ids.';
COMMENT ON COLUMN toolgate.calls.secret_id IS 'The id of the master secret under which digest was made; null for calls from before ids.';

-- A run has one agent, so a reference of a run is that agent's.
CREATE TABLE toolgate.value_references (
    run_id      text COLLATE "C" NOT NULL REFERENCES toolgate.runs,
    reference   text COLLATE "C" NOT NULL,
    class       text NOT NULL CHECK (class IN ('secret', 'pii', 'confidential')),
    -- The value as JSON, sealed; erased when the run ends.
    sealed      bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, reference)
);
GRANT SELECT, INSERT ON toolgate.value_references TO toolgate_gateway;

-- The gateway's role deletes nothing by itself: this takes away the values of runs that are over, and no others.
CREATE FUNCTION toolgate.erase_references() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
    WITH erased AS (
        DELETE FROM toolgate.value_references AS v USING toolgate.runs AS r
        WHERE r.run_id = v.run_id AND (r.ended_at IS NOT NULL OR r.expires_at <= now())
        RETURNING 1
    )
    SELECT count(*) FROM erased
$$;
REVOKE ALL ON FUNCTION toolgate.erase_references() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION toolgate.erase_references() TO toolgate_gateway;

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 10';
