//! Owns one simulated host: its agent, its habits, and what is wrong with it now.
//!
//! Never: opens a socket. Asked by `answer` for the agent's calls, by `heartbeat` for what
//! becomes of beats, by `demo` and tests for the truth and to make things happen.

use super::agent::{Refusal, Rendered, SimAgent, SimSandbox, SimState};
use super::fault::{AnswerFault, Faults};
use super::hold::Holds;
use super::lock;
use super::tls::{Callers, Certificates, HostTls};
use crate::agent::wire::{
    ConnectCode, CreateSandboxRequest, CreateSandboxResponse, Method, ResumeSandboxRequest,
};
use crate::clock::Clock;
use crate::model::host::{AddressError, AgentAddress};
use crate::model::id::{HostId, SandboxId};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How an agent goes about its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habits {
    /// New enough to list paused sandboxes too.
    pub lists_paused: bool,
    /// From a create to when the sandbox is ready, and listed.
    pub create_takes: Duration,
    /// From a pause to when the sandbox is off the list.
    pub pause_takes: Duration,
    /// From a resume to when the sandbox is ready, and listed.
    pub resume_takes: Duration,
    /// From a destroy to when there is nothing left of the sandbox.
    pub destroy_takes: Duration,
}

/// One simulated host.
pub struct SimHost {
    id: HostId,
    address: SocketAddr,
    agent_address: AgentAddress,
    clock: Arc<dyn Clock>,
    holds: Arc<Holds>,
    tls: HostTls,
    inner: Mutex<Inner>,
    /// A call has begun, or what it has is no longer the same.
    changed: Condvar,
}

struct Inner {
    agent: SimAgent,
    habits: Habits,
    faults: Faults,
    /// The agent has ended and nobody has started it again.
    exited: bool,
    /// Counts the agent's lives: what one began, the next does not finish.
    boot: u64,
    calls: BTreeMap<&'static str, u64>,
    /// The same for each sandbox that calls named.
    calls_of: BTreeMap<(SandboxId, &'static str), u64>,
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
        holds: Arc<Holds>,
        tls: HostTls,
    ) -> Result<SimHost, AddressError> {
        let agent_address = address.to_string().parse()?;
        let inner = Inner {
            agent: SimAgent::new(habits.lists_paused),
            habits,
            faults: Faults::default(),
            exited: false,
            boot: 0,
            calls: BTreeMap::new(),
            calls_of: BTreeMap::new(),
        };
        let (inner, changed) = (Mutex::new(inner), Condvar::new());
        Ok(SimHost { id, address, agent_address, clock, holds, tls, inner, changed })
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
        lock(&self.inner).agent.all().map(|(id, sandbox)| (id, sandbox.state)).collect()
    }

    /// What one sandbox is really doing; `None`: there is neither a microVM nor a snapshot.
    pub fn state(&self, id: SandboxId) -> Option<SimState> {
        lock(&self.inner).agent.state(id)
    }

    /// Looks at everything without copying it.
    pub(super) fn each_sandbox<E>(
        &self,
        mut look: impl FnMut(SandboxId, &SimSandbox) -> Result<(), E>,
    ) -> Result<(), E> {
        lock(&self.inner).agent.all().try_for_each(|(id, sandbox)| look(id, sandbox))
    }

    /// Puts a sandbox there behind everybody's back; it is as old as `age` says.
    pub fn put(&self, id: SandboxId, state: SimState, age: Duration) {
        let created_at = self.clock.now().wall.before(age).unix_seconds();
        self.change(|inner| inner.agent.put(id, state, created_at));
    }

    /// A microVM dies, or somebody removes it by hand. False when there is none.
    pub fn lose(&self, id: SandboxId) -> bool {
        self.change(|inner| inner.agent.destroy(id)).is_ok()
    }

    /// The agent pauses an idle sandbox by itself: it is off the list at once, and announced
    /// by a listing a moment later. False when it does not run.
    pub fn auto_pause(&self, id: SandboxId) -> bool {
        let now = self.clock.now().mono;
        self.change(|inner| inner.agent.auto_pause(id, now))
    }

    /// The agent pauses everything and announces nothing, as after three lost heartbeats.
    /// Says how many sandboxes that were.
    pub fn pause_all(&self) -> usize {
        self.change(|inner| inner.agent.pause_all())
    }

    /// The agent crashes and starts again: its list is empty, its snapshots are kept.
    pub fn restart(&self) {
        self.change(|inner| {
            inner.agent.restart();
            inner.exited = false;
            inner.boot += 1;
        });
        self.holds.look_again();
    }

