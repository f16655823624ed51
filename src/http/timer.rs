//! Owns the moment at which the reaper has to look, and its sleep until then.
//!
//! Never: wakes anybody when nothing is due. Set by whoever parks a connection, awaited by
//! `reaper`.

use super::limits::DEADLINE_GRAIN_MS;
use super::table::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Milliseconds since the server's start, and the next one of interest.
pub(super) struct Timer {
    start: Instant,
    due_ms: AtomicU64,
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Timer {
    /// Starts at zero; nothing is due.
    pub(super) fn new() -> Timer {
        Timer {
            start: Instant::now(),
            due_ms: AtomicU64::new(u64::MAX),
            ended: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Now.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Makes the sleeper look at `at_ms` at the latest, or one grain later.
    pub(super) fn look_at(&self, at_ms: u64) {
        let at_ms = at_ms.checked_next_multiple_of(DEADLINE_GRAIN_MS).unwrap_or(u64::MAX);
        // The first test spares the many who come later than somebody else the write.
        if at_ms < self.due_ms.load(Ordering::SeqCst)
            && at_ms < self.due_ms.fetch_min(at_ms, Ordering::SeqCst)
        {
            let _ended = lock(&self.ended);
            self.changed.notify_one();
        }
    }

    /// Ends the sleep, for good.
    pub(super) fn end(&self) {
        *lock(&self.ended) = true;
        self.changed.notify_one();
    }

    /// Sleeps until something is due and forgets it: from here on whatever is of interest
    /// must be said anew. False when ended.
    pub(super) fn sleep(&self) -> bool {
        let mut ended = lock(&self.ended);
        loop {
            if *ended {
                return false;
            }
            let (now_ms, due_ms) = (self.now_ms(), self.due_ms.load(Ordering::SeqCst));
            if due_ms <= now_ms {
                self.due_ms.store(u64::MAX, Ordering::SeqCst);
                return true;
            }
            ended = if due_ms == u64::MAX {
                self.changed.wait(ended).unwrap_or_else(PoisonError::into_inner)
            } else {
                let left = Duration::from_millis(due_ms - now_ms);
                self.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}
