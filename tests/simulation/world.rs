//! Owns the world of a simulation: hosts and their agents, the network, users, operators,
//! the clocks, and the control plane among them; one event after the other, from one seed.
//!
//! Never: threads, sleeps, the machine's clock or chance. What must hold is in `judge`.

use crate::agent::{Agent, Arrived, Later};
use crate::bounds::Bounds;
use crate::calm::Resuming;
use crate::chance::Chance;
use crate::defect::Defect;
use crate::disk::{self, Disk, wal_of};
use crate::fleet::settlers;
use crate::history::History;
use crate::leaving::{Newcomer, Standing};
use crate::network::Sent;
use crate::plane::{Plane, Told};
use crate::restoring::Restores;
use crate::storm::Disturbance;
use crate::tally::{Fault, Tally, WISHES};
use roost::agent::client::CallError;
use roost::clock::{Clock, ManualClock, Reading};
use roost::model::host::AgentAddress;
use roost::model::id::{HostId, OpId, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::policy::{Policy, ZombiePolicy};
use roost::model::probe::{Details, Probe};
use roost::model::time::{Mono, Now, Wall};
use roost::plan::placement::NoHost;
use roost::store::Connection;
use roost::store::lifecycle::Begun;
use roost::store::strangers::Adopted;
use roost::store::templates::NotMade;
use roost::store::writer::Command;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// When every simulation begins: 2026-05-17T06:40:00Z.
pub(crate) const BEGIN: Wall = Wall(1_779_000_000_000);

pub(crate) const SECOND: u64 = 1_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;

/// How long faults strike, and users act, in a world that has no rest; a quieter one takes
/// longer.
pub(crate) const STORM_MS: u64 = 120 * MINUTE;

/// After the last fault everything must be in order again within this: the longest
/// deadline of an operation and what follows it.
pub(crate) const CALM_MS: u64 = 25 * MINUTE;

/// So long users take to resume all that is paused, one after the other.
pub(crate) const RESUMED_MS: u64 = 15 * MINUTE;

/// From then on no sandbox pauses by itself: what is compared must not move.
pub(crate) const RESTFUL_AFTER_MS: u64 = 15 * MINUTE;

/// How long a host token is valid here; seven days in reality.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(40 * 60);

/// What an agent waits for an answer to a probe, as `roost serve` does by default.
pub(crate) const PROBE_TIMEOUT_MS: u64 = 8 * SECOND;

/// A sleep that is so short is as good as none, and counts as silence.
pub(crate) const UNNOTICED_MS: u64 = 5 * SECOND;
pub(crate) const CONNECT_TIMEOUT_MS: u64 = 2 * SECOND;

/// The way between the control plane and one host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// Calls arrive.
    pub(crate) calls: bool,
    /// Their answers come back.
    pub(crate) answers: bool,
    /// Heartbeats and reports arrive.
    pub(crate) beats: bool,
    /// How long one way takes at most.
    pub(crate) delay_ms: u64,
    /// Of a thousand messages so many are lost.
    pub(crate) lost: u64,
    /// The agent stands still until then.
    pub(crate) hung_until: u64,
    /// The next answer that announces something is lost.
    pub(crate) deaf: bool,
    /// Another host has its address.
    pub(crate) taken_by: Option<usize>,
}

impl Link {
    pub(crate) const GOOD: Link = Link {
        calls: true,
        answers: true,
        beats: true,
        delay_ms: 20,
        lost: 0,
        hung_until: 0,
        deaf: false,
        taken_by: None,
    };

    /// The same, and nothing comes through either way.
    pub(crate) fn cut(self) -> Link {
        Link { calls: false, answers: false, beats: false, ..self }
    }
}

/// The side of an agent that talks to the control plane.
pub(crate) struct Heart {
    pub(crate) failures: u32,
    /// It beats no more until somebody starts it again.
    pub(crate) over: bool,
    /// It is busy pausing everything until then.
    pub(crate) pausing_until: u64,
    /// Its last beat: it sends one after the other.
    pub(crate) beat_ms: Option<u64>,
    pub(crate) token_expires_at: Wall,
    pub(crate) refresh_token: [u8; 32],
    /// The registration that its tokens belong to.
    pub(crate) registration: u64,
    /// When it sent what may arrive when the way is free again.
    pub(crate) straggler_ms: Option<u64>,
    /// When its refresh token was given out, and when the next one was asked for.
    pub(crate) issued_at: Wall,
    pub(crate) asked_at: Wall,
    /// The token that a renewal asks for, until it is answered.
    pub(crate) renewing: Option<[u8; 32]>,
}

