//! Owns whether the database is still where it was opened.
//!
//! Never: touches a file. An open file can be written to for as long as one likes after it
//! was deleted; what is acknowledged then is gone with the process.

use super::StoreError;
use rusqlite::Connection;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Where a database was opened, and which file that was.
#[derive(Debug)]
pub(super) struct Place {
    db: PathBuf,
    file: (u64, u64),
    /// `None` where the file system can do no log.
    wal: Option<PathBuf>,
}

impl Place {
    /// `None` for a database that is in no file.
    pub(super) fn of(conn: &Connection) -> Result<Option<Place>, StoreError> {
        let Some(path) = conn.path().filter(|path| !path.is_empty()) else { return Ok(None) };
        let db = PathBuf::from(path);
        let file = std::fs::metadata(&db).map_err(|e| StoreError::io(&db, &e))?;
        let mode: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        let wal = (mode == "wal").then(|| PathBuf::from(format!("{path}-wal")));
        Ok(Some(Place { file: identity(&file), wal, db }))
    }

    /// Pages of log before they are copied back, by how much room there is now.
    pub(super) fn checkpoint_pages(&self) -> i64 {
        super::open::checkpoint_pages(&self.db)
    }

    /// Fails when the file or its log was moved or deleted. Ask inside a transaction: the
    /// log is there then.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let file = std::fs::metadata(&self.db).map(|file| identity(&file));
        let is_same = file.is_ok_and(|file| file == self.file);
        match is_same && self.wal.as_ref().is_none_or(|wal| wal.exists()) {
            true => Ok(()),
            false => Err(StoreError::Moved(self.db.clone())),
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
