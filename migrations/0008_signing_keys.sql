-- The changes of the key that signs checkpoints: few, and found at every start and by every verifier.
CREATE INDEX entries_signing_keys ON audit.entries (instance_id, seq) WHERE kind = 'signing_key_changed';

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 8';
