//! Owns the world of a case: a real database, writer, presence and monitor under a manual
//! clock, and everything around them played from the script, one event after the other.
//!
//! Never: threads, sleeps, chance. The same case takes the same course every time.

use crate::agents::Agents;
use crate::invariants::violations;
use crate::outcome::Outcome;
use crate::script::{Script, What};
use roost::clock::{Clock, ManualClock, Reading};
use roost::engine::monitor::{Effect, Input, Monitor};
use roost::model::id::HostId;
use roost::model::policy::{HEARTBEAT_INTERVAL, Policy};
use roost::model::probe::{LastProbe, Probe};
use roost::model::time::{Mono, Now, Wall};
use roost::store::apply::{Applied, Probed};
use roost::store::fixture::{self, Fleet};
use roost::store::open::{begin_serving, open_reader, open_writer};
use roost::store::presence::{Beat, Presence};
use roost::store::read;
use roost::store::writer::{Command, Envelope, Reply, Writer};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

/// When every case begins: 2026-05-17T06:40:00Z, 1779000000 in unix seconds.
pub(crate) const BEGIN: Wall = Wall(1_779_000_000_000);

/// As `serve` does by default.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
const WORKERS: usize = 32;

/// Rounds without time passing after which a case is taken to run in circles.
const ROUNDS_MAX: u32 = 10_000;

/// What came of a case.
pub(crate) struct Course {
    pub(crate) outcome: Outcome,
    /// What broke an invariant, with when.
    pub(crate) violations: Vec<String>,
    /// What happened, a line each.
    pub(crate) trace: Vec<String>,
}

/// Plays a case to its end; `seed` decides the jitter of the schedule.
pub(crate) fn play(fleet: &str, script: &Script, seed: u64) -> Result<Course, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let fleet = fixture::parse(fleet, BEGIN).map_err(|e| format!("fleet.json: {e}"))?;
    let mut world = World::new(dir.path(), fleet, script, seed)?;
    // What happens at one moment happens before anything that follows from it.
    for moment in script.steps.chunk_by(|a, b| a.at_ms == b.at_ms) {
        world.pass_until(moment[0].at_ms);
        moment.iter().for_each(|step| world.carry_out_step(&step.what));
        world.settle();
        world.verify();
    }
    world.pass_until(script.for_ms());
    world.verify();
    Ok(world.end())
}

/// The control plane while it runs.
struct Plane {
    writer: Writer,
    presence: Arc<Presence>,
    monitor: Monitor,
    /// Questions that agents have not answered.
    asked: Vec<Asked>,
}

/// One question on its way.
struct Asked {
    host: HostId,
    revision: u64,
    asked_at: Mono,
    due: Mono,
    probe: Probe,
}

/// Whether the control plane hears anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attention {
    Listening,
    /// Not running until this moment.
    Away(u64),
    /// Its machine sleeps until this moment.
    Asleep(u64),
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Attends,
    Beats(HostId),
    Answers(usize),
    Wakes,
}

/// The heart of one host.
#[derive(Default)]
struct Heart {
    last_ms: Option<u64>,
    beats: bool,
}

struct World {
    db: PathBuf,
    clock: ManualClock,
    policy: Policy,
    workers: usize,
    seed: u64,
    fleet: Fleet,
    agents: Agents,
    hearts: BTreeMap<HostId, Heart>,
    plane: Option<Plane>,
    attention: Attention,
    /// Beats while the next verdict on it is being written.
    interrupts: Option<HostId>,
    began_ms: u64,
    course: Course,
}

