//! Owns the answers that take time: for how long it makes sense to wait for one.
//!
//! Never: waits for a client that is gone or while the server shuts down.

use super::{Problem, Ready};
use crate::http::{Caller as Client, Waited};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest time until a client that is gone, or a shutdown, is noticed.
pub(super) const NOTICE: Duration = Duration::from_millis(500);

/// Waits for `step`; says why when waiting any longer makes no sense.
pub(super) fn pass(ready: &Ready, client: &mut Client, step: Duration) -> Result<(), Ended> {
    match client.wait(step) {
        Waited::PeerGone => Err(Ended::ClientGone),
        Waited::Stopping => Err(Ended::Stopping),
        Waited::TimedOut => still_needed(ready, client),
    }
}

/// Says why when waiting any longer makes no sense; does not wait.
pub(super) fn still_needed(ready: &Ready, client: &mut Client) -> Result<(), Ended> {
    if client.is_gone() {
        Err(Ended::ClientGone)
    } else if client.is_stopping() || ready.pulse.stopping.load(Ordering::Relaxed) {
        Err(Ended::Stopping)
    } else {
        Ok(())
    }
}

/// Why a wait ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client has disconnected: no answer is read.
    ClientGone,
    /// The server shuts down.
    Stopping,
}

impl Ended {
    /// As an answer, where there is no better one.
    pub(super) fn refusal(self, what: &str) -> Problem {
        match self {
            Ended::ClientGone => Problem::unavailable(format!("client disconnected; {what}")),
            Ended::Stopping => Problem::unavailable(format!("shutting down; {what}")),
        }
    }
}
