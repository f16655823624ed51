//! Owns what can be typed after `roost db`.
//!
//! Never: does anything. Called by `args` and by the command.

use super::{Database, DbExport, Printing};
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
