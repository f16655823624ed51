//! Owns what goes wrong in a demo: the kinds of faults, and their order from a seed.
//!
//! Never: does anything to a host (`play` does). Called by `play`.

use crate::sim::{AnswerFault, Faults, HeartbeatFault};
use std::time::Duration;

/// How late a hanging agent answers: beyond everybody's patience.
const HANG: Duration = Duration::from_secs(3600);

/// Longest wait between two faults until each kind was there. Larger: half a minute does
/// not show everything; smaller: nobody can follow.
const GAP_FIRST_MS: u64 = 900;

/// Longest wait between two faults after that. Larger: nothing seems to happen; smaller:
/// the fleet is never seen well.
const GAP_LATER_MS: u64 = 5000;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// No heartbeats and no answers.
    Silent,
    /// The same, and the agent notices: it pauses everything and says nothing of it.
    CutOff,
    /// Heartbeats, but no answers in time.
    Hangs,
    /// Heartbeats, but half answers.
    Garbage,
    /// Heartbeats, but nobody takes calls.
    Refuses,
    /// The agent starts anew: its microVMs are gone.
    Restarts,
    /// One microVM is gone.
    Dies,
    /// The agent pauses an idle sandbox by itself.
    AutoPauses,
}

impl FaultKind {
    /// Every kind.
    pub(super) const ALL: &'static [FaultKind] = &[
        FaultKind::Silent,
        FaultKind::CutOff,
        FaultKind::Hangs,
        FaultKind::Garbage,
        FaultKind::Refuses,
        FaultKind::Restarts,
        FaultKind::Dies,
        FaultKind::AutoPauses,
    ];

    /// What happens, for people.
    pub(super) const fn words(self) -> &'static str {
        match self {
            FaultKind::Silent => "host falls silent",
            FaultKind::CutOff => "host is cut off and pauses everything",
            FaultKind::Hangs => "agent hangs, heartbeats go on",
            FaultKind::Garbage => "agent answers garbage",
            FaultKind::Refuses => "agent refuses probes, heartbeats go on",
            FaultKind::Restarts => "agent restarts and loses its microVMs",
            FaultKind::Dies => "microVM dies",
            FaultKind::AutoPauses => "agent pauses an idle sandbox",
        }
    }

    /// What is wrong with the host until it is lifted; `None`: it happens once, to
    /// sandboxes.
    pub(super) fn faults(self) -> Option<Faults> {
        let silent = HeartbeatFault::Silent;
        match self {
            FaultKind::Silent => Some(Faults { closed: true, ..Faults::beating(silent) }),
            FaultKind::CutOff => Some(Faults::partitioned()),
            FaultKind::Hangs => Some(Faults::slow(HANG)),
            FaultKind::Garbage => Some(Faults::answering(AnswerFault::Malformed)),
            FaultKind::Refuses => Some(Faults { closed: true, ..Faults::default() }),
            FaultKind::Restarts | FaultKind::Dies | FaultKind::AutoPauses => None,
        }
    }

    /// Whether the host is not heard while it lasts.
    pub(super) const fn silences(self) -> bool {
        match self {
            FaultKind::Silent | FaultKind::CutOff => true,
            FaultKind::Hangs
            | FaultKind::Garbage
            | FaultKind::Refuses
            | FaultKind::Restarts
            | FaultKind::Dies
            | FaultKind::AutoPauses => false,
        }
    }

    /// Whether sandboxes are lost for good, so that new ones must be made.
    pub(super) const fn loses(self) -> bool {
        match self {
            FaultKind::Restarts | FaultKind::Dies => true,
            FaultKind::Silent
            | FaultKind::CutOff
            | FaultKind::Hangs
            | FaultKind::Garbage
            | FaultKind::Refuses
            | FaultKind::AutoPauses => false,
        }
    }
}

/// One fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scene {
    /// What.
    pub(super) kind: FaultKind,
    /// Number of the host it is meant for.
    pub(super) host: usize,
    /// Which of its sandboxes, modulo their number.
    pub(super) sandbox: usize,
    /// Wait before it.
    pub(super) gap: Duration,
}

/// The faults to come: the same for the same seed, kinds and hosts. When each can happen
/// depends on how quickly the ones before it are repaired.
#[derive(Debug)]
pub(super) struct Script {
    random: u64,
    kinds: Vec<FaultKind>,
    hosts: usize,
    kinds_left: Vec<FaultKind>,
    hosts_left: Vec<usize>,
    rounds: usize,
}

impl Script {
    /// Faults of `kinds` for `hosts` hosts.
    pub(super) fn new(seed: u64, kinds: Vec<FaultKind>, hosts: usize) -> Script {
        let (kinds_left, hosts_left) = (Vec::new(), Vec::new());
        Script { random: seed, kinds, hosts, kinds_left, hosts_left, rounds: 0 }
    }

    /// The next fault; every kind before any comes again, and so with hosts.
    pub(super) fn next(&mut self) -> Option<Scene> {
        if self.kinds_left.is_empty() {
            self.kinds_left.clone_from(&self.kinds);
            self.rounds += 1;
        }
        if self.hosts_left.is_empty() {
            self.hosts_left.extend(0..self.hosts);
        }
        let kind = self.draw(self.kinds_left.len()).map(|at| self.kinds_left.remove(at))?;
        let host = self.draw(self.hosts_left.len()).map(|at| self.hosts_left.remove(at))?;
        let sandbox = (self.random() >> 32) as usize;
        let longest = if self.rounds > 1 { GAP_LATER_MS } else { GAP_FIRST_MS };
        let gap = Duration::from_millis(longest / 3 + self.random() % (longest * 2 / 3));
        Some(Scene { kind, host, sandbox, gap })
    }

    fn draw(&mut self, of: usize) -> Option<usize> {
        let random = (self.random() >> 32) as usize;
        random.checked_rem(of)
    }

    /// splitmix64, public domain: order needs to be spread, not secret.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenes(seed: u64, count: usize) -> Vec<Scene> {
        let mut script = Script::new(seed, FaultKind::ALL.to_vec(), 3);
        std::iter::from_fn(|| script.next()).take(count).collect()
    }

    #[test]
    fn a_seed_repeats_its_faults() {
        assert_eq!(scenes(7, 40), scenes(7, 40));
        assert_ne!(scenes(7, 40), scenes(8, 40));
    }

    #[test]
    fn each_kind_comes_once_in_every_round() {
        for round in scenes(7, 40).chunks(FaultKind::ALL.len()) {
            let mut kinds: Vec<FaultKind> = round.iter().map(|scene| scene.kind).collect();
            kinds.sort();
            assert_eq!(kinds, FaultKind::ALL);
        }
    }

    #[test]
    fn without_kinds_nothing_happens() {
        assert_eq!(Script::new(7, Vec::new(), 3).next(), None);
    }
}
