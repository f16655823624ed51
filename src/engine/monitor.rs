//! Owns the monitor as a state machine: what happened goes in, what shall be done comes
//! out. Joins the schedule, the verdict on silent hosts, heartbeat flushes and the watch
//! over our own clocks.
//!
//! Never: does anything itself. The scheduler thread drives it with real time, tests and
//! the simulation with a manual clock.

use crate::clock::{ClockChange, JumpDetector, Reading};
use crate::logging::seldom;
use crate::model::host::{AgentAddress, Liveness};
use crate::model::id::HostId;
use crate::model::policy::{CONTACT_GAP, Policy};
use crate::model::time::{Mono, Now};
use crate::plan::liveness::{MassGuard, Silence};
use crate::plan::observation::AskAgain;
use crate::plan::schedule::{self, Schedule, Watch};
use crate::store::StoreError;
use crate::store::apply::Applied;
use crate::store::lifecycle::Work;
use crate::store::presence::{CLOCK_JUMP, Presence};
use std::sync::Arc;
use std::time::Duration;

/// A wake-up that comes so much later than asked for means that we did not listen: the
/// machine was stopped in a way that no clock tells.
const OVERSLEPT: Duration = Duration::from_secs(5);

/// The shortest time without hearing that counts. Larger and hosts with a short
/// `unreachable_after` are judged by what could not be heard; smaller and nothing is gained.
const DEAF_MIN: Duration = Duration::from_secs(1);

/// How long to wait before a write that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Time from the start until the past is given up for the first time. Larger: a server that ends often never gets to it; smaller: it is in
/// the way of the first round of probes.
const PRUNE_FIRST: Duration = Duration::from_secs(5);

/// Time between two portions of the past that are given up: what waits for the writer then
/// goes first. Larger: a busy fleet's history grows faster than it goes; smaller: little else
/// gets to write in between.
const PRUNE_NEXT: Duration = Duration::from_millis(50);

/// Time until the next look once nothing was left to give up. Larger: a day's worth goes at
/// once; smaller: an idle database is searched for nothing. A history that is kept by number
/// and grows far beyond it does not wait for that, see `store::retention`.
const PRUNE_AGAIN: Duration = Duration::from_secs(3600);

/// What can happen.
#[derive(Debug)]
pub enum Input {
    /// A host that was unreachable, or silent for long, was heard.
    Heard(HostId),
    /// A host was added, changed or deleted.
    Changed(HostId),
    /// Somebody wants a host probed at once.
    ProbeNow(HostId),
    /// A probe ended and was written, or could not be.
    Ended {
        /// Of which host.
        host: HostId,
        /// How long the agent took.
        took: Duration,
        /// What came of it.
        result: Result<Applied, StoreError>,
    },
    /// The verdict on silent hosts was written, or could not be.
    MarkedDown(Result<Vec<Applied>, StoreError>),
    /// An unreachable host was taken back, or could not be.
    MarkedUp(HostId, Result<bool, StoreError>),
    /// Heartbeats were flushed, or could not be.
    Flushed(Result<(), StoreError>),
    /// A portion of the past was given up, or could not be. True: there may be more.
    Pruned(Result<bool, StoreError>),
    /// A restored database counts from now on.
    Accepted,
    /// Other numbers count from now on.
    Decide {
        /// For decisions.
        policy: Policy,
        /// Time between two flushes of heartbeats.
        flush_every: Duration,
    },
}

/// What shall be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask this host's agent.
    Probe(HostId, AgentAddress),
    /// Write that these hosts are unreachable, unless heard after this.
    MarkDown(Vec<(HostId, Option<Mono>)>),
    /// Write that this host is back.
    MarkUp(HostId),
    /// Write the heartbeats.
    Flush,
    /// Give up what is not kept any longer.
    Prune,
    /// Carry out an operation that the monitor began.
    Work(Box<Work>),
}

/// See the head of this file.
pub struct Monitor {
    policy: Policy,
    presence: Arc<Presence>,
    schedule: Schedule,
    guard: MassGuard,
    jumps: JumpDetector,
    flush_every: Duration,
    flush_at: Mono,
    prune_at: Mono,
    judge_at: Mono,
    /// A verdict is being written; judging again would repeat it.
    marking: bool,
    /// The database was restored and is not accepted: nothing is asked, judged or written.
    unaccepted: bool,
    returning: Vec<HostId>,
    begun: Vec<Work>,
    /// When we asked to be woken.
    wake_at: Option<Mono>,
    /// Hosts on which the verdict is held; `None` until anybody could be judged.
    held: Option<usize>,
    /// Agents could not be heard when it was last looked.
    is_deaf: bool,
}

