//! Owns copies of a database: made while others write to it, verified, one file each, and
//! the ones that are made before a migration.
//!
//! Never: gives a copy its name before it is whole and on the disk, writes over a file that
//! is there, changes what is copied.

use super::StoreError;
use super::open::{self, identity_of};
use super::schema;
use super::verify::{integrity, verify};
use crate::files;
use crate::model::time::Wall;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Pages that are copied between two words about it. Larger: a slow disk looks as if it
/// stood still; smaller: more is said than done.
const STEP_PAGES: i32 = 1024;

/// Copies from before a migration that are kept beside the database. More fill the disk;
/// fewer, and a second upgrade in a row takes away the way back from the first.
const KEPT: usize = 2;

/// Told how many bytes of how many are copied.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Copies the database at `from` to the new file `to`, also while others write: what the
/// copy has is what was committed at one moment. Gives its size in bytes.
///
/// # Errors
/// [`StoreError::Exists`] when there is something at `to`; [`StoreError::NotWhole`] when
/// the copy, and so the database, breaks an invariant; whatever the disk says. Then there
/// is nothing at `to`.
pub fn backup(from: &Path, to: &Path, progress: Progress<'_>) -> Result<u64, StoreError> {
    let source = open_copy(from)?;
    write_new(to, |part| {
        snapshot(&source, part, progress)?;
        check(part, from)
    })
}

/// Opens a database of any version up to ours for reading. One that has no log beside it is
/// taken as it is: nothing is put beside a file on a medium that takes no writes.
pub(super) fn open_copy(path: &Path) -> Result<Connection, StoreError> {
    let io = |e: std::io::Error| StoreError::io(path, &e);
    if !path.try_exists().map_err(io)? {
        return Err(StoreError::NoFile(path.to_owned()));
    }
    if path.is_dir() {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(open::BUSY_TIMEOUT)?;
    open::trust_nothing(&conn)?;
    let real = files::resolved(path).map_err(io)?;
    match identity_of(&conn, path) {
        Ok(0) => Err(StoreError::Foreign(path.to_owned())),
        Ok(_) => Ok(conn),
        Err(StoreError::CannotOpen(_)) if !beside(&real, "-wal").exists() => {
            still(&real).map_err(|error| open::explained(error, &real))
        }
        Err(error) => Err(open::explained(error, &real)),
    }
}

/// Opens a file that nobody writes to, where SQLite can put nothing beside it.
fn still(path: &Path) -> Result<Connection, StoreError> {
    let absolute = std::path::absolute(path).map_err(|e| StoreError::io(path, &e))?;
    let mut uri = "file:".to_owned();
    for byte in absolute.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(format!("{uri}?immutable=1"), flags)?;
    open::trust_nothing(&conn)?;
    identity_of(&conn, path).map(|_| conn)
}

/// Copies what `from` shows into the file `part`, which is left without a log beside it.
pub(super) fn snapshot(
    from: &Connection,
    part: &Path,
    progress: Progress<'_>,
) -> Result<(), StoreError> {
    // One read transaction over all steps: on a busy database the copy would begin anew at
    // every commit.
    let reading = from.unchecked_transaction()?;
    reading.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let page: i64 = reading.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let page = page.unsigned_abs();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut to = Connection::open_with_flags(part, flags)?;
    // It is synced as a whole, once.
    to.pragma_update(None, "synchronous", "OFF")?;
    let copy = Backup::new(&reading, &mut to)?;
    loop {
        let step = copy.step(STEP_PAGES)?;
        let pages = copy.progress();
        let (all, left) = (pages.pagecount as u64, pages.remaining as u64);
        progress((all - left) * page, all * page);
        match step {
            StepResult::Done => break,
            StepResult::More => {}
            StepResult::Busy | StepResult::Locked | _ => return Err(StoreError::Busy),
        }
    }
    drop(copy);
    one_file(&to)?;
    to.close().map_err(|(_, error)| StoreError::from(error))
}

/// Folds the log in and removes it: what is left is one file.
pub(super) fn one_file(conn: &Connection) -> Result<(), StoreError> {
    let mode: String = conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))?;
    if mode == "delete" { Ok(()) } else { Err(StoreError::Busy) }
}

