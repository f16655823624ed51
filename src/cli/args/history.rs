//! Owns the options of the commands that show what was: `events` and `audit`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Database, Printing, id};
use crate::model::id::{HostId, HostKind, SandboxId, SandboxKind};
use crate::model::time::Wall;
use clap::Args;

/// Rows shown when nobody says how many. Larger: the newest scroll away.
const ROWS_DEFAULT: u32 = 50;

/// Options of `roost events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens from now on, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// Only events after this revision
    #[arg(long, value_name = "REVISION")]
    pub after: Option<u64>,
    /// At most this many, before following; the oldest with --after, else the newest
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT)]
    pub limit: u32,
    /// Only events of this host
    #[arg(long, value_name = "ID", value_parser = id::<HostKind>)]
    pub host: Option<HostId>,
    /// Only events of this sandbox
    #[arg(long, value_name = "ID", value_parser = id::<SandboxKind>)]
    pub sandbox: Option<SandboxId>,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT)]
    pub limit: u32,
    /// Only entries older than this time, RFC 3339 in UTC
    #[arg(long, value_name = "TIME")]
    pub before: Option<Wall>,
    /// Only entries about this host
    #[arg(long, value_name = "ID", value_parser = id::<HostKind>)]
    pub host: Option<HostId>,
    /// Only entries about this sandbox
    #[arg(long, value_name = "ID", conflicts_with = "host", value_parser = id::<SandboxKind>)]
    pub sandbox: Option<SandboxId>,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}