/// Milliseconds of a probe interval; a round is due at least so often.
pub fn interval_ms(policy: &Policy) -> u64 {
    u64::try_from(policy.probe_interval.as_millis()).unwrap_or(u64::MAX)
}

impl Monitor {
    /// A monitor that begins to listen now and probes everybody at once.
    pub fn new(
        policy: Policy,
        presence: Arc<Presence>,
        workers: usize,
        flush_every: Duration,
        seed: u64,
        now: Mono,
    ) -> Monitor {
        let schedule = Schedule::new(policy.probe_interval, workers, seed);
        let mut monitor = Monitor {
            policy,
            schedule,
            guard: MassGuard::default(),
            jumps: JumpDetector::new(),
            flush_every,
            flush_at: now.after(flush_every),
            prune_at: now.after(PRUNE_FIRST),
            judge_at: now,
            marking: false,
            unaccepted: false,
            returning: Vec::new(),
            begun: Vec::new(),
            wake_at: None,
            held: None,
            is_deaf: false,
            presence,
        };
        let mut hosts = monitor.presence.active();
        crate::model::order::sort_by_key(&mut hosts, |host| host.id);
        hosts.iter().for_each(|host| monitor.changed(now, host.id));
        monitor
    }

    /// Asks, judges and writes nothing until [`Input::Accepted`].
    pub fn hold(&mut self) {
        self.unaccepted = true;
    }

    /// Whether verdicts on silent hosts are being held, and since when.
    pub fn holding_since(&self) -> Option<Mono> {
        self.guard.holding_since()
    }

    /// Hosts on which the verdict is held; `None` until anybody could be judged.
    pub fn held(&self) -> Option<usize> {
        self.held
    }

    /// See [`interval_ms`].
    pub fn interval_ms(&self) -> u64 {
        interval_ms(&self.policy)
    }

    /// Probes in flight.
    pub fn in_flight(&self) -> usize {
        self.schedule.in_flight()
    }

    /// Those of them in the slow lane.
    pub fn slow_in_flight(&self) -> usize {
        self.schedule.slow_in_flight()
    }

    /// Looks at the clocks. Call at every wake-up, before anything else.
    pub fn tick(&mut self, reading: Reading) {
        let now = reading.now.mono;
        let late = self.wake_at.take().map_or(Duration::ZERO, |wake| now.since(wake));
        let away = match self.jumps.feed(reading) {
            ClockChange::Steady => late,
            ClockChange::Suspended(span) => {
                self.presence.slept(now, span);
                span.max(late)
            }
            ClockChange::WallForward(span) => {
                self.clock_moved(now, span, span > CLOCK_JUMP);
                late
            }
            ClockChange::WallBack(span) => {
                self.clock_moved(now, span, true);
                late
            }
        };
        if away > OVERSLEPT {
            log::warn!("did not listen for {} s; listening anew", away.as_secs());
            self.listen_anew(now, away >= CONTACT_GAP);
        }
    }

    /// The longest time, since this was said last, in which no agent could be heard: silence
    /// in it was ours. Call before [`Monitor::effects`].
    pub fn could_not_hear(&mut self, now: Mono, span: Duration) {
        let counts = DEAF_MIN.max(OVERSLEPT.min(self.policy.unreachable_after / 2));
        if span < counts {
            self.is_deaf = false;
            return;
        }
        if !std::mem::replace(&mut self.is_deaf, true) {
            log::warn!("agents could not be heard for {} s; listening anew", span.as_secs());
        }
        self.listen_anew(now, span >= CONTACT_GAP);
    }

    fn clock_moved(&mut self, now: Mono, span: Duration, suspect: bool) {
        log::warn!("the clock moved by {} s; listening anew", span.as_secs());
        if suspect {
            self.presence.suspect_clock(now);
        }
        self.listen_anew(now, false);
    }

