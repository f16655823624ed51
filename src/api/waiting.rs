//! Owns the answers that take time: who may wait for one, and for how long it makes sense.
//!
//! Never: lets one key occupy all deferred responses; waits for a client that is gone or
//! while the server shuts down.

use super::access::Caller;
use super::{Problem, Ready, routes};
use crate::http::{Caller as Client, Response, Waited};
use crate::model::id::KeyId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One key may occupy one in this many of the deferred responses. Larger: a program that
/// creates many capsules at once gets 503; smaller: it leaves others too little.
const SHARE_ONE_IN: usize = 4;

/// One in this many is kept for the admin key. Larger: an operator may have to wait for
/// users; smaller: users have fewer.
const RESERVED_ONE_IN: usize = 8;

/// Longest time until a client that is gone, or a shutdown, is noticed.
pub(super) const NOTICE: Duration = Duration::from_millis(500);

/// Who occupies a deferred response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// An operator.
    Admin,
    /// A key.
    Key(KeyId),
    /// The agents, all together.
    Agents,
}

impl From<&Caller> for Holder {
    fn from(caller: &Caller) -> Holder {
        match caller {
            Caller::Admin => Holder::Admin,
            Caller::Key(key) => Holder::Key(key.id),
        }
    }
}

/// Deferred responses by who occupies them.
#[derive(Debug)]
pub struct Waiters {
    max: usize,
    taken: Mutex<HashMap<Holder, usize>>,
    when_done: AtomicBool,
}

impl Waiters {
    /// For a transport that makes so many deferred responses at a time.
    pub fn new(max: usize) -> Waiters {
        Waiters { max, taken: Mutex::default(), when_done: AtomicBool::new(false) }
    }

    /// From now on: whether lifecycle requests that say nothing of it are answered when they
    /// are done.
    pub fn answer_when_done(&self, when_done: bool) {
        self.when_done.store(when_done, Ordering::Relaxed);
    }

    /// Whether lifecycle requests that say nothing of it are answered when they are done.
    pub(super) fn when_done(&self) -> bool {
        self.when_done.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Holder, usize>> {
        // Every change is one assignment, so a panic elsewhere is no reason to stop.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more for this holder, unless it has its share or too few are left.
    pub(super) fn take(self: &Arc<Waiters>, holder: Holder) -> Option<Slot> {
        let mut taken = self.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(&holder).copied().unwrap_or(0);
        let (own_max, all_max) = match holder {
            Holder::Admin => (self.max, self.max),
            Holder::Key(_) | Holder::Agents => {
                ((self.max / SHARE_ONE_IN).max(1), self.max - self.max / RESERVED_ONE_IN)
            }
        };
        let fits = own < own_max && all < all_max;
        fits.then(|| {
            taken.insert(holder, own + 1);
            Slot { waiters: Arc::clone(self), holder }
        })
    }
}

/// One deferred response; given back when dropped.
pub(super) struct Slot {
    waiters: Arc<Waiters>,
    holder: Holder,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.waiters.lock();
        match taken.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(taken.remove(&self.holder)),
        }
    }
}

/// An answer that `work` makes on a thread of its own; 503 when too many are being made.
pub(super) fn deferred(
    ready: &Arc<Ready>,
    holder: Holder,
    work: impl FnOnce(&Ready, &mut Client) -> Result<Response, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let too_many = || Problem::unavailable("too many requests wait for an answer already");
    let slot = ready.waiters.take(holder).ok_or_else(too_many)?;
    Ok(deferred_in(slot, ready, work))
}

/// An answer that `work` makes on a thread of its own, for which there is a place.
pub(super) fn deferred_in(
    slot: Slot,
    ready: &Arc<Ready>,
    work: impl FnOnce(&Ready, &mut Client) -> Result<Response, Problem> + Send + 'static,
) -> Response {
    let ready = Arc::clone(ready);
    Response::deferred(move |client| {
        let _slot = slot;
        routes::settled(&ready, work(&ready, client))
    })
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_gets_a_quarter_and_the_operator_always_finds_room() {
        let waiters = Arc::new(Waiters::new(16));
        let key = |n| Holder::Key(KeyId::from_u128(n));
        let mut slots: Vec<Slot> = (0..4).filter_map(|_| waiters.take(key(1))).collect();
        assert_eq!(slots.len(), 4);
        assert!(waiters.take(key(1)).is_none(), "a quarter and no more");
        slots.extend((2..20).map_while(|n| waiters.take(key(n))));
        assert_eq!(slots.len(), 14, "an eighth is left");
        assert!(waiters.take(key(99)).is_none());
        let admin: Vec<Slot> = (0..3).filter_map(|_| waiters.take(Holder::Admin)).collect();
        assert_eq!(admin.len(), 2);
        drop(admin);
        slots.remove(0);
        assert!(waiters.take(key(1)).is_some(), "given back");
        slots.clear();
        assert!(waiters.lock().is_empty(), "nothing is remembered of who waited");
    }

    #[test]
    fn a_small_transport_has_one_for_each() {
        let waiters = Arc::new(Waiters::new(2));
        let slot = waiters.take(Holder::Key(KeyId::from_u128(1)));
        assert!(slot.is_some());
        assert!(waiters.take(Holder::Key(KeyId::from_u128(1))).is_none());
        assert!(waiters.take(Holder::Admin).is_some());
    }
}
