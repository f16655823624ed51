//! Owns how much an author may cause in a span of time, and the one form in which the rest is
//! counted: "and 1 234 more".
//!
//! Never: reads a clock (time is passed in), remembers more authors than it was made for.

use super::time::Mono;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

/// How often a full table is searched for authors that can be forgotten. Larger: new authors
/// share one allowance for longer; smaller: made-up authors cost a search each.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// So much at once, and as much again within a span. A burst of 0 allows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// What may come at once.
    pub burst: u32,
    /// Time in which an allowance that was used up is whole again.
    pub per: Duration,
}

/// Whether something may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may. With what was refused since the last time that it might.
    Pass(More),
    /// It may not, but after this.
    Over(Duration),
}

impl Verdict {
    /// Whether it may.
    pub fn passes(self) -> bool {
        matches!(self, Verdict::Pass(_))
    }
}

/// How much was left out; written as an ending: nothing, or `, and 1 234 more`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct More(pub u64);

impl More {
    /// The number with a space between groups of three digits.
    pub fn count(self) -> String {
        let digits = self.0.to_string();
        let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                grouped.push(' ');
            }
            grouped.push(digit);
        }
        grouped
    }
}

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            _ => write!(f, ", and {} more", self.count()),
        }
    }
}

/// Microseconds, for allowances of which a millisecond gives back several.
type Micros = u64;

fn micros(span: Duration) -> Micros {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What one author has used.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// When all of the allowance is there again.
    whole_at: Micros,
    /// What was refused since something last passed.
    refused: u64,
}

impl Used {
    fn take(&mut self, cost: u32, allowance: Allowance, now: Micros) -> Verdict {
        let span = micros(allowance.per);
        let each = span / u64::from(allowance.burst.max(1));
        let whole_at = self.whole_at.max(now).saturating_add(each.saturating_mul(cost.into()));
        let over = (whole_at - now).saturating_sub(span);
        if over > 0 || allowance.burst == 0 {
            self.refused = self.refused.saturating_add(cost.into());
            return Verdict::Over(Duration::from_micros(over.max(1)));
        }
        self.whole_at = whole_at;
        Verdict::Pass(More(std::mem::take(&mut self.refused)))
    }

    fn is_idle(&self, now: Micros) -> bool {
        self.whole_at <= now && self.refused == 0
    }
}

/// Token buckets, one for each author.
#[derive(Debug)]
pub struct Limiter<K> {
    authors_max: usize,
    authors: HashMap<K, Used>,
    /// Shared by the authors for whom there is no room: made-up names gain nothing.
    rest: Used,
    sweep_at: Micros,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// A limiter that remembers so many authors at most.
    pub fn new(authors_max: usize) -> Limiter<K> {
        Limiter { authors_max, authors: HashMap::new(), rest: Used::default(), sweep_at: 0 }
    }

    /// Whether an author may do something that counts as `cost`.
    pub fn take(&mut self, author: &K, cost: u32, allowance: Allowance, now: Mono) -> Verdict {
        let now = now.0.saturating_mul(1000);
        if let Some(used) = self.authors.get_mut(author) {
            return used.take(cost, allowance, now);
        }
        if self.authors.len() >= self.authors_max && now >= self.sweep_at {
            self.sweep_at = now.saturating_add(micros(SWEEP_EVERY));
            self.authors.retain(|_, used| !used.is_idle(now));
        }
        if self.authors.len() >= self.authors_max {
            return self.rest.take(cost, allowance, now);
        }
        self.authors.entry(author.clone()).or_default().take(cost, allowance, now)
    }

    /// What was refused of authors who may go on by now, so that the end of a flood is counted
    /// too; `None` stands for all that shared one allowance. Each count is given once, and
    /// counts as something done.
    pub fn left_out(&mut self, allowance: Allowance, now: Mono) -> Vec<(Option<K>, More)> {
        let now = now.0.saturating_mul(1000);
        let authors = self.authors.iter_mut().map(|(author, used)| (Some(author), used));
        let all = authors.chain(std::iter::once((None, &mut self.rest)));
        let mut left = Vec::new();
        for (author, used) in all.filter(|(_, used)| used.refused > 0) {
            let before = used.refused;
            match used.take(1, allowance, now) {
                Verdict::Pass(more) => left.push((author.cloned(), more)),
                Verdict::Over(_) => used.refused = before,
            }
        }
        left
    }

    /// Forgets an author.
    pub fn forget(&mut self, author: &K) {
        self.authors.remove(author);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_A_SECOND: Allowance = Allowance { burst: 10, per: Duration::from_secs(1) };

    fn at(ms: u64) -> Mono {
        Mono(5_000_000 + ms)
    }

    fn passed(limiter: &mut Limiter<u32>, author: u32, tries: usize, ms: u64) -> usize {
        let mut take = || limiter.take(&author, 1, TEN_A_SECOND, at(ms)).passes();
        (0..tries).filter(|_| take()).count()
    }

    #[test]
    fn an_author_has_a_burst_and_then_a_rate() {
        let mut limiter = Limiter::new(4);
        assert_eq!(passed(&mut limiter, 1, 1000, 0), 10);
        assert_eq!(passed(&mut limiter, 2, 1000, 0), 10, "another author pays for nothing");
        assert_eq!(passed(&mut limiter, 1, 1000, 100), 1);
        assert_eq!(passed(&mut limiter, 1, 1000, 5000), 10, "no more than a burst is saved up");
        let steady: usize = (0..1000).map(|tick| passed(&mut limiter, 3, 3, tick * 10)).sum();
        assert!((108..=111).contains(&steady), "{steady} in ten seconds");
    }

    #[test]
    fn what_was_refused_is_counted_once() {
        let mut limiter = Limiter::new(4);
        passed(&mut limiter, 1, 1244, 0);
        assert_eq!(limiter.left_out(TEN_A_SECOND, at(50)), [], "it may not go on yet");
        let next = limiter.take(&1, 1, TEN_A_SECOND, at(100));
        assert_eq!(next, Verdict::Pass(More(1234)));
        assert_eq!(format!("said{}", More(1234)), "said, and 1 234 more");
        assert_eq!(More(1_234_567).count(), "1 234 567");
        assert_eq!(More(0).to_string(), "");
        passed(&mut limiter, 1, 5, 100);
        assert_eq!(limiter.left_out(TEN_A_SECOND, at(300)), [(Some(1), More(5))]);
        assert_eq!(limiter.left_out(TEN_A_SECOND, at(900)), []);
    }

    #[test]
    fn made_up_authors_share_one_allowance_and_take_no_memory() {
        let mut limiter = Limiter::new(4);
        let all: usize = (0..1000).map(|author| passed(&mut limiter, author, 1, 0)).sum();
        assert_eq!((all, limiter.authors.len()), (4 + 10, 4));
        assert_eq!(limiter.left_out(TEN_A_SECOND, at(1000)), [(None, More(986))]);
        assert_eq!(passed(&mut limiter, 7777, 1, 2000), 1);
        assert_eq!(limiter.authors.len(), 1, "idle authors are forgotten when there is no room");
    }

    #[test]
    fn what_costs_more_than_a_burst_never_passes() {
        let mut limiter = Limiter::new(1);
        assert!(limiter.take(&1, 10, TEN_A_SECOND, at(0)).passes());
        let wait = limiter.take(&2, 11, TEN_A_SECOND, at(0));
        assert_eq!(wait, Verdict::Over(Duration::from_millis(100)));
        let nothing = Allowance { burst: 0, per: Duration::from_secs(1) };
        assert!(!limiter.take(&1, 1, nothing, at(9000)).passes());
    }
}
