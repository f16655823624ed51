//! Owns the verdict on silent hosts: heartbeat age, startup grace, mass guard.
//!
//! Never: waits for or looks at a probe; judges by the stored time of a heartbeat when we
//! have listened ourselves. Called by the scheduler once for every wake-up and by `check`.

use crate::model::host::Liveness;
use crate::model::policy::{MASS_GUARD_HOSTS, MASS_GUARD_PERCENT, Policy};
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Mono;
use std::time::Duration;

/// What is known of one active host (registered, intent not `offline`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// How long it has been silent while we listened; `None` when never heard.
    pub span: Option<Duration>,
    /// Whether the database already says `unreachable`.
    pub unreachable: bool,
}

/// The verdict on a whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Positions of the hosts that shall become unreachable now.
    pub down: Vec<usize>,
    /// Positions of the hosts that would be, were the verdict not held.
    pub held: Vec<usize>,
    /// Whether this very call began to hold.
    pub hold_began: bool,
    /// Time until a host that is fresh now may be stale, if nobody is heard before.
    pub next_in: Option<Duration>,
}

/// Remembers whether the verdict on most of the fleet is being held.
///
/// When most of the fleet falls silent together, our own network is the likelier cause.
/// The hold ends when one of the silent is heard (then the whole fleet gets another
/// startup grace, because the others will be heard next) or after `mass_guard_max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MassGuard {
    state: GuardState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum GuardState {
    #[default]
    Watching,
    Holding {
        since: Mono,
    },
    /// Held for as long as it may be; stays so until fewer hosts are silent.
    Expired,
    /// Ended by a heartbeat. Whoever is still silent after another grace is judged alone,
    /// or one host that comes and goes would hold the verdict on the others for ever.
    Released {
        since: Mono,
    },
}

/// Whether a host is stale: silent for more than `unreachable_after`, or never heard.
pub fn is_stale(span: Option<Duration>, policy: &Policy) -> bool {
    span.is_none_or(|span| span > policy.unreachable_after)
}

/// A host this long silent counts towards the mass guard although it is not stale yet:
/// heartbeats arrive spread over an interval, so a fleet that is cut off at one moment
/// goes stale one host after the other.
fn is_suspect(span: Option<Duration>, policy: &Policy) -> bool {
    span.is_none_or(|span| span > policy.unreachable_after * 2 / 3)
}

impl MassGuard {
    /// Whether verdicts are being held, and since when.
    pub fn holding_since(&self) -> Option<Mono> {
        match self.state {
            GuardState::Holding { since } => Some(since),
            GuardState::Watching | GuardState::Expired | GuardState::Released { .. } => None,
        }
    }

    /// One of the silent hosts was heard: stops holding. True when it was holding; the
    /// caller then starts a new startup grace.
    pub fn heard_silent_host(&mut self, now: Mono) -> bool {
        let was_holding = self.holding_since().is_some();
        if was_holding {
            self.state = GuardState::Released { since: now };
        }
        was_holding
    }

    /// Judges all active hosts. `listening` is how long we have listened without a
    /// break; `None` when the ages are taken as they are (`check`).
    pub fn judge(
        &mut self,
        now: Mono,
        hosts: &[Silence],
        listening: Option<Duration>,
        policy: &Policy,
    ) -> Verdict {
        let wait = listening.map_or(Duration::ZERO, |l| policy.startup_grace.saturating_sub(l));
        let mut verdict = Verdict { next_in: next_in(hosts, wait, policy), ..Verdict::default() };
        if !wait.is_zero() {
            return verdict;
        }
        let newly_stale = |h: &Silence| !h.unreachable && is_stale(h.span, policy);
        let stale: Vec<usize> = (0..hosts.len()).filter(|&i| newly_stale(&hosts[i])).collect();
        // Who has been unreachable for long does not fall silent together with the others.
        let watched = hosts.iter().filter(|h| !h.unreachable);
        let (silent, fleet) = watched.fold((0, 0), |(silent, fleet), host| {
            (silent + usize::from(is_suspect(host.span, policy)), fleet + 1)
        });
        let mass = !policy.is_strict()
            && silent > MASS_GUARD_HOSTS
            && silent * 100 >= fleet * MASS_GUARD_PERCENT;
        let settled = policy.startup_grace + policy.unreachable_after;

        self.state = match self.state {
            GuardState::Released { since } if mass || now.since(since) <= settled => {
                GuardState::Released { since }
            }
            _ if !mass => GuardState::Watching,
            GuardState::Released { .. } => GuardState::Watching,
            GuardState::Watching if stale.is_empty() => GuardState::Watching,
            GuardState::Watching => {
                verdict.hold_began = true;
                GuardState::Holding { since: now }
            }
            GuardState::Holding { since } if now.since(since) >= policy.mass_guard_max => {
                GuardState::Expired
            }
            GuardState::Holding { since } => GuardState::Holding { since },
            GuardState::Expired => GuardState::Expired,
        };
        match self.state {
            GuardState::Watching | GuardState::Expired | GuardState::Released { .. } => {
                verdict.down = stale;
            }
            GuardState::Holding { since } => {
                let left = policy.mass_guard_max.saturating_sub(now.since(since));
                verdict.next_in = Some(verdict.next_in.map_or(left, |next| next.min(left)));
                verdict.held = stale;
            }
        }
        verdict
    }
}

