//! Owns how a backup takes the place of a database, step by step.
//!
//! Never: destroys the database that was there, leaves a moment in which there is neither
//! the old nor the new one, lets the log of one lie beside the other.

use super::StoreError;
use super::acceptance;
use super::backup::{Part, beside, check, one_file, open_copy, snapshot, stamp, sync, sync_dir_of};
use super::open::{self, upgrade};
use crate::files;
use crate::model::time::Wall;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What SQLite keeps beside a database: it belongs to that one file.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Where the database is that was there before.
    pub aside: Option<PathBuf>,
    /// The newest time that the backup knows of.
    pub as_of: Wall,
    /// The schema of the backup.
    pub version: i64,
}

/// Puts a copy of the backup `file` in the place of the database at `db`, marked as
/// restored and not accepted. The caller holds the lock.
///
/// # Errors
/// When `file` is not there, damaged, newer, or not ours; when another process has the
/// present database open; whatever the disk says. Then the present database is in its place.
pub fn restore(file: &Path, db: &Path, now: Wall) -> Result<Restored, StoreError> {
    if is_same(file, db) {
        return Err(StoreError::Exists(db.to_owned()));
    }
    let named = |error| named(error, file);
    // A link to the database stays one: what it leads to is replaced.
    let db = &files::resolved(db).map_err(|e| StoreError::io(db, &e))?;
    let part = Part::new(db)?;
    let source = open_copy(file).map_err(named)?;
    let version = open::version(&source).map_err(named)?;
    snapshot(&source, &part.path, &mut |_, _| {}).map_err(named)?;
    check(&part.path, file).map_err(named)?;
    let as_of = prepare(&part.path, now).map_err(named)?;
    check(&part.path, file)?;
    sync(&part.path)?;
    let aside = exchange(&part.path, db, now)?;
    Ok(Restored { aside, as_of, version })
}

/// Damage that is found in the backup is the backup's, not the database's.
fn named(error: StoreError, file: &Path) -> StoreError {
    if let StoreError::Damaged(first) = error {
        return StoreError::NotWhole { path: file.to_owned(), first, more: 0 };
    }
    error
}

fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

/// Brings the copy to the current schema and marks it.
fn prepare(part: &Path, now: Wall) -> Result<Wall, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut conn = Connection::open_with_flags(part, flags)?;
    open::trust_nothing(&conn)?;
    upgrade(&mut conn, now)?;
    let as_of = acceptance::mark(&mut conn, now)?;
    one_file(&conn)?;
    conn.close().map_err(|(_, error)| StoreError::from(error))?;
    Ok(as_of)
}

/// One change of names. In this order, whatever happens in between: there is always a
/// database, and never another one's log beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Gives a file another name beside the one it has.
    Keep { file: PathBuf, also: PathBuf },
    /// Brings the names to the disk: what follows must not get there first.
    Sync,
    /// Takes a name away.
    Remove(PathBuf),
    /// Gives the new database its name, in the place of the old one.
    Replace { by: PathBuf },
}

/// Puts `part` in the place of `db`; gives where the old one is now.
fn exchange(part: &Path, db: &Path, now: Wall) -> Result<Option<PathBuf>, StoreError> {
    if exists(db) {
        match fold(db) {
            // Kept as it is, with what lies beside it.
            Err(StoreError::Damaged(what)) => log::info!("the present database is damaged: {what}"),
            folded => folded?,
        }
    }
    let (steps, aside) = steps(part, db, now);
    steps.iter().try_for_each(|step| carry_out(step, db))?;
    Ok(aside)
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Folds the log of the present database in. Fails when somebody else has it open.
fn fold(db: &Path) -> Result<(), StoreError> {
    // Whoever may write folds a log in, or takes it for void, also where it finds damage.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let looking = Connection::open_with_flags(db, flags)?;
    looking.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    looking.close().map_err(|(_, error)| StoreError::from(error))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(db, flags)?;
    conn.busy_timeout(open::BUSY_TIMEOUT)?;
    one_file(&conn)?;
    conn.close().map_err(|(_, error)| StoreError::from(error))?;
    sync(db).map(drop)
}

fn steps(part: &Path, db: &Path, now: Wall) -> (Vec<Step>, Option<PathBuf>) {
    let aside = free_name(db, now);
    let there: Vec<&str> = BESIDE.into_iter().filter(|end| exists(&beside(db, end))).collect();
    let had_one = exists(db);
    let keep = |end: &str| Step::Keep { file: beside(db, end), also: beside(&aside, end) };
    let mut steps: Vec<Step> = Vec::new();
    steps.extend(had_one.then(|| keep("")));
    steps.extend(there.iter().map(|end| keep(end)));
    steps.push(Step::Sync);
    steps.extend(there.iter().map(|end| Step::Remove(beside(db, end))));
    steps.push(Step::Sync);
    steps.push(Step::Replace { by: part.to_owned() });
    steps.push(Step::Sync);
    let kept = had_one || !there.is_empty();
    (steps, kept.then_some(aside))
}

/// A dated name beside the database that nothing has yet.
fn free_name(db: &Path, now: Wall) -> PathBuf {
    let dated = beside(db, &format!(".replaced-{}", stamp(now)));
    let is_free =
        |name: &PathBuf| !exists(name) && BESIDE.iter().all(|e| !exists(&beside(name, e)));
    let numbered = (2..).map(|n| beside(&dated, &format!("-{n}")));
    std::iter::once(dated.clone()).chain(numbered).find(is_free).unwrap_or(dated)
}

fn carry_out(step: &Step, db: &Path) -> Result<(), StoreError> {
    match step {
        Step::Keep { file, also } => keep(file, also),
        Step::Sync => sync_dir_of(db),
        Step::Remove(file) => match std::fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io(file, &error)),
            Ok(()) | Err(_) => Ok(()),
        },
        Step::Replace { by } => std::fs::rename(by, db).map_err(|e| StoreError::io(db, &e)),
    }
}

