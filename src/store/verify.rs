//! Owns the question whether a database is whole: SQLite's own checks and our invariants.
//!
//! Never: repairs anything. Called by `roost db verify` and by crash tests.

mod indexes;
mod walk;

use super::StoreError;
use super::{open, schema};
use rusqlite::Connection;

/// Page cache of a connection that reads all there is, in KiB. Larger: more memory for a
/// moment; smaller: pages are read again and again. No memory map: a disk that fails would end
/// the process instead of being complained of.
const CACHE_KIB: i64 = 32 * 1024;

/// What must find no row, with what it means when it does. `?` marks stand for nothing.
const INVARIANTS: &[(&str, &str)] = &[
    (
        "the revision counter is behind its events",
        "SELECT max(revision) FROM events HAVING max(revision) > (SELECT revision FROM state)",
    ),
    (
        "the last revision has no event",
        "SELECT revision FROM state WHERE revision > 0 \
         AND revision IS NOT (SELECT max(revision) FROM events) \
         AND revision NOT IN (SELECT revision FROM restores)",
    ),
    (
        "revisions have a gap",
        "SELECT low FROM \
         (SELECT min(revision) AS low, max(revision) AS high, count(*) AS n FROM events \
             WHERE revision > coalesce((SELECT max(up_to) FROM event_shares), 0)) \
         WHERE n > 0 AND high - low + 1 <> n + (SELECT coalesce(sum(r.revision - r.last_known), 0) \
             FROM restores r WHERE r.last_known >= low AND r.revision < high)",
    ),
    (
        "an audit entry has no event",
        "SELECT seq FROM audit_logs WHERE metadata ->> 'revision' IS NOT NULL \
         AND metadata ->> 'revision' >= (SELECT max(min(revision), coalesce((SELECT max(up_to) + 1 FROM event_shares), 0)) \
             FROM events) \
         AND NOT EXISTS (SELECT 1 FROM events e \
             WHERE e.revision = CAST(metadata ->> 'revision' AS INTEGER))",
    ),
    (
        "an audit entry is no JSON object",
        "SELECT seq FROM audit_logs WHERE json_type(metadata) <> 'object'",
    ),
    (
        "an announcement lies with the wrong host",
        "SELECT i.sandbox_id FROM auto_pause_inbox i WHERE NOT EXISTS \
         (SELECT 1 FROM sandboxes s WHERE s.host_id = i.host_id AND s.id = i.sandbox_id)",
    ),
    (
        "a deleted host is still there",
        "SELECT host_id FROM tombstones WHERE host_id IN (SELECT id FROM hosts)",
    ),
    (
        "an unfinished operation has no sandbox",
        "SELECT o.id FROM operations o WHERE o.finished_at IS NULL AND o.kind <> 'destroy' \
         AND NOT EXISTS \
         (SELECT 1 FROM sandboxes s WHERE s.host_id = o.host_id AND s.id = o.sandbox_id)",
    ),
    (
        "a sandbox runs on a host that is unreachable",
        "SELECT s.id FROM sandboxes s JOIN hosts h ON h.id = s.host_id \
         WHERE h.liveness = 'unreachable' AND (s.status = 'running' OR s.status = 'starting' \
         AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.host_id = s.host_id \
             AND o.sandbox_id = s.id AND o.finished_at IS NULL))",
    ),
];

/// Everything that is wrong with the database, a line each; empty when it is whole.
pub fn verify(conn: &Connection) -> Result<Vec<String>, StoreError> {
    let mut wrong = schema::differences(conn, open::schema_version())?;
    if !wrong.is_empty() {
        // What the rest would find is what the foreign part shows it.
        return Ok(wrong);
    }
    wrong = integrity(conn)?;
    for (meaning, query) in INVARIANTS {
        let mut select = conn.prepare(query)?;
        let mut rows = select.query([])?;
        if let Some(row) = rows.next()? {
            let example: rusqlite::types::Value = row.get(0)?;
            wrong.push(format!("{meaning} (for example {})", shown(&example)));
        }
    }
    for (meaning, example) in walk::walk(conn)? {
        wrong.push(format!("{meaning} (for example {example})"));
    }
    Ok(wrong)
}

