//! Owns `roost check`: one full pass over a database, passive and active, then the end.
//!
//! Never: listens. Ages are measured against the moment until which a server listened. A
//! dry run works on a copy; only what agents tell once is kept in the database itself.

use super::pool::Pool;
use super::probes::{self, Answered, Job};
use super::start::fenced;
use crate::agent::client::{AgentClient, ClientConfig};
use crate::clock::Clock;
use crate::model::host::{AgentAddress, HostStatus, Intent, Liveness};
use crate::model::id::{HostId, SandboxId};
use crate::model::policy::{Policy, PolicyName};
use crate::model::probe::ProbeFailure;
use crate::model::sandbox::{Reason, SandboxStatus, StrangerKind};
use crate::model::time::{Now, Wall};
use crate::plan::liveness::{MassGuard, Silence};
use crate::plan::observation::{AskAgain, Stranger};
use crate::plan::schedule::{Input, Schedule, Watch};
use crate::store::StoreError;
use crate::store::acceptance;
use crate::store::apply::{Applied, Probed, Written, keep_announcements};
use crate::store::lock::Lock;
use crate::store::open::{copy, open_writer};
use crate::store::presence::Presence;
use crate::store::read;
use crate::store::writer::{Command, QUEUE_MAX, Writer, WriterHandle};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Times that one host is asked in one pass. More than two only while rows keep changing
/// under the question.
const LOOKS_MAX: u32 = 5;

/// Longest wait for news while none is due by the clock.
const LONG: Duration = Duration::from_secs(60);

/// Answers, and what came of them, that are handled together if they come within
/// [`TOGETHER`]. Larger and probes wait for each other; smaller and threads are woken for
/// every one.
const TOGETHER_MAX: usize = 16;

/// How long what has come waits for more. Larger and slow hosts are asked later; smaller as
/// above.
const TOGETHER: Duration = Duration::from_millis(1);

/// What hosts say that they paused by themselves.
type Notices = Vec<(HostId, Vec<SandboxId>)>;

/// What to check and how.
#[derive(Clone)]
pub struct CheckOptions {
    /// The database file.
    pub db: PathBuf,
    /// Change nothing.
    pub dry_run: bool,
    /// Decide by this.
    pub policy: Policy,
    /// Only this host.
    pub host: Option<HostId>,
    /// Probes at a time.
    pub workers: usize,
    /// How to ask agents.
    pub client: ClientConfig,
    /// How far it is, for whoever waits.
    pub done: Arc<Done>,
}

/// How far a pass is.
#[derive(Debug, Default)]
pub struct Done {
    /// Hosts that are not asked again.
    pub hosts: AtomicUsize,
    /// Hosts that are asked.
    pub of: AtomicUsize,
}

/// One thing that is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// On or about which host.
    pub host: HostId,
    /// Which sandbox; `None` for a verdict on the host itself.
    pub sandbox: Option<SandboxId>,
    /// `mass_vanish` or `mass_guard`.
    pub why: &'static str,
}

/// What one pass found and did.
#[derive(Debug, Clone)]
pub struct CheckReport {
    /// Whether it only looked.
    pub dry_run: bool,
    /// Which mapping decided.
    pub policy: PolicyName,
    /// Active hosts that were looked at.
    pub hosts_checked: usize,
    /// Hosts whose answer was applied.
    pub observations: usize,
    /// Hosts that gave no usable answer.
    pub failed_probes: Vec<(HostId, ProbeFailure)>,
    /// Hosts that changed.
    pub host_transitions: Vec<(HostId, HostStatus, HostStatus, Reason)>,
    /// Sandboxes that changed, each host's in one list as it was written, in order of
    /// revisions. A large fleet makes long lists; these never grow by being copied.
    pub transitions: Vec<(HostId, Vec<Written>)>,
    /// What is held back.
    pub held: Vec<Held>,
    /// Sandboxes that run and should not.
    pub zombies: Vec<(HostId, SandboxId, Option<SandboxStatus>)>,
    /// Sandboxes that run on a host other than their own.
    pub misplaced: Vec<(HostId, SandboxId)>,
    /// How long it took.
    pub elapsed: Duration,
}

