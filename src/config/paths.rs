//! Owns the names of the files in the data directory.
//!
//! Never: touches the disk. Called by `cli`, `engine` and `store` for their files.

use std::path::{Path, PathBuf};

/// The files of one data directory. Secrets among them have mode 0600, the directory 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The directory itself.
    pub dir: PathBuf,
    /// The database.
    pub db: PathBuf,
    /// Held by the one process that may write.
    pub lock: PathBuf,
    /// Which database was served last, and how far it was.
    pub served: PathBuf,
    /// Secret: the API key of the operator on this machine.
    pub admin_key: PathBuf,
    /// Secret: signs host tokens. Not in the database, so that a restored or emptied
    /// database does not make genuine agents strangers.
    pub host_token_key: PathBuf,
    /// Certificate of the CA for agents.
    pub ca_cert: PathBuf,
    /// Secret: key of that CA.
    pub ca_key: PathBuf,
    /// The configuration, when no other file is named.
    pub config_file: PathBuf,
}

impl Paths {
    /// The files in `dir`.
    pub fn of(dir: &Path) -> Paths {
        Paths {
            dir: dir.to_owned(),
            db: dir.join("roost.db"),
            lock: dir.join("lock"),
            served: dir.join("served"),
            admin_key: dir.join("admin.key"),
            host_token_key: dir.join("host-token.key"),
            ca_cert: dir.join("ca.pem"),
            ca_key: dir.join("ca.key"),
            config_file: dir.join("roost.toml"),
        }
    }

    /// The same files, but the database named with `--db`, when it was.
    pub fn with_db(self, db: Option<&Path>) -> Paths {
        match db {
            Some(db) => Paths { db: db.to_owned(), ..self },
            None => self,
        }
    }
}