/// What was known when a host was to be marked down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) at_ms: u64,
    pub(crate) silent_ms: u64,
    pub(crate) listened_ms: u64,
}

/// One host.
pub(crate) struct Machine {
    pub(crate) id: HostId,
    pub(crate) address: AgentAddress,
    /// The host whose address it takes when it registers.
    pub(crate) instead_of: Option<usize>,
    pub(crate) standing: Standing,
    pub(crate) agent: Agent,
    pub(crate) link: Link,
    pub(crate) heart: Heart,
    /// How far its clock is ahead.
    pub(crate) skew_ms: i64,
    pub(crate) memory_mb: u64,
    /// Its agent is new enough to report what it does.
    pub(crate) reports: bool,
    /// Of which the notice of its last pause by itself was refused.
    pub(crate) refused: BTreeSet<SandboxId>,
    /// Of which a notice arrived when it had been resumed since.
    pub(crate) stale: BTreeSet<SandboxId>,
    /// What it began to make although it had declined to.
    pub(crate) half_declined: BTreeSet<SandboxId>,
    /// Calls whose caller is gone.
    pub(crate) gone: BTreeSet<u64>,
    /// When it was last heard by the plane that runs.
    pub(crate) heard_ms: Option<u64>,
    /// The last time that it was found silent for too long.
    pub(crate) verdict: Option<Verdict>,
    /// How often it was asked for each operation.
    pub(crate) asked: BTreeMap<OpId, u32>,
    /// Until then its agent may not lose sight of its microVMs again.
    pub(crate) sighted_ms: u64,
    /// When it last found its microVMs again.
    pub(crate) found_ms: u64,
    /// What came to life after its create's deadline, when it was stopped.
    pub(crate) late: BTreeSet<SandboxId>,
    /// When it was last asked to create each sandbox, and how often.
    pub(crate) creates_asked: BTreeMap<SandboxId, (u64, u32)>,
}

/// Something that happens at its time.
#[derive(Debug)]
pub(crate) enum Event {
    /// The last says whether another one follows after the interval.
    Beat(usize, u32, bool),
    /// A heartbeat arrives; whether its agent has given up by then.
    BeatArrives(usize, bool),
    /// An agent gives up on a heartbeat.
    Unanswered(usize, u32),
    RenewalOver(usize, [u8; 32]),
    /// A question arrives at a host that had this boot when it was sent.
    Listed(usize, u64, u64),
    Called(usize, u64, SandboxId, Arrived),
    /// What is under way to the plane of this life.
    Answer(u64, u64, Probe),
    Result(u64, u64, Result<Option<Details>, CallError>),
    Agent(usize, u32, Later),
    Report(usize, Sent),
    /// The plane waits no longer for a call.
    GivesUp(u64, u64),
    /// An agent notices that a caller is gone.
    HungUp(usize, u64),
    Write(u64),
    User,
    /// Somebody wants this done with that sandbox.
    Wish(SandboxId, OperationKind),
    Operator,
    SetBack(usize),
    /// An observation asked for since then decides on that, if this life goes on.
    DeleteNow(usize, bool, u64, Mono),
    /// An operator wants it gone; also with all that it has.
    Delete(usize, bool),
    Arrives(Newcomer),
    Register(usize),
    /// An agent is told to end.
    Terminate(usize),
    Strike,
    /// An operator accepts a restored database.
    Accept,
    /// A forgotten host is added as another one.
    AddAnew(usize),
    /// Both ways to a machine are cut for so long.
    Cut(usize, u64),
    /// A user of a host's sandboxes goes on.
    ResumeNext(HostId),
    Disturb(usize, Disturbance),
    Heal(usize, Heal),
    AgentStarts(usize, u32),
    AgentDies(usize, u32),
    PlaneStarts,
    /// An orderly stop of this life waits no longer.
    StopOver(u64),
    Wakes,
    Unlock(u64),
}

