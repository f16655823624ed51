//! Owns what can be typed after `roost db`.
//!
//! Never: does anything. Called by `args` and by the command.

use super::{Database, DbExport, Printing, Server};
use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// What can be done with a database.
#[derive(Debug, Subcommand)]
pub enum Db {
    /// Make an empty database
    #[command(after_help = "Examples:
  roost db init
  roost db init --db /tmp/roost.db")]
    Init(Database),
    /// Make a database from a fixture
    #[command(after_help = "Examples:
  roost db load fleet.json
  roost db load --db /tmp/roost.db fleet.json")]
    Load(DbLoad),
    /// Print a database as a fixture
    #[command(after_help = "Examples:
  roost db dump > fleet.json")]
    Dump(Database),
    /// Write a database as SQL for PostgreSQL
    #[command(after_help = "Examples:
  roost db export roost.sql
  roost db export | psql -v ON_ERROR_STOP=1 -1 -f - control_plane")]
    Export(DbExport),
    /// Verify integrity and invariants
    #[command(after_help = "Examples:
  roost db verify
  roost db verify --db /tmp/roost.db --format json")]
    Verify(DbVerify),
    /// Copy the database to one new file, also while a server works on it
    ///
    /// The copy is consistent and verified before it gets its name. Keys, certificates and
    /// the configuration are files of their own and not in it.
    #[command(after_help = "Examples:
  roost db backup roost-monday.db
  roost db backup --db /var/lib/roost/roost.db /mnt/backups/roost.db")]
    Backup(DbFile),
    /// Put a backup in the place of the database
    ///
    /// The database that is there is moved aside and stays. What was restored is shown by
    /// `roost serve`, but nothing is decided and agents are told to wait until
    /// `roost db accept`. Stop the server first.
    #[command(after_help = "Examples:
  roost db restore roost-monday.db
  roost db restore --db /var/lib/roost/roost.db /mnt/backups/roost.db")]
    Restore(DbFile),
    /// Let a restored database count from now on
    ///
    /// Asks the running server; without one it is noted in the database.
    #[command(after_help = "Examples:
  roost db accept
  roost db accept --url http://10.0.0.5:8000")]
    Accept(DbAccept),
    /// Bring an older database to the schema of this roost
    ///
    /// `roost serve` does so too when it starts. The database as it was is kept beside it.
    #[command(after_help = "Examples:
  roost db migrate
  roost db migrate --db /tmp/roost.db")]
    Migrate(Database),
}

/// Options of `roost db backup` and `roost db restore`.
#[derive(Debug, Args)]
pub struct DbFile {
    /// The backup
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The database.
    #[command(flatten)]
    pub database: Database,
}

/// Options of `roost db accept`.
#[derive(Debug, Args)]
pub struct DbAccept {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The server.
    #[command(flatten)]
    pub server: Server,
}

/// Options of `roost db load`.
#[derive(Debug, Args)]
pub struct DbLoad {
    /// The fixture
    #[arg(value_name = "FIXTURE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The database.
    #[command(flatten)]
    pub database: Database,
}

/// Options of `roost db verify`.
#[derive(Debug, Args)]
pub struct DbVerify {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}