impl CheckReport {
    fn new(dry_run: bool, policy: PolicyName) -> CheckReport {
        CheckReport {
            dry_run,
            policy,
            hosts_checked: 0,
            observations: 0,
            failed_probes: Vec::new(),
            host_transitions: Vec::new(),
            transitions: Vec::new(),
            held: Vec::new(),
            zombies: Vec::new(),
            misplaced: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    fn moved(&mut self, host: HostId, written: Vec<Written>) {
        if !written.is_empty() {
            self.transitions.push((host, written));
        }
    }

    /// Sandboxes that changed, in order of revisions.
    pub fn moves(&self) -> impl Iterator<Item = (HostId, &Written)> {
        self.transitions.iter().flat_map(|(host, written)| written.iter().map(|t| (*host, t)))
    }

    /// Whether anything changed, or would have in a real run.
    pub fn has_changes(&self) -> bool {
        !self.host_transitions.is_empty() || !self.transitions.is_empty()
    }
}

/// One full pass.
pub fn check(options: &CheckOptions, clock: Arc<dyn Clock>) -> Result<CheckReport, StoreError> {
    if !options.db.exists() {
        // Otherwise a lock file would be left behind.
        return Err(StoreError::Missing(options.db.clone()));
    }
    if !options.dry_run {
        let _lock = Lock::of(&options.db)?;
        must_count(&options.db, clock.now().wall)?;
        return Pass::over(&options.db, options, clock)?.run();
    }
    let io = |e: std::io::Error| StoreError::io(std::env::temp_dir(), &e);
    let scratch = tempfile::tempdir().map_err(io)?;
    let file = scratch.path().join("roost.db");
    copy(&options.db, &file)?;
    let pass = Pass::over(&file, options, Arc::clone(&clock))?;
    let drained = Arc::clone(&pass.drained);
    let report = pass.run()?;
    let drained = drained.lock().unwrap_or_else(PoisonError::into_inner);
    keep_announcements(&options.db, &drained, clock.now())?;
    Ok(report)
}

/// Nothing is decided on a restored database before an operator accepts it; a dry run
/// shows what would be.
fn must_count(db: &Path, now: Wall) -> Result<(), StoreError> {
    let restore = acceptance::newest(&open_writer(db, false, now)?)?;
    match restore.is_some_and(|restore| restore.accepted_at.is_none()) {
        true => Err(StoreError::NotAccepted),
        false => Ok(()),
    }
}

/// One pass under way.
struct Pass<'a> {
    options: &'a CheckOptions,
    clock: Arc<dyn Clock>,
    writer: WriterHandle,
    thread: Option<JoinHandle<()>>,
    presence: Arc<Presence>,
    probes: Pool<Job>,
    news: Arc<Inbox>,
    listened_until: Option<Wall>,
    drained: Arc<Mutex<Notices>>,
    report: CheckReport,
}

/// One probe that was asked, answered and applied.
struct Ended {
    host: HostId,
    took: Duration,
    result: Result<Applied, StoreError>,
}

/// What happens while hosts are asked.
enum News {
    Answered(Box<Answered>),
    Ended(Box<Ended>),
}

/// Takes news for the thread that makes the pass, and wakes it for many of them at a time.
struct Inbox {
    news: Mutex<Vec<News>>,
    bell: Condvar,
    enough: usize,
}

impl Inbox {
    fn new(workers: usize) -> Inbox {
        let enough = (workers / 2).clamp(1, TOGETHER_MAX);
        Inbox { news: Mutex::default(), bell: Condvar::new(), enough }
    }

    fn push(&self, news: News) {
        let mut all = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(news);
        if all.len() == 1 || all.len() == self.enough {
            self.bell.notify_one();
        }
    }

