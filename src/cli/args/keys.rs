//! Owns what can be typed after `roost keys`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Printing, Server, id};
use crate::model::id::{KeyId, KeyKind, TeamId, TeamKind};
use clap::{Args, Subcommand};

/// What can be done with API keys.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Create a key and print it, once
    #[command(after_help = "Examples:
  roost keys create ci
  roost keys create ci --team team-0000000000000000000000001 --format json")]
    Create(KeysCreate),
    /// List keys, without the keys themselves
    #[command(after_help = "Examples:
  roost keys list
  roost keys list --format json")]
    List(KeysList),
    /// Revoke a key; it is refused from then on
    #[command(after_help = "Examples:
  roost keys revoke key-0000000000000000000000001")]
    Revoke(KeysRevoke),
}

/// Options of `roost keys create`.
#[derive(Debug, Args)]
pub struct KeysCreate {
    /// What it is for, in your own words
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Team whose sandboxes it opens
    #[arg(long, value_name = "ID", value_parser = id::<TeamKind>)]
    pub team: Option<TeamId>,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost keys list`.
#[derive(Debug, Args)]
pub struct KeysList {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost keys revoke`.
#[derive(Debug, Args)]
pub struct KeysRevoke {
    /// The key
    #[arg(value_name = "ID", value_parser = id::<KeyKind>)]
    pub id: KeyId,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}
