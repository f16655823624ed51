//! Owns the mark beside the keys that says which database was served last and how far it
//! was: by it a database is noticed that is older than that, or another one.
//!
//! Never: is ahead of what is on the disk for certain, makes a commit wait or fail. A mark
//! that is behind says less; one that is ahead would accuse every power cut.

use super::{StoreError, acceptance};
use crate::files;
use crate::model::time::Wall;
use rusqlite::Connection;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a mark says of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// When it was made, in milliseconds since 1970: what tells one from another.
    made_ms: i64,
    /// Its newest revision.
    revision: u64,
}

impl Mark {
    fn of(conn: &Connection) -> Result<Mark, StoreError> {
        Ok(conn.query_row("SELECT created_at, revision FROM state", [], |row| {
            Ok(Mark { made_ms: row.get(0)?, revision: super::rows::unsigned(row, 1)? })
        })?)
    }

    /// Always of the same length: it is written over the one before.
    fn text(self) -> String {
        format!("database {:020} revision {:020}\n", self.made_ms, self.revision)
    }

    fn read(path: &Path) -> io::Result<Option<Mark>> {
        let text = match files::open_for_reading(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => io::read_to_string(file?)?,
        };
        let mut words = text.split_whitespace();
        let mut number_after = |word| {
            (words.next() == Some(word)).then(|| words.next()?.parse::<i64>().ok()).flatten()
        };
        let mark = number_after("database").zip(number_after("revision"));
        let mark = mark.and_then(|(made_ms, revision)| {
            Some(Mark { made_ms, revision: u64::try_from(revision).ok()? })
        });
        mark.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "is no mark"))
    }
}

/// Keeps the mark of the database that is served.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    file: Option<File>,
    made_ms: i64,
    /// What the file says, or the newest that it could not be told.
    marked: Option<u64>,
    /// The last attempt failed, which was said.
    is_failing: bool,
}

impl Served {
    /// Looks whether the database is the one that was served last, as far as it was then. One
    /// that is not is taken for restored: nothing is decided on it until an operator accepts
    /// it.
    ///
    /// # Errors
    /// Whatever the database says. A mark that cannot be read is as none.
    pub fn recognise(conn: &mut Connection, path: &Path, now: Wall) -> Result<Served, StoreError> {
        let found = Mark::of(conn)?;
        let last = Mark::read(path).unwrap_or_else(|error| {
            log::warn!("could not read {}: {error}; going on without", path.display());
            None
        });
        let mut served = Served {
            path: path.to_owned(),
            file: None,
            made_ms: found.made_ms,
            marked: None,
            is_failing: false,
        };
        let Some(last) = last.filter(|last| last.is_missed_in(found)) else {
            served.marked = last.filter(|last| *last == found).map(|last| last.revision);
            return Ok(served);
        };
        let is_known = acceptance::newest(conn)?.is_some_and(|known| known.accepted_at.is_none());
        if !is_known {
            let what = if last.made_ms == found.made_ms { "older than" } else { "another than" };
            log::warn!(
                "the database is {what} the one that was served last (revision {} after {}): it \
                 is taken for a restored one",
                found.revision,
                last.revision
            );
            conn.pragma_update(None, "synchronous", "FULL")?;
            acceptance::mark_beyond(conn, last.revision, now)?;
            served.advance(Mark::of(conn)?.revision);
            conn.pragma_update(None, "synchronous", "NORMAL")?;
        }
        Ok(served)
    }

    /// Whether the mark does not say this revision yet.
    pub(super) fn is_behind(&self, revision: u64) -> bool {
        self.marked != Some(revision)
    }

    /// Everything up to this revision is on the disk for certain.
    pub(super) fn advance(&mut self, revision: u64) {
        if !self.is_behind(revision) {
            return;
        }
        self.marked = Some(revision);
        let written = self.write(Mark { made_ms: self.made_ms, revision });
        if let Err(error) = &written
            && !self.is_failing
        {
            log::warn!("could not write {}: {error}; going on without", self.path.display());
        }
        self.is_failing = written.is_err();
    }

    /// Not synced: what a power cut takes of it, it may.
    fn write(&mut self, mark: Mark) -> io::Result<()> {
        if self.file.is_none() {
            let (file, _) = files::open_or_create(&self.path)?;
            file.set_len(mark.text().len() as u64)?;
            self.file = Some(file);
        }
        self.file.as_ref().map_or(Ok(()), |file| file.write_all_at(mark.text().as_bytes(), 0))
    }
}

impl Mark {
    /// Whether something happened up to this mark that is not in `found`.
    fn is_missed_in(self, found: Mark) -> bool {
        self.revision > 0 && (self.made_ms != found.made_ms || self.revision > found.revision)
    }
}

/// Another database was put in place on purpose, and says so itself.
///
/// # Errors
/// Whatever the system says.
pub fn forget(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::open_writer;

    fn at(revision: u64, made_ms: i64) -> Connection {
        let dir = tempfile::tempdir().unwrap();
        let conn = open_writer(&dir.path().join("roost.db"), true, Wall(made_ms)).unwrap();
        conn.execute("UPDATE state SET revision = ?1", [revision as i64]).unwrap();
        conn
    }

    #[test]
    fn only_what_lacks_something_is_taken_for_restored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("served");
        let says = |text: &str| std::fs::write(&path, text).unwrap();
        let of = |made_ms, revision| Mark { made_ms, revision }.text();
        let held = |conn: &mut Connection| {
            Served::recognise(conn, &path, Wall(9)).unwrap();
            acceptance::newest(conn).unwrap().is_some()
        };
        for (mark, is_held) in [
            (of(1, 5), false),
            (of(1, 4), false),
            (of(1, 6), true),
            (of(2, 1), true),
            (of(2, 0), false),
            (String::new(), false),
            ("database x revision 9".to_owned(), false),
            ("\0".repeat(60), false),
        ] {
            says(&mark);
            let mut conn = at(5, 1);
            assert_eq!(held(&mut conn), is_held, "{mark:?}");
            assert_eq!(held(&mut conn), is_held, "{mark:?}, once more");
            let restores: i64 =
                conn.query_row("SELECT count(*) FROM restores", [], |row| row.get(0)).unwrap();
            assert_eq!(restores, i64::from(is_held), "once");
        }
        forget(&path).unwrap();
        forget(&path).unwrap();
        assert!(!held(&mut at(5, 1)));
    }

    #[test]
    fn revisions_go_on_beyond_what_was_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("served");
        let served = 7_000_000_000;
        std::fs::write(&path, Mark { made_ms: 1, revision: served }.text()).unwrap();
        let mut conn = at(5, 2);
        Served::recognise(&mut conn, &path, Wall(9)).unwrap();
        let now = Mark::of(&conn).unwrap();
        assert!(now.revision > served, "{now:?}");
        assert_eq!(Mark::read(&path).unwrap(), Some(now));
        assert_eq!(crate::store::verify::verify(&conn).unwrap(), [] as [&str; 0]);
    }

    #[test]
    fn the_mark_is_written_over_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("served");
        let mut served = Served::recognise(&mut at(0, 3), &path, Wall(9)).unwrap();
        assert!(!path.exists(), "nothing is certain yet");
        for revision in [1, 12, u64::from(u32::MAX), 13] {
            assert!(served.is_behind(revision));
            served.advance(revision);
            assert!(!served.is_behind(revision));
            assert_eq!(Mark::read(&path).unwrap(), Some(Mark { made_ms: 3, revision }));
        }
    }
}
