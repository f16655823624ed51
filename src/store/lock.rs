//! Owns the right to write to a database: one process has it, whatever paths lead to the
//! file.
//!
//! Never: waits for it, touches the database.

use super::StoreError;
use crate::files;
use rustix::fs::fstatfs;
use std::fs::{File, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File systems on which a lock of the whole file would keep SQLite from its own: NFS, SMB,
/// CIFS, 9P, and what a program provides.
const SHARED_FILE_SYSTEMS: [u32; 5] = [0x6969, 0xfe53_4d42, 0xff53_4d42, 0x0102_1997, 0x6573_5546];

/// The right to write to a database: a locked file beside it, and the database itself, so
/// that a second name of it is of no use; released when dropped, or when the process ends in
/// any way. Drop it after every connection of this process.
#[derive(Debug)]
pub struct Lock {
    _beside: File,
    database: Option<File>,
}

impl Lock {
    /// Takes the lock of the database that `db` leads to and writes our process id into it.
    ///
    /// # Errors
    /// [`StoreError::Held`] when another process has it; whatever the system says.
    pub fn of(db: &Path) -> Result<Lock, StoreError> {
        let db = files::resolved(db).map_err(|e| StoreError::io(db, &e))?;
        let mut lock = Lock { _beside: take(&Lock::path_for(&db))?, database: None };
        lock.follow(&db)?;
        Ok(lock)
    }

    /// Locks the database itself, once it is there.
    ///
    /// # Errors
    /// [`StoreError::Held`] when another process has it under another name.
    pub fn follow(&mut self, db: &Path) -> Result<(), StoreError> {
        let db = files::resolved(db).map_err(|e| StoreError::io(db, &e))?;
        // A second file would, when it is closed, take SQLite's own locks with it.
        let identity = |found: Metadata| (found.dev(), found.ino());
        let held = self.database.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        if held.is_some() && held == db.symlink_metadata().ok().map(identity) {
            return Ok(());
        }
        // Whether it can be read is for who opens it to say.
        let Ok(file) = files::open_for_reading(&db) else { return Ok(()) };
        let is_shared =
            fstatfs(&file).is_ok_and(|fs| SHARED_FILE_SYSTEMS.contains(&(fs.f_type as u32)));
        if !is_shared && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(StoreError::Held { lock: db, pid: "unknown".to_owned() });
        }
        self.database = Some(file);
        Ok(())
    }

    /// The lock file of the database at `db`: `lock` beside `roost.db`, so that one data
    /// directory has one; `NAME.lock` beside any other name.
    fn path_for(db: &Path) -> PathBuf {
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

fn take(path: &Path) -> Result<File, StoreError> {
    let io = |e: io::Error| StoreError::io(path, &e);
    // On a disk that takes no writes the lock still tells who is alone.
    let opened = files::open_or_create(path).map(|(file, _)| file);
    let mut file = opened.or_else(|e| files::open_for_reading(path).map_err(|_| io(e)))?;
    if let Err(error) = file.try_lock() {
        return Err(match error {
            TryLockError::WouldBlock => {
                let mut pid = String::new();
                // The holder may be about to write it; "unknown" is honest then.
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
                StoreError::Held { lock: path.to_owned(), pid: pid.to_owned() }
            }
            TryLockError::Error(error) => io(error),
        });
    }
    if let Err(error) = say_pid(&mut file) {
        log::warn!("could not write our process id to {}: {error}", path.display());
    }
    Ok(file)
}

/// For people: the lock counts without it.
fn say_pid(file: &mut File) -> io::Result<()> {
    if file.metadata()?.nlink() != 1 {
        return Err(io::Error::other("it has a second name elsewhere"));
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("roost.db");
        let held = Lock::of(&db).unwrap();
        let pid = std::process::id().to_string();
        let lock = dir.path().join("lock").canonicalize().unwrap();
        assert_eq!(
            Lock::of(&db).map(|_| ()),
            Err(StoreError::Held { lock: lock.clone(), pid: pid.clone() })
        );
        drop(held);
        let held = Lock::of(&db).unwrap();
        assert_eq!(std::fs::read_to_string(&lock).unwrap().trim(), pid);
        assert_eq!(lock.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(held);
    }

    /// Another directory, another name, links of both kinds: it is one file.
    #[test]
    fn whatever_path_leads_to_it_there_is_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let (db, other) = (dir.path().join("roost.db"), dir.path().join("other"));
        std::fs::create_dir(&other).unwrap();
        std::fs::write(&db, "").unwrap();
        symlink(&db, other.join("roost.db")).unwrap();
        symlink("roost.db", other.join("again.db")).unwrap();
        std::fs::hard_link(&db, other.join("hard.db")).unwrap();
        let names = [db, other.join("roost.db"), other.join("again.db"), other.join("hard.db")];
        for first in &names {
            let held = Lock::of(first).unwrap();
            for second in &names {
                let refused = Lock::of(second).map(drop);
                assert!(matches!(refused, Err(StoreError::Held { .. })), "{first:?} {second:?}");
            }
            drop(held);
        }
        // A database that is made under the lock, and gets a second name later.
        let (made, twin) = (dir.path().join("made.db"), other.join("twin.db"));
        let mut held = Lock::of(&made).unwrap();
        std::fs::write(&made, "").unwrap();
        held.follow(&made).unwrap();
        std::fs::hard_link(&made, &twin).unwrap();
        assert!(matches!(Lock::of(&twin), Err(StoreError::Held { .. })));
    }

    #[test]
    fn nothing_is_written_where_the_lock_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, victim) = (dir.path().join("lock"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, &lock).unwrap();
        let refused = Lock::of(&dir.path().join("roost.db")).unwrap_err().to_string();
        assert!(refused.contains("is a link; remove it"), "{refused}");
        std::fs::remove_file(&lock).unwrap();
        std::fs::hard_link(&victim, &lock).unwrap();
        drop(Lock::of(&dir.path().join("roost.db")).unwrap());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }
}
