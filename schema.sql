-- The whole current schema of Roost's database. A fresh database is made from this file;
-- an older one is migrated step by step (src/store/migrations) to exactly the same, which
-- a test holds. Times are milliseconds since 1970-01-01 UTC. Ids are text, so that a
-- person with the sqlite3 shell can read everything.

-- One row: where the database stands.
CREATE TABLE state (
    id             INTEGER PRIMARY KEY CHECK (id = 1),
    revision       INTEGER NOT NULL,   -- last one given out
    listened_until INTEGER,            -- last heartbeat flush; NULL: until now (fixture)
    serving        INTEGER NOT NULL DEFAULT 0, -- a server has worked on it
    boot_id        TEXT,               -- of the machine when a server last began
    created_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE hosts (
    id                TEXT PRIMARY KEY,
    team_id           TEXT NOT NULL,
    type              TEXT NOT NULL,
    provider          TEXT,
    availability_zone TEXT,
    arch              TEXT,
    cpu_cores         INTEGER,
    memory_mb         INTEGER,
    disk_gb           INTEGER,
    address           TEXT,
    intent            TEXT NOT NULL CHECK (intent IN ('active', 'draining', 'offline')),
    liveness          TEXT NOT NULL CHECK (liveness IN ('alive', 'unreachable')),
    registered_at     INTEGER,         -- NULL: pending
    rejoining         INTEGER NOT NULL DEFAULT 0, -- heard again, not yet looked at
    degraded          INTEGER NOT NULL DEFAULT 0, -- heartbeats arrive, probes fail
    contact_gap       INTEGER NOT NULL DEFAULT 0, -- may have paused everything unannounced
    last_heartbeat_at INTEGER,
    probe_outcome     TEXT,            -- how probes fail since probe_at; NULL: they do not
    probe_detail      TEXT,
    probe_at          INTEGER,
    revision          INTEGER NOT NULL,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    registration      INTEGER NOT NULL DEFAULT 0 -- revision of the newest; host tokens name it
) STRICT, WITHOUT ROWID;

-- Hosts that were deleted on purpose: the only ids that a heartbeat answers with 404.
CREATE TABLE tombstones (
    host_id    TEXT PRIMARY KEY,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Clustered by host: one probe reads the rows of one host in one range. The statuses are
-- no `IN`: for more than two values SQLite makes a list of them anew for every row written.
CREATE TABLE sandboxes (
    host_id           TEXT NOT NULL REFERENCES hosts (id),
    id                TEXT NOT NULL,
    team_id           TEXT NOT NULL,
    status            TEXT NOT NULL CHECK (status = 'running' OR status = 'missing'
                          OR status = 'paused' OR status = 'starting' OR status = 'resuming'
                          OR status = 'pausing' OR status = 'stopping' OR status = 'stopped'
                          OR status = 'error' OR status = 'pending' OR status = 'hibernated'),
    status_reason     TEXT,
    status_changed_at INTEGER NOT NULL,
    revision          INTEGER NOT NULL,  -- of the last status change
    template          TEXT,
    vcpus             INTEGER,
    memory_mb         INTEGER,
    timeout_sec       INTEGER,
    disk_size_mb      INTEGER,
    guest_ip          TEXT,
    host_ip           TEXT,
    metadata          TEXT,              -- JSON object of strings
    created_at        INTEGER NOT NULL,
    started_at        INTEGER,
    last_active_at    INTEGER,
    status_detail     TEXT,              -- of a failure, in the agent's words
    template_id       TEXT,              -- NULL: minimal
    default_user      TEXT,
    default_env       TEXT,              -- JSON object of strings
    ended             INTEGER NOT NULL DEFAULT 0 -- what is over costs lists and probes nothing
                          CHECK (ended = (status = 'stopped' OR status = 'error')),
    PRIMARY KEY (host_id, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX sandboxes_by_id ON sandboxes (id);
-- The newest first, as lists show them. None has a status: only the end of a sandbox, and no
-- other change, touches them.
CREATE INDEX sandboxes_by_age ON sandboxes (ended, created_at DESC, id);
CREATE INDEX sandboxes_by_team ON sandboxes (team_id, ended, created_at DESC, id);
CREATE INDEX sandboxes_by_host ON sandboxes (host_id, ended, created_at DESC, id);

-- What the sandboxes of a host come to, so that nothing has to read them all: how many are in
-- each status, and what those take that hold a microVM or may. A host without any has no row.
CREATE TABLE host_usage (
    host_id    TEXT PRIMARY KEY,
    vcpus      INTEGER NOT NULL,
    memory_mb  INTEGER NOT NULL,
    pending    INTEGER NOT NULL,
    starting   INTEGER NOT NULL,
    running    INTEGER NOT NULL,
    pausing    INTEGER NOT NULL,
    paused     INTEGER NOT NULL,
    resuming   INTEGER NOT NULL,
    stopping   INTEGER NOT NULL,
    stopped    INTEGER NOT NULL,
    missing    INTEGER NOT NULL,
    error      INTEGER NOT NULL,
    hibernated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How many sandboxes of a team have not ended. A team without any has no row.
CREATE TABLE team_usage (
    team_id   TEXT PRIMARY KEY,
    sandboxes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Ids that an agent said it paused by itself. It says so once and forgets.
CREATE TABLE auto_pause_inbox (
    host_id    TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    revision   INTEGER NOT NULL,         -- newest when it was noted; a newer row outdates it
    noted_at   INTEGER NOT NULL,
    PRIMARY KEY (host_id, sandbox_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    id            TEXT PRIMARY KEY,
    sandbox_id    TEXT NOT NULL,
    host_id       TEXT NOT NULL,
    kind          TEXT NOT NULL
                      CHECK (kind IN ('create', 'pause', 'resume', 'destroy', 'snapshot')),
    created_at    INTEGER NOT NULL,
    deadline_at   INTEGER NOT NULL,
    sent_at       INTEGER,               -- the agent may have been asked
    settle_at     INTEGER,               -- destroy: it overtook a call that may still succeed
    finished_at   INTEGER,
    error         TEXT,
    from_status   TEXT,                  -- of the sandbox when the operation began
    template_id   TEXT,                  -- snapshot: what it makes
    template_name TEXT
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX operations_unfinished ON operations (host_id, sandbox_id)
    WHERE finished_at IS NULL;
-- What is given up by age is found by age; such an index grows at its end only.
CREATE INDEX operations_by_end ON operations (finished_at) WHERE finished_at IS NOT NULL;

-- Secrets are stored as SHA-256 only.
CREATE TABLE registration_tokens (
    hash       BLOB PRIMARY KEY,
    id         TEXT NOT NULL,
    host_id    TEXT NOT NULL REFERENCES hosts (id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A token stays valid until one of its children is used for the first time.
CREATE TABLE refresh_tokens (
    hash       BLOB PRIMARY KEY,
    id         TEXT NOT NULL,
    host_id    TEXT NOT NULL REFERENCES hosts (id),
    parent     BLOB,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_by_host ON refresh_tokens (host_id);

-- Keys of users. A revoked one is gone; the audit log remembers its name.
CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    hash         BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    team_id      TEXT NOT NULL,
    name         TEXT NOT NULL,
    suffix       TEXT NOT NULL,          -- last digits of the key, to tell it from others
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER                 -- to the minute; NULL: never
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_logs (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL,
    team_id       TEXT NOT NULL,
    actor_type    TEXT NOT NULL,
    actor_id      TEXT,
    actor_name    TEXT,
    resource_type TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    action        TEXT NOT NULL,
    scope         TEXT NOT NULL,
    status        TEXT NOT NULL,
    metadata      TEXT NOT NULL,         -- JSON object: from, to, reason, ...
    created_at    INTEGER NOT NULL
) STRICT;
-- Followed by seq: a page of one team's entries is one range. The platform team's are nearly
-- all there are. By resource there is no index: ids in no order would touch every page of it
-- whenever a host's sandboxes change.
CREATE INDEX audit_logs_by_team ON audit_logs (team_id)
    WHERE team_id <> 'team-0000000000000000000000000';

CREATE TABLE events (
    revision    INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    host_id     TEXT NOT NULL,
    sandbox_id  TEXT,
    team_id     TEXT NOT NULL,
    from_status TEXT,
    to_status   TEXT,
    reason      TEXT NOT NULL,
    actor       TEXT NOT NULL,
    detail      TEXT                     -- of a failure, in the agent's words
) STRICT;

-- Events that were given up before older ones of others: when there are too many, the team, or
-- host of the platform, with the most loses its oldest. From the newest of these on the events
-- are whole.
CREATE TABLE event_shares (
    author   TEXT PRIMARY KEY,           -- id of the team, or of the platform's host
    given_up INTEGER NOT NULL,           -- how many
    up_to    INTEGER NOT NULL            -- revision of the newest of them
) STRICT, WITHOUT ROWID;

-- Every time that this database was restored from a backup.
CREATE TABLE restores (
    revision    INTEGER PRIMARY KEY,     -- where it goes on: none after last_known is used twice
    last_known  INTEGER NOT NULL,        -- newest revision of the backup
    as_of       INTEGER NOT NULL,        -- newest time that the backup knew of
    restored_at INTEGER NOT NULL,
    accepted_at INTEGER                  -- NULL: nothing is decided until an operator says so
) STRICT;

-- One row once somebody has looked for what to announce.
CREATE TABLE notify_state (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    cursor INTEGER NOT NULL             -- events up to this revision were looked at
) STRICT;

-- What is wrong, or was announced and its end was not yet.
CREATE TABLE notify_problems (
    kind      TEXT NOT NULL,
    host_id   TEXT NOT NULL,            -- empty: of all hosts
    opened_at INTEGER NOT NULL,
    sandboxes INTEGER NOT NULL,
    announced TEXT,                     -- id of the message that announced it
    told_at   INTEGER,
    gone_at   INTEGER,
    unwatched INTEGER NOT NULL,
    PRIMARY KEY (kind, host_id)
) STRICT, WITHOUT ROWID;

-- Messages that somebody has not got yet.
CREATE TABLE notify_messages (
    seq   INTEGER PRIMARY KEY,
    at    INTEGER NOT NULL,
    phase TEXT NOT NULL,
    body  TEXT NOT NULL                 -- JSON object, as generic targets get it
) STRICT;

CREATE TABLE notify_outbox (
    target TEXT NOT NULL,
    seq    INTEGER NOT NULL REFERENCES notify_messages (seq),
    PRIMARY KEY (target, seq)
) STRICT, WITHOUT ROWID;

-- An operator works on these hosts: nobody is told of them until then.
CREATE TABLE host_maintenance (
    host_id TEXT PRIMARY KEY,
    until   INTEGER NOT NULL,
    reason  TEXT
) STRICT, WITHOUT ROWID;

-- What sandboxes are made from, beside `minimal`, which every agent has.
CREATE TABLE templates (
    id           TEXT PRIMARY KEY,
    team_id      TEXT NOT NULL,          -- the platform's are visible to all teams
    name         TEXT NOT NULL,
    type         TEXT NOT NULL CHECK (type IN ('base', 'snapshot')),
    vcpus        INTEGER,
    memory_mb    INTEGER,
    disk_size_mb INTEGER,
    size_bytes   INTEGER,
    default_user TEXT,
    default_env  TEXT,                   -- JSON object of strings
    metadata     TEXT,                   -- JSON object of strings
    created_at   INTEGER NOT NULL,
    deleted_at   INTEGER                 -- until every host has deleted it
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX templates_by_name ON templates (team_id, name) WHERE deleted_at IS NULL;

-- Hosts known to have a template; without any, every host has it.
CREATE TABLE template_hosts (
    template_id TEXT NOT NULL REFERENCES templates (id),
    host_id     TEXT NOT NULL REFERENCES hosts (id),
    PRIMARY KEY (template_id, host_id)
) STRICT, WITHOUT ROWID;

-- Sandboxes that a host lists although this database does not place them there.
CREATE TABLE strangers (
    host_id    TEXT NOT NULL REFERENCES hosts (id),
    sandbox_id TEXT NOT NULL,
    kind       TEXT NOT NULL CHECK (kind IN ('zombie', 'forgotten', 'misplaced')),
    seen_at    INTEGER NOT NULL,         -- first
    PRIMARY KEY (host_id, sandbox_id)
) STRICT, WITHOUT ROWID;

-- Hosts that send heartbeats and are not in this database.
CREATE TABLE unknown_hosts (
    host_id       TEXT PRIMARY KEY,
    genuine       INTEGER NOT NULL,      -- its token was signed by us
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Creates that a client may repeat; kept for a day.
CREATE TABLE idempotency_keys (
    scope      TEXT NOT NULL,            -- the team's id, or `admin`
    key        TEXT NOT NULL,
    body_hash  BLOB NOT NULL,            -- SHA-256 of the request
    sandbox_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