/// What ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Heal {
    Link,
    Address,
}

/// Whether the control plane hears anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    Listening,
    Down,
    Asleep,
}

/// How the control plane ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    InOrder,
    Killed,
    PowerLost,
}

pub(crate) struct World {
    pub(crate) machines: Vec<Machine>,
    pub(crate) plane: Option<Plane>,
    pub(crate) history: Option<History>,
    pub(crate) violations: Vec<String>,
    pub(crate) policy: Policy,
    /// When the plane last began to listen.
    pub(crate) listening_ms: u64,
    /// Somebody moved the clock on the wall.
    pub(crate) clock_moved: bool,
    /// Zombies that were reported.
    pub(crate) zombies: BTreeSet<SandboxId>,
    pub(crate) defect: Option<Defect>,
    pub(crate) disk_failed_ms: u64,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) tally: Tally,
    pub(crate) clock: ManualClock,
    /// What it shows: everybody asks all the time.
    pub(crate) reading: Reading,
    pub(crate) began_ms: u64,
    pub(crate) chance: Chance,
    pub(crate) seed: u64,
    pub(crate) pace: u64,
    pub(crate) life: u64,
    pub(crate) boots: u64,
    pub(crate) db: PathBuf,
    pub(crate) disk: Disk,
    pub(crate) dbs: u32,
    pub(crate) agenda: BTreeMap<(u64, u64), Event>,
    pub(crate) events: u64,
    pub(crate) attention: Attention,
    pub(crate) awake_at: u64,
    pub(crate) asleep_since: u64,
    pub(crate) writing: bool,
    pub(crate) stalled_until: u64,
    pub(crate) locker: Option<Connection>,
    pub(crate) stormy: bool,
    pub(crate) tls: bool,
    /// Which host each call of the plane that runs is with.
    pub(crate) in_flight: BTreeMap<u64, usize>,
    /// How long the plane stays away that is stopping.
    pub(crate) away_ms: u64,
    pub(crate) bounds: Bounds,
    /// The newest registration of each host that registered here.
    pub(crate) registrations: BTreeMap<HostId, u64>,
    /// Machines that are to take the place of another one.
    pub(crate) replacing: BTreeMap<HostId, usize>,
    /// Calls to an agent that was there before its host registered again.
    pub(crate) abandoned: BTreeSet<u64>,
    /// What was on a machine that another one took the place of.
    pub(crate) left_behind: BTreeSet<SandboxId>,
    pub(crate) resuming: BTreeMap<HostId, Resuming>,
    pub(crate) addresses: u64,
    /// Hosts that an operator wanted gone with all that they have.
    pub(crate) forced: BTreeSet<HostId>,
    pub(crate) restores: Restores,
    /// Changes that were committed.
    pub(crate) changes: u64,
}

/// What came of a simulation.
pub(crate) struct Course {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) host_hours: f64,
    pub(crate) revisions: u64,
    pub(crate) tally: Tally,
}

/// How much slower than restless a world is; most are quiet, as in reality.
pub(crate) fn pace_of(seed: u64) -> u64 {
    [1, 1, 4, 16][(seed % 4) as usize]
}

/// Plays one seed to its end, or to the first violation.
pub(crate) fn play(seed: u64, pace: u64, defect: Option<Defect>, traced: bool) -> Course {
    let mut world = World::new(seed, pace, defect, traced);
    world.weather();
    let hosts = world.machines.len() as f64;
    let host_hours = hosts * world.now_ms() as f64 / (60 * MINUTE) as f64;
    let revisions = world.changes;
    let (violations, trace) = (world.violations, world.trace.unwrap_or_default());
    Course { violations, trace, host_hours, revisions, tally: world.tally }
}

