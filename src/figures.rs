//! Owns how a room counts what it does: counters, gauges and histograms that many threads
//! change and one may read at any moment.
//!
//! Never: knows who reads them or how they are written down (`api::metrics` does), waits,
//! forgets what was counted. Used by every room that does something worth counting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter for each word of a closed vocabulary, in its order.
#[derive(Debug)]
pub struct Counters<const WORDS: usize>([Counter; WORDS]);

impl<const WORDS: usize> Default for Counters<WORDS> {
    fn default() -> Counters<WORDS> {
        Counters(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const WORDS: usize> Counters<WORDS> {
    /// One more of the word at this place. A place that is none counts nothing.
    pub fn count(&self, at: usize) {
        self.add(at, 1);
    }

    /// So many more of the word at this place.
    pub fn add(&self, at: usize, more: u64) {
        if let Some(counter) = self.0.get(at) {
            counter.add(more);
        }
    }

    /// All of them, in the order of the words.
    pub fn get(&self) -> [u64; WORDS] {
        std::array::from_fn(|at| self.0[at].get())
    }
}

/// Upper ends of the classes of a [`Histogram`], in milliseconds: from a healthy answer on
/// a quiet network to the longest deadline of a probe. More of them and every scrape is
/// longer; fewer and slow cannot be told from hung.
pub const BOUNDS_MS: [u64; 10] = [1, 5, 25, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// How long something took, by class.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last class has no upper end.
    classes: Counters<{ BOUNDS_MS.len() + 1 }>,
    micros: Counter,
}

impl Histogram {
    /// Counts a duration.
    pub fn note(&self, took: Duration) {
        let class = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        self.classes.count(class.unwrap_or(BOUNDS_MS.len()));
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// For each upper end how many took no longer, with all of them as the last number, and
    /// the sum of all durations.
    pub fn get(&self) -> ([u64; BOUNDS_MS.len() + 1], Duration) {
        let mut below = 0;
        let counts = self.classes.get().map(|count| {
            below += count;
            below
        });
        (counts, Duration::from_micros(self.micros.get()))
    }
}

/// Measures how long our own work takes. Decides nothing: decisions are given their time.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// From now on.
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// Since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_took_no_longer() {
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 25, 26, 10_000, 10_001] {
            histogram.note(Duration::from_millis(millis));
        }
        let (counts, sum) = histogram.get();
        assert_eq!(counts, [2, 3, 4, 5, 5, 5, 5, 5, 5, 6, 7]);
        assert_eq!(sum, Duration::from_millis(20_055));
    }

    #[test]
    fn what_is_no_place_is_not_counted() {
        let counters = Counters::<2>::default();
        counters.count(1);
        counters.count(2);
        assert_eq!(counters.get(), [0, 1]);
    }
}
