-- New words for entries: a call that goes to the work list, and what operators do with what stands there. In a migration of their
-- own: PostgreSQL lets a new enum value be used only after the transaction that added it.
ALTER TYPE audit.entry_kind ADD VALUE 'work_listed';
ALTER TYPE audit.entry_kind ADD VALUE 'work_viewed';
ALTER TYPE audit.entry_kind ADD VALUE 'work_claimed';
ALTER TYPE audit.entry_kind ADD VALUE 'work_released';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 19';