    fn listen_anew(&mut self, now: Mono, gap: bool) {
        self.presence.listen_anew(now, gap);
        self.judge_at = now;
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Mono, input: Input) {
        match input {
            Input::Heard(host) => self.heard(now, host),
            Input::Changed(host) => self.changed(now, host),
            Input::ProbeNow(host) => self.schedule.handle(now, schedule::Input::ProbeNow(host)),
            Input::Ended { host, took, result } => self.ended(now, host, took, result),
            Input::MarkedDown(result) => self.marked_down(now, result),
            Input::MarkedUp(host, result) => match result {
                Ok(_) => self.changed(now, host),
                // The next heartbeat says so again.
                Err(error) => {
                    seldom!(Error, "failures of the database", "the database" =>
                        "could not take {} back: {error}", self.presence.named(host));
                }
            },
            Input::Decide { policy, flush_every } => {
                self.flush_every = flush_every;
                self.flush_at = self.flush_at.min(now.after(flush_every));
                self.schedule.set_interval(policy.probe_interval);
                self.policy = policy;
                self.judge_at = now;
                self.prune_at = now;
            }
            Input::Accepted => self.accepted(now),
            Input::Pruned(Ok(true)) => self.prune_at = now.after(PRUNE_NEXT),
            Input::Pruned(Ok(false)) => {}
            Input::Pruned(Err(error)) => log::error!("could not give up the past: {error}"),
            Input::Flushed(Ok(())) => {}
            Input::Flushed(Err(error)) => {
                seldom!(Error, "failures of the database", "the database" =>
                    "could not flush heartbeats: {error}");
                self.flush_at = now.after(RETRY_AFTER);
            }
        }
    }

    /// Nobody was listened to until now, and nobody knows what was missed.
    fn accepted(&mut self, now: Mono) {
        if std::mem::take(&mut self.unaccepted) {
            self.listen_anew(now, true);
            self.flush_at = now;
        }
    }

    fn heard(&mut self, now: Mono, host: HostId) {
        if self.guard.heard_silent_host(now) {
            seldom!(Info, "returns of silent hosts", "hosts" =>
                "{} was heard; every host gets time to be heard before any verdict",
                self.presence.named(host));
            self.listen_anew(now, false);
        }
        match self.presence.get(host).map(|host| host.liveness) {
            Some(Liveness::Unreachable) => self.returning.push(host),
            Some(Liveness::Alive) => self.schedule.handle(now, schedule::Input::ProbeNow(host)),
            None => {}
        }
    }

    fn changed(&mut self, now: Mono, id: HostId) {
        let host = self.presence.get(id).filter(|host| host.active && host.address.is_some());
        let strict = self.policy.is_strict();
        let watch = host.and_then(|host| match (host.liveness, host.intent) {
            (Liveness::Unreachable, _) if strict => None,
            (Liveness::Unreachable, _) => Some(Watch::Diagnosed),
            (Liveness::Alive, crate::model::host::Intent::Draining) if strict => None,
            (Liveness::Alive, _) => Some(Watch::Probed),
        });
        let input = watch.map_or(schedule::Input::Forget(id), |w| schedule::Input::Watch(id, w));
        self.schedule.handle(now, input);
    }

    fn ended(
        &mut self,
        now: Mono,
        host: HostId,
        took: Duration,
        result: Result<Applied, StoreError>,
    ) {
        let (answered, again) = match result {
            Ok(applied) => {
                self.begun.extend(applied.work);
                (applied.failure.is_none(), applied.ask_again)
            }
            Err(error) => {
                seldom!(Error, "failures of the database", "the database" =>
                    "could not apply what {} answered: {error}", self.presence.named(host));
                (false, AskAgain::AsUsual)
            }
        };
        self.schedule.handle(now, schedule::Input::Done { host, answered, took, again });
    }

    fn marked_down(&mut self, now: Mono, result: Result<Vec<Applied>, StoreError>) {
        self.marking = false;
        match result {
            Ok(applied) => {
                self.judge_at = now;
                applied.iter().for_each(|applied| self.changed(now, applied.host));
            }
            Err(error) => {
                seldom!(Error, "failures of the database", "the database" =>
                    "could not write the verdict on silent hosts: {error}");
                self.judge_at = now.after(RETRY_AFTER);
            }
        }
    }

