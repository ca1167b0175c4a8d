-- New words for entries, in a migration of their own: PostgreSQL lets a new enum value be used only after the transaction that
-- added it.
ALTER TYPE audit.entry_kind ADD VALUE 'permission_granted';
ALTER TYPE audit.entry_kind ADD VALUE 'permission_used';
ALTER TYPE audit.entry_kind ADD VALUE 'permission_revoked';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 23';
