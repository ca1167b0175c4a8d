-- The word for an entry that says that a month is about to be dropped. In a migration of its own: PostgreSQL lets a new enum value
-- be used only after the transaction that added it.
ALTER TYPE audit.entry_kind ADD VALUE 'partition_dropped';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 11';