    /// What shall be done now.
    pub fn effects(&mut self, now: Now) -> Vec<Effect> {
        if self.unaccepted {
            self.judge_at = now.mono.after(self.policy.probe_interval);
            return Vec::new();
        }
        let mut effects: Vec<Effect> = self.returning.drain(..).map(Effect::MarkUp).collect();
        effects.extend(self.begun.drain(..).map(|work| Effect::Work(Box::new(work))));
        if !self.marking && self.judge_at <= now.mono {
            effects.extend(self.judge(now));
        }
        while let Some(host) = self.schedule.next(now.mono) {
            match self.presence.get(host).and_then(|host| host.address) {
                Some(address) => effects.push(Effect::Probe(host, address)),
                None => self.schedule.handle(now.mono, schedule::Input::Forget(host)),
            }
        }
        if self.flush_at <= now.mono {
            self.flush_at = now.mono.after(self.flush_every);
            effects.push(Effect::Flush);
        }
        if self.prune_at <= now.mono {
            self.prune_at = now.mono.after(PRUNE_AGAIN);
            effects.push(Effect::Prune);
        }
        effects
    }

    fn judge(&mut self, now: Now) -> Option<Effect> {
        let mut hosts = self.presence.silences(now, &self.policy);
        hosts.sort_by_key(|(host, _, _)| *host);
        let silences: Vec<Silence> = hosts.iter().map(|(_, _, silence)| *silence).collect();
        let listening = (!self.policy.is_strict()).then(|| self.presence.listening(now.mono));
        let verdict = self.guard.judge(now.mono, &silences, listening, &self.policy);
        if verdict.hold_began {
            log::error!(
                "{} of {} hosts fell silent together: suspecting our own network, holding the verdict",
                verdict.held.len(),
                hosts.len()
            );
        }
        let judges = listening.is_none_or(|span| span >= self.policy.startup_grace);
        self.held = match self.guard.holding_since() {
            Some(_) => Some(verdict.held.len()),
            None => judges.then_some(0).or(self.held.map(|_| 0)),
        };
        let next = verdict.next_in.unwrap_or(self.policy.unreachable_after);
        // Without hosts, or with patient ones, a round every interval shows that we live.
        let latest = self.policy.unreachable_after.min(self.policy.probe_interval);
        self.judge_at = now.mono.after(next.min(latest));
        let down: Vec<_> = verdict.down.iter().map(|&at| (hosts[at].0, hosts[at].1)).collect();
        self.marking = !down.is_empty();
        self.marking.then_some(Effect::MarkDown(down))
    }

