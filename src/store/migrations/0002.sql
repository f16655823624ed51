-- Version 2, as released. Never edited: schema.sql says what is current.

CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    hash         BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    team_id      TEXT NOT NULL,
    name         TEXT NOT NULL,
    suffix       TEXT NOT NULL,          -- last digits of the key, to tell it from others
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER                 -- to the minute; NULL: never
) STRICT, WITHOUT ROWID;

CREATE INDEX audit_logs_by_team ON audit_logs (team_id)
    WHERE team_id <> 'team-0000000000000000000000000';
