-- Which gateway came after which, and whether the one before can still be sending. `epoch` rises with every start, which has the
-- gateway's lock: whoever gets the lock back and finds a higher one than its own has been superseded. `process` tells a gateway on
-- the same machine whether that process still lives. `ended_at` is set by a gateway that sends nothing more, or by the next one
-- once that is certain.
ALTER TABLE toolgate.instances
    ADD COLUMN epoch    bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN process  text,
    ADD COLUMN ended_at timestamptz;

-- Of those so far only the newest can still be running.
UPDATE toolgate.instances SET ended_at = now()
WHERE instance_id <> (SELECT max(instance_id) FROM toolgate.instances);

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 30';
