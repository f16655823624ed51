//! Owns one simulated host: its agent, its habits, and what is wrong with it now.
//!
//! Never: speaks HTTP. Asked by `answer` and `calls` for the agent's calls, by `heartbeat` for
//! what becomes of heartbeats, by `demo` and tests for the truth and to make things happen.

use super::agent::{SimAgent, Version};
use super::door::Door;
use super::fault::{AnswerFault, Faults, ReportFault};
use super::listing::Rendered;
use super::lock;
use super::refusal::{self, Refusal};
use super::report::{Report, ReportEvent};
use super::sandbox::{SimSandbox, SimState};
use super::template::Template;
use super::tls::{Callers, Certificates, HostTls};
use super::wait::Client;
use crate::agent::wire::Method;
use crate::clock::Clock;
use crate::model::host::{AddressError, AgentAddress};
use crate::model::id::{HostId, SandboxId};
use crate::model::time::{Now, Wall};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A test that waits notices after this long what time alone has changed. Larger: tests wait;
/// smaller: they cost processor time.
const NOTICE_AFTER: Duration = Duration::from_millis(20);

/// Reports that wait to be sent; the oldest are lost. Larger: a host that no thread sends
/// for holds more; smaller: a host that pauses everything loses some.
const REPORTS_MAX: usize = 10_000;

/// How an agent goes about its work. The default is that of older agents, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habits {
    /// A newer agent: lists paused sandboxes too, also those that it finds on its disk after
    /// a restart; a pause of what is paused and a resume of what runs succeed.
    pub lists_paused: bool,
    /// Reports what it does on its own account. Together with `lists_paused` it announces
    /// nothing in listings.
    pub reports: bool,
    /// A sandbox is as it was before after a template was made of it; older agents destroy
    /// it.
    pub keeps_after_snapshot: bool,
    /// How far its clock is ahead of the fleet's, in milliseconds.
    pub clock_skew_ms: i64,
    /// From a restart to when the agent finds what it has on its disk.
    pub index_takes: Duration,
    /// A destroy whose caller leaves is finished; else it is not done.
    pub finishes_destroys: bool,
    /// From a create to when the sandbox is ready, and listed.
    pub create_takes: Duration,
    /// From a pause to when the sandbox is off the list.
    pub pause_takes: Duration,
    /// From a resume to when the sandbox is ready, and listed.
    pub resume_takes: Duration,
    /// From a destroy to when there is nothing left of the sandbox.
    pub destroy_takes: Duration,
    /// From the call to when the template is there.
    pub snapshot_takes: Duration,
}

impl Habits {
    /// How long a call of this method takes.
    pub(super) fn takes(&self, method: Method) -> Duration {
        match method {
            Method::Create => self.create_takes,
            Method::Pause => self.pause_takes,
            Method::Resume => self.resume_takes,
            Method::Destroy => self.destroy_takes,
            Method::CreateSnapshot => self.snapshot_takes,
            Method::List
            | Method::Ping
            | Method::DeleteSnapshot
            | Method::TemplateSize
            | Method::Terminate => Duration::ZERO,
        }
    }

    /// With the version of the agent that `other` says.
    fn in_version_of(self, other: Habits) -> Habits {
        let Habits { lists_paused, reports, keeps_after_snapshot, .. } = other;
        Habits { lists_paused, reports, keeps_after_snapshot, ..self }
    }

    fn version(&self) -> Version {
        Version {
            newer: self.lists_paused,
            announces: !(self.lists_paused && self.reports),
            keeps_after_snapshot: self.keeps_after_snapshot,
        }
    }
}

/// One simulated host.
pub struct SimHost {
    id: HostId,
    address: SocketAddr,
    agent_address: AgentAddress,
    clock: Arc<dyn Clock>,
    tls: HostTls,
    door: Door,
    /// Itself, for what ends by itself later.
    me: Weak<SimHost>,
    pub(super) inner: Mutex<Inner>,
    /// A call has begun, or what it has is no longer the same.
    changed: Condvar,
}

