//! Owns when which host is probed: due times, jitter, backoff, lanes.
//!
//! Never: starts a probe, knows a thread or a socket. A state machine: `handle` takes what
//! happened, `next` gives the host to probe now, `next_wake` says when to ask again.
//! Driven by `engine::scheduler`, by `check` and by the simulation.

use super::observation::AskAgain;
use crate::model::id::HostId;
use crate::model::time::Mono;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// First delay after a failed probe; doubles up to the interval. Larger and a host that
/// restarts is looked at late; smaller and a dead one is knocked at all the time.
const BACKOFF_FIRST: Duration = Duration::from_secs(5);

/// Longest delay between two probes of an unreachable host, which are for diagnosis only.
/// Larger and `hosts show` is stale; smaller and a long dead host costs for ever.
const DIAGNOSIS_MAX: Duration = Duration::from_secs(600);

/// A probe that took longer makes its host slow.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// Share of the workers that slow hosts may use: larger and hung hosts crowd out the
/// healthy; smaller and they wait for each other.
const SLOW_LANE_PART: usize = 4;

/// A probe in flight for longer stops counting against the workers, so that hosts that
/// hang for the first time do not hold up the ones behind them. Larger and they do;
/// smaller and a busy machine starts more threads than it can use.
const STEP_ASIDE_AFTER: Duration = Duration::from_millis(250);

/// Probes in flight are at most this many times the workers, those that stepped aside
/// included: the bound on threads and memory.
const IN_FLIGHT_FACTOR: usize = 4;

/// Shortest time between the starts of two probes of one host, whatever asks for them.
/// Larger and what changed under an observation is seen late; smaller and an agent that gives
/// cause for another probe each time takes the workers of others.
const PROBE_EVERY_MIN: Duration = Duration::from_secs(1);

/// Percent by which an interval is shortened or lengthened at random.
const JITTER_PERCENT: u64 = 10;

/// Why a host is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Online or draining: answers are applied.
    Probed,
    /// Unreachable: answers are shown only.
    Diagnosed,
}

/// Everything that can change the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The host is to be probed from now on, in this way.
    Watch(HostId, Watch),
    /// The host is not to be probed any more.
    Forget(HostId),
    /// The host is to be probed at once.
    ProbeNow(HostId),
    /// A probe ended.
    Done {
        /// Of which host.
        host: HostId,
        /// Whether it brought an observation.
        answered: bool,
        /// How long the agent took.
        took: Duration,
        /// What the answer asks for.
        again: AskAgain,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    Fast,
    Slow,
}

#[derive(Debug, Clone)]
struct Entry {
    watch: Watch,
    lane: Lane,
    /// Set while it waits; `None` while in flight.
    due: Option<Mono>,
    /// Lane it was dispatched in, while in flight.
    in_flight: Option<(Mono, Lane)>,
    /// When the newest probe was started.
    started: Option<Mono>,
    /// Asked for again while in flight.
    asked_again: bool,
    /// Failures in a row; for diagnosis, probes in a row.
    tries: u32,
    /// Whether it was ever probed: the second probe spreads the fleet over the interval.
    spread: bool,
}

/// The schedule of a fleet.
#[derive(Debug)]
pub struct Schedule {
    interval: Duration,
    workers: usize,
    random: u64,
    hosts: HashMap<HostId, Entry>,
    fast: BTreeSet<(Mono, HostId)>,
    slow: BTreeSet<(Mono, HostId)>,
    fast_in_flight: usize,
    slow_in_flight: usize,
    /// Fast probes in flight that still count against the workers, oldest first.
    counted: VecDeque<(Mono, HostId)>,
}

impl Schedule {
    /// An empty schedule; `seed` decides the jitter.
    pub fn new(interval: Duration, workers: usize, seed: u64) -> Schedule {
        Schedule {
            interval,
            workers: workers.max(1),
            random: seed,
            hosts: HashMap::new(),
            fast: BTreeSet::new(),
            slow: BTreeSet::new(),
            fast_in_flight: 0,
            slow_in_flight: 0,
            counted: VecDeque::new(),
        }
    }

    /// Most probes that can be in flight at once: the bound on worker threads.
    pub fn in_flight_max(workers: usize) -> usize {
        workers.max(1) * IN_FLIGHT_FACTOR
    }

    /// Another interval, from each host's next probe on.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Probes in flight.
    pub fn in_flight(&self) -> usize {
        self.fast_in_flight + self.slow_in_flight
    }

    /// Those of them in the slow lane.
    pub fn slow_in_flight(&self) -> usize {
        self.slow_in_flight
    }

