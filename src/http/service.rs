//! Owns the way to the handler and back: panics caught, answers counted.
//!
//! Never: lets a panic out, touches a socket. Called by `connection`.

use super::figures::Counts;
use super::reject::Reject;
use super::request::{Method, Request};
use super::response::{Body, Response};
use super::stop::StopSignal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Answers requests, from many threads at once. A panic inside becomes a 500.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request. Occupies a worker for as long as it takes, so an answer
    /// that has to wait for an agent, or for another client, is [`Response::deferred`].
    fn handle(&self, request: Request) -> Response;

    /// Bytes of body that a request of this method to this path needs at most; asked before
    /// any of it is read. The server's limit counts too.
    fn body_bytes_max(&self, _method: Method, _path: &str) -> usize {
        usize::MAX
    }
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

    /// Bytes of body that a request of this method to this path may have.
    pub(super) fn body_bytes_max(&self, method: Method, path: &str) -> usize {
        // What panics here panics again when it is asked for an answer.
        let asked = || self.handler.body_bytes_max(method, path);
        catch_unwind(AssertUnwindSafe(asked)).unwrap_or(usize::MAX)
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
                log::error!("handler of {method} {path} from {peer} panicked");
                Response::panicked()
            });
        self.counted(answer)
    }

    /// Counts an answer; a deferred one when it is made.
    pub(super) fn counted(&self, answer: Response) -> Response {
        match answer.body {
            Body::Deferred(..) => {}
            Body::Empty | Body::Bytes(_) | Body::Stream(_) | Body::Cut => {
                self.counts.answered(answer.status);
            }
        }
        answer
    }
}
