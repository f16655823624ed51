//! Owns how a database file is opened: the lock, pragmas, schema and migrations.
//!
//! Never: opens a file that another version or another program made as if it were ours.
//!
//! Migration rules: `MIGRATIONS[n]` takes a database from version `n` to `n + 1`; a
//! released one is never edited; `schema.sql` is changed together with adding one, and
//! the test below holds that both ways give the same schema.

use super::error::StoreError;
use crate::model::time::Wall;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The current schema.
pub const SCHEMA: &str = include_str!("../../schema.sql");

/// Steps from an empty database to the current schema.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0004.sql"),
];

/// `PRAGMA application_id`: "Roos" in ASCII, so that `file` and we know our own.
const APPLICATION_ID: i32 = 0x526f_6f73;

/// How long a connection waits for another process to finish writing. Larger and a stuck
/// `sqlite3` shell blocks heartbeat flushes for longer; smaller and a backup in progress
/// looks like an error.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Page cache of the writer in KiB. Larger costs memory for good; smaller re-reads pages
/// in one batch.
const WRITER_CACHE_KIB: i64 = 2048;

/// Pages of write-ahead log before it is copied back. Larger and the log grows on small
/// cards; smaller and pages are copied more often than needed.
const CHECKPOINT_PAGES: i64 = 1000;

/// The version that this program makes and needs.
pub fn schema_version() -> i64 {
    MIGRATIONS.len() as i64
}

/// The right to write to a database: a locked file beside it, released when dropped or
/// when the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path` and writes our process id into it. [`StoreError::Held`]
    /// when another process has it.
    pub fn take(path: &Path) -> Result<Lock, StoreError> {
        let io = |e: std::io::Error| StoreError::io(path, &e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // On a disk that takes no writes the lock still tells who is alone.
        let mut file = options.open(path).or_else(|e| File::open(path).map_err(|_| io(e)))?;
        if let Err(error) = file.try_lock() {
            return Err(match error {
                std::fs::TryLockError::WouldBlock => {
                    let mut pid = String::new();
                    // The holder may be about to write it; "unknown" is honest then.
                    let _ = file.read_to_string(&mut pid);
                    let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
                    StoreError::Held { lock: path.to_owned(), pid: pid.to_owned() }
                }
                std::fs::TryLockError::Error(error) => io(error),
            });
        }
        if let Err(error) = say_pid(&mut file) {
            log::warn!("could not write our process id to {}: {error}", path.display());
        }
        Ok(Lock { _file: file })
    }

    /// The lock file of the database at `db`: `lock` beside `roost.db`, so that one data
    /// directory has one; `NAME.lock` beside any other name.
    pub fn path_for(db: &Path) -> PathBuf {
        match db.file_name() {
            Some(name) if name == "roost.db" => db.with_file_name("lock"),
            Some(name) => {
                let mut name = name.to_owned();
                name.push(".lock");
                db.with_file_name(name)
            }
            None => db.with_extension("lock"),
        }
    }
}

