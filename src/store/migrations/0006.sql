-- Version 6, as released. Never edited: schema.sql says what is current.

ALTER TABLE hosts ADD COLUMN registration INTEGER NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN detail TEXT;
ALTER TABLE sandboxes ADD COLUMN status_detail TEXT;
ALTER TABLE sandboxes ADD COLUMN template_id TEXT;
ALTER TABLE sandboxes ADD COLUMN default_user TEXT;
ALTER TABLE sandboxes ADD COLUMN default_env TEXT;

-- One more kind of operation, and what it needs to know.
DROP INDEX operations_unfinished;
ALTER TABLE operations RENAME TO operations_5;
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
INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at, sent_at, settle_at,
    finished_at, error)
SELECT id, sandbox_id, host_id, kind, created_at, deadline_at, sent_at, settle_at, finished_at, error
FROM operations_5;
DROP TABLE operations_5;

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

-- SQLite adds columns at the end of a line of its own; the text is made that of schema.sql.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(replace(sql,
    ', registration INTEGER NOT NULL DEFAULT 0', ''),
    '    updated_at        INTEGER NOT NULL',
    '    updated_at        INTEGER NOT NULL,
    registration      INTEGER NOT NULL DEFAULT 0')
WHERE name = 'hosts';
UPDATE sqlite_schema SET sql = replace(replace(sql,
    ', status_detail TEXT, template_id TEXT, default_user TEXT, default_env TEXT', ''),
    '    last_active_at    INTEGER',
    '    last_active_at    INTEGER,
    status_detail     TEXT,
    template_id       TEXT,
    default_user      TEXT,
    default_env       TEXT')
WHERE name = 'sandboxes';
UPDATE sqlite_schema SET sql = replace(replace(sql,
    ', detail TEXT', ''),
    '    actor       TEXT NOT NULL',
    '    actor       TEXT NOT NULL,
    detail      TEXT')
WHERE name = 'events';
PRAGMA writable_schema = RESET;