    /// What has come; waits for the first of it at most so long.
    fn take(&self, patience: Duration) -> Vec<News> {
        let all = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |all, patience, until: fn(&Inbox, usize) -> bool| {
            let more = |all: &mut Vec<News>| !until(self, all.len());
            let waited = self.bell.wait_timeout_while(all, patience, more);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let all = wait(all, patience, |_, count| count > 0);
        let mut all = wait(all, TOGETHER, |inbox, count| count == 0 || count >= inbox.enough);
        std::mem::take(&mut *all)
    }
}

impl<'a> Pass<'a> {
    fn over(
        db: &Path,
        options: &'a CheckOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Pass<'a>, StoreError> {
        let now = clock.now();
        let conn = open_writer(db, false, now.wall)?;
        let listened_until = read::listened_until(&conn)?;
        let hosts = read::hosts(&conn)?;
        let presence = Arc::new(Presence::load(&hosts, [], listened_until, false, now));
        let writer = Writer::new(conn, options.policy.clone(), Arc::clone(&presence))?;
        let revision = writer.published();
        let (queue, commands) = crossbeam_channel::bounded(QUEUE_MAX);
        let thread = spawn("writer", move || writer.run(&commands))?;
        let writer = WriterHandle::new(queue);
        let news = Arc::new(Inbox::new(options.workers));
        let drained = Arc::new(Mutex::new(Vec::new()));
        let inbox = Arc::clone(&news);
        let deliver = Box::new(move |answered| inbox.push(News::Answered(Box::new(answered))));
        let agent = fenced(AgentClient::new(options.client.clone()), &presence);
        let threads_max = Schedule::in_flight_max(options.workers);
        let probes = probes::pool(agent, Arc::clone(&clock), revision, threads_max, deliver);
        let report = CheckReport::new(options.dry_run, options.policy.name);
        let thread = Some(thread);
        let pass = Pass {
            options,
            clock,
            writer,
            thread,
            presence,
            probes,
            news,
            listened_until,
            drained,
            report,
        };
        Ok(pass)
    }

    fn run(mut self) -> Result<CheckReport, StoreError> {
        let began = self.clock.now();
        self.passive(began)?;
        self.active()?;
        let first = |written: &[Written]| written.first().map(|t| t.revision);
        crate::model::order::sort_by_key(&mut self.report.transitions, |(_, written)| {
            first(written)
        });
        self.report.elapsed = self.clock.now().mono.since(began.mono);
        self.writer.send(self.clock.now(), Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the writer was logged by its hook and shows as `Stopped` before.
            let _ = thread.join();
        }
        Ok(self.report)
    }

    /// Judges silent hosts by what the database remembers.
    fn passive(&mut self, now: Now) -> Result<(), StoreError> {
        let only = self.options.host;
        let policy = &self.options.policy;
        let mut hosts = self.presence.active();
        crate::model::order::sort_by_key(&mut hosts, |host| host.id);
        // Strict takes stored times as they are; otherwise silence counted while we listened.
        let until = self.listened_until.filter(|_| !policy.is_strict()).unwrap_or(now.wall);
        let silences: Vec<Silence> = hosts
            .iter()
            .map(|host| Silence {
                span: host.last_heartbeat_at.map(|at| until.since(at)),
                unreachable: host.liveness == Liveness::Unreachable,
            })
            .collect();
        let verdict = MassGuard::default().judge(now.mono, &silences, None, policy);
        let wanted = |at: &&usize| only.is_none_or(|id| hosts[**at].id == id);
        self.report.hosts_checked = (0..hosts.len()).filter(|at| wanted(&at)).count();
        let held = verdict.held.iter().filter(wanted).map(|&at| hosts[at].id);
        self.report.held.extend(held.map(|host| Held { host, sandbox: None, why: "mass_guard" }));
        let down: Vec<_> =
            verdict.down.iter().filter(wanted).map(|&at| (hosts[at].id, None)).collect();
        let applied = self.writer.call(now, |reply| Command::MarkDown(down, reply))?;
        for applied in applied {
            let host = applied.host;
            if let Some((from, to, reason)) = applied.host_transition {
                self.report.host_transitions.push((host, from, to, reason));
            }
            self.report.moved(host, applied.transitions);
        }
        Ok(())
    }

    /// Asks every host that is online, or draining, until nothing waits for another look.
    fn active(&mut self) -> Result<(), StoreError> {
        let interval = self.options.policy.probe_interval;
        let mut schedule = Schedule::new(interval, self.options.workers, 0);
        let mut hosts = HashMap::new();
        let now = self.clock.now().mono;
        for host in self.presence.active() {
            let probed = host.liveness == Liveness::Alive
                && (host.intent == Intent::Active || !self.options.policy.is_strict())
                && self.options.host.is_none_or(|id| id == host.id);
            if let Some(address) = host.address.filter(|_| probed) {
                schedule.handle(now, Input::Watch(host.id, Watch::Probed));
                hosts.insert(host.id, Asked { address, looks: 0, observed: false, left: None });
            }
        }
        let mut open = hosts.len();
        self.options.done.of.store(open, Ordering::Relaxed);
        while open > 0 {
            self.submit_due(&mut schedule, &hosts);
            for news in self.wait(&schedule) {
                match news {
                    News::Answered(answered) => self.apply(*answered),
                    News::Ended(ended) => {
                        open -= usize::from(self.ended(*ended, &mut schedule, &mut hosts)?);
                    }
                }
            }
        }
        self.summarize(hosts);
        Ok(())
    }

    fn submit_due(&self, schedule: &mut Schedule, hosts: &HashMap<HostId, Asked>) {
        let now = self.clock.now().mono;
        while let Some(host) = schedule.next(now) {
            if let Some(asked) = hosts.get(&host) {
                self.probes.submit(Job { host, address: asked.address.clone() });
            }
        }
    }

    fn wait(&self, schedule: &Schedule) -> Vec<News> {
        let now = self.clock.now().mono;
        self.news.take(schedule.next_wake().map_or(LONG, |wake| wake.since(now)))
    }

    /// Hands an answer to the writer, which tells what came of it.
    fn apply(&self, answered: Answered) {
        let notices = (answered.host, answered.probe.drained().to_vec());
        self.drained.lock().unwrap_or_else(PoisonError::into_inner).push(notices);
        let Answered { host, revision, asked_at, now, took, probe, proven } = answered;
        let probed = Probed { host, revision, asked_at, age_cap: None, probe, proven };
        let inbox = Arc::clone(&self.news);
        let reply = Box::new(move |result| {
            inbox.push(News::Ended(Box::new(Ended { host, took, result })));
        });
        self.writer.send(now, Command::Probed(Box::new(probed), reply));
    }

    /// Takes down what came of a look at a host; true when it was the last one.
    fn ended(
        &mut self,
        ended: Ended,
        schedule: &mut Schedule,
        hosts: &mut HashMap<HostId, Asked>,
    ) -> Result<bool, StoreError> {
        let Ended { host, took, result } = ended;
        let mut applied = result?;
        let again = self.again(&applied, hosts.get_mut(&host));
        let (now, answered) = (self.clock.now().mono, applied.observed);
        schedule.handle(now, Input::Done { host, answered, took, again });
        let done = again == AskAgain::AsUsual;
        if done {
            schedule.handle(now, Input::Forget(host));
            self.options.done.hosts.fetch_add(1, Ordering::Relaxed);
        }
        self.report.moved(host, std::mem::take(&mut applied.transitions));
        if let Some(asked) = hosts.get_mut(&host) {
            asked.ended(applied);
        }
        Ok(done)
    }

    /// Whether this pass looks at the host once more, and when.
    fn again(&self, applied: &Applied, asked: Option<&mut Asked>) -> AskAgain {
        let Some(asked) = asked else { return AskAgain::AsUsual };
        asked.looks += 1;
        match applied.ask_again {
            AskAgain::AsUsual => AskAgain::AsUsual,
            _ if asked.looks >= LOOKS_MAX => AskAgain::AsUsual,
            AskAgain::AtOnce => AskAgain::AtOnce,
            // A held mass vanish waits for a whole interval; one pass does not.
            AskAgain::After(delay) if delay > self.options.policy.confirm_delay => {
                AskAgain::AsUsual
            }
            AskAgain::After(delay) => AskAgain::After(delay),
        }
    }

    /// What the last look at each host left open.
    fn summarize(&mut self, hosts: HashMap<HostId, Asked>) {
        self.report.observations = hosts.values().filter(|asked| asked.observed).count();
        let left = hosts.into_iter().filter_map(|(host, asked)| Some((host, asked.left?)));
        for (host, left) in crate::model::order::map_of(left) {
            self.report.failed_probes.extend(left.failure.map(|failure| (host, failure)));
            let held = left.held.into_iter().map(Some);
            self.report.held.extend(held.map(|sandbox| Held { host, sandbox, why: "mass_vanish" }));
            for stranger in left.strangers {
                match stranger.kind {
                    StrangerKind::Misplaced => self.report.misplaced.push((host, stranger.id)),
                    StrangerKind::Zombie | StrangerKind::Forgotten => {
                        self.report.zombies.push((host, stranger.id, stranger.status));
                    }
                }
            }
        }
    }
}

/// One host on its way through a pass: there may be ten thousand.
struct Asked {
    address: AgentAddress,
    looks: u32,
    /// Whether the last look was applied.
    observed: bool,
    /// What it left open; `None` mostly.
    left: Option<Box<Left>>,
}

/// What a look at a host left open.
struct Left {
    failure: Option<ProbeFailure>,
    held: Vec<SandboxId>,
    strangers: Vec<Stranger>,
}

impl Asked {
    /// Keeps what is said at the end of the pass, unless another look follows.
    fn ended(&mut self, applied: Applied) {
        let Applied { failure, held, strangers, observed, .. } = applied;
        self.observed = observed;
        let nothing = failure.is_none() && held.is_empty() && strangers.is_empty();
        self.left = (!nothing).then(|| Box::new(Left { failure, held, strangers }));
    }
}

/// Starts a thread, or says that the system gives none.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map_err(|e| StoreError::io(name, &e))
}
