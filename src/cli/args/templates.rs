//! Owns what can be typed after `roost templates` and `roost snapshots`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Database, Printing, Server, Waiting, id};
use crate::model::id::{HostId, HostKind, SandboxId, SandboxKind, TeamId, TeamKind, TemplateId};
use crate::model::template::{TemplateKind, TemplateName};
use clap::{Args, Subcommand, value_parser};

/// Largest number that the agents' wire can say.
const SIZE_MAX: i64 = i32::MAX as i64;

/// Options of `roost templates`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Templates {
    /// What to do with templates.
    #[command(subcommand)]
    command: Option<TemplatesCommand>,
    /// Options of the list.
    #[command(flatten)]
    list: TemplatesList,
}

impl Templates {
    /// What was asked for.
    pub fn into_command(self) -> TemplatesCommand {
        self.command.unwrap_or(TemplatesCommand::List(self.list))
    }
}

/// What can be done with templates.
#[derive(Debug, Subcommand)]
pub enum TemplatesCommand {
    /// List templates, snapshots included
    #[command(after_help = "Examples:
  roost templates list
  roost templates list --type base --format json")]
    List(TemplatesList),
    /// Add a template that hosts have on their disks
    ///
    /// Agents find it by its team and its id. Without --host every host counts as having it.
    #[command(after_help = "Examples:
  roost templates add python3.12 --id 6f1c1f9e-4b0e-4a53-9c5e-0d6f0a4f2b11 --memory-mb 1024
  roost templates add node --host host-0000000000000000000000001 --user app -e LANG=C.UTF-8")]
    Add(Box<TemplatesAdd>),
    /// Forget a template; hosts keep its files
    ///
    /// A snapshot is deleted with its files by `roost snapshots rm`.
    #[command(after_help = "Examples:
  roost templates rm python3.12
  roost templates rm tmpl-0000000000000000000000001")]
    Rm(TemplatesRm),
}

/// Options of `roost templates list`.
#[derive(Debug, Args)]
pub struct TemplatesList {
    /// Only those of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<TemplateKind>,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost templates add`.
#[derive(Debug, Args)]
pub struct TemplatesAdd {
    /// How sandboxes name it
    #[arg(value_name = "NAME")]
    pub name: TemplateName,
    /// Its id on the hosts, as a UUID or a tmpl- id, instead of a new one
    #[arg(long, value_name = "ID", value_parser = template_id)]
    pub id: Option<TemplateId>,
    /// Team that owns it, instead of the platform, whose templates every team sees
    #[arg(long, value_name = "ID", value_parser = id::<TeamKind>)]
    pub team: Option<TeamId>,
    /// Virtual CPUs of a sandbox that asks for none
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=SIZE_MAX))]
    pub vcpus: Option<u32>,
    /// The same for memory in MiB
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=SIZE_MAX))]
    pub memory_mb: Option<u32>,
    /// The same for the disk in MiB
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=SIZE_MAX))]
    pub disk_size_mb: Option<u32>,
    /// User that commands run as
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Variable in the environment of commands; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Host that has it; may be repeated
    #[arg(long, value_name = "ID", value_parser = id::<HostKind>)]
    pub host: Vec<HostId>,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost templates rm` and `roost snapshots rm`.
#[derive(Debug, Args)]
pub struct TemplatesRm {
    /// Its name or id
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Team that owns it, where several have one of this name
    #[arg(long, value_name = "ID", value_parser = id::<TeamKind>)]
    pub team: Option<TeamId>,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost snapshots`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Snapshots {
    /// What to do with snapshots.
    #[command(subcommand)]
    command: Option<SnapshotsCommand>,
    /// Options of the list.
    #[command(flatten)]
    list: SnapshotsList,
}

impl Snapshots {
    /// What was asked for.
    pub fn into_command(self) -> SnapshotsCommand {
        self.command.unwrap_or(SnapshotsCommand::List(self.list))
    }
}

/// What can be done with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotsCommand {
    /// List the templates that were made of sandboxes
    #[command(after_help = "Examples:
  roost snapshots list
  roost snapshots list --format json")]
    List(SnapshotsList),
    /// Make a template of a running or paused sandbox
    ///
    /// Older agents destroy the sandbox once the template is made. A snapshot that takes
    /// over a minute continues after the command has ended; --wait waits for it.
    #[command(after_help = "Examples:
  roost snapshots create cl-0000000000000000000000001 with-deps
  roost snapshots create cl-0000000000000000000000001 with-deps --overwrite --wait")]
    Create(SnapshotsCreate),
    /// Delete a snapshot, on its hosts too
    ///
    /// It can no longer be named at once. A host deletes its files when no sandbox that was
    /// made from it is left there.
    #[command(after_help = "Examples:
  roost snapshots rm with-deps
  roost snapshots rm tmpl-0000000000000000000000001")]
    Rm(TemplatesRm),
}

/// Options of `roost snapshots list`.
#[derive(Debug, Args)]
pub struct SnapshotsList {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost snapshots create`.
#[derive(Debug, Args)]
pub struct SnapshotsCreate {
    /// The sandbox
    #[arg(value_name = "ID", value_parser = id::<SandboxKind>)]
    pub id: SandboxId,
    /// What it is called, instead of its template and the date
    #[arg(value_name = "NAME")]
    pub name: Option<TemplateName>,
    /// Take the place of a snapshot of this name
    #[arg(long, requires = "name")]
    pub overwrite: bool,
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

fn template_id(text: &str) -> Result<TemplateId, String> {
    match TemplateId::from_uuid(text) {
        Some(id) => Ok(id),
        None => id(text).map_err(|error| format!("{error}, or like a UUID")),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("must look like NAME=VALUE".to_owned()),
    }
}
