//! Owns the options of the commands that run the control plane or stand in for its hosts:
//! `serve`, `demo`, `check`, `agent-sim`.
//!
//! Never: judges a setting (`config` does). Called by `args` and by those commands.

use super::flags::Flags;
use super::settings::{CheckKeys, DemoKeys, ServeKeys};
use super::{Database, Printing, id};
use crate::config::parse_span;
use crate::model::id::{HostId, HostKind};
use crate::model::sandbox::SandboxStatus;
use clap::{Args, ValueHint, value_parser};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Most simulated hosts: each takes a port of its own above `--base-port`.
const SIMULATED_HOSTS_MAX: i64 = 20_000;

/// Most simulated sandboxes on one host. Larger: a listing no longer fits the largest
/// answer a probe reads (16 MiB).
const SIMULATED_SANDBOXES_MAX: i64 = 20_000;

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

/// Options of `roost agent-sim`.
#[derive(Debug, Args)]
pub struct AgentSim {
    /// Simulated hosts
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = value_parser!(u32).range(1..=SIMULATED_HOSTS_MAX))]
    pub hosts: u32,
    /// Sandboxes that each host lists
    #[arg(long, value_name = "M", default_value_t = 4)]
    #[arg(value_parser = value_parser!(u32).range(0..=SIMULATED_SANDBOXES_MAX))]
    pub sandboxes: u32,
    /// Port of the first host; the next ones follow
    #[arg(long, value_name = "P", default_value_t = 50_051)]
    #[arg(value_parser = value_parser!(u16).range(1..))]
    pub base_port: u16,
    /// Every answer comes this many milliseconds late
    #[arg(long, value_name = "D", default_value_t = 0)]
    pub delay_ms: u64,
    /// Every K-th host hangs before it answers; 0 for none
    #[arg(long, value_name = "K", default_value_t = 0, requires = "hang_ms")]
    pub hang_every: u32,
    /// How many milliseconds a hanging host waits
    #[arg(long, value_name = "H", default_value_t = 0)]
    pub hang_ms: u64,
    /// List every sandbox as paused, instead of running
    #[arg(long, conflicts_with = "auto_paused")]
    pub paused: bool,
    /// List no sandbox; the first answer says that all of them were paused by the agent
    #[arg(long)]
    pub auto_paused: bool,
    /// Write the fixture that matches these hosts, for `roost db load`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub fleet: Option<PathBuf>,
    /// Status of the sandboxes in that fixture
    #[arg(long, value_name = "STATUS", default_value_t = SandboxStatus::Running)]
    #[arg(requires = "fleet")]
    pub fleet_status: SandboxStatus,
}

impl AgentSim {
    /// One port for each host; `None` when they do not fit below 65536.
    pub fn ports(&self) -> Option<RangeInclusive<u16>> {
        let more = u16::try_from(self.hosts - 1).ok()?;
        Some(self.base_port..=self.base_port.checked_add(more)?)
    }
}
