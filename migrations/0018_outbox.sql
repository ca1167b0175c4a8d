-- The transactional outbox: what people are to be told, written by triggers in the very transaction that made it true, so that no
-- way to change a row can forget it, and nothing is told that was rolled back. It holds no arguments.

CREATE FUNCTION toolgate.new_event_id() RETURNS text
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- A UUIDv7 (RFC 9562): 48 bits of milliseconds, version, variant, random bits; in Crockford base32, like every id.
    bits   bit(130) := B'00' || (floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint::bit(48)
                       || B'0111' || substring(('x' || replace(gen_random_uuid()::text, '-', ''))::bit(128) FROM 53 FOR 76));
    letters text := '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
    written text := 'evt_';
BEGIN
    FOR place IN 0..25 LOOP
        written := written || substr(letters, substring(bits FROM place * 5 + 1 FOR 5)::integer + 1, 1);
    END LOOP;
    RETURN written;
END
$$;

CREATE TABLE toolgate.outbox (
    -- Rises with every event. All events are written by the one connection that records, so it rises in the order of commits.
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The same for every destination and every repetition, so that a receiver knows what it has seen.
    event_id     text COLLATE "C" NOT NULL UNIQUE DEFAULT toolgate.new_event_id(),
    type         text COLLATE "C" NOT NULL CHECK (type IN (
                     'approval.created', 'approval.approved', 'approval.denied', 'approval.expired', 'approval.voided',
                     'call.completed', 'call.failed', 'call.indeterminate', 'halt.pulled', 'halt.released')),
    occurred_at  timestamptz NOT NULL DEFAULT now(),
    -- The approval or the kill switch: a destination learns of one in order.
    subject      text COLLATE "C" NOT NULL,
    tiers        text[] NOT NULL DEFAULT '{}',
    data         jsonb NOT NULL,
    -- When each destination that wants it got its delivery.
    spread_at    timestamptz
);
CREATE INDEX outbox_not_spread ON toolgate.outbox (seq) WHERE spread_at IS NULL;
CREATE INDEX outbox_occurred ON toolgate.outbox (occurred_at);

CREATE TABLE toolgate.deliveries (
    delivery_id  text COLLATE "C" PRIMARY KEY,
    destination  text COLLATE "C" NOT NULL,
    seq          bigint NOT NULL REFERENCES toolgate.outbox ON DELETE CASCADE,
    subject      text COLLATE "C" NOT NULL,
    state        text NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts     integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- Since when it has waited: since its event, or since an operator asked for it again.
    queued_at    timestamptz NOT NULL DEFAULT now(),
    next_try_at  timestamptz NOT NULL DEFAULT now(),
    last_try_at  timestamptz,
    last_error   text,
    ended_at     timestamptz,
    UNIQUE (destination, seq),
    CHECK ((state = 'pending') = (ended_at IS NULL)),
    CHECK (state <> 'dead' OR last_error IS NOT NULL)
);
CREATE INDEX deliveries_pending ON toolgate.deliveries (destination, seq) WHERE state = 'pending';
CREATE INDEX deliveries_order ON toolgate.deliveries (destination, subject, seq) WHERE state = 'pending';
CREATE INDEX deliveries_by_state ON toolgate.deliveries (state, delivery_id);
CREATE INDEX deliveries_event ON toolgate.deliveries (seq);

CREATE TABLE toolgate.destinations (
    name              text COLLATE "C" PRIMARY KEY,
    -- Keyed digest of its config: another one enables it again.
    fingerprint       text COLLATE "C" NOT NULL,
    disabled_at       timestamptz,
    disabled_because  text,
    CHECK ((disabled_at IS NULL) = (disabled_because IS NULL))
);

GRANT SELECT, INSERT, UPDATE ON toolgate.outbox, toolgate.deliveries, toolgate.destinations TO toolgate_gateway;

