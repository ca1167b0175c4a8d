-- A new word for entries, in a migration of its own: PostgreSQL lets a new enum value be used only after the transaction that added
-- it.
ALTER TYPE audit.entry_kind ADD VALUE 'chain_signed';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 27';
