//! Owns how a database file is opened: pragmas, schema and migrations.
//!
//! Never: opens a file that another version or another program made as if it were ours.
//!
//! Migration rules: `MIGRATIONS[n]` takes a database from version `n` to `n + 1`; a
//! released one is never edited; `schema.sql` is changed together with adding one, and
//! the test below holds that both ways give the same schema.

use super::backup;
use super::error::StoreError;
use super::schema;
use crate::files;
use crate::model::time::Wall;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::{Access, access, statvfs};
use rustix::io::Errno;
use std::fs::{Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The current schema.
pub const SCHEMA: &str = include_str!("../../schema.sql");

/// Steps from an empty database to the current schema.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
    include_str!("migrations/0006.sql"),
    include_str!("migrations/0007.sql"),
    include_str!("migrations/0008.sql"),
];

/// `PRAGMA application_id`: "Roos" in ASCII, so that `file` and we know our own.
const APPLICATION_ID: i32 = 0x526f_6f73;

/// Rights of all but the owner.
const OF_OTHERS: u32 = 0o077;

/// How long a connection waits for another process to finish writing. Larger and a stuck
/// `sqlite3` shell blocks heartbeat flushes for longer; smaller and a backup in progress
/// looks like an error.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Page cache of the writer in KiB. Larger costs memory for good; smaller re-reads pages
/// in one batch.
const WRITER_CACHE_KIB: i64 = 1024;

/// Pages of write-ahead log before it is copied back. Larger and the log grows on small
/// cards; smaller and pages are copied more often than needed.
const CHECKPOINT_PAGES: i64 = 4000;

/// The same on a disk that is nearly full. Larger and the log alone fills it, so that nothing
/// can be copied back; smaller and every commit copies pages.
const CHECKPOINT_PAGES_MIN: i64 = 100;

/// Part of the free disk that the log may take: what is copied back needs room as well.
const LOG_PART_OF_FREE: u64 = 4;

/// Size of a page in bytes.
const PAGE_BYTES: u64 = 4096;

/// The version that this program makes and needs.
pub fn schema_version() -> i64 {
    MIGRATIONS.len() as i64
}

/// Opens the database at `path` for the one writer; makes it when `create` is set and
/// there is none; migrates an older one, of which a copy is kept. The caller holds the
/// [`super::lock::Lock`].
pub fn open_writer(path: &Path, create: bool, now: Wall) -> Result<Connection, StoreError> {
    let mut conn = connect(path, create)?;
    migrate(&mut conn, path, now)?;
    Ok(conn)
}

/// A database without a file, for who only wants to see what becomes of rows.
pub fn open_in_memory(now: Wall) -> Result<Connection, StoreError> {
    let nowhere = Path::new(":memory:");
    let mut conn = connect_file(nowhere, true)?;
    migrate(&mut conn, nowhere, now)?;
    Ok(conn)
}

/// An older database that was brought to the current schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Its version before.
    pub from: i64,
    /// The database as it was.
    pub copy: PathBuf,
}

