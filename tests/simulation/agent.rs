//! Owns one simulated agent: what it really has, and the habits of real agents.
//!
//! Never: knows the control plane, a network or a clock: the moment is an argument, and
//! what takes time comes back as an [`Out::Later`].
//!
//! The habits: one call at a time works on a sandbox; a create is listed only when it is
//! done; a sandbox is listed as running until its pause is over, and one that paused by
//! itself leaves the list a moment before it is announced; what was announced is forgotten;
//! a restart empties the list, keeps the snapshots, and may find its microVMs again later.

use crate::chance::Chance;
use roost::agent::client::CallError;
use roost::agent::wire::ConnectCode;
use roost::model::id::SandboxId;
use roost::model::operation::OperationKind;
use roost::model::probe::{Details, Listed, ListedState, Listing};
use roost::plan::report::ReportKind;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Longest time from when a sandbox is off the list to when it is announced. It must stay
/// below the delay of a confirmation: "a moment" is what Roost relies on.
const ANNOUNCED_WITHIN_MS: u64 = 2_000;

/// How an agent differs from others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// Lists paused sandboxes too.
    pub(crate) lists_paused: bool,
    /// Takes its time to send a list that it has made.
    pub(crate) lists_slowly: bool,
    /// Lets a destroy wait for a create that is under way; others know nothing of it yet.
    pub(crate) waits_for_creates: bool,
}

/// What is really there of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    Nothing,
    /// A microVM on its way.
    Making,
    Running,
    /// A microVM on its way to a snapshot.
    Pausing,
    /// A snapshot.
    Paused,
}

/// One call as it arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    pub(crate) number: u64,
    pub(crate) kind: OperationKind,
    pub(crate) timeout_s: u64,
}

/// What an agent will do later, unless it was started anew meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Later {
    /// The call that works on it is done.
    Done(SandboxId),
    /// Nobody used it for long, if it is still the same life.
    Idle(SandboxId, u64),
    /// Its own pause is over.
    Slept(SandboxId),
    Announce(SandboxId),
    /// It paused everything.
    PausedAll,
    /// It has found its microVMs again.
    Found,
}

/// What comes of something.
#[derive(Debug)]
pub(crate) enum Out {
    Later(u64, Later),
    Answer(u64, Result<Option<Details>, CallError>),
    Report(ReportKind, SandboxId),
}

#[derive(Debug)]
struct Sandbox {
    state: Truth,
    /// The call that works on it; `None` while its own pause does, or nothing.
    call: Option<Arrived>,
    busy: bool,
    shelved: bool,
    created_at_unix: i64,
    timeout_s: u64,
    life: u64,
}

pub(crate) struct Agent {
    pub(crate) habits: Habits,
    pub(crate) up: bool,
    /// Counts its lives: what one began, the next does not finish.
    pub(crate) boot: u32,
    /// Its microVMs run, and it does not know of them.
    pub(crate) blind: bool,
    /// No sandbox pauses by itself any more: the world comes to rest.
    pub(crate) restful: bool,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    waiting: BTreeMap<SandboxId, VecDeque<Arrived>>,
    announced: Vec<SandboxId>,
    /// Paused by itself; nobody has fetched the announcement.
    untold: BTreeSet<SandboxId>,
    /// The same, and a restart forgot the announcement.
    pub(crate) forgotten: BTreeSet<SandboxId>,
    lives: u64,
}

impl Agent {
    pub(crate) fn new(habits: Habits) -> Agent {
        Agent {
            habits,
            up: true,
            boot: 0,
            blind: false,
            restful: false,
            sandboxes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            announced: Vec::new(),
            untold: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            lives: 0,
        }
    }