pub(super) struct Inner {
    pub(super) agent: SimAgent,
    pub(super) habits: Habits,
    faults: Faults,
    /// What the agent's process does.
    process: Process,
    /// Counts the agent's lives: what one began, the next does not finish.
    pub(super) boot: u64,
    calls: BTreeMap<&'static str, u64>,
    /// The same for each sandbox that calls named.
    calls_of: BTreeMap<(SandboxId, &'static str), u64>,
    /// Not yet taken to be sent.
    reports: VecDeque<Report>,
    /// Called when there is a report to take.
    on_report: Option<Box<dyn Fn() + Send>>,
}

/// What an agent's process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// It answers.
    Runs,
    /// It is about to end, and refuses every call but `ListSandboxes`.
    ShutsDown,
    /// It has ended and was not started again.
    Ended,
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimHost({} at {})", self.id, self.address)
    }
}

impl SimHost {
    /// A host that has nothing yet.
    pub(super) fn new(
        id: HostId,
        address: SocketAddr,
        habits: Habits,
        clock: Arc<dyn Clock>,
        door: Door,
        tls: HostTls,
    ) -> Result<Arc<SimHost>, AddressError> {
        let agent_address = address.to_string().parse()?;
        let inner = Inner {
            agent: SimAgent::new(habits.version()),
            habits,
            faults: Faults::default(),
            process: Process::Runs,
            boot: 0,
            calls: BTreeMap::new(),
            calls_of: BTreeMap::new(),
            reports: VecDeque::new(),
            on_report: None,
        };
        let (inner, changed) = (Mutex::new(inner), Condvar::new());
        Ok(Arc::new_cyclic(|me| SimHost {
            id,
            address,
            agent_address,
            clock,
            tls,
            door,
            me: Weak::clone(me),
            inner,
            changed,
        }))
    }

    /// Its id in the matching fixture.
    pub fn id(&self) -> HostId {
        self.id
    }

    /// Where its agent listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its agent listens, as the control plane names it.
    pub fn agent_address(&self) -> &AgentAddress {
        &self.agent_address
    }

    /// Shows this certificate from the next call on, and lets in only the control plane of
    /// this CA; says what is wrong with them.
    ///
    /// # Errors
    /// Texts that are not PEM, or do not belong together.
    pub fn use_certificates(&self, certificates: &Certificates) -> Result<(), String> {
        self.tls.use_certificates(certificates)
    }

    /// Who called over TLS.
    pub fn callers(&self) -> Callers {
        self.tls.callers()
    }

    /// What it really has, in order of ids.
    pub fn sandboxes(&self) -> Vec<(SandboxId, SimState)> {
        let inner = self.current();
        inner.agent.all().map(|(id, sandbox)| (id, sandbox.state)).collect()
    }

    /// What one sandbox is really doing; `None`: there is neither a microVM nor a snapshot.
    pub fn state(&self, id: SandboxId) -> Option<SimState> {
        self.current().agent.state(id)
    }

    /// Shows everything to `see` without copying it.
    pub(super) fn each_sandbox<E>(
        &self,
        mut see: impl FnMut(SandboxId, &SimSandbox) -> Result<(), E>,
    ) -> Result<(), E> {
        self.current().agent.all().try_for_each(|(id, sandbox)| see(id, sandbox))
    }

    /// Puts a sandbox there without a call; it is as old as `age` says.
    pub fn put(&self, id: SandboxId, state: SimState, age: Duration) {
        self.change(|inner| {
            let created_at = self.now(inner).wall.before(age).unix_seconds();
            inner.agent.put(id, state, created_at);
        });
    }

    /// Puts a template there, beside `minimal`, which every host has. Both names are
    /// hyphenated UUIDs, as the wire has them; an empty one is zero.
    ///
    /// # Errors
    /// Texts that are not UUIDs.
    pub fn put_template(&self, team_id: &str, template_id: &str) -> Result<(), String> {
        let template = Template::parse(team_id, template_id)?;
        self.change(|inner| inner.agent.put_template(template));
        Ok(())
    }

