//! Owns random numbers from a seed, so that a test that failed can be told to do the same
//! again.
//!
//! Never: a source of secrets.

#![allow(clippy::print_stdout, reason = "the seed of a test that failed")]

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Another sequence for each `number` of the same seed.
    pub fn fork(&self, number: u64) -> Random {
        let mut fork = Random(self.0 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Random(fork.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.below(from.len())]) }
    }
}

/// The number in an environment variable; fails when there is something else in it.
pub fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable} is {text:?}: {e}")))
}

/// The seed that an environment variable gives, or another one every time. It is printed:
/// a test that fails shows what to set to have it again.
pub fn seed_from(variable: &str) -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number_in(variable).unwrap_or_else(|| Random(now()).next() >> 32);
    println!("{variable}={seed}");
    seed
}