/// Whether the copy in `part` is whole; `name` is what a complaint calls it.
pub(super) fn check(part: &Path, name: &Path) -> Result<(), StoreError> {
    let copy = open_copy(part)?;
    schema::check(&copy, name)?;
    let wrong = match open::version(&copy)? == open::schema_version() {
        true => verify(&copy)?,
        false => integrity(&copy)?,
    };
    match wrong.split_first() {
        None => Ok(()),
        Some((first, more)) => Err(StoreError::NotWhole {
            path: name.to_owned(),
            first: first.clone(),
            more: more.len(),
        }),
    }
}

/// Makes the new file `to`: `fill` writes it under another name beside it; only what is
/// whole and on the disk gets its name. Gives its size.
fn write_new(
    to: &Path,
    fill: impl FnOnce(&Path) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    if to.symlink_metadata().is_ok() {
        return Err(StoreError::Exists(to.to_owned()));
    }
    let part = Part::new(to)?;
    fill(&part.path)?;
    let size = sync(&part.path)?;
    part.give_name(to)?;
    Ok(size)
}

/// A file that is being written, under a name that says so; gone when dropped unfinished.
/// What `kill -9` leaves of one is removed by the next.
pub(super) struct Part {
    pub(super) path: PathBuf,
    /// Locked: nobody takes it for a leftover.
    _file: File,
}

impl Part {
    /// An empty one for the file `to`, readable for us only.
    pub(super) fn new(to: &Path) -> Result<Part, StoreError> {
        // Links on the way are followed here, and by nothing that opens the part.
        let dir = files::dir_of(to).canonicalize().map_err(|e| StoreError::io(to, &e))?;
        let path = beside(&to.file_name().map_or(dir.clone(), |name| dir.join(name)), ".part");
        let io = |e: std::io::Error| StoreError::io(&path, &e);
        match files::open_for_reading(&path) {
            Ok(left) if left.try_lock().is_err() => return Err(StoreError::Busy),
            Ok(_) => std::fs::remove_file(&path).map_err(io)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let file = files::create_new(&path).map_err(io)?;
        // A file system without locks has no two backups of one name either way.
        if let Err(error) = file.try_lock() {
            log::debug!("could not lock {}: {error}", path.display());
        }
        Ok(Part { path, _file: file })
    }

    /// Gives the finished file its name, which nobody else has.
    fn give_name(self, to: &Path) -> Result<(), StoreError> {
        let renamed = renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(StoreError::Exists(to.to_owned())),
            // Not every file system can tell; nothing was there a moment ago.
            Err(Errno::INVAL | Errno::NOSYS) => {
                std::fs::rename(&self.path, to).map_err(|e| StoreError::io(to, &e))?;
            }
            Err(error) => return Err(StoreError::io(to, &error.into())),
        }
        sync_dir_of(to)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Under its name it is not here any more.
        for end in ["", "-journal", "-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(&self.path, end));
        }
    }
}

/// The path with this at its end.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Brings a file to the disk; gives its size.
pub(super) fn sync(path: &Path) -> Result<u64, StoreError> {
    let io = |e: std::io::Error| StoreError::io(path, &e);
    let file = File::open(path).map_err(io)?;
    file.sync_all().map_err(io)?;
    Ok(file.metadata().map_err(io)?.len())
}

/// Brings the names in the directory of `path` to the disk.
pub(super) fn sync_dir_of(path: &Path) -> Result<(), StoreError> {
    files::sync_dir_of(path).map_err(|e| StoreError::io(files::dir_of(path), &e))
}

/// A moment as it stands in file names: `20261124T022000Z`.
pub(super) fn stamp(at: Wall) -> String {
    let text = at.to_string();
    let whole = text.split('.').next().unwrap_or_default();
    let kept: String = whole.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{kept}Z")
}