    /// Team and id of every template beside `minimal`, as hyphenated UUIDs.
    pub fn templates(&self) -> Vec<(String, String)> {
        let inner = self.current();
        inner.agent.templates().map(|t| (t.team_id(), t.template_id())).collect()
    }

    /// A microVM dies, or a sandbox is removed by hand: there is nothing left of it. An agent
    /// that reports says `sandbox.error`. False when there is none.
    pub fn lose(&self, id: SandboxId) -> bool {
        self.change(|inner| {
            let lost = inner.agent.lose(id);
            if lost {
                self.report(inner, ReportEvent::Error, id, "VM process crashed");
            }
            lost
        })
    }

    /// A microVM is of no use any more and stays: it is listed as `error`, and reported. False
    /// when there is none.
    pub fn fail(&self, id: SandboxId) -> bool {
        self.change(|inner| {
            let failed = inner.agent.fail(id);
            if failed {
                self.report(inner, ReportEvent::Error, id, "VM cannot be resumed");
            }
            failed
        })
    }

    /// The agent cannot pause an idle sandbox and destroys it, which it reports. False when
    /// there is none.
    pub fn give_up(&self, id: SandboxId) -> bool {
        self.change(|inner| {
            let lost = inner.agent.lose(id);
            if lost {
                self.report(inner, ReportEvent::Stopped, id, "");
            }
            lost
        })
    }

    /// The agent pauses an idle sandbox by itself: it is off the list of an older one at
    /// once, and announced by a listing a moment later, or reported. False when it does not
    /// run.
    pub fn auto_pause(&self, id: SandboxId) -> bool {
        self.change(|inner| {
            let paused = inner.agent.auto_pause(id, self.now(inner));
            if paused {
                self.report(inner, ReportEvent::AutoPaused, id, "");
            }
            paused
        })
    }

    /// The agent pauses everything and announces nothing, as after three lost heartbeats; one
    /// that reports reports each. Says how many sandboxes that were.
    pub fn pause_all(&self) -> usize {
        self.change(|inner| self.pause_everything(inner))
    }

    fn pause_everything(&self, inner: &mut Inner) -> usize {
        let paused = inner.agent.pause_all(self.now(inner));
        for id in &paused {
            self.report(inner, ReportEvent::AutoPaused, *id, "");
        }
        paused.len()
    }

    /// The agent crashes and starts again: what ran is gone, what has a snapshot keeps it,
    /// calls in progress are cut. It finds its snapshots after `Habits::index_takes`.
    pub fn restart(&self) {
        self.change(|inner| {
            let (now, takes) = (self.now(inner).mono, inner.habits.index_takes);
            inner.agent.stop();
            inner.agent.start_up(now, takes);
            inner.become_process(Process::Runs);
        });
        self.settle_door();
    }

    /// The agent destroys everything and ends; its port refuses until `restart`.
    pub fn terminate(&self) {
        self.change(|inner| {
            inner.agent.destroy_all();
            inner.become_process(Process::Ended);
        });
        self.settle_door();
    }

