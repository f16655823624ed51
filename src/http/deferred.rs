//! Owns deferred responses: a usual response that a thread of its own makes, because it
//! takes time.
//!
//! Never: writes the response (a worker does, once it is made). Started by `worker`, used by
//! handlers.

use super::connection::{Connection, Exchange, Next};
use super::response::Response;
use super::service::Service;
use super::stop::StopSignal;
use super::watch::{self, Waited};
use crate::logging::seldom;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// What makes a deferred response.
pub(super) type Deferred = Box<dyn FnOnce(&mut Caller) -> Response + Send>;

/// A deferred response that is not being made yet.
pub(super) struct DeferredStart {
    pub(super) run: Deferred,
    pub(super) exchange: Exchange,
}

/// The client that waits for a deferred response.
#[derive(Debug)]
pub struct Caller {
    connection: Box<Connection>,
    stop: Arc<StopSignal>,
}

impl Caller {
    pub(super) fn new(connection: Box<Connection>, stop: Arc<StopSignal>) -> Caller {
        Caller { connection, stop }
    }

    /// Waits for `timeout`, or less when the server stops or the client disconnects. A client
    /// that only closes its sending side counts as disconnected; what the handler returns is
    /// sent to it all the same.
    pub fn wait(&mut self, timeout: Duration) -> Waited {
        watch::wait(&self.connection, &self.stop, timeout).unwrap_or_else(|error| {
            log::debug!("lost sight of {}: {error}", self.connection.peer());
            Waited::PeerGone
        })
    }

    /// Whether the client has disconnected.
    pub fn is_gone(&mut self) -> bool {
        watch::is_gone(&self.connection).unwrap_or_else(|error| {
            log::debug!("lost sight of {}: {error}", self.connection.peer());
            true
        })
    }

    /// Whether the server stops and the handler should return.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_raised()
    }

    /// Has the handler make the response and puts it on its way; says what comes next.
    pub(super) fn run(
        mut self,
        start: DeferredStart,
        service: &Service,
    ) -> (Box<Connection>, Next) {
        let DeferredStart { run, exchange } = start;
        let made = catch_unwind(AssertUnwindSafe(|| run(&mut self)));
        let response = made.unwrap_or_else(|_| {
            let peer = self.connection.peer();
            seldom!(Error, "panics of responses", peer.ip() =>
                "a deferred response to {peer} panicked");
            Response::panicked()
        });
        let next = self.connection.complete(service.counted(response), exchange, service);
        (self.connection, next)
    }
}
