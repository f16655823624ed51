//! Owns the way to the handler and back: panics caught, patient requests held to their share.
//!
//! Never: lets a panic out, touches a socket. Called by `connection`.

use super::figures::Counts;
use super::reject::Reject;
use super::request::Request;
use super::response::{Body, Response};
use super::stop::StopSignal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers requests, from many threads at once. A panic inside becomes a 500.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request. Holds a worker for as long as it takes.
    fn handle(&self, request: Request) -> Response;

    /// Whether the answer may have to wait for somebody else, for example for an agent that
    /// hangs. Such requests hold at most half of the workers; more get 503, so that
    /// heartbeats are answered whatever the agents do.
    fn waits_for_others(&self, request: &Request) -> bool {
        let _ = request;
        false
    }
}

/// A handler with what protects the server from it.
pub(super) struct Service {
    handler: Arc<dyn Handler>,
    patient: AtomicUsize,
    patient_max: usize,
    stop: Arc<StopSignal>,
    counts: Arc<Counts>,
}

impl Service {
    /// For a server of so many workers that ends with `stop`.
    pub(super) fn new(
        handler: Arc<dyn Handler>,
        workers: usize,
        stop: Arc<StopSignal>,
        counts: Arc<Counts>,
    ) -> Service {
        let patient_max = (workers / 2).max(1);
        Service { handler, patient: AtomicUsize::new(0), patient_max, stop, counts }
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
        let answer = catch_unwind(AssertUnwindSafe(|| self.ask(request))).unwrap_or_else(|_| {
            log::error!("handler of {method} {path} from {peer} panicked");
            Response::panicked()
        });
        self.counted(answer)
    }

    /// Counts an answer; a deferred one when it is made.
    pub(super) fn counted(&self, answer: Response) -> Response {
        match answer.body {
            Body::Deferred(_) => {}
            Body::Empty | Body::Bytes(_) | Body::Stream(_) | Body::Cut => {
                self.counts.answered(answer.status);
            }
        }
        answer
    }

    fn ask(&self, request: Request) -> Response {
        if !self.handler.waits_for_others(&request) {
            return self.handler.handle(request);
        }
        let share = Share(&self.patient);
        if share.0.fetch_add(1, Ordering::SeqCst) < self.patient_max {
            self.handler.handle(request)
        } else {
            Response::error(503, "unavailable", "too many requests wait for an answer already")
        }
    }
}

/// One request's part in a count; given back also when the handler panics.
struct Share<'c>(&'c AtomicUsize);

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
