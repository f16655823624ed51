//! Owns what must be true of a database that a killed server left: everything that was said
//! to be done is there, and nothing is there by half.
//!
//! Never: changes the database. What `roost db verify` checks is not repeated here.

#![allow(unreachable_pub, reason = "a part of one test")]

use crate::journal::{Capsule, Notes};
use roost::model::id::SandboxId;
use roost::store::open::open_reader;
use rusqlite::{Connection, Row};
use std::collections::BTreeMap;
use std::path::Path;

/// One row and how it came to be what it is.
#[derive(Debug)]
pub struct Found {
    pub host: String,
    pub status: String,
    /// Statuses that it was moved to, and why, oldest first.
    pub history: Vec<(String, String)>,
    /// An announcement waits for a look at the host.
    pub announced: bool,
}

/// Every sandbox of a database.
pub fn sandboxes(db: &Path) -> BTreeMap<SandboxId, Found> {
    let conn = open_reader(db).unwrap();
    // One look: a server may be at work.
    conn.execute_batch("BEGIN").unwrap();
    let found = |row: &Row<'_>| {
        let id: String = row.get(0)?;
        let found = Found {
            host: row.get(1)?,
            status: row.get(2)?,
            history: Vec::new(),
            announced: row.get(3)?,
        };
        Ok((id.parse().unwrap(), found))
    };
    let mut all: BTreeMap<SandboxId, Found> = query(
        &conn,
        "SELECT s.id, s.host_id, s.status, \
         id IN (SELECT sandbox_id FROM auto_pause_inbox) FROM sandboxes s",
        found,
    )
    .into_iter()
    .collect();
    let sql = "SELECT sandbox_id, to_status, reason FROM events \
               WHERE sandbox_id IS NOT NULL AND to_status IS NOT NULL ORDER BY revision";
    for (id, to, reason) in query(&conn, sql, |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    }) {
        let id: SandboxId = id.parse().unwrap();
        all.get_mut(&id).unwrap_or_else(|| panic!("an event of {id}")).history.push((to, reason));
    }
    all
}

fn query<T>(conn: &Connection, sql: &str, read: fn(&Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
    let mut select = conn.prepare(sql).unwrap();
    let rows = select.query_map([], read).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Everything that was said to be done is in the database. An intent that nobody knew of is
/// known now.
pub fn nothing_is_lost(db: &Path, sandboxes: &BTreeMap<SandboxId, Found>, notes: &mut Notes) {
    for (id, capsule) in &notes.capsules {
        let found = sandboxes.get(id).unwrap_or_else(|| panic!("{id} was created and is gone"));
        if let Err(what) = holds_all(capsule, found) {
            panic!("{id}: {what}: {capsule:?} {found:?}");
        }
    }
    let conn = open_reader(db).unwrap();
    let hosts: BTreeMap<String, (bool, String)> =
        query(&conn, "SELECT id, registered_at IS NOT NULL, intent FROM hosts", |row| {
            Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))
        })
        .into_iter()
        .collect();
    for (id, host) in &mut notes.hosts {
        let (registered, intent) =
            hosts.get(id).unwrap_or_else(|| panic!("{id} was added and is gone"));
        assert!(*registered || !host.registered, "{id} was registered and is not");
        if let Some(asked) = host.intent_asked.take().filter(|asked| asked == intent) {
            host.intent = asked;
        }
        assert_eq!(host.intent, intent, "the intent of {id}");
    }
}

/// Each request that was accepted has a transition of its own, in the same order; and what
/// was announced is still known.
pub fn holds_all(capsule: &Capsule, found: &Found) -> Result<(), String> {
    let mut history = found.history.iter();
    for asked in capsule.asked.iter().filter(|asked| asked.accepted) {
        let wanted = |(to, why): &(String, String)| to == asked.verb.status() && why == "requested";
        if !history.any(wanted) {
            return Err(format!("{:?} was accepted and did not begin", asked.verb));
        }
    }
    if capsule.announced && !found.announced && found.status != "paused" {
        return Err("what was announced is forgotten".to_owned());
    }
    Ok(())
}

/// Nothing of a decision is there without the rest of it, and nothing was taken for gone:
/// no simulated host ever loses a sandbox.
pub fn nothing_is_by_half(db: &Path, sandboxes: &BTreeMap<SandboxId, Found>) {
    let conn = open_reader(db).unwrap();
    for (meaning, sql) in [
        (
            "a transition does not begin where the last one ended",
            "SELECT sandbox_id FROM (SELECT sandbox_id, from_status, \
             lag(to_status) OVER (PARTITION BY sandbox_id ORDER BY revision) AS before \
             FROM events WHERE sandbox_id IS NOT NULL AND to_status IS NOT NULL) \
             WHERE from_status IS NOT before",
        ),
        (
            "a wish without its audit entry",
            "SELECT sandbox_id FROM events WHERE reason = 'requested' \
             AND sandbox_id IS NOT NULL AND revision NOT IN (SELECT metadata ->> 'revision' \
             FROM audit_logs WHERE metadata ->> 'revision' IS NOT NULL)",
        ),
        (
            "a status that nobody carries on",
            "SELECT id FROM sandboxes s WHERE status IN \
             ('starting', 'pausing', 'resuming', 'stopping') AND id NOT IN \
             (SELECT sandbox_id FROM operations WHERE finished_at IS NULL)",
        ),
        (
            "a registered host without a refresh token",
            "SELECT id FROM hosts h WHERE registered_at IS NOT NULL \
             AND NOT EXISTS (SELECT 1 FROM refresh_tokens t WHERE t.host_id = h.id)",
        ),
    ] {
        let wrong = query(&conn, sql, |row| row.get::<_, String>(0));
        assert_eq!(wrong, Vec::<String>::new(), "{meaning}");
    }
    for (id, found) in sandboxes {
        let last = found.history.last().map(|(to, _)| to);
        assert_eq!(last, Some(&found.status), "the history of {id}");
        let stopped = |(to, why): &(String, String)| to == "stopped" && why == "vanished";
        assert!(!found.history.iter().any(stopped), "{id} was taken for gone: {found:?}");
    }
}
