//! Owns the way to the handler and back: panics caught, answers counted.
//!
//! Never: lets a panic out, touches a socket. Called by `connection`.

use super::figures::Counts;
use super::reject::Reject;
use super::request::Request;
use super::response::{Body, Response};
use super::stop::StopSignal;
use crate::logging::{foreign, seldom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Answers requests, from many threads at once. A panic inside becomes a 500.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request. Occupies a worker for as long as it takes, so an answer
    /// that has to wait for an agent, or for another client, is [`Response::deferred`].
    fn handle(&self, request: Request) -> Response;
}

/// A handler with what protects the server from it.
pub(super) struct Service {
    handler: Arc<dyn Handler>,
    stop: Arc<StopSignal>,
    counts: Arc<Counts>,
}

impl Service {
    /// For a server that ends with `stop`.
    pub(super) fn new(
        handler: Arc<dyn Handler>,
        stop: Arc<StopSignal>,
        counts: Arc<Counts>,
    ) -> Service {
        Service { handler, stop, counts }
    }

    /// Whether the server is about to end: connections are not to be kept.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_raised()
    }

    /// Counts an answer that the transport gave by itself.
    pub(super) fn refused(&self, reject: Reject) {
        self.counts.answered(reject.status());
    }

    /// The handler's answer, or ours in its stead.
    pub(super) fn answer(&self, request: Request) -> Response {
        let (method, path, peer) = (request.method, request.path.clone(), request.peer);
        let answer = catch_unwind(AssertUnwindSafe(|| self.handler.handle(request)))
            .unwrap_or_else(|_| {
                let path = foreign(&path);
                seldom!(Error, "panics of handlers", peer.ip() =>
                    "handler of {method} {path} from {peer} panicked");
                Response::panicked()
            });
        self.counted(answer)
    }

    /// Counts an answer; a deferred one when it is made.
    pub(super) fn counted(&self, answer: Response) -> Response {
        match answer.body {
            Body::Deferred(_) => {}
            Body::Empty | Body::Bytes(_) | Body::Stream(_) | Body::Feed(_) | Body::Cut => {
                self.counts.answered(answer.status);
            }
        }
        answer
    }
}
