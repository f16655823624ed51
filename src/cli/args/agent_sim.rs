//! Owns the options of `agent-sim`, which stands in for hosts.
//!
//! Never: reads a file. Called by `args` and by the command.

use crate::model::sandbox::SandboxStatus;
use clap::builder::ArgPredicate;
use clap::{Args, ValueHint, value_parser};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Most simulated hosts: each takes a port of its own above `--base-port`.
const SIMULATED_HOSTS_MAX: i64 = 20_000;

/// Most simulated sandboxes on one host. Larger: a listing no longer fits the largest
/// answer a probe reads (16 MiB).
const SIMULATED_SANDBOXES_MAX: i64 = 20_000;

/// Options of `roost agent-sim`.
#[derive(Debug, Args)]
pub struct AgentSim {
    /// Simulated hosts; with --join there is one for each token
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "join")]
    #[arg(value_parser = value_parser!(u32).range(1..=SIMULATED_HOSTS_MAX))]
    pub hosts: u32,
    /// Sandboxes that each host lists; with --join none unless given
    #[arg(long, value_name = "M", default_value_t = 4)]
    #[arg(default_value_if("join", ArgPredicate::IsPresent, "0"))]
    #[arg(value_parser = value_parser!(u32).range(0..=SIMULATED_SANDBOXES_MAX))]
    pub sandboxes: u32,
    /// Port of the first host; the next ones follow; 0 for free ones
    #[arg(long, value_name = "P", default_value_t = 50_051)]
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
    /// Creates, pauses, resumes, destroys and snapshots take this many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub calls_ms: u64,
    /// Finish calls whose caller disconnects, instead of undoing them as real agents do
    #[arg(long)]
    pub orphans_finish: bool,
    /// Behave as newer agents: list paused sandboxes, also those found on disk after a restart
    #[arg(long)]
    pub lists_paused: bool,
    /// Leave a sandbox as it is after a snapshot, as newer agents do; older ones destroy it
    #[arg(long)]
    pub keeps_after_snapshot: bool,
    /// Report auto-pauses and failures to the control plane, as newer agents do
    #[arg(long, requires = "join")]
    pub reports: bool,
    /// Send every report this many milliseconds late
    #[arg(long, value_name = "MS", default_value_t = 0, requires = "reports")]
    pub reports_late_ms: u64,
    /// The agents' clocks are this many milliseconds ahead, or behind if negative
    #[arg(long, value_name = "MS", default_value_t = 0, allow_negative_numbers = true)]
    pub clock_skew_ms: i64,
    /// A template that every host has beside minimal, as two UUIDs; may be repeated
    #[arg(long, value_name = "TEAM/ID")]
    pub template: Vec<String>,
    /// File with such templates, one a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub template_file: Option<PathBuf>,
    /// Crash and restart one agent after the other, each of them every S seconds; 0 for none
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub restart_every_s: u64,
    /// After a restart, find nothing on disk for a random time of up to this many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0, requires = "restart_every_s")]
    pub index_ms: u64,
    /// After SIGTERM, refuse calls as unavailable for this many milliseconds before exiting
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub shutdown_ms: u64,
    /// Register with this control plane as real agents do, and send heartbeats
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, requires = "tokens")]
    #[arg(conflicts_with = "fleet")]
    pub join: Option<String>,
    /// Registration token of a host, several with commas; others on this machine can see it
    #[arg(long, value_name = "TOKEN", value_delimiter = ',', group = "tokens")]
    #[arg(requires = "join")]
    pub token: Vec<String>,
    /// File with registration tokens, one a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, group = "tokens")]
    #[arg(requires = "join")]
    pub token_file: Option<PathBuf>,
    /// Milliseconds between two heartbeats
    #[arg(long, value_name = "MS", default_value_t = 30_000, requires = "join")]
    #[arg(value_parser = value_parser!(u64).range(1..))]
    pub heartbeat_ms: u64,
    /// Certificate of an https control plane, or of its CA, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "join")]
    pub ca: Option<PathBuf>,
}

impl AgentSim {
    /// One port for each of so many hosts, or 0 for free ones; `None` when they do not fit
    /// below 65536.
    pub fn ports(&self, hosts: usize) -> Option<RangeInclusive<u16>> {
        let more = match self.base_port {
            0 => 0,
            _ => u16::try_from(hosts.checked_sub(1)?).ok()?,
        };
        Some(self.base_port..=self.base_port.checked_add(more)?)
    }
}