/// For people: the lock counts without it.
fn say_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Opens the database at `path` for the one writer; makes it when `create` is set and
/// there is none; migrates an older one. The caller holds the [`Lock`].
pub fn open_writer(path: &Path, create: bool, now: Wall) -> Result<Connection, StoreError> {
    let exists = path.try_exists().map_err(|e| StoreError::io(path, &e))?;
    if !exists && !create {
        return Err(StoreError::Missing(path.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | if create { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
    let mut conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    check_identity(&conn, path)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", "ON")?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    conn.pragma_update(None, "journal_size_limit", 16 * 1024 * 1024)?;
    conn.set_prepared_statement_cache_capacity(64);
    migrate(&mut conn, now)?;
    Ok(conn)
}

/// Notes that a server begins to work on the database. True when the one before was
/// interrupted in its work, or the machine was restarted since (`boot_id` differs): a
/// small box without a battery for its clock cannot tell how long it was off.
pub fn begin_serving(conn: &Connection, boot_id: Option<&str>) -> Result<bool, StoreError> {
    let (serving, boot): (bool, Option<String>) =
        conn.query_row("SELECT serving, boot_id FROM state", [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    conn.execute("UPDATE state SET serving = 1, boot_id = ?1", [boot_id])?;
    let restarted = boot.is_some_and(|before| Some(before.as_str()) != boot_id);
    Ok(serving || restarted)
}

/// Opens an existing database of the current schema for reading.
pub fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    if !path.try_exists().map_err(|e| StoreError::io(path, &e))? {
        return Err(StoreError::Missing(path.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    check_identity(&conn, path)?;
    let found = version(&conn)?;
    if found < schema_version() {
        return Err(StoreError::OlderSchema { found, known: schema_version() });
    }
    Ok(conn)
}

/// Copies a consistent snapshot of the database at `from` to the new file `to`, also
/// while another process writes.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let from = open_reader(from)?;
    let mut to = Connection::open(to)?;
    let backup = rusqlite::backup::Backup::new(&from, &mut to)?;
    Ok(backup.run_to_completion(1024, Duration::ZERO, None)?)
}

fn version(conn: &Connection) -> Result<i64, StoreError> {
    Ok(conn.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Refuses what is damaged, newer, or somebody else's. An empty file is nobody's yet.
fn check_identity(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let application: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let found = version(conn)?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (tables > 0 || found != 0 || application != 0) {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    if found > schema_version() {
        return Err(StoreError::NewerSchema { found, known: schema_version() });
    }
    Ok(())
}

fn migrate(conn: &mut Connection, now: Wall) -> Result<(), StoreError> {
    let found = version(conn)?;
    if found == schema_version() {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if found == 0 {
        tx.execute_batch(SCHEMA)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.execute(
            "INSERT INTO state (id, revision, listened_until, created_at) VALUES (1, 0, ?1, ?1)",
            [now.0],
        )?;
    } else {
        for step in &MIGRATIONS[found as usize..] {
            tx.execute_batch(step)?;
        }
    }
    tx.pragma_update(None, "user_version", schema_version())?;
    Ok(tx.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_of(conn: &Connection) -> Vec<(String, String)> {
        let sql = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = conn.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| {
            let sql: String = row.get(1)?;
            let bare = sql.lines().map(|l| l.split("--").next().unwrap_or("").trim());
            Ok((row.get(0)?, bare.collect::<Vec<_>>().join(" ")))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_migrated_database_equals_a_fresh_one() {
        let fresh = Connection::open_in_memory().unwrap();
        fresh.execute_batch(SCHEMA).unwrap();
        let migrated = Connection::open_in_memory().unwrap();
        for step in MIGRATIONS {
            migrated.execute_batch(step).unwrap();
        }
        assert_eq!(schema_of(&fresh), schema_of(&migrated));
        assert!(schema_of(&fresh).len() > 10);
    }

    /// A file as version 1 left it: the released schema, its marks, a row in every table.
    fn version_1(path: &Path) -> Connection {
        let conn = Connection::open(path).unwrap();
        conn.execute_batch(MIGRATIONS[0]).unwrap();
        conn.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.execute_batch(
            "INSERT INTO state VALUES (1, 1, 5000, 1, 'boot', 1000); \
             INSERT INTO hosts (id, team_id, type, intent, liveness, revision, created_at, \
                 updated_at) VALUES ('h', 't', 'regular', 'active', 'alive', 0, 1, 2); \
             INSERT INTO tombstones VALUES ('gone', 3); \
             INSERT INTO sandboxes (host_id, id, team_id, status, status_changed_at, revision, \
                 created_at) VALUES ('h', 's', 't', 'running', 4, 1, 5); \
             INSERT INTO auto_pause_inbox VALUES ('h', 's', 1, 6); \
             INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at) \
                 VALUES ('o', 's', 'h', 'pause', 7, 8); \
             INSERT INTO registration_tokens VALUES (x'01', 'htok', 'h', 9, 10); \
             INSERT INTO refresh_tokens VALUES (x'02', 'hrt', 'h', NULL, 11, 12); \
             INSERT INTO audit_logs VALUES (1, 'l', 't', 'system', NULL, NULL, 'sandbox', 's', \
                 'adopt', 'team', 'warning', '{\"revision\":1}', 13); \
             INSERT INTO events VALUES (1, 14, 'sandbox.running', 'h', 's', 't', NULL, \
                 'running', 'adopted', 'system')",
        )
        .unwrap();
        conn
    }

    /// Every row of the tables of version 1, as text.
    fn rows_of(conn: &Connection) -> Vec<String> {
        let v1 = Connection::open_in_memory().unwrap();
        v1.execute_batch(MIGRATIONS[0]).unwrap();
        let mut names = v1.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let mut all = Vec::new();
        for name in names.map(Result::unwrap) {
            let mut select = conn.prepare(&format!("SELECT * FROM {name}")).unwrap();
            let columns = select.column_count();
            let mut rows = select.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let value = |at| row.get::<_, rusqlite::types::Value>(at).unwrap();
                all.push(format!("{name} {:?}", (0..columns).map(value).collect::<Vec<_>>()));
            }
        }
        all
    }

    #[test]
    fn a_database_of_version_1_is_migrated_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roost.db");
        let before = rows_of(&version_1(&path));
        assert_eq!(before.len(), 10, "a row in every table: {before:#?}");
        let older = StoreError::OlderSchema { found: 1, known: schema_version() };
        assert_eq!(open_reader(&path).map(drop), Err(older), "nobody reads it unmigrated");

        let migrated = open_writer(&path, false, Wall(99)).unwrap();
        assert_eq!(version(&migrated), Ok(schema_version()));
        assert_eq!(rows_of(&migrated), before);
        assert_eq!(crate::store::verify::verify(&migrated).unwrap(), [] as [&str; 0]);
        let fresh = Connection::open_in_memory().unwrap();
        fresh.execute_batch(SCHEMA).unwrap();
        assert_eq!(schema_of(&migrated), schema_of(&fresh));
        drop(migrated);
        let again = open_writer(&path, false, Wall(100)).unwrap();
        assert_eq!((version(&again), rows_of(&again)), (Ok(schema_version()), before));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let refused = |name: &str| open_writer(&path(name), true, Wall(0)).unwrap_err();

        assert_eq!(
            open_writer(&path("none"), false, Wall(0)).unwrap_err(),
            StoreError::Missing(path("none"))
        );
        std::fs::write(path("text"), "not a database, but long enough to be one".repeat(50))
            .unwrap();
        assert!(matches!(refused("text"), StoreError::Damaged(_)));

        let other = Connection::open(path("other")).unwrap();
        other.execute_batch("CREATE TABLE t (x)").unwrap();
        assert_eq!(refused("other"), StoreError::Foreign(path("other")));

        drop(open_writer(&path("newer"), true, Wall(0)).unwrap());
        let newer = Connection::open(path("newer")).unwrap();
        newer.pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(
            refused("newer"),
            StoreError::NewerSchema { found: 99, known: schema_version() }
        );
    }

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = Lock::path_for(&dir.path().join("roost.db"));
        let held = Lock::take(&path).unwrap();
        let pid = std::process::id().to_string();
        assert_eq!(
            Lock::take(&path).map(|_| ()),
            Err(StoreError::Held { lock: path.clone(), pid })
        );
        drop(held);
        assert!(Lock::take(&path).is_ok());
    }
}