impl World {
    pub(crate) fn new(seed: u64, pace: u64, defect: Option<Defect>, traced: bool) -> World {
        let mut chance = Chance::new(seed);
        let disk = Disk::new();
        let db = disk.path(0);
        let clock = ManualClock::new(BEGIN);
        let mut policy = Policy::default();
        if chance.permille(400) {
            policy.zombies = ZombiePolicy::Destroy;
        }
        let count = chance.within(1, 8 + 2 * pace) as usize;
        let tls = chance.permille(500);
        let began_ms = clock.boot_ms();
        let machines = settlers(&db, &policy, count, seed, &mut chance, clock.now());
        World {
            machines,
            plane: None,
            history: None,
            violations: Vec::new(),
            policy,
            listening_ms: 0,
            clock_moved: false,
            zombies: BTreeSet::new(),
            defect,
            disk_failed_ms: 0,
            trace: traced.then(Vec::new),
            tally: Tally::default(),
            reading: Reading::of(&clock),
            clock,
            began_ms,
            chance,
            seed,
            pace,
            life: 0,
            boots: 0,
            db,
            disk,
            dbs: 0,
            agenda: BTreeMap::new(),
            events: 0,
            attention: Attention::Down,
            awake_at: 0,
            asleep_since: 0,
            writing: false,
            stalled_until: 0,
            locker: None,
            stormy: true,
            tls,
            in_flight: BTreeMap::new(),
            away_ms: 0,
            bounds: Bounds::default(),
            registrations: BTreeMap::new(),
            replacing: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            left_behind: BTreeSet::new(),
            resuming: BTreeMap::new(),
            addresses: 0,
            forced: BTreeSet::new(),
            restores: Restores::default(),
            changes: 0,
        }
    }

    /// Storm, then calm, then everything must be in order.
    pub(crate) fn weather(&mut self) {
        self.start_plane();
        for host in 0..self.machines.len() {
            let id = self.machines[host].id;
            let found = self.history.as_ref().and_then(|history| history.hosts.get(&id));
            self.machines[host].heart.registration = found.map_or(0, |host| host.registration);
            let at = self.chance.within(0, 30 * SECOND);
            self.after(at, Event::Beat(host, 0, true));
        }
        self.after(SECOND, Event::User);
        self.after(MINUTE, Event::Strike);
        self.after(5 * MINUTE, Event::Operator);
        let storm_ms = STORM_MS + STORM_MS * (self.pace - 1) / 3;
        self.pass_until(storm_ms);
        if self.violations.is_empty() {
            self.calm_down();
            self.pass_until(storm_ms + RESTFUL_AFTER_MS);
            self.machines.iter_mut().for_each(|machine| machine.agent.restful = true);
            self.pass_until(storm_ms + CALM_MS);
        }
        if self.violations.is_empty() {
            self.judge_bounds();
            self.judge_end();
        }
        if self.violations.is_empty() {
            self.resume_all();
            self.pass_until(storm_ms + CALM_MS + RESUMED_MS);
            self.judge_resumed();
        }
    }

    /// Every fault ends, and somebody walks up to whatever waits for that.
    pub(crate) fn calm_down(&mut self) {
        self.note(|| "the storm is over".to_owned());
        self.stormy = false;
        self.unlock();
        self.stalled_until = 0;
        if self.plane.as_ref().is_some_and(|plane| plane.stopping) {
            self.stop_over(self.life);
        }
        if self.plane.as_ref().is_none_or(|plane| plane.held) {
            self.after(SECOND, Event::Accept);
        }
        self.after(MINUTE, Event::Operator);
        self.look_at_machines();
        for host in 0..self.machines.len() {
            self.machines[host].link = Link::GOOD;
            self.after(SECOND, Event::SetBack(host));
            if self.machines[host].heart.over {
                // Nobody is there at once, and the silence until then tells.
                self.end_agent(host, false, 2 * MINUTE);
            }
        }
    }

    pub(crate) fn now(&self) -> Now {
        self.reading.now
    }

