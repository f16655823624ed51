//! Owns whether the database is still where it was opened.
//!
//! Never: touches a file. An open file can be written to for as long as one likes after it
//! was deleted; what is acknowledged then is gone with the process.

use super::StoreError;
use rusqlite::Connection;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where a database was opened, and which file that was.
#[derive(Debug)]
pub(super) struct Place {
    db: PathBuf,
    wal: PathBuf,
    file: (u64, u64),
}

impl Place {
    /// `None` for a database that is in no file.
    pub(super) fn of(conn: &Connection) -> Result<Option<Place>, StoreError> {
        let Some(path) = conn.path().filter(|path| !path.is_empty()) else { return Ok(None) };
        let db = PathBuf::from(path);
        let file = std::fs::metadata(&db).map_err(|e| StoreError::io(&db, &e))?;
        Ok(Some(Place { wal: PathBuf::from(format!("{path}-wal")), file: identity(&file), db }))
    }

    /// Fails when the file or its log was moved or deleted. Ask inside a transaction: the
    /// log is there then.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let same = |path: &Path| std::fs::metadata(path).ok().map(|file| identity(&file));
        match same(&self.db) == Some(self.file) && same(&self.wal).is_some() {
            true => Ok(()),
            false => Err(StoreError::Moved(self.db.clone())),
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