    /// Hosts that wait for their time or a free worker.
    pub fn waiting(&self) -> usize {
        self.fast.len() + self.slow.len()
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Mono, input: Input) {
        match input {
            Input::Watch(host, watch) => self.watch(now, host, watch),
            Input::Forget(host) => self.forget(host),
            Input::ProbeNow(host) => self.probe_now(now, host),
            Input::Done { host, answered, took, again } => {
                self.done(now, host, answered, took, again);
            }
        }
    }

    /// The next host to probe now, if one is due and a worker may be used for it. The
    /// host counts as in flight from then on.
    pub fn next(&mut self, now: Mono) -> Option<HostId> {
        self.step_aside(now);
        let due =
            |set: &BTreeSet<(Mono, HostId)>| set.first().copied().filter(|(due, _)| *due <= now);
        let fast = due(&self.fast).filter(|_| self.fast_is_free());
        let slow = due(&self.slow).filter(|_| self.slow_is_free());
        let (lane, (_, host)) = match (fast, slow) {
            (Some(fast), Some(slow)) if slow < fast => (Lane::Slow, slow),
            (Some(fast), _) => (Lane::Fast, fast),
            (None, Some(slow)) => (Lane::Slow, slow),
            (None, None) => return None,
        };
        self.dispatch(now, host, lane);
        Some(host)
    }

    /// When `next` may have something that it does not have now.
    pub fn next_wake(&self) -> Option<Mono> {
        let first = |set: &BTreeSet<(Mono, HostId)>| set.first().map(|(due, _)| *due);
        let steps_aside = self.counted.front().map(|(started, _)| started.after(STEP_ASIDE_AFTER));
        let fast = match first(&self.fast) {
            Some(due) if self.fast_is_free() => Some(due),
            // Only a probe that ends can free a place when all are taken.
            Some(_) if self.in_flight() >= Self::in_flight_max(self.workers) => None,
            Some(due) => steps_aside.map(|aside| aside.max(due)),
            None => None,
        };
        let slow = first(&self.slow).filter(|_| self.slow_is_free());
        fast.into_iter().chain(slow).min()
    }

    fn fast_is_free(&self) -> bool {
        self.counted.len() < self.workers && self.in_flight() < Self::in_flight_max(self.workers)
    }

    fn slow_is_free(&self) -> bool {
        self.slow_in_flight < (self.workers / SLOW_LANE_PART).max(1)
            && self.in_flight() < Self::in_flight_max(self.workers)
    }

    fn step_aside(&mut self, now: Mono) {
        while let Some(&(started, _)) = self.counted.front() {
            if now.since(started) < STEP_ASIDE_AFTER {
                break;
            }
            self.counted.pop_front();
        }
    }

    fn dispatch(&mut self, now: Mono, host: HostId, lane: Lane) {
        self.unqueue(host);
        match lane {
            Lane::Fast => {
                self.fast_in_flight += 1;
                self.counted.push_back((now, host));
            }
            Lane::Slow => self.slow_in_flight += 1,
        }
        if let Some(entry) = self.hosts.get_mut(&host) {
            entry.in_flight = Some((now, lane));
            entry.started = Some(now);
        }
    }

    fn watch(&mut self, now: Mono, host: HostId, watch: Watch) {
        let fresh = Entry {
            watch,
            lane: Lane::Fast,
            due: None,
            in_flight: None,
            started: None,
            asked_again: false,
            tries: 0,
            spread: false,
        };
        let entry = self.hosts.entry(host).or_insert(fresh);
        let changed = entry.watch != watch;
        let is_new = entry.due.is_none() && entry.in_flight.is_none();
        if changed {
            entry.watch = watch;
            entry.tries = 0;
        }
        // A host that fell silent is looked at later; one that came back at once.
        if is_new || (changed && watch == Watch::Probed) {
            self.probe_now(now, host);
        }
    }

    fn forget(&mut self, host: HostId) {
        self.unqueue(host);
        if let Some(Entry { in_flight: Some(flight), .. }) = self.hosts.remove(&host) {
            self.land(host, flight);
        }
    }

    fn probe_now(&mut self, now: Mono, host: HostId) {
        let Some(entry) = self.hosts.get_mut(&host) else { return };
        if entry.in_flight.is_some() {
            entry.asked_again = true;
        } else if entry.due.is_none_or(|due| due > now) {
            self.queue(host, now);
        }
    }

    fn done(&mut self, now: Mono, host: HostId, answered: bool, took: Duration, again: AskAgain) {
        let jitter = self.next_random();
        let Some(entry) = self.hosts.get_mut(&host) else { return };
        let Some(flight) = entry.in_flight.take() else { return };
        entry.lane = if answered && took <= SLOW_AFTER { Lane::Fast } else { Lane::Slow };
        let usual = usual_delay(entry, answered, self.interval, jitter);
        let delay = match again {
            _ if std::mem::take(&mut entry.asked_again) => Duration::ZERO,
            AskAgain::AsUsual => usual,
            AskAgain::AtOnce => Duration::ZERO,
            AskAgain::After(delay) => usual.min(delay),
        };
        self.land(host, flight);
        self.queue(host, now.after(delay));
    }

