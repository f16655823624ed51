//! Owns the calls that wait on purpose.
//!
//! Never: lets those who wait take all threads of the server: beyond a number, the one that
//! has waited longest goes on early. Its caller has most likely given up. Called by `answer`.

use super::lock;
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One wait is looked at again after this long at the latest. Larger: nothing is gained;
/// far larger: the moment of its end cannot be told to the system.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Calls that wait.
#[derive(Debug)]
pub(super) struct Holds {
    max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: BTreeSet<u64>,
    ended: bool,
}

impl Holds {
    /// For at most `max` calls at a time.
    pub(super) fn new(max: usize) -> Holds {
        Holds { max: max.max(1), state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for as long as `span` says; asks it again when something has changed.
    pub(super) fn wait(&self, span: impl Fn() -> Duration) {
        if span().is_zero() {
            return;
        }
        let began = Instant::now();
        let mut state = lock(&self.state);
        let ticket = self.enter(&mut state);
        loop {
            let left = span().saturating_sub(began.elapsed()).min(LOOK_AGAIN);
            if left.is_zero() || state.ended || !state.waiting.contains(&ticket) {
                break;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting.remove(&ticket);
    }

    fn enter(&self, state: &mut State) -> u64 {
        let ticket = state.next;
        state.next += 1;
        state.waiting.insert(ticket);
        if state.waiting.len() > self.max {
            state.waiting.pop_first();
            self.changed.notify_all();
        }
        ticket
    }

    /// Makes everybody who waits ask again for how long.
    pub(super) fn look_again(&self) {
        let _state = lock(&self.state);
        self.changed.notify_all();
    }

    /// Nobody waits any more, now or later.
    pub(super) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn the_longest_wait_makes_room() {
        let holds = Holds::new(1);
        std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let holds = &holds;
            scope.spawn(move || {
                // The first look, and those that follow from inside the wait.
                holds.wait(|| tell.send(()).map_or(Duration::ZERO, |()| LONG));
                tell.send(()).ok();
            });
            told.recv().unwrap();
            told.recv().unwrap();
            let second = scope.spawn(|| holds.wait(|| LONG));
            // Pushed out: looks once more, then is over.
            told.recv().unwrap();
            told.recv().unwrap();
            assert!(told.recv().is_err());
            holds.end();
            second.join().unwrap();
        });
    }

    #[test]
    fn a_wait_ends_when_there_is_no_reason_left() {
        let holds = Holds::new(4);
        let span = Mutex::new(LONG);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| holds.wait(|| *lock(&span)));
            *lock(&span) = Duration::ZERO;
            holds.look_again();
            waits.join().unwrap();
        });
        holds.end();
        holds.wait(|| LONG);
    }
}