/// Migrates the database at `path`; `None` when there was nothing to do. The caller holds
/// the [`super::lock::Lock`].
///
/// # Errors
/// When no copy can be made, or a step fails: then nothing was changed.
pub fn migrate_file(path: &Path, now: Wall) -> Result<Option<Migrated>, StoreError> {
    let mut conn = connect(path, false)?;
    if version(&conn)? == 0 {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    migrate(&mut conn, path, now)
}

fn connect(path: &Path, create: bool) -> Result<Connection, StoreError> {
    let exists = path.try_exists().map_err(|e| StoreError::io(path, &e))?;
    if !exists && !create {
        return Err(StoreError::Missing(path.to_owned()));
    }
    if path.is_dir() {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let file = files::resolved(path).map_err(|e| StoreError::io(path, &e))?;
    for_owner_only(&file, create);
    connect_file(&file, create).map_err(|error| explained(error, &file))
}

/// What SQLite puts beside the database gets the database's own mode.
fn for_owner_only(path: &Path, create: bool) {
    if create
        && !path.exists()
        && let Err(error) = files::create_new(path)
    {
        // Whether it can be made all the same is for SQLite to say.
        log::debug!("could not make {}: {error}", path.display());
    }
    for end in ["", "-wal", "-shm", "-journal"] {
        let file = backup::beside(path, end);
        let mode = file.symlink_metadata().ok().filter(Metadata::is_file).map(|file| file.mode());
        if mode.is_some_and(|mode| mode & OF_OTHERS != 0) {
            // Another user's is not ours to change.
            let narrowed = std::fs::set_permissions(&file, Permissions::from_mode(0o600));
            log::debug!("{} for its owner only: {narrowed:?}", file.display());
        }
    }
}

/// Pages of log before they are copied back, by how much room its disk has now.
pub(super) fn checkpoint_pages(path: &Path) -> i64 {
    let Ok(disk) = statvfs(files::dir_of(path)) else { return CHECKPOINT_PAGES };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let pages = i64::try_from(free / LOG_PART_OF_FREE / PAGE_BYTES).unwrap_or(CHECKPOINT_PAGES);
    pages.clamp(CHECKPOINT_PAGES_MIN, CHECKPOINT_PAGES)
}

/// Says why a file cannot be opened or written where SQLite does not: a disk, or an owner.
pub fn explained(error: StoreError, path: &Path) -> StoreError {
    let (StoreError::CannotOpen(what) | StoreError::Disk(what)) = &error else { return error };
    match disk_of(path) {
        Some(why) => StoreError::Disk(format!("{what}: {why}")),
        None => not_ours(path).map_or(error, StoreError::NotOurs),
    }
}

/// The file or directory that keeps us out, if one does, and whose it is.
fn not_ours(path: &Path) -> Option<String> {
    let dir = files::dir_of(path).to_owned();
    let of = |end| backup::beside(path, end);
    let files = [(dir, Access::WRITE_OK | Access::EXEC_OK)].into_iter().chain(
        ["", "-wal", "-shm", "-journal"].map(|end| (of(end), Access::READ_OK | Access::WRITE_OK)),
    );
    let (file, _) = files
        .into_iter()
        .find(|(file, needed)| matches!(access(file, *needed), Err(Errno::ACCESS | Errno::PERM)))?;
    let found = file.metadata().ok()?;
    Some(format!(
        "{} belongs to user {} with mode {:03o}, and roost runs as user {}",
        file.display(),
        found.uid(),
        found.mode() & 0o777,
        rustix::process::geteuid().as_raw(),
    ))
}

/// What keeps any new file from being made beside this one, if its disk does: a database
/// without its log cannot be opened then, and SQLite does not say why.
fn disk_of(path: &Path) -> Option<&'static str> {
    let dir = files::dir_of(path);
    if access(dir, Access::WRITE_OK) == Err(Errno::ROFS) {
        return Some("it is mounted readonly");
    }
    let disk = statvfs(dir).ok()?;
    // Some file systems count no files and say 0 of 0.
    let full = disk.f_bavail == 0 || (disk.f_files > 0 && disk.f_favail == 0);
    full.then_some("it is full")
}

fn connect_file(path: &Path, create: bool) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | if create { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    trust_nothing(&conn)?;
    if identity_of(&conn, path)? > 0 {
        schema::check(&conn, path)?;
    }
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", "ON")?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    conn.pragma_update(None, "wal_autocheckpoint", checkpoint_pages(path))?;
    conn.pragma_update(None, "journal_size_limit", 16 * 1024 * 1024)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// What a schema says is not to call functions that reach out of the database.
pub(super) fn trust_nothing(conn: &Connection) -> Result<(), StoreError> {
    Ok(conn.pragma_update(None, "trusted_schema", "OFF")?)
}

/// Records that a server begins to work on the database. True when one has before: what its
/// hosts did since, it did not hear, however it ended.
pub fn begin_serving(conn: &Connection, boot_id: Option<&str>) -> Result<bool, StoreError> {
    let served: bool =
        conn.query_row("SELECT serving OR boot_id IS NOT NULL FROM state", [], |row| row.get(0))?;
    // Who was killed may have left a log that is due to be copied back: that can wait for the
    // writer's first transaction, and a start for it cannot.
    let pages: i64 = conn.pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0))?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.execute("UPDATE state SET serving = 1, boot_id = ?1", [boot_id])?;
    conn.pragma_update(None, "wal_autocheckpoint", pages)?;
    Ok(served)
}

/// Opens an existing database of the current schema for reading.
pub fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    if !path.try_exists().map_err(|e| StoreError::io(path, &e))? {
        return Err(StoreError::Missing(path.to_owned()));
    }
    match reader(path) {
        // Whoever was killed in the middle of a change left it to be taken back by the next
        // that may write.
        Err(StoreError::Disk(_)) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let opened = Connection::open_with_flags(path, flags).map_err(StoreError::from);
            opened.and_then(|conn| identity_of(&conn, path)).and_then(|_| reader(path))
        }
        opened => opened,
    }
    .map_err(|error| explained(error, path))
}

