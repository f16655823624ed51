//! Owns the control plane of a simulation: the real monitor, operations, presence and
//! writer over a real database, put together as `engine` does, without its threads.
//!
//! Never: decides anything; lets anything happen by itself. What it wants done outside
//! comes back as [`Want`].

use crate::defect::Defect;
use crate::disk::{self, wal_of};
use crate::leaving::Newcomer;
use crate::network::Sent;
use roost::agent::client::CallError;
use roost::clock::Reading;
use roost::engine::monitor::{self, Monitor};
use roost::engine::operations::{self, Called, Job, Operations, Outcome, call_of};
use roost::model::host::{Host, Intent, Liveness};
use roost::model::id::{HostId, OpId, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::policy::Policy;
use roost::model::probe::{Details, Probe};
use roost::model::sandbox::Sandbox;
use roost::model::time::{Mono, Now};
use roost::plan::operation::{Answer, Call, Earlier};
use roost::store::Connection;
use roost::store::StoreError;
use roost::store::acceptance::Accepted;
use roost::store::apply::{Applied, Probed};
use roost::store::deletion::Deletion;
use roost::store::identity::Registered;
use roost::store::journal::Random;
use roost::store::lifecycle::{self, Begun, Ended, Placed, Said, Work};
use roost::store::open::{begin_serving, open_writer};
use roost::store::presence::{HostNow, Presence};
use roost::store::read;
use roost::store::reports::AgentReport;
use roost::store::strangers::Adopted;
use roost::store::templates::NotMade;
use roost::store::writer::{Command, Envelope, Writer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// As `serve` does by default.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
const WORKERS: usize = 32;

/// Shortest time that is left for a call, as in `engine`.
const CALL_DEADLINE_MIN: Duration = Duration::from_secs(1);

/// Something that the plane wants done outside.
pub(crate) enum Want {
    /// Ask this host for its list. The number names the question.
    List(u64, HostId),
    /// Ask this host; give up after the time.
    Call {
        number: u64,
        op: OpId,
        host: HostId,
        sandbox: SandboxId,
        kind: OperationKind,
        timeout_s: u64,
        within: Duration,
    },
}

/// What the writer answered to others than the plane itself.
pub(crate) enum Told {
    Created(Result<Box<(Sandbox, Work)>, NotMade>),
    Begun(Begun),
    /// Whether a report was taken.
    Reported(usize, Sent, bool),
    Accepted(Option<Accepted>),
    /// Whether a refresh token that was forgotten counts again.
    TakenBack(usize, [u8; 32], bool),
    Adopted(Adopted),
    /// What was begun to destroy a stranger.
    StrangerEnds(Vec<Work>),
    Refreshed(usize, [u8; 32], Result<Option<Host>, StoreError>),
    /// Whether the host was found.
    Intended(usize, Intent, bool),
    Deleted(usize, bool, Deletion),
    /// What came of a token of a host that is deleted.
    Dead(usize, Result<Option<Host>, StoreError>),
    Added(Box<Host>, Newcomer),
    Registered(usize, [u8; 32], Registered),
}

/// What the writer answered.
enum Reply {
    Probed(HostId, Duration, Result<Applied, StoreError>),
    MarkedDown(Result<Vec<Applied>, StoreError>),
    MarkedUp(HostId, Result<bool, StoreError>),
    Flushed(Result<(), StoreError>),
    Pruned(Result<bool, StoreError>),
    Sent(Box<Job>, Result<bool, StoreError>),
    Written(Box<Ended>, Result<bool, StoreError>),
    Placed(OpId, Result<Placed, StoreError>),
    Reported(HostId, usize, Sent, Result<bool, StoreError>),
    Told(Box<Result<Told, StoreError>>),
}

/// One question on its way.
struct Asked {
    host: HostId,
    revision: u64,
    asked_at: Mono,
}

pub(crate) struct Plane {
    writer: Writer,
    pub(crate) presence: Arc<Presence>,
    monitor: Monitor,
    operations: Operations,
    replies: Arc<Mutex<Vec<Reply>>>,
    /// The writer has carried something out since the plane last looked at them.
    answered: bool,
    queue: Vec<Envelope>,
    asked: BTreeMap<u64, Asked>,
    calls: BTreeMap<u64, Job>,
    numbers: u64,
    pub(crate) wants: Vec<Want>,
    pub(crate) told: Vec<Told>,
    /// Hosts on which a verdict waits to be written.
    pub(crate) judged: Vec<HostId>,
    pub(crate) failing: bool,
    /// The database was restored and is not accepted: everything is refused.
    pub(crate) held: bool,
    /// It was told to stop: nothing new begins.
    pub(crate) stopping: bool,
    /// Newest revision of which somebody was told that it will last.
    pub(crate) acknowledged: u64,
    /// A connection proves which host has answered.
    tls: bool,
    wal: PathBuf,
    db: PathBuf,
    /// What was ever announced, for the defect that forgets none of it.
    announced: BTreeMap<HostId, BTreeSet<SandboxId>>,
    defect: Option<Defect>,
}

impl Plane {
    /// Starts on what the database says.
    pub(crate) fn start(
        db: &Path,
        policy: &Policy,
        (seed, life, tls): (u64, u64, bool),
        boot: &str,
        now: Now,
        defect: Option<Defect>,
    ) -> Plane {
        let conn = open_writer(db, true, now.wall).expect("the database opens");
        // From here on the log only grows, so that its length says what has reached the disk.
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("a checkpoint");
        conn.pragma_update(None, "wal_autocheckpoint", 0).expect("no checkpoints");
        conn.busy_timeout(Duration::ZERO).expect("no waiting");
        let mut hosts = read::hosts(&conn).expect("hosts can be read");
        let mut deleted = read::tombstones(&conn).expect("tombstones can be read");
        if defect == Some(Defect::TombstoneForgotten) {
            deleted.clear();
        }
        let listened_until = read::listened_until(&conn).expect("the state can be read");
        let mut interrupted = begin_serving(&conn, Some(boot)).expect("the start can be noted");
        let mut since = now;
        if defect == Some(Defect::StartIsNoGap) {
            interrupted = false;
            hosts.iter_mut().for_each(|host| {
                (host.contact_gap, host.last_heartbeat_at) = (false, Some(now.wall));
            });
        }
        if defect == Some(Defect::StoredHeartbeatsJudge) {
            since.mono = now.mono.before(Duration::from_secs(600));
        }
        let presence =
            Arc::new(Presence::load(&hosts, deleted, listened_until, interrupted, since));
        let unfinished = lifecycle::unfinished(&conn).expect("operations can be read");
        let random = Random::foreseeable(seed ^ (life << 32));
        let mut for_writer = policy.clone();
        if let Some(defect) = defect {
            defect.spoil(&mut for_writer);
        }
        let writer = Writer::with_random(conn, for_writer, Arc::clone(&presence), random);
        let monitor = Monitor::new(
            policy.clone(),
            Arc::clone(&presence),
            WORKERS,
            FLUSH_EVERY,
            seed ^ life,
            now.mono,
        );
        let mut plane = Plane {
            writer: writer.expect("the writer starts"),
            presence,
            monitor,
            operations: Operations::default(),
            replies: Arc::default(),
            answered: false,
            queue: Vec::new(),
            asked: BTreeMap::new(),
            calls: BTreeMap::new(),
            numbers: life << 32,
            wants: Vec::new(),
            told: Vec::new(),
            judged: Vec::new(),
            failing: false,
            held: false,
            stopping: false,
            acknowledged: 0,
            tls,
            wal: wal_of(db),
            db: db.to_owned(),
            announced: BTreeMap::new(),
            defect,
        };
        // What was left is on the disk: nothing is lost twice.
        plane.acknowledged = plane.revision();
        plane.held = plane.writer.acceptance().awaited().is_some();
        if plane.held {
            plane.monitor.hold();
        }
        // Otherwise they begin when the database is accepted.
        let taken = if plane.held { Vec::new() } else { unfinished };
        if defect == Some(Defect::RestartWaitsAnew) {
            let sent = taken.iter().filter(|work| work.sent);
            let looks: Vec<OpId> = sent.map(|work| work.op).collect();
            for op in looks {
                let (since, answer, said) = (Mono(0), Answer::Unclear, Said::default());
                let reply = Box::new(|_| {});
                plane.send(now, Command::Look { op, since, answer, said, reply });
            }
        }
        taken.into_iter().for_each(|work| plane.take_up(work, now));
        plane
    }

    pub(crate) fn revision(&self) -> u64 {
        self.writer.published().newest()
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.writer.figures().trouble().is_some()
    }

    pub(crate) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// As `engine` does when a host has registered.
    pub(crate) fn registered(&mut self, now: Now, host: HostId) {
        self.operations.handle(now, operations::Input::Registered(host));
    }

    /// An orderly stop begins, as in `engine::calls`: calls in flight may end first.
    pub(crate) fn stop(&mut self, now: Now) {
        self.stopping = true;
        self.operations.handle(now, operations::Input::Stop);
    }

    /// Whether nothing is in flight that an orderly stop waits for.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopping && (self.operations.is_idle() || self.has(Defect::StopCutsCalls))
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Lets the monitor and the operations do what they want to do now.
    pub(crate) fn settle(&mut self, mut reading: Reading) {
        let now = reading.now;
        if self.has(Defect::SleepUnnoticed) {
            reading.boot_ms = now.mono.0;
        }
        for _ in 0..10_000 {
            self.take_replies(now);
            self.monitor.tick(reading);
            let wanted = self.monitor.effects(now);
            let ops = self.operations.effects(now.mono);
            if wanted.is_empty() && ops.is_empty() {
                return;
            }
            wanted.into_iter().for_each(|effect| self.carry_out(effect, now));
            ops.into_iter().for_each(|effect| self.operate(effect, now));
        }
        panic!("the plane runs in circles");
    }

    /// When it wants to be woken at the latest.
    pub(crate) fn next_wake(&mut self) -> Mono {
        let wake = self.monitor.next_wake();
        self.operations.next_wake().map_or(wake, |other| wake.min(other))
    }

    fn carry_out(&mut self, effect: monitor::Effect, now: Now) {
        match effect {
            monitor::Effect::Probe(host, _) => {
                let number = self.number();
                let (revision, asked_at) = (self.revision(), now.mono);
                self.asked.insert(number, Asked { host, revision, asked_at });
                self.wants.push(Want::List(number, host));
            }
            monitor::Effect::MarkDown(_) if self.has(Defect::SilenceIgnored) => {}
            monitor::Effect::MarkDown(hosts) => {
                self.judged.extend(hosts.iter().map(|(host, _)| *host));
                let reply = self.reply(Reply::MarkedDown);
                self.send(now, Command::MarkDown(hosts, reply));
            }
            monitor::Effect::MarkUp(host) => {
                let reply = self.reply(move |result| Reply::MarkedUp(host, result));
                self.send(now, Command::MarkUp(host, reply));
            }
            monitor::Effect::Flush => {
                let reply = self.reply(Reply::Flushed);
                self.send(now, Command::Flush(reply));
            }
            monitor::Effect::Prune => {
                let reply = self.reply(Reply::Pruned);
                self.send(now, Command::Prune(reply));
            }
            monitor::Effect::Work(_) if self.has(Defect::ZombiesSpared) => {}
            monitor::Effect::Work(work) => self.take_up(*work, now),
        }
    }

    fn operate(&mut self, effect: operations::Effect, now: Now) {
        match effect {
            operations::Effect::Call(job) => {
                let op = job.work.op;
                let reply = self.reply(move |result| Reply::Sent(job, result));
                self.send(now, Command::Sent(op, reply));
            }
            operations::Effect::Look { op, since, answer, said } => {
                let reply = Box::new(|_| {});
                self.send(now, Command::Look { op, since, answer, said, reply });
            }
            operations::Effect::PlaceElsewhere { op, clean } => {
                let reply = self.reply(move |result| Reply::Placed(op, result));
                self.send(now, Command::PlaceElsewhere { op, clean, reply });
            }
            operations::Effect::ProbeNow(host) if self.has(Defect::ProbedAtOnce) => {
                let number = self.number();
                let (revision, asked_at) = (self.revision(), now.mono);
                self.asked.insert(number, Asked { host, revision, asked_at });
                self.wants.push(Want::List(number, host));
            }
            operations::Effect::ProbeNow(host) => {
                self.tell(now, monitor::Input::ProbeNow(host));
            }
            operations::Effect::Write(_) if self.has(Defect::EndsNotWritten) => {}
            operations::Effect::Write(ended) => {
                let copy = ended.clone();
                let reply = self.reply(move |result| Reply::Written(copy, result));
                self.send(now, Command::Finish(ended, reply));
            }
        }
    }

    pub(crate) fn take_up(&mut self, mut work: Work, now: Now) {
        if self.has(Defect::OvertakenForgotten) {
            work.overtook = false;
        }
        if self.has(Defect::SentForgotten) {
            work.sent = false;
        }
        if self.has(Defect::SnapshotGoneAtOnce) && work.kind == OperationKind::Resume {
            work.earlier = Earlier::NoSnapshot;
        }
        self.operations.handle(now, operations::Input::Work(Box::new(work)));
    }

    pub(crate) fn tell(&mut self, now: Now, input: monitor::Input) {
        self.monitor.handle(now.mono, input);
    }

    /// A reply that waits until the plane looks.
    fn reply<T: 'static>(
        &self,
        into: impl FnOnce(Result<T, StoreError>) -> Reply + Send + 'static,
    ) -> Box<dyn FnOnce(Result<T, StoreError>) + Send> {
        let replies = Arc::clone(&self.replies);
        Box::new(move |result| {
            replies.lock().unwrap_or_else(PoisonError::into_inner).push(into(result));
        })
    }

    fn take_replies(&mut self, now: Now) {
        if !std::mem::take(&mut self.answered) {
            return;
        }
        let replies =
            std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner));
        for reply in replies {
            self.take_reply(reply, now);
        }
    }

    fn take_reply(&mut self, reply: Reply, now: Now) {
        match reply {
            Reply::Probed(host, took, result) => {
                self.tell(now, monitor::Input::Ended { host, took, result });
            }
            Reply::MarkedDown(result) => self.tell(now, monitor::Input::MarkedDown(result)),
            Reply::MarkedUp(host, result) => self.tell(now, monitor::Input::MarkedUp(host, result)),
            Reply::Flushed(result) => self.tell(now, monitor::Input::Flushed(result)),
            Reply::Pruned(result) => self.tell(now, monitor::Input::Pruned(result)),
            Reply::Sent(job, Ok(true)) => self.call(*job, now),
            Reply::Sent(job, Ok(false)) => self.ended(*job, Outcome::Over, now),
            Reply::Sent(job, Err(error)) => {
                let outcome = Outcome::Told(Call::NotReached, None, said(&error));
                self.ended(*job, outcome, now);
            }
            Reply::Written(ended, result) => {
                self.operations.handle(now, operations::Input::Written(ended, result));
            }
            Reply::Placed(op, result) => {
                self.operations.handle(now, operations::Input::Placed(op, result));
            }
            Reply::Reported(host, at, sent, result) => {
                if result == Ok(true) {
                    self.tell(now, monitor::Input::ProbeNow(host));
                }
                self.told.push(Told::Reported(at, sent, result.is_ok()));
            }
            Reply::Told(told) => {
                // Whoever asked in vain hears 503.
                if let Ok(told) = *told {
                    self.hand_on(told, now);
                }
            }
        }
    }

    /// As the API does with what begins.
    fn hand_on(&mut self, told: Told, now: Now) {
        let works: Vec<Work> = match &told {
            Told::Created(Ok(created)) => vec![created.1.clone()],
            Told::Begun(Begun::Started(_, work) | Begun::AlreadyTerminal(Some(work))) => {
                vec![work.as_ref().clone()]
            }
            Told::StrangerEnds(works) => works.clone(),
            Told::Accepted(Some(accepted)) => {
                self.held = false;
                self.tell(now, monitor::Input::Accepted);
                accepted.work.clone()
            }
            Told::Adopted(Adopted::Done(sandbox)) => {
                self.tell(now, monitor::Input::ProbeNow(sandbox.host_id));
                Vec::new()
            }
            Told::Created(Err(_))
            | Told::Begun(_)
            | Told::Accepted(None)
            | Told::TakenBack(..)
            | Told::Adopted(_)
            | Told::Reported(..)
            | Told::Refreshed(..)
            | Told::Intended(..)
            | Told::Deleted(..)
            | Told::Dead(..)
            | Told::Added(..)
            | Told::Registered(..) => Vec::new(),
        };
        works.into_iter().for_each(|work| self.take_up(work, now));
        self.told.push(told);
    }

    fn call(&mut self, job: Job, now: Now) {
        let number = self.number();
        let Work { op, host, sandbox, kind, deadline_at, timeout_sec, .. } = job.work;
        let timeout_s = timeout_sec.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        let within = match kind {
            OperationKind::Destroy => kind.deadline(),
            OperationKind::Create
            | OperationKind::Pause
            | OperationKind::Resume
            | OperationKind::Snapshot => {
                deadline_at.since(now.wall).clamp(CALL_DEADLINE_MIN, kind.deadline())
            }
        };
        self.calls.insert(number, job);
        self.wants.push(Want::Call { number, op, host, sandbox, kind, timeout_s, within });
    }

    fn ended(&mut self, job: Job, outcome: Outcome, now: Now) {
        let called = Box::new(Called { job, outcome });
        self.operations.handle(now, operations::Input::Called(called));
    }

    /// A call ended; nothing when it had ended before.
    pub(crate) fn called(
        &mut self,
        number: u64,
        result: Result<Option<Details>, CallError>,
        now: Now,
    ) -> Option<Work> {
        let job = self.calls.remove(&number)?;
        let work = job.work.clone();
        let outcome = match result {
            Ok(details) => Outcome::Told(Call::Succeeded, details, Said::default()),
            Err(error) => {
                let mut call = call_of(&error);
                if call == Call::Unknown && self.has(Defect::AskedTwice) {
                    call = Call::NotReached;
                }
                let untaken = matches!(call, Call::Declined | Call::NotReached);
                if untaken && self.has(Defect::DeclinedIsUnknown) {
                    call = Call::Unknown;
                }
                Outcome::Told(call, None, said(&error))
            }
        };
        self.ended(job, outcome, now);
        Some(work)
    }

    /// A probe ended; nothing when it had ended before.
    pub(crate) fn answered(&mut self, number: u64, mut probe: Probe, now: Now) -> Option<HostId> {
        let Asked { host, mut revision, asked_at } = self.asked.remove(&number)?;
        let took = now.mono.since(asked_at);
        if let Some(defect) = self.defect {
            defect.falsify(&mut probe);
        }
        if self.has(Defect::AnnouncedForEver)
            && let Probe::Listed(listing) = &mut probe
        {
            let told = self.announced.entry(host).or_default();
            told.extend(listing.auto_paused.iter().copied());
            listing.auto_paused = told.iter().copied().collect();
        }
        if self.has(Defect::NoRevisionGuard) {
            revision = u64::MAX;
        }
        let age_cap = Some(self.presence.listening(now.mono));
        let probed =
            Box::new(Probed { host, revision, asked_at, age_cap, probe, proven: self.tls });
        let reply = self.reply(move |result| Reply::Probed(host, took, result));
        // Its thread looked at the clock, and then waited before it handed the answer over.
        let waited = took.min(Duration::from_millis([0, 0, 3, 0, 40][(number % 5) as usize]));
        let mut when = Now { mono: now.mono.before(waited), wall: now.wall.before(waited) };
        if self.has(Defect::DeadlinesIgnored) {
            when.wall = now.wall.after(Duration::from_secs(3600));
        }
        self.send(when, Command::Probed(probed, reply));
        Some(host)
    }

    fn send(&mut self, now: Now, command: Command) {
        self.queue.push(Envelope { now, command });
    }

    /// Queues what somebody outside wants; the answer comes through [`Plane::told`].
    pub(crate) fn ask<T: 'static>(
        &mut self,
        now: Now,
        told: impl FnOnce(T) -> Told + Send + 'static,
        command: impl FnOnce(Box<dyn FnOnce(Result<T, StoreError>) + Send>) -> Command,
    ) {
        let reply = self
            .reply(move |result: Result<T, StoreError>| Reply::Told(Box::new(result.map(told))));
        self.send(now, command(reply));
    }

    /// Queues something whose failure must be heard too.
    pub(crate) fn ask_all<T: 'static>(
        &mut self,
        now: Now,
        told: impl FnOnce(Result<T, StoreError>) -> Told + Send + 'static,
        command: impl FnOnce(Box<dyn FnOnce(Result<T, StoreError>) + Send>) -> Command,
    ) {
        let reply = self.reply(move |result| Reply::Told(Box::new(Ok(told(result)))));
        self.send(now, command(reply));
    }

    pub(crate) fn report(&mut self, now: Now, report: AgentReport, at: usize, sent: Sent) {
        let host = report.host;
        let reply = self.reply(move |result| Reply::Reported(host, at, sent, result));
        self.send(now, Command::Report(Box::new(report), reply));
    }

    /// Queues a command that nobody waits for.
    pub(crate) fn order(&mut self, now: Now, command: Command) {
        self.send(now, command);
    }

    /// The writer carries out what is queued.
    pub(crate) fn write(&mut self) {
        let mut batch = std::mem::take(&mut self.queue);
        if self.has(Defect::NoSecondLookAtHeartbeats) {
            for envelope in &mut batch {
                if let Command::MarkDown(hosts, _) = &mut envelope.command {
                    for (host, heard) in hosts {
                        *heard = self.presence.get(*host).and_then(|host| host.heard_at);
                    }
                }
            }
        }
        let durable = batch.iter().any(|envelope| must_last(&envelope.command));
        let (failures, before) = (self.failures(), self.revision());
        let dead = self.dead_hosts();
        self.set_liveness(&dead, "alive");
        self.writer.execute(batch);
        self.set_liveness(&dead, "unreachable");
        self.answered = true;
        // Who was refused was told of no change, and nothing was written for him.
        if durable && self.failures() == failures && self.revision() > before {
            self.acknowledged = self.revision();
        }
    }

    /// Hosts that the writer is to take for alive, for the defect that has it do so.
    fn dead_hosts(&self) -> Vec<HostId> {
        let is_dead = |host: &HostNow| host.liveness == Liveness::Unreachable;
        match self.has(Defect::LateAnswersRun) && !self.failing {
            true => self.presence.active().iter().filter(|h| is_dead(h)).map(|h| h.id).collect(),
            false => Vec::new(),
        }
    }

    fn set_liveness(&self, hosts: &[HostId], liveness: &str) {
        for host in hosts {
            let conn = Connection::open(&self.db).expect("the database opens");
            let sql = "UPDATE hosts SET liveness = ?2 WHERE id = ?1";
            conn.execute(sql, [&host.to_string(), liveness]).expect("no other writes");
        }
    }

    fn failures(&self) -> u64 {
        self.writer.figures().failures.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// How much of the write-ahead log there is, and how much of that is on the disk.
    pub(crate) fn log_bytes(&self) -> (u64, u64) {
        let (there, synced) = disk::length(&self.wal);
        (there, if self.has(Defect::NotSynced) { 0 } else { synced })
    }
}

/// What an agent says of a call that failed.
fn said(error: &dyn std::fmt::Display) -> Said {
    Said { error: Some(error.to_string()), size_bytes: None }
}

/// What power loss after the answer must not undo. Observations are made again and
/// heartbeats come again; nothing else does.
fn must_last(command: &Command) -> bool {
    !matches!(
        command,
        Command::Probed(..)
            | Command::MarkDown(..)
            | Command::MarkUp(..)
            | Command::Flush(..)
            | Command::Look { .. }
            | Command::Prune(..)
    )
}