/// A second name; where the file system has none, a copy.
fn keep(file: &Path, also: &Path) -> Result<(), StoreError> {
    let io = |e: std::io::Error| StoreError::io(also, &e);
    match std::fs::hard_link(file, also) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(io(error)),
        Err(_) => {
            std::fs::copy(file, also).map_err(io)?;
            File::open(also).and_then(|copy| copy.sync_all()).map_err(io)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::open_writer;
    use std::collections::BTreeMap;
    use std::os::unix::fs::chown;
    use tempfile::TempDir;

    /// The whole directory: names and what is in them.
    fn files(dir: &TempDir) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let of = |entry: std::fs::DirEntry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        };
        entries.map(of).collect()
    }

    /// A database that a process left in the middle of its work, its log full, and a new
    /// one that is to take its place.
    fn world(old_is_there: bool) -> (TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (db, part) = (dir.path().join("roost.db"), dir.path().join("roost.db.part"));
        for (name, content) in
            [("roost.db", "old"), ("roost.db-wal", "old log"), ("roost.db-shm", "old index")]
        {
            if old_is_there || name != "roost.db" {
                std::fs::write(dir.path().join(name), content).unwrap();
            }
        }
        std::fs::write(&part, "new").unwrap();
        (dir, db, part)
    }

    /// Power is lost after each step; what of names is not on the disk by then may be there
    /// or not. In each case there is a database, and no log of another.
    #[test]
    fn wherever_it_ends_there_is_the_old_or_the_new_one() {
        for old_is_there in [true, false] {
            let (_kept, db, part) = world(old_is_there);
            let count = steps(&part, &db, Wall(0)).0.len();
            for done in 0..=count {
                let (dir, db, part) = world(old_is_there);
                let (all, aside) = steps(&part, &db, Wall(0));
                all[..done].iter().try_for_each(|step| carry_out(step, &db)).unwrap();
                let files = files(&dir);
                let text = |name: &str| files.get(name).map(|b| String::from_utf8_lossy(b));
                let (found, log) = (text("roost.db"), text("roost.db-wal"));
                match found.as_deref() {
                    Some("new") => assert_eq!(log, None, "{done}: another one's log"),
                    Some("old") => assert!(old_is_there),
                    other => assert!(!old_is_there && other.is_none(), "{done}: {other:?}"),
                }
                let aside = aside.unwrap().file_name().unwrap().to_str().unwrap().to_owned();
                // The log is under its old name, under the new one, or under both.
                let old_log = text(&format!("{aside}-wal")).or(log);
                assert_eq!(old_log.as_deref(), Some("old log"), "{done}");
                if old_is_there {
                    let old = text(&aside).or(found.filter(|text| text == "old"));
                    assert_eq!(old.as_deref(), Some("old"), "{done}: the old one is lost");
                }
            }
        }
    }

    /// Between two syncs the disk may take names in any order.
    #[test]
    fn names_reach_the_disk_in_an_order_that_loses_nothing() {
        let (_dir, db, part) = world(true);
        let (steps, _) = steps(&part, &db, Wall(0));
        let kinds: Vec<&str> = steps
            .iter()
            .map(|step| match step {
                Step::Keep { .. } => "keep",
                Step::Sync => "sync",
                Step::Remove(_) => "remove",
                Step::Replace { .. } => "replace",
            })
            .collect();
        let expected =
            ["keep", "keep", "keep", "sync", "remove", "remove", "sync", "replace", "sync"];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn a_second_restore_of_the_same_second_keeps_the_first_ones_database() {
        let (dir, db, part) = world(true);
        let first = exchange_raw(&part, &db);
        std::fs::write(&part, "newer").unwrap();
        let second = exchange_raw(&part, &db);
        assert_ne!(first, second);
        let files = files(&dir);
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(files[&name(&first)], b"old");
        assert_eq!(files[&name(&second)], b"new");
        assert_eq!(files["roost.db"], b"newer");
    }

    fn exchange_raw(part: &Path, db: &Path) -> PathBuf {
        let (steps, aside) = steps(part, db, Wall(0));
        steps.iter().try_for_each(|step| carry_out(step, db)).unwrap();
        aside.unwrap()
    }

    #[test]
    fn while_somebody_has_the_present_one_open_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (db, file) = (dir.path().join("roost.db"), dir.path().join("backup.db"));
        drop(open_writer(&db, true, Wall(0)).unwrap());
        super::super::backup::backup(&db, &file, &mut |_, _| {}).unwrap();
        let reader = open::open_reader(&db).unwrap();
        reader.query_row("SELECT revision FROM state", [], |_| Ok(())).unwrap();
        assert_eq!(restore(&file, &db, Wall(1)), Err(StoreError::Busy));
        drop(reader);
        let restored = restore(&file, &db, Wall(1)).unwrap();
        assert!(restored.aside.is_some_and(|aside| aside.exists()));
        assert!(!beside(&db, ".part").exists());
    }

    #[test]
    fn what_root_restores_belongs_to_whom_the_directory_does() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (db, backup) = (dir.path().join("roost.db"), dir.path().join("backup.db"));
        let conn = open_writer(&backup, true, Wall(1)).unwrap();
        one_file(&conn).unwrap();
        drop(conn);
        chown(dir.path(), Some(4321), Some(1234)).unwrap();
        restore(&backup, &db, Wall(2)).unwrap();
        let found = db.metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (4321, 1234));
    }
}
