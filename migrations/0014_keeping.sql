-- Kinds of which there are few among very many, and which somebody looks for: halts, and what was dropped. Most rows only cost the
-- look at their kind.
CREATE INDEX entries_rare ON audit.entries (kind, recorded_at)
    WHERE kind IN ('halt', 'resume', 'key_created', 'signing_key_changed', 'partition_dropped');
-- What nobody is sure of is work for a person, and must be found at once.
CREATE INDEX entries_indeterminate ON audit.entries (recorded_at) WHERE outcome = 'indeterminate';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 14';