/// Copies a database of version `found` before it is migrated, and forgets older such
/// copies. Gives the copy's path.
pub(super) fn before_migration(
    conn: &Connection,
    path: &Path,
    found: i64,
    now: Wall,
) -> Result<PathBuf, StoreError> {
    let to = beside(path, &format!(".v{found}-{}", stamp(now)));
    let copied = write_new(&to, |part| {
        snapshot(conn, part, &mut |_, _| {})?;
        check(part, path)
    });
    match copied {
        // Made a moment ago, by an attempt that got no further.
        Ok(_) | Err(StoreError::Exists(_)) => {}
        Err(error @ (StoreError::Damaged(_) | StoreError::NotWhole { .. })) => return Err(error),
        Err(error) => {
            return Err(StoreError::Disk(format!(
                "copying the database to {} before migrating it failed, nothing was changed: {error}",
                to.display()
            )));
        }
    }
    log::info!("the database as it was before its migration is in {}", to.display());
    forget_older(path);
    Ok(to)
}

/// Keeps the newest copies from before migrations.
fn forget_older(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let Ok(entries) = std::fs::read_dir(files::dir_of(path)) else { return };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut copies: Vec<(String, PathBuf)> = names
        .filter_map(|found| Some((stamp_of(&found, name)?, path.with_file_name(&found))))
        .collect();
    crate::model::order::sort_by_key(&mut copies, |(stamp, _)| stamp.clone());
    for (_, old) in copies.iter().rev().skip(KEPT) {
        match std::fs::remove_file(old) {
            Ok(()) => log::info!("removed {}: newer copies are there", old.display()),
            Err(error) => log::warn!("could not remove {}: {error}", old.display()),
        }
    }
}

/// When a file was copied before a migration, if it is such a copy of the database `of`.
fn stamp_of(name: &OsStr, of: &OsStr) -> Option<String> {
    let rest = name.to_str()?.strip_prefix(of.to_str()?)?.strip_prefix(".v")?;
    let (version, stamp) = rest.split_once('-')?;
    let is_ours = !version.is_empty()
        && version.bytes().all(|b| b.is_ascii_digit())
        && stamp.len() == "20261124T022000Z".len()
        && stamp.ends_with('Z')
        && stamp.bytes().all(|b| b.is_ascii_alphanumeric());
    is_ours.then(|| stamp.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::open_writer;

    #[test]
    fn a_moment_sorts_as_text_in_file_names() {
        assert_eq!(stamp(Wall(1_779_000_000_123)), "20260517T064000Z");
        let of = |name: &str| stamp_of(OsStr::new(name), OsStr::new("roost.db"));
        assert_eq!(of("roost.db.v2-20260517T064000Z").as_deref(), Some("20260517T064000Z"));
        for other in [
            "roost.db",
            "roost.db.v2-my-own",
            "roost.db.vx-20260517T064000Z",
            "other.db.v2-20260517T064000Z",
            "roost.db.v2-20260517T064000Z.part",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn what_fails_leaves_nothing_behind_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("copy");
        let failed = write_new(&to, |part| {
            std::fs::write(part, "half").unwrap();
            std::fs::write(beside(part, "-journal"), "half").unwrap();
            assert_eq!(Part::new(&to).err(), Some(StoreError::Busy), "two of one name");
            Err(StoreError::Busy)
        });
        assert_eq!(failed, Err(StoreError::Busy));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // As a process leaves it that was killed.
        std::fs::write(beside(&to, ".part"), "half").unwrap();
        let raced = write_new(&to, |part| {
            std::fs::write(part, "mine").unwrap();
            std::fs::write(&to, "another's").unwrap();
            Ok(())
        });
        assert_eq!(raced, Err(StoreError::Exists(to.clone())));
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "another's");
        assert_eq!(write_new(&to, |_| Ok(())), Err(StoreError::Exists(to.clone())));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_with_an_odd_name_is_opened_where_nothing_can_be_put_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a b?c#100%.db");
        drop(open_writer(&odd, true, Wall(0)).unwrap());
        let version = still(&odd).and_then(|conn| open::version(&conn));
        assert_eq!(version, Ok(open::schema_version()));
    }
}