    /// When to look again if nothing happens before.
    pub fn next_wake(&mut self) -> Mono {
        if self.unaccepted {
            self.wake_at = Some(self.judge_at);
            return self.judge_at;
        }
        let judge = (!self.marking).then_some(self.judge_at);
        let wake = judge
            .into_iter()
            .chain(self.schedule.next_wake())
            .fold(self.flush_at.min(self.prune_at), Mono::min);
        self.wake_at = Some(wake);
        wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::Wall;

    /// `/readyz` takes a scheduler that makes no round for two intervals for a dead one.
    #[test]
    fn a_round_is_due_every_interval_even_without_hosts() {
        let policy = Policy { probe_interval: Duration::from_secs(1), ..Policy::default() };
        let flush_every = Duration::from_secs(300);
        let begin = Mono(1_000_000);
        let presence = Arc::new(Presence::default());
        let mut monitor = Monitor::new(policy, presence, 4, flush_every, 0, begin);
        let mut at = begin;
        for _ in 0..200 {
            monitor.effects(Now { mono: at, wall: Wall(0) });
            let wake = monitor.next_wake();
            assert!(at < wake && wake.since(at) <= Duration::from_secs(1), "{at:?} {wake:?}");
            at = wake;
        }
    }
    /// When what is wanted next is the past being given up, from now on.
    fn next_prune(monitor: &mut Monitor, from: Mono) -> Duration {
        loop {
            let at = monitor.next_wake();
            let effects = monitor.effects(Now { mono: at, wall: Wall(0) });
            if effects.contains(&Effect::Prune) {
                return at.since(from);
            }
        }
    }

    #[test]
    fn while_it_is_held_nothing_is_done_and_rounds_go_on() {
        let begin = Mono(1_000_000);
        let address = "127.0.0.1:1".parse().unwrap();
        let (policy, presence) = (Policy::default(), Arc::new(one_host(address)));
        let mut monitor = Monitor::new(
            policy.clone(),
            Arc::clone(&presence),
            4,
            Duration::from_secs(10),
            0,
            begin,
        );
        monitor.hold();
        let mut at = begin;
        for _ in 0..1000 {
            assert_eq!(monitor.effects(Now { mono: at, wall: Wall(0) }), []);
            let wake = monitor.next_wake();
            assert!(at < wake && wake.since(at) <= policy.probe_interval);
            at = wake;
        }
        monitor.handle(at, Input::Accepted);
        let effects = monitor.effects(Now { mono: at, wall: Wall(0) });
        let probes = effects.iter().filter(|effect| matches!(effect, Effect::Probe(..)));
        assert_eq!((probes.count(), effects.contains(&Effect::Flush)), (1, true), "{effects:?}");
        let is_verdict = |effect: &Effect| matches!(effect, Effect::MarkDown(_));
        assert!(!effects.iter().any(is_verdict), "nobody had time to be heard");
        let later = at.after(policy.unreachable_after + Duration::from_secs(1));
        let effects = monitor.effects(Now { mono: later, wall: Wall(0) });
        assert!(effects.iter().any(is_verdict), "{effects:?}");
    }

    /// Presence of one host that was last heard long ago.
    fn one_host(address: AgentAddress) -> Presence {
        let host = crate::model::host::Host {
            id: HostId::from_u128(1),
            team_id: crate::model::id::PLATFORM_TEAM,
            kind: "regular".into(),
            provider: None,
            availability_zone: None,
            arch: None,
            cpu_cores: None,
            memory_mb: None,
            disk_gb: None,
            address: Some(address),
            intent: crate::model::host::Intent::Active,
            liveness: Liveness::Alive,
            registered_at: Some(Wall(0)),
            rejoining: false,
            degraded: false,
            contact_gap: false,
            last_heartbeat_at: Some(Wall(0)),
            probe_failure: None,
            revision: 0,
            created_at: Wall(0),
            updated_at: Wall(0),
            registration: 0,
        };
        let now = Now { mono: Mono(1_000_000), wall: Wall(1_000_000_000) };
        Presence::load(&[host], [], None, false, now)
    }

    #[test]
    fn silence_that_could_not_be_heard_judges_no_host() {
        let begin = Mono(1_000_000);
        let (policy, presence) =
            (Policy::default(), Arc::new(one_host("127.0.0.1:1".parse().unwrap())));
        let mut monitor =
            Monitor::new(policy.clone(), presence, 4, Duration::from_secs(10), 0, begin);
        let mut is_judged = |at: Mono, deaf_s| {
            monitor.could_not_hear(at, Duration::from_secs(deaf_s));
            let effects = monitor.effects(Now { mono: at, wall: Wall(0) });
            effects.iter().any(|effect| matches!(effect, Effect::MarkDown(_)))
        };
        let second = Duration::from_secs(1);
        let late = begin.after(policy.unreachable_after + second);
        assert!(!is_judged(late, 6));
        let later = late.after(policy.unreachable_after);
        assert!(!is_judged(later, 0), "as after a start");
        assert!(!is_judged(later.after(second), 90), "it goes on");
        assert!(!is_judged(later.after(second * 2), 0));
        let last = later.after(policy.unreachable_after + second * 3);
        assert!(is_judged(last, 4), "a moment is no matter");
    }

    #[test]
    fn the_past_is_given_up_portion_by_portion_and_then_seldom() {
        let begin = Mono(1_000_000);
        let (policy, presence) = (Policy::default(), Arc::new(Presence::default()));
        let mut monitor =
            Monitor::new(policy.clone(), presence, 4, Duration::from_secs(10), 0, begin);
        assert_eq!(next_prune(&mut monitor, begin), PRUNE_FIRST, "soon after the start");
        let first = begin.after(PRUNE_FIRST);
        monitor.handle(first, Input::Pruned(Ok(true)));
        let next = first.after(PRUNE_NEXT);
        assert_eq!(next_prune(&mut monitor, first), PRUNE_NEXT);
        monitor.handle(next, Input::Pruned(Ok(false)));
        assert_eq!(next_prune(&mut monitor, next), PRUNE_AGAIN);
        let later = next.after(PRUNE_AGAIN);
        monitor.handle(later, Input::Pruned(Err(StoreError::Busy)));
        assert_eq!(next_prune(&mut monitor, later), PRUNE_AGAIN, "an error is no reason to hurry");

        let now = later.after(PRUNE_AGAIN).after(Duration::from_secs(1));
        monitor.handle(now, Input::Decide { policy, flush_every: Duration::from_secs(10) });
        assert_eq!(monitor.next_wake(), now, "with other numbers at once");
    }
}
