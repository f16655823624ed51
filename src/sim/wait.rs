//! Owns how a call spends the time that it takes on purpose, while its caller may leave.
//!
//! Never: decides what a call that lost its caller becomes. Called by `answer` and `calls`.

use crate::http::{Caller, Waited};
use std::time::{Duration, Instant};

/// A wait first notices after this long that the host has changed. Larger: tests wait;
/// smaller: a hanging host costs processor time.
const NOTICE_FIRST: Duration = Duration::from_millis(25);

/// The longest time after which it notices that. Larger and smaller: as above, for hosts
/// that hang for long.
const NOTICE_LAST: Duration = Duration::from_millis(200);

/// The client of one call.
pub(super) enum Client<'c> {
    /// It waits for an answer that takes no time; a worker must not wait.
    Brief,
    /// It waits on a thread of its own, and may leave.
    Waiting(&'c mut Caller),
}

impl Client<'_> {
    /// Spends as much time as `span` says, which is asked again now and then. False when the
    /// server stops or the client leaves before, unless `alone` says that the call goes on
    /// without it.
    pub(super) fn spend(&mut self, span: impl Fn() -> Duration, alone: impl Fn() -> bool) -> bool {
        let Client::Waiting(caller) = self else { return true };
        let began = Instant::now();
        let mut slice = NOTICE_FIRST;
        loop {
            let left = span().saturating_sub(began.elapsed());
            if left.is_zero() {
                return true;
            }
            match caller.wait(left.min(slice)) {
                Waited::TimedOut => {}
                Waited::PeerGone if alone() => std::thread::sleep(left.min(slice)),
                Waited::PeerGone | Waited::Stopping => return false,
            }
            slice = (slice * 2).min(NOTICE_LAST);
        }
    }
}