    /// Milliseconds since it began, whoever slept.
    pub(crate) fn now_ms(&self) -> u64 {
        self.reading.boot_ms - self.began_ms
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let at_s = self.now_ms() as f64 / 1000.0;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{at_s:>10.3} s  {}", line()));
        }
    }

    pub(crate) fn wrong(&mut self, what: String) {
        self.note(|| format!("!! {what}"));
        let at_s = self.now_ms() as f64 / 1000.0;
        self.violations.push(format!("at {at_s} s: {what}"));
    }

    pub(crate) fn machine_of(&self, host: HostId) -> usize {
        let is_host = |m: &Machine| m.id == host && !m.standing.superseded;
        let of_host = |m: &Machine| m.id == host;
        let current = self.machines.iter().position(is_host);
        current.or_else(|| self.machines.iter().rposition(of_host)).expect("a host of ours")
    }

    pub(crate) fn after(&mut self, span_ms: u64, event: Event) {
        self.at(self.now_ms() + span_ms, event);
    }

    pub(crate) fn at(&mut self, at_ms: u64, event: Event) {
        self.events += 1;
        self.agenda.insert((at_ms, self.events), event);
    }

    pub(crate) fn pass_until(&mut self, until_ms: u64) {
        while self.violations.is_empty() {
            let event = self.agenda.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let wake = self.plane_wakes_at();
            let at_ms = event.min(wake);
            if at_ms > until_ms {
                break;
            }
            self.pass_to(at_ms);
            if event <= wake
                && let Some((_, event)) = self.agenda.pop_first()
            {
                self.happen(event);
            }
            self.settle();
        }
        self.pass_to(until_ms.max(self.now_ms()));
    }

    pub(crate) fn pass_to(&mut self, at_ms: u64) {
        let span = Duration::from_millis(at_ms.saturating_sub(self.now_ms()));
        if span.is_zero() {
            return;
        }
        match self.attention {
            Attention::Listening | Attention::Down => self.clock.advance(span),
            Attention::Asleep => self.clock.suspend(span),
        }
        self.reading = Reading::of(&self.clock);
    }

    pub(crate) fn plane_wakes_at(&mut self) -> u64 {
        let (now, now_ms) = (self.now().mono, self.now_ms());
        match (self.attention, self.plane.as_mut()) {
            (Attention::Listening, Some(plane)) => {
                let wake = plane.next_wake().since(now);
                now_ms.saturating_add(u64::try_from(wake.as_millis()).unwrap_or(u64::MAX))
            }
            (Attention::Listening | Attention::Down | Attention::Asleep, _) => u64::MAX,
        }
    }

    /// Lets the plane do what it wants, and carries that outside.
    pub(crate) fn settle(&mut self) {
        if self.attention != Attention::Listening {
            return;
        }
        let reading = self.reading;
        let Some(plane) = self.plane.as_mut() else { return };
        plane.settle(reading);
        let (wants, told) = (std::mem::take(&mut plane.wants), std::mem::take(&mut plane.told));
        let queued = plane.has_queue();
        let judged = std::mem::take(&mut plane.judged);
        wants.into_iter().for_each(|want| self.send(want));
        told.into_iter().for_each(|told| self.hear(told));
        judged.into_iter().for_each(|host| self.perhaps_returns(host));
        if queued && !self.writing {
            self.writing = true;
            let usual = if self.chance.permille(200) { self.chance.within(1, 50) } else { 0 };
            let at = self.stalled_until.max(self.now_ms() + usual);
            self.at(at, Event::Write(self.life));
        }
        if self.plane.as_ref().is_some_and(Plane::has_stopped) {
            if self.in_flight.keys().any(|number| !self.abandoned.contains(number)) {
                self.wrong("an orderly stop waits for no call".to_owned());
            }
            self.plane_stopped();
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
        let for_plane = match &event {
            Event::Answer(..)
            | Event::Result(..)
            | Event::Report(..)
            | Event::BeatArrives(..)
            | Event::GivesUp(..)
            | Event::StopOver(_)
            | Event::Write(_)
            | Event::User
            | Event::Wish(..)
            | Event::Operator
            | Event::Accept
            | Event::ResumeNext(_)
            | Event::SetBack(_)
            | Event::Delete(..)
            | Event::DeleteNow(..)
            | Event::Arrives(_)
            | Event::Register(_) => true,
            Event::Beat(..)
            | Event::Unanswered(..)
            | Event::RenewalOver(..)
            | Event::HungUp(..)
            | Event::Listed(..)
            | Event::Called(..)
            | Event::Agent(..)
            | Event::Terminate(_)
            | Event::Strike
            | Event::AddAnew(_)
            | Event::Cut(..)
            | Event::Disturb(..)
            | Event::Heal(..)
            | Event::AgentStarts(..)
            | Event::AgentDies(..)
            | Event::PlaneStarts
            | Event::Wakes
            | Event::Unlock(_) => false,
        };
        if for_plane && self.attention == Attention::Asleep {
            // It waits in a buffer until somebody reads it.
            return self.at(self.awake_at, event);
        }
        match event {
            Event::Beat(host, boot, again) => self.beat(host, boot, again),
            Event::Listed(host, life, number) => self.listed(host, life, number),
            Event::Called(host, life, sandbox, call) => self.called(host, life, sandbox, call),
            Event::Answer(life, number, probe) => self.answered(life, number, probe),
            Event::Result(life, number, result) => self.call_ended(life, number, result),
            Event::Agent(host, boot, later) => self.agent_acts(host, boot, later),
            Event::BeatArrives(host, late) => self.beat_arrives(host, late),
            Event::Unanswered(host, boot) => self.gave_up_on_beat(host, boot),
            Event::RenewalOver(host, fresh) => self.renewal_over(host, fresh),
            Event::GivesUp(life, number) => self.gives_up(life, number),
            Event::HungUp(host, number) => self.hung_up(host, number),
            Event::Report(host, sent) => self.report(host, sent),
            Event::Write(life) => self.write(life),
            Event::User => {
                self.judge_silence();
                self.judge_bounds();
                self.user();
            }
            Event::Wish(sandbox, kind) => self.wish(sandbox, kind),
            Event::Operator => self.operator(),
            Event::SetBack(host) => self.set_back(host),
            Event::Delete(host, force) => self.delete(host, force),
            Event::DeleteNow(host, force, life, since) => self.delete_now(host, force, life, since),
            Event::Arrives(newcomer) => self.arrives(newcomer),
            Event::Register(host) => self.register(host),
            Event::Terminate(host) => self.terminated(host),
            Event::Strike => self.strike(),
            Event::Accept => self.accept(),
            Event::AddAnew(host) => self.add_anew(host),
            Event::Cut(host, lasts) => self.cut(host, lasts),
            Event::ResumeNext(host) => self.resume_next(host),
            Event::Disturb(host, disturbance) => self.disturb(host, disturbance),
            Event::Heal(host, heal) => self.heal(host, heal),
            Event::AgentStarts(host, boot) => self.agent_starts(host, boot),
            Event::AgentDies(host, boot) => self.agent_dies(host, boot),
            Event::PlaneStarts => self.start_plane(),
            Event::StopOver(life) => self.stop_over(life),
            Event::Wakes => {
                self.attention = Attention::Listening;
                self.note(|| "the control plane's machine wakes up".to_owned());
                if self.now_ms() - self.asleep_since > UNNOTICED_MS {
                    self.listening_ms = self.now_ms();
                }
            }
            Event::Unlock(life) if life == self.life => self.unlock(),
            Event::Unlock(_) => {}
        }
    }
}

