-- Version 7, as released. Never edited: schema.sql says what is current.

ALTER TABLE sandboxes ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
UPDATE sandboxes SET ended = 1 WHERE status IN ('stopped', 'error');
CREATE INDEX sandboxes_by_age ON sandboxes (ended, created_at DESC, id);
CREATE INDEX sandboxes_by_team ON sandboxes (team_id, ended, created_at DESC, id);
CREATE INDEX sandboxes_by_host ON sandboxes (host_id, ended, created_at DESC, id);

-- What is given up by age is found by age. Both grow at their end only.
CREATE INDEX operations_by_end ON operations (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

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

INSERT INTO host_usage
SELECT host_id,
    sum(CASE WHEN status NOT IN ('paused', 'stopped', 'error', 'hibernated')
        THEN coalesce(vcpus, 0) ELSE 0 END),
    sum(CASE WHEN status NOT IN ('paused', 'stopped', 'error', 'hibernated')
        THEN coalesce(memory_mb, 0) ELSE 0 END),
    sum(status = 'pending'),
    sum(status = 'starting'),
    sum(status = 'running'),
    sum(status = 'pausing'),
    sum(status = 'paused'),
    sum(status = 'resuming'),
    sum(status = 'stopping'),
    sum(status = 'stopped'),
    sum(status = 'missing'),
    sum(status = 'error'),
    sum(status = 'hibernated')
FROM sandboxes GROUP BY host_id;
INSERT INTO team_usage SELECT team_id, count(*) FROM sandboxes WHERE ended = 0 GROUP BY team_id;

-- SQLite adds columns at the end of a line of its own; the text is made that of schema.sql.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(replace(sql,
    ', ended INTEGER NOT NULL DEFAULT 0', ''),
    '    default_env       TEXT,',
    '    default_env       TEXT,
    ended             INTEGER NOT NULL DEFAULT 0
                          CHECK (ended = (status = ''stopped'' OR status = ''error'')),')
WHERE name = 'sandboxes';
PRAGMA writable_schema = RESET;
