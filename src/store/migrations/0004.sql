-- What is announced, to whom it is still owed, and where nobody wants to hear of it. Never
-- edited: schema.sql says what is current.

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

-- What failed before this version knew of it is no news.
INSERT INTO notify_state (id, cursor) SELECT 1, revision FROM state;
