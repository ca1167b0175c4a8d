-- Kinds of which there are few among very many, and which somebody looks for: halts, and what was dropped. Most rows only cost the
-- look at their kind.
CREATE INDEX entries_rare ON audit.entries (kind, recorded_at)
    WHERE kind IN ('halt', 'resume', 'key_created', 'signing_key_changed', 'partition_dropped');
-- What nobody is sure of is work for a person, and must be found at once.
CREATE INDEX entries_indeterminate ON audit.entries (recorded_at) WHERE outcome = 'indeterminate';

-- A problem code that is seldom or never there was looked for through everything. Only refused, parked and failed calls pay for it.
CREATE INDEX entries_reasons ON audit.entries USING gin (reasons) WITH (gin_pending_list_limit = 256)
    WHERE reasons IS NOT NULL;
-- The same for a consequence that no call has had for long: one more name by which whole stretches of the table are ruled out.
DROP INDEX audit.entries_names;
CREATE INDEX entries_names ON audit.entries
    USING brin (agent text_bloom_ops, tool text_bloom_ops, consequence text_bloom_ops)
    WITH (pages_per_range = 64, autosummarize = on);

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 14';