// The control plane.
impl World {
    pub(crate) fn start_plane(&mut self) {
        self.life += 1;
        let now = self.now();
        let boot = self.boots.to_string();
        let ids = (self.seed, self.life, self.tls);
        let plane = Plane::start(&self.db, &self.policy, ids, &boot, now, self.defect);
        match self.history.take() {
            None => self.history = Some(History::open(&self.db, &self.policy, self.defect)),
            Some(left) => {
                let (same, history) = left.again();
                self.history = Some(history);
                if !same {
                    self.wrong("a restart found something else than was left".to_owned());
                }
            }
        }
        self.plane = Some(plane);
        self.attention = Attention::Listening;
        self.listening_ms = self.now_ms();
        self.writing = false;
        self.machines.iter_mut().for_each(|machine| machine.heard_ms = None);
        self.bound_start();
        let life = self.life;
        self.note(|| format!("the control plane starts for the {life}. time"));
    }

    /// An orderly stop begins. Calls in flight have the usual ten minutes to end, or until a
    /// second signal.
    pub(crate) fn stop_plane(&mut self, away_ms: u64) {
        let now = self.now();
        let patience = match self.chance.permille(300) {
            true => self.chance.within(100, 20 * SECOND),
            false => 10 * MINUTE,
        };
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.stopping) else { return };
        plane.stop(now);
        self.away_ms = away_ms;
        if !self.in_flight.is_empty() {
            self.tally.struck(Fault::StopWaited);
        }
        self.note(|| "the control plane is told to stop".to_owned());
        self.after(patience, Event::StopOver(self.life));
        self.settle();
    }

    fn stop_over(&mut self, life: u64) {
        if life == self.life && self.plane.is_some() {
            self.tally.struck(Fault::StopCutOff);
            self.plane_stopped();
        }
    }

    fn plane_stopped(&mut self) {
        self.end_plane(End::InOrder);
        self.after(self.away_ms, Event::PlaneStarts);
    }

    pub(crate) fn end_plane(&mut self, how: End) {
        let now = self.now();
        let Some(mut plane) = self.plane.take() else { return };
        self.note(|| format!("the control plane ends: {how:?}"));
        self.tally.struck(match how {
            End::InOrder => Fault::PlaneEnded,
            End::Killed => Fault::PlaneKilled,
            End::PowerLost => Fault::PlanePowerLost,
        });
        self.unlock();
        if how == End::InOrder {
            plane.order(now, Command::Flush(Box::new(|_| {})));
            plane.write();
            self.follow(&mut plane);
        }
        let mut wrong = Vec::new();
        if let Some(history) = &mut self.history {
            history.verify(self.clock_moved, &mut wrong);
        }
        wrong.into_iter().for_each(|what| self.wrong(what));
        if how == End::PowerLost {
            self.boots += 1;
            self.lose_power(&plane);
        }
        for (number, host) in std::mem::take(&mut self.in_flight) {
            // A machine without power closes no connection.
            match how {
                End::InOrder | End::Killed => self.close_call(host, number),
                End::PowerLost => self.tally.struck(Fault::HangUpUnnoticed),
            }
        }
        self.attention = Attention::Down;
    }

    /// Of what was not synced, some is lost: the log ends somewhere.
    pub(crate) fn lose_power(&mut self, plane: &Plane) {
        let (there, synced) = plane.log_bytes();
        let kept = self.chance.within(synced, there + 1);
        if kept < there {
            self.tally.struck(Fault::LogCut);
        }
        self.dbs += 1;
        let db = self.disk.path(self.dbs);
        disk::copy(&self.db, &db, u64::MAX);
        disk::copy(&wal_of(&self.db), &wal_of(&db), kept);
        self.db = db;
        let mut left = History::open(&self.db, &self.policy, self.defect);
        if left.revision < plane.acknowledged {
            let (revision, told) = (left.revision, plane.acknowledged);
            self.wrong(format!("revision {told} was acknowledged, {revision} is left"));
        }
        left.given_up = self.history.take().map(|history| history.given_up).unwrap_or_default();
        self.history = Some(left);
    }

    pub(crate) fn write(&mut self, life: u64) {
        if life != self.life {
            return;
        }
        self.writing = false;
        let Some(mut plane) = self.plane.take() else { return };
        plane.write();
        self.follow(&mut plane);
        self.plane = Some(plane);
        if self.stormy && self.chance.within(0, 6_000) == 0 {
            self.tally.struck(Fault::DiedBehindWrite);
            let how = if self.chance.permille(500) { End::Killed } else { End::PowerLost };
            self.end_plane(how);
            let away = self.chance.within(500, 50 * SECOND);
            self.after(away, Event::PlaneStarts);
        }
    }

    /// A host that was just judged may be heard at that very moment, while the disk is slow.
    pub(crate) fn perhaps_returns(&mut self, host: HostId) {
        let host = self.machine_of(host);
        self.note_verdict(host);
        let hangs = self.machines[host].link.hung_until > self.now_ms();
        if hangs || !self.chance.permille(300) {
            return;
        }
        self.stalled_until = self.stalled_until.max(self.now_ms() + 200);
        self.machines[host].link = Link::GOOD;
        let boot = self.machines[host].agent.boot;
        self.after(100, Event::Beat(host, boot, false));
    }

    /// Holds what was committed against what is true.
    pub(crate) fn follow(&mut self, plane: &mut Plane) {
        let mut wrong = Vec::new();
        let changes = match &mut self.history {
            Some(history) => history.follow(plane.revision(), self.clock_moved, &mut wrong),
            None => Vec::new(),
        };
        wrong.into_iter().for_each(|what| self.wrong(what));
        self.changes += changes.len() as u64;
        changes.iter().for_each(|change| self.judge(change));
    }

    /// Whether what Roost decided may not be written yet.
    pub(crate) fn writes_wait(&self) -> bool {
        self.locker.is_some() || self.writing
    }

    pub(crate) fn perhaps_regret(&mut self, sandbox: SandboxId) {
        if self.stormy && self.chance.permille(70) {
            let after = self.chance.within(10, 6 * SECOND);
            self.after(after, Event::Wish(sandbox, OperationKind::Destroy));
        }
        if self.stormy && self.chance.permille(60) {
            let within = if self.chance.permille(500) { 50 } else { 6 * SECOND };
            let after = self.chance.within(1, within);
            let kind = self.chance.pick(WISHES).copied().unwrap_or(OperationKind::Pause);
            self.after(after, Event::Wish(sandbox, kind));
        }
    }

    pub(crate) fn unlock(&mut self) {
        if self.locker.take().is_some() {
            self.disk_failed_ms = self.now_ms();
            self.note(|| "the disk can be written again".to_owned());
        }
        if let Some(plane) = &mut self.plane {
            plane.failing = false;
        }
    }

    pub(crate) fn hear(&mut self, told: Told) {
        match told {
            Told::Created(Ok(created)) => {
                let (sandbox, work) = *created;
                let (id, host) = (sandbox.id, work.host);
                self.note(|| format!("a user creates {id} on {host}"));
                self.perhaps_disturb(host);
                self.perhaps_regret(id);
            }
            Told::Created(Err(no_host)) => {
                let full = NotMade::NoHost(NoHost::AllFull);
                self.tally.struck(if no_host == full { Fault::AllFull } else { Fault::NoHost });
                self.note(|| format!("no host for a user: {no_host:?}"));
            }
            Told::Begun(Begun::Started(sandbox, work)) => {
                self.note(|| format!("a user wants to {} {}", work.kind, sandbox.id));
                self.perhaps_disturb(sandbox.host_id);
                self.perhaps_regret(sandbox.id);
            }
            Told::Accepted(Some(accepted)) => {
                self.note(|| format!("the restored database is accepted: {:?}", accepted.restore));
                self.tally.struck(Fault::Accepted);
                self.listening_ms = self.now_ms();
                self.bound_start();
            }
            Told::Accepted(None) => self.wrong("nothing was restored".to_owned()),
            Told::TakenBack(host, fresh, counts) => self.taken_back(host, fresh, counts),
            Told::Adopted(Adopted::Done(sandbox)) => {
                self.tally.struck(Fault::StrangerAdopted);
                self.note(|| format!("an operator takes {} over", sandbox.id));
            }
            Told::Adopted(_) | Told::StrangerEnds(_) => {}
            Told::Begun(Begun::NoRoom(_)) => self.tally.struck(Fault::NoRoom),
            Told::Begun(Begun::AlreadyTerminal(work)) => {
                let asks = work.is_some();
                self.tally.struck(if asks { Fault::EndedAgain } else { Fault::EndedTwice });
            }
            Told::Begun(_) => {}
            Told::Reported(host, sent, taken) => self.reported(host, sent, taken),
            Told::Refreshed(host, fresh, result) => self.refreshed(host, fresh, result),
            Told::Intended(host, intent, found) => self.intended(host, intent, found),
            Told::Deleted(host, force, deletion) => self.deleted(host, force, deletion),
            Told::Dead(host, result) => self.shown_dead(host, &result),
            Told::Added(host, newcomer) => self.added(&host, &newcomer),
            Told::Registered(host, refresh, found) => self.registered(host, refresh, &found),
        }
    }
}