    /// The agent is asked to end, and takes so long: it refuses every call but `ListSandboxes`
    /// as `unavailable`, while calls in progress continue. Then its port refuses until
    /// `restart`. A newer agent first pauses what runs; what an older one runs is lost.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn shut_down(&self, takes: Duration) -> io::Result<()> {
        let boot = self.change(|inner| {
            if inner.habits.lists_paused {
                self.pause_everything(inner);
            }
            inner.process = Process::ShutsDown;
            inner.boot
        });
        let me = Weak::clone(&self.me);
        let thread = std::thread::Builder::new().name("agent-shutdown".to_owned());
        thread.spawn(move || {
            if let Some(host) = me.upgrade() {
                host.end_after(takes, boot);
            }
        })?;
        Ok(())
    }

    /// Ends the agent when it has taken so long to shut down, unless it ended before.
    fn end_after(&self, takes: Duration, boot: u64) {
        if self.wait_until(takes, |inner| inner.boot != boot) {
            return;
        }
        self.change(|inner| {
            if inner.boot == boot {
                inner.agent.stop();
                // What it reported while it shut down is still sent.
                let reports = std::mem::take(&mut inner.reports);
                inner.become_process(Process::Ended);
                inner.reports = reports;
            }
        });
        self.settle_door();
    }

    /// The fleet ends: nothing happens here any more.
    pub(super) fn end(&self) {
        self.change(|inner| inner.boot += 1);
    }

    /// Whether the agent has ended.
    pub fn has_exited(&self) -> bool {
        lock(&self.inner).process == Process::Ended
    }

    /// Whether the agent refuses calls because it is about to end.
    pub fn is_shutting_down(&self) -> bool {
        lock(&self.inner).process == Process::ShutsDown
    }

    /// Waits until the agent has ended and its port refuses; false when that takes longer
    /// than `timeout`.
    pub fn wait_exited(&self, timeout: Duration) -> bool {
        let exited = self.wait_until(timeout, |inner| inner.process == Process::Ended);
        self.settle_door();
        exited
    }

    /// What is wrong with it now; set through the fleet.
    pub fn faults(&self) -> Faults {
        lock(&self.inner).faults
    }

    /// Fails when a port that is to be opened again cannot be.
    pub(super) fn set_faults(&self, faults: Faults) -> io::Result<()> {
        self.change(|inner| inner.faults = faults);
        self.try_settle_door()
    }

    fn try_settle_door(&self) -> io::Result<()> {
        self.door.settle(|| {
            let inner = lock(&self.inner);
            !inner.faults.closed && inner.process != Process::Ended
        })
    }

    fn settle_door(&self) {
        if let Err(error) = self.try_settle_door() {
            log::error!("could not open or close the port of {self:?}: {error}");
        }
    }

    /// How it goes about its work.
    pub fn habits(&self) -> Habits {
        lock(&self.inner).habits
    }

    /// Changes how it goes about its work, also for calls in progress. What it lists, reports
    /// and keeps stays as it was: that is another version of the agent.
    pub fn set_habits(&self, habits: Habits) {
        self.change(|inner| inner.habits = habits.in_version_of(inner.habits));
    }

    /// How many calls of this method have begun.
    pub fn calls(&self, method: Method) -> u64 {
        lock(&self.inner).calls.get(method.as_str()).copied().unwrap_or(0)
    }

    /// How many calls of this method that named this sandbox have begun, whatever became of
    /// them.
    pub fn calls_of(&self, method: Method, id: SandboxId) -> u64 {
        lock(&self.inner).calls_of.get(&(id, method.as_str())).copied().unwrap_or(0)
    }

    /// Waits until so many calls of this method have begun; false when that takes longer
    /// than `timeout`. What a call does comes after its beginning: see `wait_state`.
    pub fn wait_calls(&self, method: Method, count: u64, timeout: Duration) -> bool {
        self.wait_until(timeout, |inner| {
            inner.calls.get(method.as_str()).copied().unwrap_or(0) >= count
        })
    }

    /// Waits until a sandbox does this; `None`: until there is nothing of it. False when
    /// that takes longer than `timeout`.
    pub fn wait_state(&self, id: SandboxId, state: Option<SimState>, timeout: Duration) -> bool {
        self.wait_until(timeout, |inner| inner.agent.state(id) == state)
    }

    fn wait_until(&self, timeout: Duration, reached: impl Fn(&Inner) -> bool) -> bool {
        let began = Instant::now();
        let mut inner = self.current();
        while !reached(&inner) {
            let left = timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(inner, left.min(NOTICE_AFTER));
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
            let now = self.now(&inner).mono;
            inner.agent.pass(now);
        }
        true
    }

    /// What there is now, also by what time alone has changed.
    fn current(&self) -> MutexGuard<'_, Inner> {
        let mut inner = lock(&self.inner);
        let now = self.now(&inner).mono;
        inner.agent.pass(now);
        inner
    }

    /// Changes something, and wakes those who wait for it.
    pub(super) fn change<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let done = act(&mut self.current());
        self.changed.notify_all();
        done
    }

    /// What time it is by the agent's clock.
    pub(super) fn now(&self, inner: &Inner) -> Now {
        let Now { mono, wall } = self.clock.now();
        Now { mono, wall: Wall(wall.0.saturating_add(inner.habits.clock_skew_ms)) }
    }

    /// Lets an agent that reports report something.
    pub(super) fn report(&self, inner: &mut Inner, event: ReportEvent, id: SandboxId, why: &str) {
        let late = match inner.faults.reports {
            ReportFault::None => Duration::ZERO,
            ReportFault::Late(late) => late,
            ReportFault::Lost => return,
        };
        if !inner.habits.reports {
            return;
        }
        if inner.reports.len() == REPORTS_MAX {
            inner.reports.pop_front();
        }
        inner.reports.push_back(Report {
            event,
            sandbox: id,
            at_unix: self.now(inner).wall.unix_seconds(),
            error: why.to_owned(),
            due: Instant::now() + late,
        });
        if let Some(on_report) = &inner.on_report {
            on_report();
        }
    }

    /// What it has to report and no thread has taken yet, oldest first.
    pub fn take_reports(&self) -> Vec<Report> {
        self.change(|inner| inner.reports.drain(..).collect())
    }

    /// Calls `on_report` whenever there is a report to take.
    pub(super) fn on_report(&self, on_report: impl Fn() + Send + 'static) {
        lock(&self.inner).on_report = Some(Box::new(on_report));
    }

    pub(super) fn count_call(&self, method: Method, named: Option<SandboxId>) {
        self.change(|inner| {
            *inner.calls.entry(method.as_str()).or_default() += 1;
            if let Some(id) = named {
                *inner.calls_of.entry((id, method.as_str())).or_default() += 1;
            }
        });
    }

    /// Whether a call of this method takes any time now.
    pub(super) fn takes_time(&self, method: Method) -> bool {
        let Inner { faults, habits, .. } = &*lock(&self.inner);
        let spoiled = !faults.delay.is_zero() || faults.answers == AnswerFault::Held;
        faults.concern(method) && spoiled || !habits.takes(method).is_zero()
    }

    /// Waits for as long as the host is slow with calls of this method; false when the call
    /// is over before it began.
    pub(super) fn be_slow(&self, method: Method, client: &mut Client<'_>) -> bool {
        let span = || match self.faults() {
            faults if faults.concern(method) => faults.delay,
            _ => Duration::ZERO,
        };
        client.spend(span, || self.faults().finishes_orphans)
    }

    /// Waits for as long as answers to this method do not come.
    pub(super) fn hold_answer(&self, method: Method, client: &mut Client<'_>) {
        let span = || match self.faults() {
            faults if faults.concern(method) && faults.answers == AnswerFault::Held => {
                Duration::MAX
            }
            _ => Duration::ZERO,
        };
        client.spend(span, || false);
    }

    /// The next listing announces a sandbox that was paused long ago.
    pub(super) fn announce(&self, id: SandboxId) {
        lock(&self.inner).agent.announce(id);
    }

    pub(super) fn list(&self) -> Rendered {
        let mut inner = self.current();
        let now = self.now(&inner).mono;
        inner.agent.list(now)
    }

    pub(super) fn ping(&self, id: SandboxId) -> Result<(), Refusal> {
        let mut inner = self.current();
        let now = self.now(&inner);
        inner.agent.ping(id, now)
    }

    pub(super) fn delete_template(&self, template: Template) -> Result<(), Refusal> {
        self.change(|inner| inner.agent.delete_template(template))
    }

    pub(super) fn template_size(&self, template: Template) -> Result<i64, Refusal> {
        let inner = self.current();
        if inner.habits.lists_paused {
            inner.agent.template_size(template)
        } else {
            Err(refusal::unimplemented(Method::TemplateSize))
        }
    }
}

impl Inner {
    /// Another life of the agent begins, or its last one ends; calls in progress are cut.
    fn become_process(&mut self, process: Process) {
        self.process = process;
        self.boot += 1;
        self.reports.clear();
    }
}
