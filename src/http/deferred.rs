//! Owns deferred responses: a usual response that another thread makes, because it takes
//! time; and the claim of the client that waits for one.
//!
//! Never: writes the response (a worker does, once it is made). The connection stays in the
//! table meanwhile, so a client gets its answer by the deadline whatever the thread waits
//! for. Started by `worker`, used by handlers.

use super::connection::{Exchange, Next};
use super::figures::Counts;
use super::lane::Slot;
use super::response::Response;
use super::server::Shared;
use super::stop::StopSignal;
use super::table::Place;
use super::watch::Waited;
use super::worker;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// What makes a deferred response.
pub(super) type Deferred = Box<dyn FnOnce(&mut Caller) -> Response + Send>;

/// A deferred response that is not being made yet.
pub(super) struct DeferredStart {
    pub(super) run: Deferred,
    pub(super) slot: Option<Slot>,
    pub(super) exchange: Exchange,
}

const OPEN: u8 = 0;
const BEGUN: u8 = 1;
const OVER: u8 = 2;

/// What a client that waits is owed. Either work for it begins to change something, and it
/// is answered what came of it, or it is given up, and nothing begins: never both.
#[derive(Debug)]
pub struct Claim {
    state: AtomicU8,
    /// Disconnects when the client is gone.
    gone: Receiver<Infallible>,
}

/// Keeps a claim from being one of a client that is gone.
pub(super) type Presence = Sender<Infallible>;

impl Claim {
    /// Of a client that waits for as long as the other part is kept.
    pub(super) fn open() -> (Arc<Claim>, Presence) {
        let (presence, gone) = crossbeam_channel::bounded(0);
        (Arc::new(Claim { state: AtomicU8::new(OPEN), gone }), presence)
    }

    /// Asked before something is changed for the client: false when it is not to be begun,
    /// because the client has its answer or none to wait for.
    pub fn begin(&self) -> bool {
        self.turn(BEGUN)
    }

    /// Whether nothing may be begun for it any more.
    pub fn is_over(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OVER
    }

    /// Gives it up; false when something has begun.
    pub(super) fn give_up(&self) -> bool {
        self.turn(OVER)
    }

    /// Turns an open claim into `to`; whether it is that now.
    fn turn(&self, to: u8) -> bool {
        let turned = self.state.compare_exchange(OPEN, to, Ordering::SeqCst, Ordering::SeqCst);
        turned.map_or_else(|found| found == to, |_| true)
    }
}

/// The client that waits for a deferred response.
#[derive(Debug)]
pub struct Caller {
    claim: Arc<Claim>,
    stop: Arc<StopSignal>,
}

impl Caller {
    /// Waits for `timeout`, or less when the server stops or the client disconnects. A client
    /// that only closes its sending side counts as disconnected; what the handler returns is
    /// sent to it all the same.
    pub fn wait(&mut self, timeout: Duration) -> Waited {
        crossbeam_channel::select! {
            recv(self.stop.channel()) -> _ => Waited::Stopping,
            recv(self.claim.gone) -> _ => Waited::PeerGone,
            default(timeout) => Waited::TimedOut,
        }
    }

    /// Whether the client has disconnected.
    pub fn is_gone(&mut self) -> bool {
        self.claim.gone.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Whether the server stops and the handler should return.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_raised()
    }

    /// What the client is owed, for who changes something in its name.
    pub fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.claim)
    }
}

/// A deferred response on its way: who waits for it, and where.
pub(super) struct Making {
    shared: Arc<Shared>,
    place: Place,
    claim: Arc<Claim>,
    counted: Counted,
}

impl Making {
    /// For the connection at this place, which is parked under this claim.
    pub(super) fn new(
        shared: &Arc<Shared>,
        place: Place,
        claim: Arc<Claim>,
        counted: Counted,
    ) -> Making {
        Making { shared: Arc::clone(shared), place, claim, counted }
    }

    /// Has the handler make the response and gives it to the client.
    pub(super) fn run(self, run: Deferred, slot: Option<Slot>) {
        let mut caller =
            Caller { claim: Arc::clone(&self.claim), stop: Arc::clone(&self.shared.stop) };
        let made = catch_unwind(AssertUnwindSafe(|| run(&mut caller)));
        let response = made.unwrap_or_else(|_| {
            log::error!("a deferred response panicked");
            Response::panicked()
        });
        drop(caller);
        self.answer(response, slot);
    }

    /// Puts the response on its way, unless the client has its answer or is gone.
    pub(super) fn answer(self, response: Response, slot: Option<Slot>) {
        let Making { shared, place, claim, counted } = self;
        let Some(mut connection) = shared.unpark_waiting(place, &claim) else { return };
        let Some(exchange) = connection.end_wait() else { return shared.close(place, connection) };
        let response = shared.service.counted(response);
        drop(counted);
        match connection.complete(response, exchange, &shared.service) {
            Next::Stream(start) => worker::begin_stream(&shared, place, connection, start, slot),
            next @ (Next::Readable | Next::Writable | Next::Deferred(_) | Next::Close) => {
                worker::follow(&shared, place, connection, next);
            }
        }
    }
}

/// Counts one response that is being made.
pub(super) struct Counted(Arc<Counts>);

impl Counted {
    /// One more, unless there are `max` already.
    pub(super) fn take(counts: &Arc<Counts>, max: usize) -> Option<Counted> {
        let counted = Counted(Arc::clone(counts));
        (counts.deferred.fetch_add(1, Ordering::SeqCst) < max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.deferred.fetch_sub(1, Ordering::SeqCst);
    }
}