    pub(crate) fn truth(&self, id: SandboxId) -> Truth {
        self.sandboxes.get(&id).map_or(Truth::Nothing, |sandbox| sandbox.state)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (SandboxId, Truth)> {
        self.sandboxes.iter().map(|(id, sandbox)| (*id, sandbox.state))
    }

    /// That a sandbox was not used for long, whenever that is said.
    pub(crate) fn unused(&self, id: SandboxId) -> Option<Later> {
        self.sandboxes.get(&id).map(|sandbox| Later::Idle(id, sandbox.life))
    }

    /// The answer to `ListSandboxes`. What it announces is forgotten.
    pub(crate) fn list(&mut self) -> Listing {
        let entry = |(id, sandbox): (&SandboxId, &Sandbox)| {
            let state = match sandbox.state {
                Truth::Running | Truth::Pausing if !self.blind => ListedState::Running,
                Truth::Paused if self.habits.lists_paused && !sandbox.shelved => {
                    ListedState::Paused
                }
                Truth::Nothing
                | Truth::Making
                | Truth::Running
                | Truth::Pausing
                | Truth::Paused => {
                    return None;
                }
            };
            let created_at_unix = sandbox.created_at_unix;
            Some(Listed { id: *id, state, created_at_unix, details: details() })
        };
        let sandboxes = self.sandboxes.iter().filter_map(entry).collect();
        for id in &self.announced {
            self.untold.remove(id);
        }
        Listing { sandboxes, auto_paused: std::mem::take(&mut self.announced) }
    }

    /// A call arrives. What works on the sandbox already goes first.
    pub(crate) fn call(
        &mut self,
        id: SandboxId,
        call: Arrived,
        now_unix: i64,
        chance: &mut Chance,
    ) -> Vec<Out> {
        let waits = self.sandboxes.get(&id).is_some_and(|sandbox| {
            let hidden = sandbox.state == Truth::Making
                && sandbox.call.is_some_and(|call| call.kind == OperationKind::Create)
                && !self.habits.waits_for_creates
                && call.kind == OperationKind::Destroy;
            sandbox.busy && !hidden
        });
        if waits {
            self.waiting.entry(id).or_default().push_back(call);
            return Vec::new();
        }
        self.begin(id, call, now_unix, chance)
    }

    fn begin(
        &mut self,
        id: SandboxId,
        call: Arrived,
        now_unix: i64,
        chance: &mut Chance,
    ) -> Vec<Out> {
        let refuse = |why: &str| vec![Out::Answer(call.number, Err(internal(why)))];
        let (to, takes_ms) = match (call.kind, self.truth(id)) {
            // The slowest outlive their deadline.
            (OperationKind::Create, Truth::Nothing) => (Truth::Making, chance.duration_ms(4_000)),
            (OperationKind::Create, _) => return refuse("sandbox already exists"),
            (OperationKind::Pause, Truth::Running) => (Truth::Pausing, chance.duration_ms(4_000)),
            (OperationKind::Pause, _) => return refuse("sandbox not running"),
            (OperationKind::Resume, Truth::Paused) => (Truth::Making, chance.duration_ms(2_000)),
            (OperationKind::Resume, Truth::Nothing) => return refuse("no snapshot found"),
            (OperationKind::Resume, _) => return refuse("sandbox is not paused"),
            (OperationKind::Snapshot, _) => return refuse("snapshots are not simulated"),
            (OperationKind::Destroy, Truth::Nothing) => {
                return vec![Out::Answer(call.number, Err(not_found()))];
            }
            (OperationKind::Destroy, _) if self.sandboxes[&id].busy => {
                // Only a create that this agent knows nothing of yet.
                return vec![Out::Answer(call.number, Err(not_found()))];
            }
            (OperationKind::Destroy, _) if chance.permille(20) => return refuse("device is busy"),
            (OperationKind::Destroy, _) => {
                self.sandboxes.remove(&id);
                return vec![Out::Answer(call.number, Ok(None))];
            }
        };
        let sandbox = self.sandboxes.entry(id).or_insert(Sandbox {
            state: to,
            call: None,
            busy: true,
            shelved: false,
            created_at_unix: now_unix,
            timeout_s: 0,
            life: 0,
        });
        (sandbox.state, sandbox.call, sandbox.busy) = (to, Some(call), true);
        if call.timeout_s > 0 {
            sandbox.timeout_s = call.timeout_s;
        }
        vec![Out::Later(takes_ms, Later::Done(id))]
    }

    /// The moment for something has come.
    pub(crate) fn act(&mut self, later: Later, now_unix: i64, chance: &mut Chance) -> Vec<Out> {
        match later {
            Later::Done(id) => {
                let mut out = self.done(id, now_unix, chance);
                out.extend(self.next(id, now_unix, chance));
                out
            }
            Later::Idle(id, life) => self.idle(id, life, chance),
            Later::Slept(id) => {
                let mut out = self.slept(id, chance);
                out.extend(self.next(id, now_unix, chance));
                out
            }
            Later::Announce(id) => {
                self.announced.push(id);
                vec![Out::Report(ReportKind::AutoPaused, id)]
            }
            Later::PausedAll => {
                let idle =
                    |sandbox: &&mut Sandbox| sandbox.state == Truth::Running && !sandbox.busy;
                self.sandboxes.values_mut().filter(idle).for_each(|s| s.state = Truth::Paused);
                Vec::new()
            }
            Later::Found => {
                self.blind = false;
                Vec::new()
            }
        }
    }

    /// Whoever waited for this sandbox goes on.
    fn next(&mut self, id: SandboxId, now_unix: i64, chance: &mut Chance) -> Vec<Out> {
        let mut out = Vec::new();
        while !self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.busy) {
            let Some(call) = self.waiting.get_mut(&id).and_then(VecDeque::pop_front) else { break };
            out.extend(self.begin(id, call, now_unix, chance));
        }
        out
    }