    /// The agent destroys everything and ends; nobody answers until `restart`.
    pub fn terminate(&self) {
        self.change(|inner| {
            inner.agent.destroy_all();
            inner.exited = true;
            inner.boot += 1;
        });
        self.holds.look_again();
    }

    /// Whether the agent has ended.
    pub fn has_exited(&self) -> bool {
        lock(&self.inner).exited
    }

    /// What is wrong with it now; set through the fleet.
    pub fn faults(&self) -> Faults {
        lock(&self.inner).faults
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        lock(&self.inner).faults = faults;
        self.holds.look_again();
    }

    /// How it goes about its work.
    pub fn habits(&self) -> Habits {
        lock(&self.inner).habits
    }

    /// Changes how long things take, also for what is under way. Whether it lists paused
    /// sandboxes stays as it was: that is another version of the agent.
    pub fn set_habits(&self, habits: Habits) {
        let mut inner = lock(&self.inner);
        let lists_paused = inner.habits.lists_paused;
        inner.habits = Habits { lists_paused, ..habits };
        drop(inner);
        self.holds.look_again();
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
        let until = Instant::now() + timeout;
        let mut inner = lock(&self.inner);
        while !reached(&inner) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Changes something, and lets those who wait for it look.
    fn change<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let done = act(&mut lock(&self.inner));
        self.changed.notify_all();
        done
    }

    pub(super) fn count_call(&self, method: Method, named: Option<SandboxId>) {
        self.change(|inner| {
            *inner.calls.entry(method.as_str()).or_default() += 1;
            if let Some(id) = named {
                *inner.calls_of.entry((id, method.as_str())).or_default() += 1;
            }
        });
    }

    /// Waits for as long as the host is slow with calls of this method.
    pub(super) fn be_slow(&self, method: Method) {
        self.holds.wait(|| match self.faults() {
            faults if faults.concern(method) => faults.delay,
            _ => Duration::ZERO,
        });
    }

    /// Waits for as long as answers to this method are held back.
    pub(super) fn hold_answer(&self, method: Method) {
        self.holds.wait(|| match self.faults() {
            faults if faults.concern(method) && faults.answers == AnswerFault::Held => {
                Duration::MAX
            }
            _ => Duration::ZERO,
        });
    }

    /// The next listing announces a sandbox that was paused long ago.
    pub(super) fn announce(&self, id: SandboxId) {
        lock(&self.inner).agent.announce(id);
    }

    pub(super) fn list(&self) -> Rendered {
        let now = self.clock.now().mono;
        lock(&self.inner).agent.list(now)
    }

    pub(super) fn create(
        &self,
        id: SandboxId,
        request: &CreateSandboxRequest<'_>,
    ) -> Result<CreateSandboxResponse<'static>, Refusal> {
        let now = self.clock.now();
        self.work(
            |habits| habits.create_takes,
            |agent| agent.begin_create(id, request, now),
            |agent| agent.finish_start(id, self.clock.now()),
        )
    }

    pub(super) fn resume(
        &self,
        id: SandboxId,
        request: &ResumeSandboxRequest<'_>,
    ) -> Result<CreateSandboxResponse<'static>, Refusal> {
        self.work(
            |habits| habits.resume_takes,
            |agent| agent.begin_resume(id, request.timeout_sec),
            |agent| agent.finish_start(id, self.clock.now()),
        )
    }

    pub(super) fn pause(&self, id: SandboxId) -> Result<(), Refusal> {
        self.work(
            |habits| habits.pause_takes,
            |agent| agent.begin_pause(id),
            |agent| agent.finish_pause(id),
        )
    }

    /// Begins, takes its time, and finishes unless the agent ended meanwhile.
    fn work<T>(
        &self,
        takes: impl Fn(&Habits) -> Duration,
        begin: impl FnOnce(&mut SimAgent) -> Result<(), Refusal>,
        finish: impl FnOnce(&mut SimAgent) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let boot = self.change(|inner| begin(&mut inner.agent).map(|()| inner.boot))?;
        self.holds.wait(|| {
            let inner = lock(&self.inner);
            if inner.boot == boot { takes(&inner.habits) } else { Duration::ZERO }
        });
        self.change(|inner| {
            if inner.boot == boot {
                finish(&mut inner.agent)
            } else {
                Err((ConnectCode::Unavailable, "the agent was restarted".to_owned()))
            }
        })
    }

    pub(super) fn destroy(&self, id: SandboxId) -> Result<(), Refusal> {
        self.work(|habits| habits.destroy_takes, |agent| agent.find(id), |agent| agent.destroy(id))
    }

    pub(super) fn ping(&self, id: SandboxId) -> Result<(), Refusal> {
        lock(&self.inner).agent.ping(id, self.clock.now())
    }
}