    fn land(&mut self, host: HostId, (started, lane): (Mono, Lane)) {
        match lane {
            Lane::Slow => self.slow_in_flight -= 1,
            Lane::Fast => {
                self.fast_in_flight -= 1;
                let at = self.counted.iter().position(|counted| *counted == (started, host));
                if let Some(at) = at {
                    self.counted.remove(at);
                }
            }
        }
    }

    fn queue(&mut self, host: HostId, due: Mono) {
        self.unqueue(host);
        let Some(entry) = self.hosts.get_mut(&host) else { return };
        let due = entry.started.map_or(due, |started| due.max(started.after(PROBE_EVERY_MIN)));
        entry.due = Some(due);
        match entry.lane {
            Lane::Fast => self.fast.insert((due, host)),
            Lane::Slow => self.slow.insert((due, host)),
        };
    }

    fn unqueue(&mut self, host: HostId) {
        let due = self.hosts.get_mut(&host).and_then(|entry| entry.due.take());
        if let Some(due) = due {
            self.fast.remove(&(due, host));
            self.slow.remove(&(due, host));
        }
    }

    /// splitmix64, public domain: jitter needs to be spread, not secret.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Delay until the next probe when nothing asks for an earlier one.
fn usual_delay(entry: &mut Entry, answered: bool, interval: Duration, random: u64) -> Duration {
    let longest = match entry.watch {
        Watch::Probed if answered => {
            entry.tries = 0;
            let first = !std::mem::replace(&mut entry.spread, true);
            return if first { part_of(interval, random) } else { jittered(interval, random) };
        }
        Watch::Probed => interval,
        Watch::Diagnosed => DIAGNOSIS_MAX,
    };
    let doubled = BACKOFF_FIRST * 2u32.pow(entry.tries.min(16));
    entry.tries = entry.tries.saturating_add(1);
    jittered(doubled.min(longest), random)
}

fn part_of(span: Duration, random: u64) -> Duration {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if ms == 0 { 0 } else { random % ms })
}