impl World {
    fn new(dir: &Path, fleet: Fleet, script: &Script, seed: u64) -> Result<World, String> {
        let db = dir.join("roost.db");
        let clock = ManualClock::new(BEGIN);
        let mut conn = open_writer(&db, true, BEGIN).map_err(|e| e.to_string())?;
        fixture::load(&mut conn, &fleet).map_err(|e| e.to_string())?;
        drop(conn);
        let began_ms = clock.boot_ms();
        let mut world = World {
            db,
            policy: script.policy()?,
            workers: script.workers.unwrap_or(WORKERS),
            seed,
            agents: Agents::faithful_to(&fleet),
            hearts: hearts(&fleet, began_ms),
            plane: None,
            attention: Attention::Listening,
            interrupts: None,
            began_ms,
            course: Course {
                outcome: Outcome::default(),
                violations: Vec::new(),
                trace: Vec::new(),
            },
            clock,
            fleet,
        };
        world.start();
        Ok(world)
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    /// Milliseconds since the case began, whoever slept.
    fn elapsed_ms(&self) -> u64 {
        self.clock.boot_ms() - self.began_ms
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        let line = format!("{:>10.3} s  {what}", self.elapsed_ms() as f64 / 1000.0);
        self.course.trace.push(line);
    }

    /// Starts the control plane on what the database says.
    fn start(&mut self) {
        let now = self.now();
        let conn = open_writer(&self.db, false, now.wall).expect("the database opens");
        let hosts = read::hosts(&conn).expect("hosts can be read");
        let deleted = read::tombstones(&conn).expect("tombstones can be read");
        let listened_until = read::listened_until(&conn).expect("the state can be read");
        let interrupted = begin_serving(&conn, None).expect("the start can be noted");
        let presence = Arc::new(Presence::load(&hosts, deleted, listened_until, interrupted, now));
        let writer = Writer::new(conn, self.policy.clone(), Arc::clone(&presence));
        let (policy, workers, seed) = (self.policy.clone(), self.workers, self.seed);
        let monitor =
            Monitor::new(policy, Arc::clone(&presence), workers, FLUSH_EVERY, seed, now.mono);
        let writer = writer.expect("the writer starts");
        self.plane = Some(Plane { writer, presence, monitor, asked: Vec::new() });
    }

    /// Lets time pass until a step is due; what is due at the very same moment waits.
    fn pass_until(&mut self, until_ms: u64) {
        let mut rounds = 0;
        while let Some((at_ms, next)) = self.next().filter(|(at_ms, _)| *at_ms < until_ms) {
            rounds = if at_ms > self.elapsed_ms() { 0 } else { rounds + 1 };
            assert!(rounds < ROUNDS_MAX, "runs in circles at {at_ms} ms: {next:?}");
            self.pass_to(at_ms);
            self.happen(next);
        }
        self.pass_to(until_ms);
    }

    fn pass_to(&mut self, at_ms: u64) {
        let span = Duration::from_millis(at_ms.saturating_sub(self.elapsed_ms()));
        match self.attention {
            Attention::Listening | Attention::Away(_) => self.clock.advance(span),
            Attention::Asleep(_) => self.clock.suspend(span),
        }
    }

    fn next(&mut self) -> Option<(u64, Next)> {
        let elapsed_ms = self.elapsed_ms();
        let beats = self.hearts.iter().filter(|(_, heart)| heart.beats).map(|(host, heart)| {
            (next_beat_ms(heart, self.began_ms, elapsed_ms), Next::Beats(*host))
        });
        let mut all: Vec<(u64, Next)> = beats.collect();
        match self.attention {
            Attention::Away(until_ms) | Attention::Asleep(until_ms) => {
                all.push((until_ms, Next::Attends));
            }
            Attention::Listening => {
                let now = self.now().mono;
                let at_ms = |mono: Mono| {
                    elapsed_ms + u64::try_from(mono.since(now).as_millis()).unwrap_or(u64::MAX)
                };
                let plane = self.plane.as_mut().expect("runs while it listens");
                let due = plane.asked.iter().enumerate();
                all.extend(due.map(|(at, asked)| (at_ms(asked.due), Next::Answers(at))));
                all.push((at_ms(plane.monitor.next_wake()), Next::Wakes));
            }
        }
        all.into_iter().min()
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Attends => self.attend(),
            Next::Beats(host) => self.beat(host),
            Next::Answers(at) => self.take_answer(at),
            Next::Wakes => {}
        }
        self.settle();
    }

    fn attend(&mut self) {
        self.note("listens again");
        if self.plane.is_none() {
            self.start();
        }
        self.attention = Attention::Listening;
    }

    fn carry_out_step(&mut self, what: &What) {
        match what {
            What::Agents(agents) => {
                for (host, answers) in agents {
                    self.agents.answer_with(*host, answers);
                }
            }
            What::Beats(hosts) => self.set_beating(&hosts.among(&self.fleet.hosts), true),
            What::Silent(hosts) => self.set_beating(&hosts.among(&self.fleet.hosts), false),
            What::Beat(host) => self.beat(*host),
            What::BeatDuringVerdict(host) => self.interrupts = Some(*host),
            What::Probe(host) => self.tell(Input::ProbeNow(*host)),
            What::RestartAfterS(seconds) => {
                self.plane = None;
                self.leave(Attention::Away, *seconds);
            }
            What::SuspendS(seconds) => self.leave(Attention::Asleep, *seconds),
            What::WallClockS(seconds) => {
                let wall = self.now().wall;
                self.note(format_args!("the wall clock is set by {seconds} s"));
                self.clock.set_wall(Wall(wall.0 + seconds * 1000));
            }
        }
    }

