//! Owns the ways in which the database can fail us, told by what can be done about it.
//!
//! Never: decides what a client is answered (`api` does).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Why the database could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// There is no database at this path.
    Missing(PathBuf),
    /// There is no file at this path.
    NoFile(PathBuf),
    /// Something is at this path already, and stays.
    Exists(PathBuf),
    /// A file, or what was copied of it, breaks what every database of ours keeps.
    NotWhole {
        /// Which file.
        path: PathBuf,
        /// The first thing that is wrong.
        first: String,
        /// How many more are.
        more: usize,
    },
    /// The database was restored and nobody has accepted it yet.
    NotAccepted,
    /// The file is there and is not a Roost database.
    Foreign(PathBuf),
    /// A newer Roost made this database.
    NewerSchema {
        /// Version of the file.
        found: i64,
        /// Newest version that this program knows.
        known: i64,
    },
    /// The schema is older than this program's and the file was opened for reading only.
    OlderSchema {
        /// Version of the file.
        found: i64,
        /// Version that this program needs.
        known: i64,
    },
    /// Another process serves this database.
    Held {
        /// The lock file.
        lock: PathBuf,
        /// Process id as the lock file says it.
        pid: String,
    },
    /// SQLite says that the file is damaged.
    Damaged(String),
    /// No space, a read-only file, or the disk failed: nothing was written.
    Disk(String),
    /// A file cannot be opened: permissions, or the limit of open files.
    CannotOpen(String),
    /// The file that is open is no longer at this path: what is written would be lost.
    Moved(PathBuf),
    /// Another process is writing and did not stop in time.
    Busy,
    /// A write has been waiting for so long: its disk hangs, or another process is writing.
    Stalled(Duration),
    /// A file could not be read or written.
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// A row holds what no version of Roost writes.
    BadRow(String),
    /// Any other refusal by SQLite.
    Sqlite(String),
    /// The writer has stopped; nothing was written.
    Stopped,
    /// The command was not begun in time, or its client is gone; nothing was written.
    GivenUp,
}

impl StoreError {
    /// A file error with its path.
    pub fn io(path: impl Into<PathBuf>, error: &std::io::Error) -> StoreError {
        StoreError::Io { path: path.into(), message: error.to_string() }
    }

    /// Whether the database as a whole cannot be used as it is now, whatever was asked of it.
    pub fn is_trouble(&self) -> bool {
        match self {
            StoreError::Damaged(_)
            | StoreError::Disk(_)
            | StoreError::CannotOpen(_)
            | StoreError::Moved(_)
            | StoreError::Busy
            | StoreError::Stalled(_)
            | StoreError::Io { .. } => true,
            StoreError::Missing(_)
            | StoreError::NoFile(_)
            | StoreError::Exists(_)
            | StoreError::NotWhole { .. }
            | StoreError::NotAccepted
            | StoreError::Foreign(_)
            | StoreError::NewerSchema { .. }
            | StoreError::OlderSchema { .. }
            | StoreError::Held { .. }
            | StoreError::BadRow(_)
            | StoreError::Sqlite(_)
            | StoreError::Stopped
            | StoreError::GivenUp => false,
        }
    }

    /// Whether waiting may help: a disk can be freed, a lock released, a directory given to
    /// whom it belongs. Anything else needs a hand that starts the program again.
    pub fn may_pass(&self) -> bool {
        matches!(self, StoreError::Disk(_) | StoreError::CannotOpen(_) | StoreError::Busy)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Missing(path) => write!(
                f,
                "no database at {}; make one with `roost db init` or `roost serve`",
                path.display()
            ),
            StoreError::NoFile(path) => write!(f, "there is no file {}", path.display()),
            StoreError::Exists(path) => write!(
                f,
                "{} is there already and is not overwritten; choose another name",
                path.display()
            ),
            StoreError::NotWhole { path, first, more: 0 } => {
                write!(f, "{} is damaged ({first}); use another backup", path.display())
            }
            StoreError::NotWhole { path, first, more } => write!(
                f,
                "{} is damaged ({first}, and {more} more); use another backup",
                path.display()
            ),
            StoreError::NotAccepted => f.write_str(
                "the database was restored and is not accepted yet; look at it, then run \
                 `roost db accept`",
            ),
            StoreError::Foreign(path) => {
                write!(f, "{} is not a roost database; choose another path", path.display())
            }
            StoreError::NewerSchema { found, known } => write!(
                f,
                "the database has schema {found} and this roost knows up to {known}; \
                 use the newer roost, or restore a backup made before the upgrade"
            ),
            StoreError::OlderSchema { found, known } => write!(
                f,
                "the database has schema {found} and this roost needs {known}; \
                 run `roost db migrate`, or start `roost serve`, which migrates"
            ),
            StoreError::Held { lock, pid } => write!(
                f,
                "the database is held by another roost (pid {pid}, {}); stop it first",
                lock.display()
            ),
            StoreError::Damaged(what) => {
                write!(f, "the database is damaged ({what}); restore a backup")
            }
            StoreError::Disk(what) => {
                write!(f, "the disk refused a write ({what}); free space or repair it")
            }
            StoreError::CannotOpen(what) => write!(
                f,
                "a file of the database cannot be opened ({what}); \
                 check its directory's permissions and the limit of open files"
            ),
            StoreError::Moved(path) => write!(
                f,
                "the database that is open is no longer at {}; put it back with its log, \
                 or stop roost and restore a backup",
                path.display()
            ),
            StoreError::Busy => f.write_str("another process keeps the database locked; try again"),
            StoreError::Stalled(span) => write!(
                f,
                "a write has been waiting for {} s: its disk does not answer, or another process \
                 keeps the database locked",
                span.as_secs()
            ),
            StoreError::Io { path, message } => write!(f, "{}: {message}", path.display()),
            StoreError::BadRow(what) => {
                write!(f, "the database holds what roost never writes ({what})")
            }
            StoreError::Sqlite(what) => write!(f, "the database refused: {what}"),
            StoreError::GivenUp => f.write_str("not begun in time, or its client is gone"),
            StoreError::Stopped => f.write_str("the writer has stopped"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        use rusqlite::ErrorCode as Code;
        let text = error.to_string();
        if matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..)
        ) {
            return StoreError::BadRow(text);
        }
        match error.sqlite_error_code() {
            Some(Code::NotADatabase | Code::DatabaseCorrupt) => StoreError::Damaged(text),
            Some(Code::DiskFull | Code::ReadOnly | Code::SystemIoFailure) => StoreError::Disk(text),
            Some(Code::CannotOpen) => StoreError::CannotOpen(text),
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => StoreError::Busy,
            Some(_) | None => StoreError::Sqlite(text),
        }
    }
}
