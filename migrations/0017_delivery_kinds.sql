-- New words for entries. In a migration of their own: PostgreSQL lets a new enum value be used only after the transaction that
-- added it.
ALTER TYPE audit.entry_kind ADD VALUE 'stream_opened';
ALTER TYPE audit.entry_kind ADD VALUE 'delivery_dead';
ALTER TYPE audit.entry_kind ADD VALUE 'delivery_redelivered';
ALTER TYPE audit.entry_kind ADD VALUE 'destination_disabled';
ALTER TYPE audit.entry_kind ADD VALUE 'destination_enabled';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 17';
