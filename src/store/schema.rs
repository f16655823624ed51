//! Owns the question whether a database has the schema that Roost gave it, and nothing else.
//!
//! Never: changes a schema. A trigger or a view of a stranger would act with our hands.

use super::StoreError;
use super::open;
use crate::logging::one_line;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;

/// Tables that Litestream makes; nothing of ours reads them.
const OF_LITESTREAM: [&str; 2] = ["_litestream_seq", "_litestream_lock"];

/// Tables that SQLite makes for itself when a database is analysed.
const OF_SQLITE: [&str; 2] = ["sqlite_stat1", "sqlite_stat4"];

/// What is in a schema: kind and name, with the table it is on and how it was made.
type Objects = BTreeMap<(String, String), (String, String)>;

/// Everything by which the schema differs from what Roost makes of this version, a line each.
pub(super) fn differences(conn: &Connection, version: i64) -> Result<Vec<String>, StoreError> {
    let found = objects(conn)?;
    let made = Connection::open_in_memory()?;
    open::make(&made, version)?;
    let expected = objects(&made)?;
    let mut wrong = Vec::new();
    for (object, made) in &found {
        let (kind, name) = (object.0.as_str(), one_line(&object.1));
        match expected.get(object) {
            Some(expected) if expected == made => {}
            Some(_) => wrong.push(format!("{kind} {name} is not as roost makes it")),
            None if is_known(kind, &object.1, &made.1) => {}
            None => wrong.push(format!("{kind} {name} is not roost's")),
        }
    }
    let missing = expected.keys().filter(|object| !found.contains_key(object));
    wrong.extend(missing.map(|(kind, name)| format!("{kind} {name} is missing")));
    Ok(wrong)
}

/// Refuses a database with any; `name` is what a complaint calls it.
pub(super) fn check(conn: &Connection, name: &Path) -> Result<(), StoreError> {
    match differences(conn, open::version(conn)?)?.split_first() {
        None => Ok(()),
        Some((first, more)) => Err(StoreError::Altered {
            path: name.to_owned(),
            first: first.clone(),
            more: more.len(),
        }),
    }
}

fn is_known(kind: &str, name: &str, made_by: &str) -> bool {
    let is_table = kind == "table" && made_by.starts_with("CREATE TABLE");
    is_table && (OF_LITESTREAM.contains(&name) || OF_SQLITE.contains(&name))
}

fn objects(conn: &Connection) -> Result<Objects, StoreError> {
    let mut select = conn.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema")?;
    let rows = select.query_map([], |row| {
        let sql: Option<String> = row.get(3)?;
        Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, bare(&sql.unwrap_or_default()))))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Without comments and the way lines are broken: a migrated schema has others.
fn bare(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap_or("").trim());
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        open::make(&conn, open::schema_version()).unwrap();
        conn
    }

    #[test]
    fn whatever_is_foreign_is_named() {
        let of = |sql: &str| {
            let conn = fresh();
            conn.execute_batch(sql).unwrap();
            differences(&conn, open::schema_version()).unwrap()
        };
        for (sql, found) in [
            (
                "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM audit_logs; END",
                "trigger t is not roost's",
            ),
            ("CREATE VIEW v AS SELECT 1", "view v is not roost's"),
            ("CREATE TABLE mine (x)", "table mine is not roost's"),
            ("CREATE INDEX i ON hosts (arch)", "index i is not roost's"),
            ("DROP INDEX sandboxes_by_id", "index sandboxes_by_id is missing"),
            ("ALTER TABLE events ADD COLUMN more TEXT", "table events is not as roost makes it"),
            ("CREATE TABLE \"a\u{9b}2J\" (x)", "table a\\u{9b}2J is not roost's"),
            ("CREATE VIEW _litestream_seq AS SELECT 1", "view _litestream_seq is not roost's"),
            (
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = \
                 replace(sql, 'CHECK (id = 1)', '') WHERE name = 'state'",
                "table state is not as roost makes it",
            ),
        ] {
            assert_eq!(of(sql), [found], "{sql}");
        }
        let swapped = of("DROP TABLE events; CREATE VIEW events AS SELECT 1 AS revision");
        assert_eq!(swapped, ["view events is not roost's", "table events is missing"]);
        let known = "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER); \
                     CREATE TABLE _litestream_lock (id INTEGER); ANALYZE";
        assert_eq!(of(known), [] as [&str; 0]);
        assert_eq!(of(""), [] as [&str; 0]);
    }
}
