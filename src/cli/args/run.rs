//! Owns the options of the commands that run the control plane: `serve`, `demo`, `check`.
//!
//! Never: judges a setting (`config` does). Called by `args` and by those commands.

use super::flags::Flags;
use super::settings::{CheckKeys, DemoKeys, ServeKeys};
use super::{Database, Printing, id};
use crate::config::parse_span;
use crate::model::id::{HostId, HostKind};
use clap::{Args, value_parser};
use std::time::Duration;

/// Most hosts in a demo. Larger: its output is no longer for people; `agent-sim` is for load.
const DEMO_HOSTS_MAX: i64 = 100;

/// Most sandboxes on one host of a demo. Larger: they do not fit into a simulated host.
const DEMO_SANDBOXES_MAX: i64 = 100;

/// Options of `roost serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<ServeKeys>,
}

/// Options of `roost demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Let things go wrong for this long, then end; without it, run until interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_span)]
    pub run_for: Option<Duration>,
    /// Simulated hosts
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = value_parser!(u32).range(1..=DEMO_HOSTS_MAX))]
    pub hosts: u32,
    /// Sandboxes on each host
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = value_parser!(u32).range(0..=DEMO_SANDBOXES_MAX))]
    pub sandboxes: u32,
    /// Repeat the faults of an earlier run; without it they are drawn and the seed printed
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<DemoKeys>,
}

/// Options of `roost check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Change nothing, only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Only this host
    #[arg(long, value_name = "ID", value_parser = id::<HostKind>)]
    pub host: Option<HostId>,
    /// Exit with 3 when something changed, or would change
    #[arg(long)]
    pub exit_code: bool,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<CheckKeys>,
}
