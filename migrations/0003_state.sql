-- What stands now. Every change here is committed together with the audit entry that tells of it.
CREATE TABLE toolgate.instances (
    instance_id   text COLLATE "C" PRIMARY KEY,
    started_at    timestamptz NOT NULL,
    -- Every intent recorded before this moment has its outcome: where a restart begins to look for orphans.
    settled_until timestamptz NOT NULL
);

CREATE TABLE toolgate.keys (
    key_id      text COLLATE "C" PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('agent', 'operator')),
    owner       text COLLATE "C" NOT NULL,
    hash        bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);

CREATE TABLE toolgate.runs (
    run_id        text COLLATE "C" PRIMARY KEY,
    agent         text COLLATE "C" NOT NULL,
    triggered_by  text NOT NULL,
    purpose       text NOT NULL,
    scopes        text[] NOT NULL,
    implicit      boolean NOT NULL,
    opened_at     timestamptz NOT NULL,
    expires_at    timestamptz,
    ended_at      timestamptz
);

-- Calls that outlive their request: parked ones, and those with an Idempotency-Key.
CREATE TABLE toolgate.calls (
    call_id          text COLLATE "C" PRIMARY KEY,
    run_id           text COLLATE "C" NOT NULL REFERENCES toolgate.runs,
    agent            text COLLATE "C" NOT NULL,
    tool             text COLLATE "C" NOT NULL,
    digest           text COLLATE "C" NOT NULL,
    contract_digest  text COLLATE "C" NOT NULL,
    idempotency_key  text COLLATE "C",
    -- What will be sent, sealed; erased when the call ends.
    sealed           bytea,
    state            text NOT NULL CHECK (state IN ('parked', 'approved', 'executing', 'completed', 'failed',
                                                    'indeterminate', 'denied', 'expired', 'voided')),
    executed         boolean,
    status           smallint,
    -- The API's own answer, sealed; what the same request gets when it comes again.
    answer           bytea,
    -- Why it failed, was voided, or is indeterminate: one of the problem codes, and a sentence.
    code             text,
    explanation      text,
    received_at      timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent, idempotency_key),
    CHECK (state NOT IN ('parked', 'approved') OR sealed IS NOT NULL),
    CHECK (state IN ('parked', 'approved', 'executing') OR sealed IS NULL),
    CHECK (state <> 'completed' OR (executed AND status IS NOT NULL)),
    CHECK (state NOT IN ('denied', 'expired', 'voided', 'parked', 'approved') OR executed IS NOT TRUE)
);
CREATE INDEX calls_same_request ON toolgate.calls (run_id, digest);
CREATE INDEX calls_unfinished ON toolgate.calls (state) WHERE state IN ('approved', 'executing');

CREATE TABLE toolgate.approvals (
    approval_id  text COLLATE "C" PRIMARY KEY,
    call_id      text COLLATE "C" NOT NULL UNIQUE REFERENCES toolgate.calls,
    run_id       text COLLATE "C" NOT NULL,
    agent        text COLLATE "C" NOT NULL,
    owner        text COLLATE "C" NOT NULL,
    triggered_by text NOT NULL,
    api          text COLLATE "C" NOT NULL,
    tool         text COLLATE "C" NOT NULL,
    consequence  text COLLATE "C" NOT NULL,
    digest       text COLLATE "C" NOT NULL,
    policies     text[] NOT NULL,
    state        text NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'voided')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    -- Since when a kill switch has stopped this approval's clock.
    frozen_at    timestamptz,
    decided_at   timestamptz,
    CHECK ((state = 'pending') = (decided_at IS NULL)),
    CHECK (frozen_at IS NULL OR state = 'pending')
);
CREATE INDEX approvals_by_state ON toolgate.approvals (state, approval_id);
CREATE INDEX approvals_pending_agent ON toolgate.approvals (agent) WHERE state = 'pending';
CREATE INDEX approvals_pending_expiry ON toolgate.approvals (expires_at) WHERE state = 'pending';

-- What each tier asks for, as it stood when the call was parked.
CREATE TABLE toolgate.approval_tiers (
    approval_id  text COLLATE "C" NOT NULL REFERENCES toolgate.approvals,
    tier         text COLLATE "C" NOT NULL,
    needed       integer NOT NULL CHECK (needed > 0),
    PRIMARY KEY (approval_id, tier)
);

-- One person, one vote, whatever roles they hold: that is this primary key.
CREATE TABLE toolgate.votes (
    approval_id  text COLLATE "C" NOT NULL REFERENCES toolgate.approvals,
    operator     text COLLATE "C" NOT NULL,
    vote         text NOT NULL CHECK (vote IN ('approve', 'deny')),
    -- The tiers for which this person could speak when voting.
    tiers        text[] NOT NULL,
    digest       text COLLATE "C" NOT NULL,
    reason       text NOT NULL,
    voted_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (approval_id, operator)
);

CREATE TABLE toolgate.kill_switches (
    kill_switch_id  text COLLATE "C" PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('everything', 'api', 'tool', 'consequence', 'agent', 'run')),
    target          text COLLATE "C",
    reason          text NOT NULL,
    operator        text COLLATE "C" NOT NULL,
    pulled_at       timestamptz NOT NULL,
    released_at     timestamptz,
    released_by     text COLLATE "C",
    release_reason  text,
    CHECK ((kind = 'everything') = (target IS NULL)),
    CHECK ((released_at IS NULL) = (released_by IS NULL))
);
CREATE INDEX kill_switches_active ON toolgate.kill_switches (kill_switch_id) WHERE released_at IS NULL;

GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA toolgate TO toolgate_gateway;
REVOKE UPDATE ON toolgate.votes, toolgate.approval_tiers FROM toolgate_gateway;