    fn leave(&mut self, how: impl Fn(u64) -> Attention, seconds: f64) {
        assert!(self.attention == Attention::Listening, "is away or asleep already");
        self.note("stops listening");
        self.attention = how(self.elapsed_ms() + (seconds * 1000.0) as u64);
    }

    fn set_beating(&mut self, hosts: &[HostId], beats: bool) {
        for host in hosts {
            self.hearts.get_mut(host).expect("a host of the fleet").beats = beats;
        }
    }

    /// The host beats; whether it is heard is another question.
    fn beat(&mut self, host: HostId) {
        let heart = self.hearts.get_mut(&host).expect("a host of the fleet");
        heart.last_ms = Some(self.clock.boot_ms());
        if self.attention == Attention::Listening {
            self.hear(host);
        }
    }

    fn hear(&mut self, host: HostId) {
        let now = self.now();
        let plane = self.plane.as_ref().expect("runs while it listens");
        match plane.presence.heartbeat(host, now) {
            Beat::Known { wake: true } => {
                self.note(format_args!("{} is heard after a gap", short(host)));
                self.tell(Input::Heard(host));
            }
            Beat::Known { wake: false } => {}
            Beat::Deleted | Beat::Unknown => {
                self.note(format_args!("{} is not known", short(host)));
            }
        }
    }

    fn tell(&mut self, input: Input) {
        let now = self.now().mono;
        self.plane.as_mut().expect("runs while it listens").monitor.handle(now, input);
    }

