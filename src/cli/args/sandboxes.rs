//! Owns what can be typed after `roost sandboxes`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Database, Printing, Server, id};
use crate::config::parse_span;
use crate::model::id::{HostId, HostKind, SandboxId, SandboxKind, TeamId, TeamKind};
use crate::model::sandbox::SandboxStatus;
use clap::{Args, Subcommand, value_parser};
use std::time::Duration;

/// Options of `roost sandboxes`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Sandboxes {
    /// What to do with sandboxes.
    #[command(subcommand)]
    command: Option<SandboxesCommand>,
    /// Options of the list.
    #[command(flatten)]
    list: SandboxesList,
}

impl Sandboxes {
    /// What was asked for.
    pub fn into_command(self) -> SandboxesCommand {
        self.command.unwrap_or(SandboxesCommand::List(self.list))
    }
}

/// What can be done with sandboxes.
#[derive(Debug, Subcommand)]
pub enum SandboxesCommand {
    /// List sandboxes
    #[command(after_help = "Examples:
  roost sandboxes list --status paused
  roost sandboxes list --all --host host-0000000000000000000000001 --format json")]
    List(SandboxesList),
    /// Show one sandbox
    #[command(after_help = "Examples:
  roost sandboxes show cl-0000000000000000000000001")]
    Show(SandboxesShow),
    /// Create a sandbox on the least loaded host
    #[command(after_help = "Examples:
  roost sandboxes create --wait
  roost sandboxes create --template minimal --vcpus 2 --memory-mb 1024 --format json")]
    Create(SandboxesCreate),
    /// Pause sandboxes: keep a snapshot, free the memory
    #[command(after_help = "Examples:
  roost sandboxes pause cl-0000000000000000000000001
  roost sandboxes pause --wait cl-0000000000000000000000001 cl-0000000000000000000000002")]
    Pause(SomeSandboxes),
    /// Resume paused sandboxes
    #[command(after_help = "Examples:
  roost sandboxes resume cl-0000000000000000000000001 --wait --timeout 2m")]
    Resume(SomeSandboxes),
    /// Destroy sandboxes and their snapshots
    #[command(after_help = "Examples:
  roost sandboxes destroy cl-0000000000000000000000001
  roost sandboxes destroy --wait cl-0000000000000000000000001 cl-0000000000000000000000002")]
    Destroy(SomeSandboxes),
    /// Take over a sandbox that a host has although it should not
    #[command(after_help = "`roost status` lists such sandboxes.

Examples:
  roost sandboxes adopt cl-0000000000000000000000001
  roost sandboxes adopt cl-0000000000000000000000001 --host host-0000000000000000000000002")]
    Adopt(SandboxesAdopt),
}

/// Options of `roost sandboxes list`.
#[derive(Debug, Args)]
pub struct SandboxesList {
    /// Only those on this host
    #[arg(long, value_name = "ID", value_parser = id::<HostKind>)]
    pub host: Option<HostId>,
    /// Only those with this status
    #[arg(long)]
    pub status: Option<SandboxStatus>,
    /// Also those that are stopped or in error
    #[arg(long)]
    pub all: bool,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost sandboxes show`.
#[derive(Debug, Args)]
pub struct SandboxesShow {
    /// The sandbox
    #[arg(value_name = "ID", value_parser = id::<SandboxKind>)]
    pub id: SandboxId,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost sandboxes create`; what is left out is the server's default.
#[derive(Debug, Args)]
pub struct SandboxesCreate {
    /// Template that it is made from, by name or id; see `roost templates`
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub vcpus: Option<u32>,
    /// Memory in MiB
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub memory_mb: Option<u32>,
    /// Idle seconds after which its host pauses it; 0 for never
    #[arg(long, value_name = "N")]
    pub timeout_sec: Option<u32>,
    /// Disk in MiB
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub disk_size_mb: Option<u32>,
    /// Team that owns it
    #[arg(long, value_name = "ID", value_parser = id::<TeamKind>)]
    pub team: Option<TeamId>,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of a command that acts on sandboxes, each by itself.
#[derive(Debug, Args)]
pub struct SomeSandboxes {
    /// The sandboxes
    #[arg(value_name = "ID", required = true, value_parser = id::<SandboxKind>)]
    pub ids: Vec<SandboxId>,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost sandboxes adopt`.
#[derive(Debug, Args)]
pub struct SandboxesAdopt {
    /// The sandbox
    #[arg(value_name = "ID", value_parser = id::<SandboxKind>)]
    pub id: SandboxId,
    /// The host that has it; needed when several do
    #[arg(long, value_name = "ID", value_parser = id::<HostKind>)]
    pub host: Option<HostId>,
    /// Team that owns it from then on, when it is not known here
    #[arg(long, value_name = "ID", value_parser = id::<TeamKind>)]
    pub team: Option<TeamId>,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Whether a command waits for what it began.
#[derive(Debug, Args)]
pub struct Waiting {
    /// Wait until it is done, also across a restart of the server; exit 1 when it failed
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_span)]
    #[arg(requires = "wait")]
    pub timeout: Duration,
}
