//! Owns chance: everything that happens at random comes from one seed.
//!
//! Never: asks the machine for anything.

/// A source of chance. The same seed takes the same course.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        // Neighbouring seeds must not take neighbouring courses.
        let mut chance = Chance(seed ^ 0x5eed_5eed_5eed_5eed);
        chance.next();
        chance
    }

    /// splitmix64, public domain.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `low`, below `high`.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low).max(1)
    }

    /// True so many times in a thousand.
    pub(crate) fn permille(&mut self, permille: u64) -> bool {
        self.next() % 1000 < permille
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.within(0, all.len() as u64) as usize)
    }

    /// How long something takes that usually takes from a fifth of `usual_ms` to all of it,
    /// one time in ten ten times as long, and one time in a hundred forty times.
    pub(crate) fn duration_ms(&mut self, usual_ms: u64) -> u64 {
        let longest = match self.within(0, 100) {
            0 => usual_ms * 40,
            1..10 => usual_ms * 10,
            _ => usual_ms,
        };
        self.within(usual_ms / 5, longest)
    }
}
