-- What an agent did last in a run is read along the index, however long the run has become.
DROP INDEX audit.entries_run;
CREATE INDEX entries_run ON audit.entries (run_id, recorded_at) WHERE run_id IS NOT NULL;

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 21';
