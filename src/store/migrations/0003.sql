-- Version 3, as released. Never edited: schema.sql says what is current.

CREATE TABLE restores (
    revision    INTEGER PRIMARY KEY,
    last_known  INTEGER NOT NULL,
    as_of       INTEGER NOT NULL,
    restored_at INTEGER NOT NULL,
    accepted_at INTEGER
) STRICT;