fn reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    trust_nothing(&conn)?;
    let found = identity_of(&conn, path)?;
    if found < schema_version() {
        return Err(StoreError::OlderSchema { found, known: schema_version() });
    }
    Ok(conn)
}

/// Copies a consistent snapshot of the database at `from` to the new file `to`, also
/// while another process writes.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let source = open_reader(from)?;
    let to = files::resolved(to).map_err(|e| StoreError::io(to, &e))?;
    files::create_new(&to).map_err(|e| StoreError::io(&to, &e))?;
    backup::snapshot(&source, &to, &mut |_, _| {})
}

pub(super) fn version(conn: &Connection) -> Result<i64, StoreError> {
    Ok(conn.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// The version of what was opened: refuses what is damaged, newer, or somebody else's. An
/// empty file is nobody's yet and has version 0.
pub(super) fn identity_of(conn: &Connection, path: &Path) -> Result<i64, StoreError> {
    let application: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let found = version(conn)?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (tables > 0 || found != 0 || application != 0) {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    if found > schema_version() {
        return Err(StoreError::NewerSchema { found, known: schema_version() });
    }
    Ok(found)
}

fn migrate(conn: &mut Connection, path: &Path, now: Wall) -> Result<Option<Migrated>, StoreError> {
    let from = version(conn)?;
    if from == schema_version() {
        return Ok(None);
    }
    let copy = (from > 0).then(|| backup::before_migration(conn, path, from, now)).transpose()?;
    upgrade(conn, now)?;
    Ok(copy.map(|copy| Migrated { from, copy }))
}

/// Makes the schema of a version in an empty database.
pub(super) fn make(conn: &Connection, version: i64) -> Result<(), StoreError> {
    let steps = MIGRATIONS.iter().take(usize::try_from(version).unwrap_or(0));
    Ok(steps.into_iter().try_for_each(|step| conn.execute_batch(step))?)
}

/// Takes a database, also an empty one, to the current schema; no copy is made.
pub(super) fn upgrade(conn: &mut Connection, now: Wall) -> Result<(), StoreError> {
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

    /// What a row of each table of a version looked like that the one before did not have.
    const ROWS: [&str; 4] = [
        ROWS_1,
        "INSERT INTO api_keys VALUES ('k', zeroblob(32), 't', 'ci', '0000', 15, 16)",
        "INSERT INTO restores VALUES (0, 0, 17, 18, NULL)",
        "INSERT INTO notify_state VALUES (1, 1); \
         INSERT INTO notify_problems VALUES ('host_down', 'h', 19, 1, NULL, NULL, NULL, 0); \
         INSERT INTO notify_messages VALUES (1, 20, 'opened', '{}'); \
         INSERT INTO notify_outbox VALUES ('hook', 1); \
         INSERT INTO host_maintenance VALUES ('h', 21, NULL)",
    ];

    const ROWS_1: &str = "INSERT INTO state VALUES (1, 1, 5000, 1, 'boot', 1000); \
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
                 'running', 'adopted', 'system')";

    /// A file as a version left it: the released schema, its marks, a row in every table.
    fn of_version(version: usize, path: &Path) -> Connection {
        let conn = Connection::open(path).unwrap();
        MIGRATIONS[..version].iter().for_each(|step| conn.execute_batch(step).unwrap());
        conn.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        conn.pragma_update(None, "user_version", version as i64).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        ROWS[..version].iter().for_each(|rows| conn.execute_batch(rows).unwrap());
        conn
    }

    /// Every row of the tables of a version, as text.
    fn rows_of(version: usize, conn: &Connection) -> Vec<String> {
        let then = Connection::open_in_memory().unwrap();
        MIGRATIONS[..version].iter().for_each(|step| then.execute_batch(step).unwrap());
        let mut names =
            then.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let mut all = Vec::new();
        for name in names.map(Result::unwrap) {
            let columns = then.prepare(&format!("SELECT * FROM {name}")).unwrap();
            let columns = columns.column_names().join(", ");
            let mut select = conn.prepare(&format!("SELECT {columns} FROM {name}")).unwrap();
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
        is_migrated(1, 10);
    }

    #[test]
    fn a_database_of_version_2_is_migrated_with_all_that_is_in_it() {
        is_migrated(2, 11);
    }

    #[test]
    fn a_database_of_version_4_is_migrated_with_all_that_is_in_it() {
        is_migrated(4, 17);
    }

    fn is_migrated(from: usize, tables: usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roost.db");
        let before = rows_of(from, &of_version(from, &path));
        assert_eq!(before.len(), tables, "a row in every table: {before:#?}");
        let older = StoreError::OlderSchema { found: from as i64, known: schema_version() };
        assert_eq!(open_reader(&path).map(drop), Err(older), "nobody reads it unmigrated");

        let migrated = open_writer(&path, false, Wall(99_000)).unwrap();
        assert_eq!(version(&migrated), Ok(schema_version()));
        assert_eq!(rows_of(from, &migrated), before);
        assert_eq!(crate::store::verify::verify(&migrated).unwrap(), [] as [&str; 0]);
        let fresh = Connection::open_in_memory().unwrap();
        fresh.execute_batch(SCHEMA).unwrap();
        assert_eq!(schema_of(&migrated), schema_of(&fresh));
        let nonsense = migrated.execute("UPDATE sandboxes SET status = 'Running'", []);
        assert!(nonsense.is_err_and(|e| e.to_string().contains("CHECK")), "at once, too");
        drop(migrated);
        let again = open_writer(&path, false, Wall(100_000)).unwrap();
        assert_eq!(
            (version(&again), rows_of(from, &again)),
            (Ok(schema_version()), before.clone())
        );
        drop(again);

        let copy = dir.path().join(format!("roost.db.v{from}-19700101T000139Z"));
        let copy = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        assert_eq!((version(&copy), rows_of(from, &copy)), (Ok(from as i64), before));
        drop(copy);
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2, "the database and one copy, and nothing beside either");
    }

    #[test]
    fn the_newest_copies_from_before_migrations_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roost.db");
        for (version, at) in [(1, 1), (2, 2), (1, 3)] {
            drop(of_version(version, &path));
            let migrated = migrate_file(&path, Wall(at * 1000)).unwrap().unwrap();
            assert_eq!(migrated.from, version as i64);
            assert!(migrated.copy.exists());
            assert_eq!(migrate_file(&path, Wall(9000)), Ok(None), "nothing is left to do");
            std::fs::remove_file(&path).unwrap();
        }
        let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["roost.db.v1-19700101T000003Z", "roost.db.v2-19700101T000002Z"]);
    }

    #[test]
    fn without_a_copy_nothing_is_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roost.db");
        let before = rows_of(1, &of_version(1, &path));
        // A directory is where the copy is to be written.
        std::fs::create_dir(dir.path().join("roost.db.v1-19700101T000001Z.part")).unwrap();
        let refused = migrate_file(&path, Wall(1000)).unwrap_err();
        assert!(matches!(&refused, StoreError::Disk(why) if why.contains("nothing was changed")));
        assert!(refused.may_pass(), "a server goes on answering and tries again");
        let conn = Connection::open(&path).unwrap();
        assert_eq!((version(&conn), rows_of(1, &conn)), (Ok(1), before));
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

    /// As `kill -9` in the middle of a transaction leaves it, without a log of its own.
    #[test]
    fn a_reader_takes_back_what_was_left_half_done() {
        let dir = tempfile::tempdir().unwrap();
        let (path, left) = (dir.path().join("roost.db"), dir.path().join("left.db"));
        let conn = open_writer(&path, true, Wall(0)).unwrap();
        conn.pragma_update(None, "journal_mode", "DELETE").unwrap();
        conn.pragma_update(None, "cache_size", 1).unwrap();
        conn.execute_batch("BEGIN; UPDATE state SET revision = 7").unwrap();
        conn.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(1000000))")
            .unwrap();
        for (end, to) in [("", "left.db"), ("-journal", "left.db-journal")] {
            let from = backup::beside(&path, end);
            std::fs::copy(from, dir.path().join(to)).unwrap();
        }
        assert!(matches!(reader(&left), Err(StoreError::Disk(_))), "or nothing is shown here");
        let revision = |conn: &Connection| {
            conn.query_row("SELECT revision FROM state", [], |row| row.get::<_, i64>(0))
        };
        assert_eq!(revision(&open_reader(&left).unwrap()), Ok(0));
    }
}
