-- New words for entries. In a migration of their own: PostgreSQL lets a new enum value be used only after the transaction that
-- added it.
ALTER TYPE audit.entry_kind ADD VALUE 'audit_read';
ALTER TYPE audit.entry_kind ADD VALUE 'agent_refused';
ALTER TYPE audit.entry_kind ADD VALUE 'signing_key_changed';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 5';