fn jittered(span: Duration, random: u64) -> Duration {
    let swing = span / 100 * JITTER_PERCENT as u32;
    span - swing + part_of(swing * 2, random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn host(n: u128) -> HostId {
        HostId::from_u128(n)
    }

    struct Fleet {
        schedule: Schedule,
        now: Mono,
    }

    impl Fleet {
        fn new(hosts: u128, workers: usize) -> Fleet {
            let mut fleet =
                Fleet { schedule: Schedule::new(60 * SECOND, workers, 7), now: Mono(1000) };
            for n in 0..hosts {
                fleet.handle(Input::Watch(host(n), Watch::Probed));
            }
            fleet
        }

        fn handle(&mut self, input: Input) {
            self.schedule.handle(self.now, input);
        }

        fn next(&mut self) -> Option<HostId> {
            self.schedule.next(self.now)
        }

        fn all(&mut self) -> Vec<HostId> {
            std::iter::from_fn(|| self.next()).collect()
        }

        fn done(&mut self, host: HostId, answered: bool, took: Duration) {
            self.handle(Input::Done { host, answered, took, again: AskAgain::AsUsual });
        }

        /// Sleeps until the schedule wants to be asked; gives how long that was.
        fn sleep(&mut self) -> Duration {
            let wake = self.schedule.next_wake().expect("something is due some time");
            let slept = wake.since(self.now);
            self.now = wake.max(self.now);
            slept
        }
    }

    #[test]
    fn everybody_at_once_then_spread_then_every_interval() {
        let mut fleet = Fleet::new(30, 32);
        let first = fleet.all();
        assert_eq!(first.len(), 30);
        assert_eq!(fleet.schedule.next_wake(), None, "nobody is probed twice at a time");
        for &h in &first {
            fleet.done(h, true, Duration::ZERO);
        }
        let mut seconds = Vec::new();
        for _ in 0..30 {
            fleet.sleep();
            let h = fleet.next().expect("awake for somebody");
            seconds.push((fleet.now.0 - 1000) / 20_000);
            fleet.done(h, true, Duration::ZERO);
            let due = fleet.schedule.hosts[&h].due.expect("queued");
            let delay = due.since(fleet.now);
            assert!((54 * SECOND..=66 * SECOND).contains(&delay), "{delay:?}");
        }
        for third in 0..3 {
            assert!(seconds.iter().filter(|s| **s == third).count() >= 3, "{seconds:?}");
        }
    }

    #[test]
    fn failures_back_off_to_the_interval() {
        let mut fleet = Fleet::new(1, 4);
        let mut delays = Vec::new();
        for _ in 0..6 {
            let h = fleet.next().expect("due");
            fleet.done(h, false, Duration::ZERO);
            delays.push((fleet.sleep().as_millis() + 2500) / 5000 * 5);
        }
        assert!(matches!(delays[..], [5, 10, 20, 35..=45, 55..=65, 55..=65]), "{delays:?}");
        let h = fleet.next().expect("due");
        fleet.done(h, true, Duration::ZERO);
        fleet.sleep();
        let h = fleet.next().expect("due");
        fleet.done(h, false, Duration::ZERO);
        assert!(fleet.sleep() < 6 * SECOND, "an answer forgives");
    }

    #[test]
    fn diagnosis_backs_off_to_ten_minutes_and_a_return_is_seen_at_once() {
        let mut fleet = Fleet::new(1, 4);
        let h = fleet.next().expect("due");
        fleet.done(h, true, Duration::ZERO);
        fleet.handle(Input::Watch(h, Watch::Diagnosed));
        assert_eq!(fleet.next(), None, "falling silent asks for nothing at once");
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            longest = longest.max(fleet.sleep());
            let h = fleet.next().expect("due");
            fleet.done(h, true, Duration::ZERO);
        }
        assert!((540 * SECOND..=660 * SECOND).contains(&longest), "{longest:?}");
        fleet.sleep();
        fleet.handle(Input::Watch(h, Watch::Probed));
        assert_eq!(fleet.next(), Some(h));
    }

    /// Whatever an agent says to cause it.
    #[test]
    fn a_host_is_probed_at_most_once_a_second() {
        let mut fleet = Fleet::new(1, 4);
        let (began, mut probes) = (fleet.now, 0);
        while fleet.now.since(began) < 60 * SECOND {
            while let Some(h) = fleet.next() {
                probes += 1;
                fleet.handle(Input::ProbeNow(h));
                let (took, again) = (Duration::ZERO, AskAgain::AtOnce);
                fleet.handle(Input::Done { host: h, answered: true, took, again });
                fleet.handle(Input::ProbeNow(h));
            }
            fleet.now = fleet.now.after(SECOND / 20);
        }
        assert!((59..=61).contains(&probes), "{probes}");
    }

    #[test]
    fn slow_hosts_use_a_quarter_of_the_workers() {
        let mut fleet = Fleet::new(20, 8);
        for _ in 0..3 {
            for h in fleet.all() {
                fleet.done(h, h.as_u128() >= 10, Duration::ZERO);
            }
        }
        fleet.now = fleet.now.after(PROBE_EVERY_MIN);
        for n in 0..20 {
            fleet.handle(Input::ProbeNow(host(n)));
        }
        let out = fleet.all();
        let slow = out.iter().filter(|h| h.as_u128() < 10).count();
        assert_eq!((slow, out.len()), (2, 10));
    }

    #[test]
    fn hanging_probes_step_aside() {
        let mut fleet = Fleet::new(100, 4);
        assert_eq!(fleet.all().len(), 4);
        assert_eq!(fleet.sleep(), STEP_ASIDE_AFTER);
        assert_eq!(fleet.all().len(), 4, "four more, although nobody answered");
        fleet.sleep();
        assert_eq!(fleet.all().len(), 4);
        fleet.sleep();
        assert_eq!(fleet.all().len(), 4);
        assert_eq!(fleet.schedule.next_wake(), None, "sixteen is the bound");
        fleet.now = fleet.now.after(8 * SECOND);
        fleet.done(host(0), false, 8 * SECOND);
        assert_eq!(fleet.all().len(), 1);
    }

    #[test]
    fn one_in_flight_per_host_and_asking_meanwhile_is_not_lost() {
        let mut fleet = Fleet::new(1, 4);
        let h = fleet.next().expect("due");
        fleet.handle(Input::ProbeNow(h));
        assert_eq!(fleet.next(), None);
        fleet.done(h, true, Duration::ZERO);
        assert_eq!((fleet.next(), fleet.sleep()), (None, PROBE_EVERY_MIN));
        assert_eq!(fleet.next(), Some(h));
        let again = AskAgain::After(3 * SECOND);
        fleet.handle(Input::Done { host: h, answered: true, took: SECOND, again });
        assert_eq!(fleet.sleep(), 3 * SECOND);
        assert_eq!(fleet.next(), Some(h));
    }

    #[test]
    fn a_forgotten_host_frees_its_place() {
        let mut fleet = Fleet::new(2, 1);
        let h = fleet.next().expect("due");
        assert_eq!(fleet.next(), None);
        fleet.handle(Input::Forget(h));
        assert!(fleet.next().is_some());
        fleet.done(h, true, Duration::ZERO);
        assert_eq!(fleet.schedule.in_flight(), 1);
    }
}
