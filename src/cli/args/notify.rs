//! Owns what can be typed after `roost notify`.
//!
//! Never: does anything. Called by `args` and by the commands.

use super::{Printing, Server};
use clap::{Args, Subcommand};

/// Options of `roost notify`; alone it shows.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Notify {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<NotifyCommand>,
    /// Options of the overview.
    #[command(flatten)]
    pub show: NotifyShow,
}

/// What can be done with notifications.
#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Show what is wrong and what is still to be told to whom
    #[command(after_help = "Examples:
  roost notify show --format json")]
    Show(NotifyShow),
    /// Send every target a test message and show what came of it
    ///
    /// Exits 1 when one of them did not take it.
    #[command(after_help = "Examples:
  roost notify test")]
    Test(NotifyShow),
}

/// Options of `roost notify show` and `roost notify test`.
#[derive(Debug, Args)]
pub struct NotifyShow {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}