-- The gateway's role deletes nothing by itself: this takes away up to 1,000 events that are older than so many days, with their
-- deliveries. The newest event stays, so that the numbers go on from it, and so does what has begun to wait since.
CREATE FUNCTION toolgate.clear_outbox(older_than_days integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH cleared AS (
        DELETE FROM toolgate.outbox WHERE seq IN (
            SELECT o.seq FROM toolgate.outbox AS o
            WHERE o.occurred_at < now() - make_interval(days => greatest(older_than_days, 1))
              AND o.seq < (SELECT max(seq) FROM toolgate.outbox)
              AND NOT EXISTS (SELECT FROM toolgate.deliveries AS d
                              WHERE d.seq = o.seq AND d.state = 'pending'
                                AND d.queued_at >= now() - make_interval(days => greatest(older_than_days, 1)))
            ORDER BY o.seq LIMIT 1000)
        RETURNING 1
    )
    SELECT count(*) FROM cleared
$$;
REVOKE ALL ON FUNCTION toolgate.clear_outbox(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION toolgate.clear_outbox(integer) TO toolgate_gateway;

CREATE FUNCTION toolgate.rfc3339(at timestamptz) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS
    $$ SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

CREATE FUNCTION toolgate.tell(what text, about toolgate.approvals) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waits_in text[];
    deciders text[];
BEGIN
    SELECT coalesce(array_agg(tier ORDER BY tier), '{}') INTO waits_in
    FROM toolgate.approval_tiers WHERE approval_id = about.approval_id;
    SELECT coalesce(array_agg(operator ORDER BY voted_at, operator), '{}') INTO deciders
    FROM toolgate.votes
    WHERE approval_id = about.approval_id
      AND vote = CASE what WHEN 'approval.approved' THEN 'approve' WHEN 'approval.denied' THEN 'deny' END;
    INSERT INTO toolgate.outbox (type, subject, tiers, data)
    VALUES (what, about.approval_id, waits_in, jsonb_build_object(
        'approval', about.approval_id, 'call', about.call_id, 'run', about.run_id, 'agent', about.agent,
        'api', about.api, 'tool', about.tool, 'consequence', about.consequence, 'digest', about.digest,
        'expires_at', toolgate.rfc3339(about.expires_at), 'decided_by', to_jsonb(deciders)));
END
$$;

CREATE FUNCTION toolgate.tell_of_approval() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM toolgate.tell('approval.created', NEW);
    ELSE
        PERFORM toolgate.tell('approval.' || NEW.state, NEW);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION toolgate.tell_of_call() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parked toolgate.approvals;
BEGIN
    SELECT * INTO parked FROM toolgate.approvals WHERE call_id = NEW.call_id;
    -- A call that was never parked waits for nobody.
    IF FOUND THEN
        PERFORM toolgate.tell('call.' || NEW.state, parked);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION toolgate.tell_of_kill_switch() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO toolgate.outbox (type, subject, data)
    VALUES (CASE WHEN NEW.released_at IS NULL THEN 'halt.pulled' ELSE 'halt.released' END, NEW.kill_switch_id,
        jsonb_build_object(
            'kill_switch', NEW.kill_switch_id, 'kind', NEW.kind, 'target', NEW.target,
            'operator', coalesce(NEW.released_by, NEW.operator),
            'reason', CASE WHEN NEW.released_at IS NULL THEN NEW.reason ELSE NEW.release_reason END));
    RETURN NULL;
END
$$;

-- Deferred to the end of the transaction, when the tiers and votes that belong to a change stand too.
CREATE CONSTRAINT TRIGGER approvals_are_told AFTER INSERT ON toolgate.approvals
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION toolgate.tell_of_approval();
CREATE CONSTRAINT TRIGGER decisions_are_told AFTER UPDATE OF state ON toolgate.approvals
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state IN ('approved', 'denied', 'expired', 'voided'))
    EXECUTE FUNCTION toolgate.tell_of_approval();
CREATE CONSTRAINT TRIGGER endings_are_told AFTER UPDATE OF state ON toolgate.calls
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state IN ('completed', 'failed', 'indeterminate'))
    EXECUTE FUNCTION toolgate.tell_of_call();
CREATE CONSTRAINT TRIGGER halts_are_told AFTER INSERT ON toolgate.kill_switches
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION toolgate.tell_of_kill_switch();
CREATE CONSTRAINT TRIGGER releases_are_told AFTER UPDATE OF released_at ON toolgate.kill_switches
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.released_at IS NULL AND NEW.released_at IS NOT NULL)
    EXECUTE FUNCTION toolgate.tell_of_kill_switch();

CREATE OR REPLACE FUNCTION toolgate.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 18';
