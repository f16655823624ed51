//! Owns what can be typed after `roost sandboxes`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Database, Printing, id};
use crate::model::id::{HostId, HostKind, SandboxId, SandboxKind};
use crate::model::sandbox::SandboxStatus;
use clap::{Args, Subcommand};

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