fn next_in(hosts: &[Silence], wait: Duration, policy: &Policy) -> Option<Duration> {
    // One millisecond more: stale is *more than* the limit, and time has that grain.
    let until_stale = |h: &Silence| {
        let span = h.span.unwrap_or(Duration::MAX);
        (policy.unreachable_after + Duration::from_millis(1)).saturating_sub(span)
    };
    let watched = hosts.iter().filter(|h| !h.unreachable);
    let in_future = |left: &Duration| !wait.is_zero() || !left.is_zero();
    watched.map(until_stale).filter(in_future).min().map(|left| left.max(wait))
}

/// The status that a sandbox gets on a host of this liveness, when it is to get `to`: on a
/// host that is unreachable none is known to run, whichever write comes last.
pub fn landing(to: SandboxStatus, liveness: Liveness) -> SandboxStatus {
    match liveness {
        Liveness::Unreachable if to == SandboxStatus::Running => SandboxStatus::Missing,
        Liveness::Unreachable | Liveness::Alive => to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn fleet(silent_s: &[Option<u64>]) -> Vec<Silence> {
        silent_s.iter().map(|s| Silence { span: s.map(S), unreachable: false }).collect()
    }

    fn judge(silent_s: &[Option<u64>]) -> Verdict {
        MassGuard::default().judge(Mono(0), &fleet(silent_s), None, &Policy::default())
    }

    #[test]
    fn stale_is_more_than_three_beats() {
        let down = |s| judge(&[Some(s), Some(0), Some(0)]).down;
        assert_eq!(down(90), Vec::<usize>::new());
        assert_eq!(down(91), vec![0]);
        assert_eq!(judge(&[None, Some(1), Some(1)]).down, vec![0], "never heard is stale");
    }

    #[test]
    fn nobody_is_judged_before_we_listened() {
        let hosts = fleet(&[Some(500), None, Some(3), Some(4), Some(5)]);
        let judge = |listened| {
            MassGuard::default().judge(Mono(0), &hosts, Some(S(listened)), &Policy::default())
        };
        assert_eq!(judge(89).down, Vec::<usize>::new());
        assert_eq!(judge(89).next_in, Some(S(1)));
        assert_eq!(judge(90).down, vec![0, 1]);
    }

    #[test]
    fn unreachable_hosts_are_not_judged_twice() {
        let mut hosts = fleet(&[Some(500), Some(1), Some(2)]);
        hosts[0].unreachable = true;
        let verdict = MassGuard::default().judge(Mono(0), &hosts, None, &Policy::default());
        assert_eq!((verdict.down.len(), verdict.held.len()), (0, 0));
        assert_eq!(verdict.next_in, Some(Duration::from_millis(88_001)));
    }

    #[test]
    fn most_of_the_fleet_at_once_is_held() {
        let silent = |n: usize, of: usize| {
            judge(&(0..of).map(|i| Some(if i < n { 100 } else { 5 })).collect::<Vec<_>>())
        };
        assert_eq!(silent(2, 2).down.len(), 2, "two hosts are no mass");
        assert_eq!(silent(3, 3).held.len(), 3);
        assert_eq!(silent(3, 6).down.len(), 3, "half is less than 55 %");
        assert_eq!(silent(11, 20).held.len(), 11, "exactly 55 %");
        assert_eq!(silent(10, 20).down.len(), 10);
    }

    #[test]
    fn a_fleet_cut_off_at_one_moment_is_held_from_the_first_stale_host_on() {
        let spread = [Some(91), Some(85), Some(75), Some(65), Some(62)];
        assert_eq!(judge(&spread).held, vec![0]);
        assert_eq!(judge(&[Some(91), Some(29), Some(5), Some(1), Some(2)]).down, vec![0]);
    }

    #[test]
    fn strict_holds_nothing() {
        let hosts = fleet(&[None, None, None, None]);
        let verdict = MassGuard::default().judge(Mono(0), &hosts, None, &Policy::strict());
        assert_eq!(verdict.down.len(), 4);
    }

    #[test]
    fn a_hold_ends_by_a_heartbeat_or_by_time() {
        let policy = Policy::default();
        let hosts = fleet(&[Some(100), Some(100), Some(100)]);
        let mut guard = MassGuard::default();
        let first = guard.judge(Mono(0), &hosts, None, &policy);
        assert!(first.hold_began && first.held.len() == 3 && first.next_in == Some(S(300)));
        let second = guard.judge(Mono(1000), &hosts, None, &policy);
        assert!(!second.hold_began && second.held.len() == 3, "logged once");
        assert!(guard.heard_silent_host(Mono(2000)));
        assert!(!guard.heard_silent_host(Mono(2000)));
        let after = guard.judge(Mono(95_000), &hosts, None, &policy);
        assert_eq!(after.down.len(), 3, "still silent after another grace: judged alone");

        let mut guard = MassGuard::default();
        guard.judge(Mono(0), &hosts, None, &policy);
        assert_eq!(guard.judge(Mono(299_999), &hosts, None, &policy).down.len(), 0);
        assert_eq!(guard.judge(Mono(300_000), &hosts, None, &policy).down.len(), 3);
        let more = fleet(&[Some(500), Some(500), Some(500), Some(91)]);
        assert_eq!(guard.judge(Mono(310_000), &more, None, &policy).down.len(), 4, "not again");
    }
}
