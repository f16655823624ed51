//! Owns what becomes of the data: backups while a server works, restores and what agents
//! and users hear until they are accepted, migrations, a reader that replicates the log, a
//! year of history, and every command of docs/data.md.
//!
//! Never: the order of names on the disk, which `src/store/restore.rs` tests step by step.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "data/backup.rs"]
mod backup;
#[path = "data/follow.rs"]
mod follow;
#[path = "data/migrate.rs"]
mod migrate;
#[path = "data/restore.rs"]
mod restore;
#[path = "data/restored.rs"]
mod restored;
mod support;
#[path = "data/year.rs"]
mod year;

use roost::store::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use support::Home;

/// Everything in a directory: names, and bytes of what is a file. Without what says only who
/// was there last, and without logs in which nothing is.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let of = |entry: std::fs::DirEntry| {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        (entry.file_name().into_string().unwrap(), bytes)
    };
    let counts = |(name, bytes): &(String, Vec<u8>)| match name.as_str() {
        "lock" => false,
        name if name.ends_with("-shm") => false,
        name => !name.ends_with("-wal") || !bytes.is_empty(),
    };
    entries.map(of).filter(counts).collect()
}

/// Makes a database larger: so many entries of the audit log, about 500 bytes each.
fn enlarge(home: &Home, entries: u32) {
    let conn = Connection::open(home.path("roost.db")).unwrap();
    conn.execute_batch(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {entries}) \
         INSERT INTO audit_logs (id, team_id, actor_type, resource_type, resource_id, action, \
             scope, status, metadata, created_at) \
         SELECT printf('log-%025d', i), printf('team-%025d', 0), 'system', 'host', \
             printf('host-%025d', i), 'drain', 'team', 'info', '{{\"note\":\"' || hex(zeroblob(200)) || '\"}}', i FROM n"
    ))
    .unwrap();
}

/// The file with this name and end in its directory.
fn only(home: &Home, start: &str) -> std::path::PathBuf {
    let names: Vec<String> =
        files(home.dir()).into_keys().filter(|name| name.starts_with(start)).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    home.path(&names[0])
}