    fn done(&mut self, id: SandboxId, now_unix: i64, chance: &mut Chance) -> Vec<Out> {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return Vec::new() };
        let Some(call) = sandbox.call.take() else { return Vec::new() };
        sandbox.busy = false;
        let fails = chance.permille(40);
        let answer = |result| Out::Answer(call.number, result);
        match call.kind {
            OperationKind::Create if fails => {
                self.sandboxes.remove(&id);
                vec![answer(Err(internal("no such template"))), Out::Report(ReportKind::Failed, id)]
            }
            OperationKind::Resume if fails => {
                sandbox.state = Truth::Paused;
                vec![answer(Err(internal("not ready"))), Out::Report(ReportKind::Failed, id)]
            }
            OperationKind::Create | OperationKind::Resume => {
                self.lives += 1;
                self.forgotten.remove(&id);
                (sandbox.state, sandbox.life, sandbox.shelved) =
                    (Truth::Running, self.lives, false);
                sandbox.created_at_unix = now_unix;
                let kind = match call.kind {
                    OperationKind::Create => ReportKind::Started,
                    OperationKind::Resume
                    | OperationKind::Pause
                    | OperationKind::Destroy
                    | OperationKind::Snapshot => ReportKind::Resumed,
                };
                let idle = Later::Idle(id, self.lives);
                let mut out = vec![answer(Ok(Some(details()))), Out::Report(kind, id)];
                if sandbox.timeout_s > 0 {
                    out.push(Out::Later(sandbox.timeout_s * 1000, idle));
                }
                out
            }
            OperationKind::Pause if fails => {
                // Half of the ways to fail leave neither a microVM nor a snapshot.
                match chance.permille(500) {
                    true => drop(self.sandboxes.remove(&id)),
                    false => sandbox.state = Truth::Running,
                }
                vec![answer(Err(internal("snapshot failed"))), Out::Report(ReportKind::Failed, id)]
            }
            OperationKind::Pause => {
                sandbox.state = Truth::Paused;
                vec![answer(Ok(None)), Out::Report(ReportKind::Paused, id)]
            }
            OperationKind::Destroy | OperationKind::Snapshot => Vec::new(),
        }
    }

    fn idle(&mut self, id: SandboxId, life: u64, chance: &mut Chance) -> Vec<Out> {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return Vec::new() };
        let idle = sandbox.life == life && sandbox.state == Truth::Running && !sandbox.busy;
        if !idle || self.restful || self.blind {
            return Vec::new();
        }
        (sandbox.state, sandbox.busy) = (Truth::Pausing, true);
        vec![Out::Later(chance.duration_ms(1_500), Later::Slept(id))]
    }

    fn slept(&mut self, id: SandboxId, chance: &mut Chance) -> Vec<Out> {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return Vec::new() };
        (sandbox.state, sandbox.busy) = (Truth::Paused, false);
        self.untold.insert(id);
        vec![Out::Later(chance.within(10, ANNOUNCED_WITHIN_MS), Later::Announce(id))]
    }

    /// A microVM dies. False when there is none that does nothing else.
    pub(crate) fn crash(&mut self, id: SandboxId) -> bool {
        let idle = self.sandboxes.get(&id).is_some_and(|s| s.state == Truth::Running && !s.busy);
        if idle {
            self.sandboxes.remove(&id);
        }
        idle
    }

    /// The process ends; `found` says that its microVMs live on and that it will find them.
    /// Gives the calls that are broken off.
    pub(crate) fn end(&mut self, found: bool) -> Vec<u64> {
        self.up = false;
        self.boot += 1;
        self.blind = found;
        self.announced.clear();
        self.forgotten.append(&mut self.untold);
        let mut broken: Vec<u64> = Vec::new();
        broken.extend(std::mem::take(&mut self.waiting).into_values().flatten().map(|c| c.number));
        self.sandboxes.retain(|_, sandbox| {
            broken.extend(sandbox.call.take().map(|call| call.number));
            let from_snapshot = sandbox.state == Truth::Making && sandbox.life > 0;
            sandbox.busy = false;
            match sandbox.state {
                Truth::Running => {}
                Truth::Pausing => sandbox.state = Truth::Running,
                Truth::Making if from_snapshot => sandbox.state = Truth::Paused,
                Truth::Making | Truth::Nothing => return false,
                Truth::Paused => {}
            }
            sandbox.shelved |= sandbox.state == Truth::Paused;
            found || sandbox.state == Truth::Paused
        });
        broken
    }

    /// Everything is given up, snapshots too.
    pub(crate) fn destroy_all(&mut self) {
        self.sandboxes.clear();
    }
}

fn details() -> Details {
    Details { host_ip: Some("10.11.0.2".into()), metadata: None }
}

/// Agents say this for nearly every failure.
fn internal(why: &str) -> CallError {
    CallError::Refused { code: ConnectCode::Internal, message: why.to_owned() }
}

fn not_found() -> CallError {
    CallError::Refused { code: ConnectCode::NotFound, message: "sandbox not found".to_owned() }
}
