-- Version 8, as released. Never edited: schema.sql says what is current.

CREATE TABLE event_shares (
    author   TEXT PRIMARY KEY,
    given_up INTEGER NOT NULL,
    up_to    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