/// What is wrong in SQLite's eyes: all that can be asked of an older schema.
pub(super) fn integrity(conn: &Connection) -> Result<Vec<String>, StoreError> {
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let mut wrong = Vec::new();
    let mut check = conn.prepare("PRAGMA quick_check(20)")?;
    let lines = check.query_map([], |row| row.get::<_, String>(0))?;
    for line in lines {
        let line = line?;
        if line != "ok" {
            wrong.push(format!("sqlite: {line}"));
        }
    }
    if wrong.is_empty() {
        wrong.extend(indexes::check(conn)?.into_iter().map(|line| format!("sqlite: {line}")));
    }
    let mut keys = conn.prepare("SELECT \"table\", parent FROM pragma_foreign_key_check")?;
    let mut rows = keys.query([])?;
    while let Some(row) = rows.next()? {
        let (table, parent): (String, String) = (row.get(0)?, row.get(1)?);
        wrong.push(format!("a row of {table} names no row of {parent}"));
    }
    Ok(wrong)
}

fn shown(value: &rusqlite::types::Value) -> String {
    use rusqlite::types::Value;
    match value {
        Value::Null => "null".to_owned(),
        Value::Integer(n) => n.to_string(),
        Value::Real(n) => n.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::SCHEMA;

    /// Each line breaks one invariant of an otherwise whole database.
    #[test]
    fn every_invariant_can_be_violated() {
        let broken = [
            "INSERT INTO events VALUES (9,0,'host.up','h',NULL,'t',NULL,NULL,'r','system',NULL)",
            "UPDATE state SET revision = 7",
            "INSERT INTO events VALUES (1,0,'host.up','h',NULL,'t',NULL,NULL,'r','system',NULL), \
             (3,0,'host.up','h',NULL,'t',NULL,NULL,'r','system',NULL); UPDATE state SET revision = 3",
            "INSERT INTO events VALUES (1,0,'host.up','h',NULL,'t',NULL,NULL,'r','system',NULL); \
             UPDATE state SET revision = 1; INSERT INTO audit_logs VALUES \
             (1,'l','t','system',NULL,NULL,'host','h','marked_up','team','success','{\"revision\":2}',0)",
            "INSERT INTO audit_logs VALUES \
             (1,'l','t','system',NULL,NULL,'host','h','marked_up','team','success','[]',0)",
            "INSERT INTO auto_pause_inbox VALUES ('h','s',0,0)",
            "INSERT INTO tombstones VALUES ('h',0)",
            "INSERT INTO operations (id,sandbox_id,host_id,kind,created_at,deadline_at) \
             VALUES ('o','s','h','pause',0,0)",
            "INSERT INTO sandboxes (host_id,id,team_id,status,status_changed_at,revision,created_at) \
             VALUES ('h','s','t','running',0,0,0); UPDATE hosts SET liveness = 'unreachable'",
            "INSERT INTO sandboxes (host_id,id,team_id,status,status_changed_at,revision,created_at) \
             VALUES ('h','s','t','running',0,1,0); UPDATE state SET revision = 1; \
             INSERT INTO events VALUES (1,0,'host.up','h',NULL,'t',NULL,NULL,'r','system',NULL)",
            "INSERT INTO sandboxes (host_id,id,team_id,status,status_changed_at,revision,created_at) \
             VALUES ('h','s','t','running',0,0,0); UPDATE state SET revision = 1; \
             INSERT INTO events VALUES (1,0,'sandbox.running','h','s','t',NULL,'running','r','system',NULL)",
            "INSERT INTO host_usage VALUES ('h',0,0,0,0,1,0,0,0,0,0,0,0,0)",
            "INSERT INTO team_usage VALUES ('t2', 1)",
        ];
        let walked = [walk::NO_EVENT, walk::NEWER_EVENT, walk::HOST_SUMS, walk::TEAM_COUNT];
        let meanings = INVARIANTS.iter().map(|(meaning, _)| *meaning).chain(walked);
        assert_eq!(broken.len(), INVARIANTS.len() + walked.len());
        for (sql, meaning) in broken.iter().zip(meanings) {
            let conn = Connection::open_in_memory().unwrap();
            conn.execute_batch(SCHEMA).unwrap();
            conn.execute_batch(
                "INSERT INTO state (id,revision,created_at) VALUES (1,0,0); \
                 INSERT INTO hosts (id,team_id,type,intent,liveness,revision,created_at,updated_at) \
                 VALUES ('h','t','regular','active','alive',0,0,0)",
            )
            .unwrap();
            assert_eq!(verify(&conn).unwrap(), Vec::<String>::new());
            conn.execute_batch(sql).unwrap();
            let wrong = verify(&conn).unwrap();
            assert!(wrong.iter().any(|line| line.starts_with(meaning)), "{meaning}: {wrong:?}");
        }
    }
}
