//! Owns what can be typed after `roost hosts`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Database, Printing, Server, id};
use crate::model::id::{HostId, HostKind};
use clap::{Args, Subcommand};

/// Options of `roost hosts`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Hosts {
    /// What to do with hosts.
    #[command(subcommand)]
    command: Option<HostsCommand>,
    /// Options of the list.
    #[command(flatten)]
    list: HostsList,
}

impl Hosts {
    /// What was asked for.
    pub fn into_command(self) -> HostsCommand {
        self.command.unwrap_or(HostsCommand::List(self.list))
    }
}

/// What can be done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// List every host
    #[command(after_help = "Examples:
  roost hosts list
  roost hosts list --db /var/lib/roost/roost.db --format json")]
    List(HostsList),
    /// Show one host, with its last probe
    #[command(after_help = "Examples:
  roost hosts show host-0000000000000000000000001")]
    Show(HostsShow),
    /// Create a host and print its registration token
    #[command(after_help = "Examples:
  roost hosts add
  roost hosts add --type metal --provider hetzner --availability-zone fsn1 --format json")]
    Add(HostsAdd),
    /// Make a new registration token for a host
    #[command(after_help = "Examples:
  roost hosts token host-0000000000000000000000001")]
    Token(OneHost),
    /// Place nothing new on a host; what is there stays and is watched
    #[command(after_help = "Examples:
  roost hosts drain host-0000000000000000000000001")]
    Drain(OneHost),
    /// Place sandboxes on a host again, after drain or offline
    #[command(after_help = "Examples:
  roost hosts undrain host-0000000000000000000000001")]
    Undrain(OneHost),
    /// Set a host aside: neither watched nor probed
    #[command(after_help = "Examples:
  roost hosts offline host-0000000000000000000000001")]
    Offline(OneHost),
    /// Send no notifications about a host while somebody works on it
    ///
    /// What is still wrong when the time is over is announced then.
    #[command(after_help = "Examples:
  roost hosts maintenance host-0000000000000000000000001 --for 2h --reason disk
  roost hosts maintenance host-0000000000000000000000001 --end")]
    Maintenance(HostsMaintenance),
    /// Delete a host
    ///
    /// Its agent is told so and destroys every sandbox it has. A host with sandboxes is
    /// deleted with --force only; on a terminal you are shown them and asked first.
    #[command(after_help = "Examples:
  roost hosts rm host-0000000000000000000000001
  roost hosts rm host-0000000000000000000000001 --force
  roost hosts rm host-0000000000000000000000001 --force --yes")]
    Rm(HostsRm),
}

/// Options of `roost hosts list`.
#[derive(Debug, Args)]
pub struct HostsList {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost hosts show`.
#[derive(Debug, Args)]
pub struct HostsShow {
    /// The host
    #[arg(value_name = "ID", value_parser = id::<HostKind>)]
    pub id: HostId,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost hosts add`.
#[derive(Debug, Args)]
pub struct HostsAdd {
    /// Kind of host, in your own words
    #[arg(long = "type", value_name = "TYPE")]
    pub host_type: Option<String>,
    /// Who runs the machine, in your own words
    #[arg(long)]
    pub provider: Option<String>,
    /// Where it stands, in your own words
    #[arg(long, value_name = "ZONE")]
    pub availability_zone: Option<String>,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of a command that acts on one host.
#[derive(Debug, Args)]
pub struct OneHost {
    /// The host
    #[arg(value_name = "ID", value_parser = id::<HostKind>)]
    pub id: HostId,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost hosts maintenance`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("span").required(true).args(["for_span", "end"])))]
pub struct HostsMaintenance {
    /// The host.
    #[command(flatten)]
    pub host: OneHost,
    /// For how long, for example 2h
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::config::parse_span)]
    pub for_span: Option<std::time::Duration>,
    /// What for, in your own words
    #[arg(long, value_name = "TEXT", conflicts_with = "end")]
    pub reason: Option<String>,
    /// End it now
    #[arg(long)]
    pub end: bool,
}

/// Options of `roost hosts rm`.
#[derive(Debug, Args)]
pub struct HostsRm {
    /// The host.
    #[command(flatten)]
    pub host: OneHost,
    /// Delete it together with its sandboxes
    #[arg(long)]
    pub force: bool,
    /// Do not ask; needed with --force where nobody can be asked
    #[arg(long)]
    pub yes: bool,
}
