//! Owns for how long no client could be heard: connections could not be accepted, or every
//! worker was stuck at something.
//!
//! Never: decides what follows from it. Fed by `worker`, asked through `Hearing`.

use super::limits::STUCK_AFTER_MS;
use super::server::Shared;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Stands for: not.
const NOT: u64 = u64::MAX;

/// What the workers say of themselves, in milliseconds on the server's timer.
pub(super) struct Ears {
    /// Since when each worker has been at one event; `NOT`: it waits for one.
    busy_since: Box<[AtomicU64]>,
    /// Since when connections cannot be accepted.
    shut_since: AtomicU64,
    /// The longest time without hearing that is over and was not asked about.
    was_deaf_ms: AtomicU64,
}

impl Ears {
    pub(super) fn new(workers: usize) -> Ears {
        Ears {
            busy_since: (0..workers).map(|_| AtomicU64::new(NOT)).collect(),
            shut_since: AtomicU64::new(NOT),
            was_deaf_ms: AtomicU64::new(0),
        }
    }

    /// This worker begins with an event.
    pub(super) fn begin(&self, worker: usize, now_ms: u64) {
        if let Some(since) = self.busy_since.get(worker) {
            since.store(now_ms, Ordering::Relaxed);
        }
    }

    /// This worker waits for the next event.
    pub(super) fn end(&self, worker: usize, now_ms: u64) {
        let Some(since) = self.busy_since.get(worker) else { return };
        // Asked before it counts as free: the last one to be stuck tells of it.
        let is_long = now_ms.saturating_sub(since.load(Ordering::Relaxed)) >= STUCK_AFTER_MS;
        if is_long && let Some(span_ms) = self.stuck_ms(now_ms) {
            self.was_deaf_ms.fetch_max(span_ms, Ordering::Relaxed);
        }
        since.store(NOT, Ordering::Relaxed);
    }

    /// Connections cannot be accepted; whether that is news.
    pub(super) fn shut(&self, now_ms: u64) -> bool {
        let news = (Ordering::Relaxed, Ordering::Relaxed);
        self.shut_since.compare_exchange(NOT, now_ms, news.0, news.1).is_ok()
    }

    /// Connections are accepted; whether that is news.
    pub(super) fn open(&self, now_ms: u64) -> bool {
        // Nearly always so, and then nothing is written.
        if self.shut_since.load(Ordering::Relaxed) == NOT {
            return false;
        }
        let since = self.shut_since.swap(NOT, Ordering::Relaxed);
        if since != NOT {
            self.was_deaf_ms.fetch_max(now_ms.saturating_sub(since), Ordering::Relaxed);
        }
        since != NOT
    }

    /// The longest time without hearing since this was asked last, one that goes on included.
    fn take_deaf(&self, now_ms: u64) -> Duration {
        let was_ms = self.was_deaf_ms.swap(0, Ordering::Relaxed);
        let shut_since = self.shut_since.load(Ordering::Relaxed);
        let shut_ms = if shut_since == NOT { 0 } else { now_ms.saturating_sub(shut_since) };
        Duration::from_millis(was_ms.max(shut_ms).max(self.stuck_ms(now_ms).unwrap_or(0)))
    }

    /// For how long every worker has been stuck.
    fn stuck_ms(&self, now_ms: u64) -> Option<u64> {
        let since = |busy: &AtomicU64| busy.load(Ordering::Relaxed);
        let newest = self.busy_since.iter().map(since).max().filter(|newest| *newest != NOT)?;
        Some(now_ms.saturating_sub(newest)).filter(|span_ms| *span_ms >= STUCK_AFTER_MS)
    }
}

/// Says whether a server could be heard by its clients; clones ask the same one.
#[derive(Clone)]
pub struct Hearing(Arc<Shared>);

impl Hearing {
    pub(super) fn new(shared: &Arc<Shared>) -> Hearing {
        Hearing(Arc::clone(shared))
    }

    /// The longest time in which no client could be heard since this was asked last, one
    /// that goes on included; zero nearly always.
    pub fn take_deaf(&self) -> Duration {
        self.0.ears.take_deaf(self.0.timer.now_ms())
    }
}

impl fmt::Debug for Hearing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hearing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deaf_ms(ears: &Ears, now_ms: u64) -> u128 {
        ears.take_deaf(now_ms).as_millis()
    }

    #[test]
    fn one_free_worker_hears() {
        let ears = Ears::new(2);
        ears.begin(0, 1000);
        assert_eq!(deaf_ms(&ears, 90_000), 0);
        ears.begin(1, 5000);
        assert_eq!(deaf_ms(&ears, 5900), 0, "a moment is no matter");
        assert_eq!(deaf_ms(&ears, 15_000), 10_000, "since the second one is stuck");
        ears.end(0, 20_000);
        assert_eq!(deaf_ms(&ears, 90_000), 15_000, "it is over, and is told of once");
        assert_eq!(deaf_ms(&ears, 90_000), 0);
        ears.end(1, 90_000);
        assert_eq!(deaf_ms(&ears, 90_000), 0);
    }

    #[test]
    fn who_cannot_connect_is_not_heard() {
        let ears = Ears::new(1);
        assert!(!ears.open(500));
        assert!(ears.shut(1000));
        assert!(!ears.shut(2000));
        assert_eq!(deaf_ms(&ears, 8000), 7000);
        assert!(ears.open(9000));
        assert_eq!((deaf_ms(&ears, 9500), deaf_ms(&ears, 9500)), (8000, 0));
    }
}
