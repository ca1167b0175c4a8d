-- Who checks the chains looks for what was dropped first; there are few such entries among very many.
CREATE INDEX entries_dropped ON audit.entries (recorded_at) WHERE kind = 'partition_dropped';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 14';