    /// Lets the monitor do what it wants to do now.
    fn settle(&mut self) {
        if self.attention != Attention::Listening {
            return;
        }
        for _ in 0..ROUNDS_MAX {
            let reading = Reading::of(&self.clock);
            let plane = self.plane.as_mut().expect("runs while it listens");
            plane.monitor.tick(reading);
            let effects = plane.monitor.effects(reading.now);
            if effects.is_empty() {
                return;
            }
            effects.into_iter().for_each(|effect| self.carry_out(effect));
        }
        panic!("the monitor runs in circles at {} ms", self.elapsed_ms());
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Probe(host, _) => self.ask(host),
            Effect::MarkDown(hosts) => {
                let judged = |host: &HostId| hosts.iter().any(|(id, _)| id == host);
                if let Some(host) = self.interrupts.take_if(|host| judged(host)) {
                    self.note(format_args!("{} beats during its verdict", short(host)));
                    self.hear(host);
                }
                let down = self.write(|reply| Command::MarkDown(hosts, reply));
                down.iter().for_each(|applied| self.remember(applied));
                self.tell(Input::MarkedDown(Ok(down)));
            }
            Effect::MarkUp(host) => {
                let back = self.write(|reply| Command::MarkUp(host, reply));
                self.note(format_args!("{} is taken back: {back}", short(host)));
                self.tell(Input::MarkedUp(host, Ok(back)));
            }
            Effect::Flush => {
                self.write(Command::Flush);
                self.tell(Input::Flushed(Ok(())));
            }
            Effect::Prune => {
                let more = self.write(Command::Prune);
                self.tell(Input::Pruned(Ok(more)));
            }
            // Noted in `remember`; what operations do is not this runner's subject.
            Effect::Work(_) => {}
        }
    }

    fn ask(&mut self, host: HostId) {
        let now = self.now().mono;
        let reply = self.agents.ask(host);
        let plane = self.plane.as_mut().expect("runs while it listens");
        let revision = plane.writer.published().newest();
        let due = now.after(reply.after);
        plane.asked.push(Asked { host, revision, asked_at: now, due, probe: reply.probe });
    }

    /// What `engine` does with an answer.
    fn take_answer(&mut self, at: usize) {
        let now = self.now();
        let plane = self.plane.as_mut().expect("runs while it listens");
        let Asked { host, revision, asked_at, probe, .. } = plane.asked.remove(at);
        let took = now.mono.since(asked_at);
        let outcome = match &probe {
            Probe::Listed(listing) => Ok(listing.sandboxes.len()),
            Probe::Failed(failure) => Err(failure.clone()),
        };
        plane.presence.note_probe(host, LastProbe { asked_at, at: now.wall, took, outcome });
        let listening = plane.presence.listening(now.mono);
        let age_cap = (!self.policy.is_strict()).then_some(listening);
        self.note_answer(host, &probe);
        let probed = Box::new(Probed { host, revision, asked_at, age_cap, probe, proven: false });
        let rows_before = self.rows_written();
        let applied = self.write(|reply| Command::Probed(probed, reply));
        let rows = self.rows_written() - rows_before;
        *self.course.outcome.rows_by_probes.get_or_insert_default() += rows;
        self.remember(&applied);
        self.tell(Input::Ended { host, took, result: Ok(applied) });
    }

    fn note_answer(&mut self, host: HostId, probe: &Probe) {
        let (host, told) = (short(host), probe.drained().len());
        match probe {
            Probe::Listed(listing) => {
                let listed = listing.sandboxes.len();
                self.note(format_args!("{host} lists {listed}, announces {told}"));
            }
            Probe::Failed(failure) => {
                self.note(format_args!("{host} fails, {failure}; announced {told}"));
            }
        }
    }

    /// Has the writer carry out one command, as its thread would.
    fn write<T: Send + 'static>(&mut self, command: impl FnOnce(Reply<T>) -> Command) -> T {
        let (send, answer) = channel();
        let reply: Reply<T> = Box::new(move |result| drop(send.send(result)));
        let envelope = Envelope { now: self.now(), command: command(reply) };
        self.plane.as_mut().expect("runs while it writes").writer.execute(vec![envelope]);
        answer.recv().expect("every command is answered").expect("the database can be written")
    }

    fn rows_written(&self) -> u64 {
        let plane = self.plane.as_ref().expect("runs while it writes");
        plane.writer.figures().rows.load(Ordering::Relaxed)
    }

    /// Keeps what only the answer of the writer tells.
    fn remember(&mut self, applied: &Applied) {
        if let Some((from, to, reason)) = &applied.host_transition {
            self.note(format_args!("  {} {from} -> {to} ({reason})", short(applied.host)));
        }
        for t in &applied.transitions {
            let sandbox = short(t.sandbox);
            self.note(format_args!("  {sandbox} {} -> {} ({})", t.from, t.to, t.reason));
        }
        if !applied.held.is_empty() {
            self.note(format_args!("  holds {}", applied.held.len()));
        }
        if let Some(failure) = &applied.failure {
            self.note(format_args!("  no observation: {failure}"));
        }
        let outcome = &mut self.course.outcome;
        outcome.held.extend(applied.held.iter().map(ToString::to_string));
        for stranger in applied.strangers.iter().filter(|stranger| stranger.new) {
            let words = format!("{} {}", stranger.id, stranger.kind);
            outcome.strangers.push(words);
        }
        for work in &applied.work {
            outcome.again.insert(work.sandbox.to_string(), work.kind.to_string());
        }
    }

    fn reader(&self) -> Connection {
        open_reader(&self.db).expect("the database opens for reading")
    }

    fn verify(&mut self) {
        let wrong = violations(&self.reader(), &self.fleet);
        let at_s = self.elapsed_ms() as f64 / 1000.0;
        self.course.violations.extend(wrong.iter().map(|line| format!("at {at_s} s: {line}")));
    }

    fn end(self) -> Course {
        let database = Outcome::of_database(&self.reader()).expect("the end can be read");
        let Course { outcome: seen, violations, trace } = self.course;
        let holding = self.plane.and_then(|plane| plane.monitor.holding_since());
        let verdicts_held = holding.is_some();
        let Outcome { hosts, sandboxes, audit, events, .. } = database;
        let outcome = Outcome { hosts, sandboxes, audit, events, verdicts_held, ..seen };
        Course { outcome, violations, trace }
    }
}

/// Hearts that stand still; their next beat follows the last one that the fleet tells of.
fn hearts(fleet: &Fleet, began_ms: u64) -> BTreeMap<HostId, Heart> {
    let last_ms = |at: Wall| {
        began_ms.saturating_sub(u64::try_from(BEGIN.since(at).as_millis()).unwrap_or(u64::MAX))
    };
    let heart = |host: &roost::model::host::Host| Heart {
        last_ms: host.last_heartbeat_at.map(last_ms),
        beats: false,
    };
    fleet.hosts.iter().map(|host| (host.id, heart(host))).collect()
}

/// When a beating heart beats next: 30 s after the last time, or at once.
fn next_beat_ms(heart: &Heart, began_ms: u64, elapsed_ms: u64) -> u64 {
    let every = u64::try_from(HEARTBEAT_INTERVAL.as_millis()).unwrap_or(u64::MAX);
    let due_ms = heart.last_ms.map_or(0, |last_ms| (last_ms + every).saturating_sub(began_ms));
    due_ms.max(elapsed_ms)
}

/// An id without the zeros that only fill it.
fn short(id: impl std::fmt::Display) -> String {
    let id = id.to_string();
    let (kind, digits) = id.split_once('-').unwrap_or(("", &id));
    format!("{kind}-{}", digits.trim_start_matches('0'))
}
