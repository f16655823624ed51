//! Owns what can be typed after `roost db export`.
//!
//! Never: does anything. Called by `args` and by the command.

use super::Database;
use crate::store::export::SchemaName;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

/// What a database is exported for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// SQL for PostgreSQL 15 or later
    Postgres,
}

/// Options of `roost db export`.
#[derive(Debug, Args)]
pub struct DbExport {
    /// A new file, or - for stdout
    #[arg(default_value = "-", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// For what
    #[arg(long, value_enum, default_value_t = ExportFormat::Postgres)]
    pub format: ExportFormat,
    /// PostgreSQL schema to make; loading fails when it is there
    #[arg(long, value_name = "NAME", default_value = "roost")]
    pub schema: SchemaName,
    /// Events too; they are most of a database
    #[arg(long)]
    pub events: bool,
    /// The database.
    #[command(flatten)]
    pub database: Database,
}
