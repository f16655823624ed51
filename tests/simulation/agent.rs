//! Owns one simulated agent: what it really has, and the habits of real agents.
//!
//! Never: knows the control plane, a network or a clock: the moment is an argument, and
//! what takes time comes back as an [`Out::Later`].
//!
//! The habits: one call at a time works on a sandbox; a create is listed only when it is
//! done; a sandbox is listed as running until its pause is over, and one that paused by
//! itself leaves the list a moment before it is announced; what was announced is forgotten;
//! a restart empties the list, keeps the snapshots, and may find its microVMs again later.
//! A call ends with its connection: an unfinished create is undone, a pause leaves the
//! sandbox running, a resume leaves the snapshot. Before an orderly end nothing but lists is
//! answered, and after a restart the snapshots are unknown until the disk is read.

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
    /// After a restart it lists those from before, with the time of their pause.
    pub(crate) lists_after_restart: bool,
    /// Names what it paused by itself in its list too, not only in a report.
    pub(crate) announces: bool,
    /// Lists what failed by itself as `error`, and reports failures under their own names.
    pub(crate) tells_failures: bool,
    /// Finishes a call although its caller is gone.
    pub(crate) finishes_orphans: bool,
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
    /// A microVM that failed by itself, kept to be listed.
    Failed,
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
    /// The call of this number, which works on it, is done.
    Done(SandboxId, u64),
    /// Nobody used it for long, if it is still the same life.
    Idle(SandboxId, u64),
    /// Its own pause is over.
    Slept(SandboxId),
    Announce(SandboxId),
    /// It paused everything.
    PausedAll,
    /// It has found its microVMs again.
    Found,
    /// It has read its disk.
    Read,
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
    /// Paused before the last restart.
    shelved: bool,
    created_at_unix: i64,
    paused_at_unix: i64,
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
    /// It has not read its disk yet: it has no snapshot from before the restart.
    pub(crate) reading: bool,
    /// It is about to end, and answers nothing but lists.
    pub(crate) draining: bool,
    /// No sandbox pauses by itself any more: the world comes to rest.
    pub(crate) restful: bool,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    waiting: BTreeMap<SandboxId, VecDeque<Arrived>>,
    announced: Vec<SandboxId>,
    /// Paused by itself; the announcement was not fetched yet, nor a report of it taken.
    untold: BTreeSet<SandboxId>,
    /// The same, and the announcement is lost: a restart forgot it, or every report of it.
    pub(crate) forgotten: BTreeSet<SandboxId>,
    /// How often it answered that it has no snapshot of what it has one of.
    denied: BTreeMap<SandboxId, u32>,
    /// What it said it had not when it was to destroy it, and has on its disk.
    pub(crate) disowned: BTreeSet<SandboxId>,
    lives: u64,
}

impl Agent {
    pub(crate) fn new(habits: Habits) -> Agent {
        Agent {
            habits,
            up: true,
            boot: 0,
            blind: false,
            reading: false,
            draining: false,
            restful: false,
            sandboxes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            announced: Vec::new(),
            untold: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            denied: BTreeMap::new(),
            disowned: BTreeSet::new(),
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

    /// Whether it paused this by itself, and nothing that it has said so far tells that.
    pub(crate) fn has_not_told(&self, id: SandboxId) -> bool {
        self.forgotten.contains(&id) || !self.habits.announces && self.untold.contains(&id)
    }

    /// How often it denied to have a snapshot of this since it last ran.
    pub(crate) fn denials(&self, id: SandboxId) -> u32 {
        self.denied.get(&id).copied().unwrap_or(0)
    }

    /// A report of what it paused by itself was taken.
    pub(crate) fn was_told(&mut self, id: SandboxId) {
        self.untold.remove(&id);
    }

    /// Every try to report it failed.
    pub(crate) fn gave_up_telling(&mut self, id: SandboxId) {
        if !self.habits.announces && self.untold.remove(&id) {
            self.forgotten.insert(id);
        }
    }

    /// The answer to `ListSandboxes`. What it announces is forgotten.
    pub(crate) fn list(&mut self) -> Listing {
        let lists = |sandbox: &Sandbox| match sandbox.shelved {
            false => self.habits.lists_paused,
            true => self.habits.lists_after_restart && !self.reading,
        };
        let entry = |(id, sandbox): (&SandboxId, &Sandbox)| {
            let (state, created_at_unix) = match sandbox.state {
                Truth::Running | Truth::Pausing if !self.blind => {
                    (ListedState::Running, sandbox.created_at_unix)
                }
                Truth::Paused if lists(sandbox) && sandbox.shelved => {
                    (ListedState::Paused, sandbox.paused_at_unix)
                }
                Truth::Paused if lists(sandbox) => (ListedState::Paused, sandbox.created_at_unix),
                Truth::Failed => (ListedState::Error, sandbox.created_at_unix),
                Truth::Nothing
                | Truth::Making
                | Truth::Running
                | Truth::Pausing
                | Truth::Paused => {
                    return None;
                }
            };
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
            (OperationKind::Create, Truth::Nothing) => {
                (Truth::Making, self.takes_ms(4_000, chance))
            }
            (OperationKind::Create, _) => return refuse("sandbox already exists"),
            (OperationKind::Pause, Truth::Running) => {
                (Truth::Pausing, self.takes_ms(4_000, chance))
            }
            (OperationKind::Pause, _) => return refuse("sandbox not running"),
            (OperationKind::Resume, Truth::Paused) if self.hides(id) => {
                *self.denied.entry(id).or_default() += 1;
                return match chance.permille(500) {
                    true => refuse("no snapshot found"),
                    false => vec![Out::Answer(call.number, Err(not_found()))],
                };
            }
            (OperationKind::Resume, Truth::Paused) => (Truth::Making, self.takes_ms(2_000, chance)),
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
            (OperationKind::Destroy, Truth::Paused) if self.hides(id) => {
                self.disowned.insert(id);
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
            paused_at_unix: now_unix,
            timeout_s: 0,
            life: 0,
        });
        (sandbox.state, sandbox.call, sandbox.busy) = (to, Some(call), true);
        if call.timeout_s > 0 {
            sandbox.timeout_s = call.timeout_s;
        }
        vec![Out::Later(takes_ms, Later::Done(id, call.number))]
    }

    /// Whether it does not know yet that it has a snapshot of this.
    fn hides(&self, id: SandboxId) -> bool {
        self.reading && self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.shelved)
    }

    fn takes_ms(&self, usual_ms: u64, chance: &mut Chance) -> u64 {
        if self.restful { usual_ms } else { chance.duration_ms(usual_ms) }
    }

    /// The caller of this call is gone. Gives whether that ended anything, and what follows.
    pub(crate) fn hang_up(
        &mut self,
        number: u64,
        now_unix: i64,
        chance: &mut Chance,
    ) -> (bool, Vec<Out>) {
        if self.habits.finishes_orphans {
            return (false, Vec::new());
        }
        for calls in self.waiting.values_mut() {
            // A destroy that waits is carried out or not.
            let keeps = chance.permille(500);
            calls.retain(|c| c.number != number || c.kind == OperationKind::Destroy && keeps);
        }
        let works = |s: &Sandbox| s.call.is_some_and(|call| call.number == number);
        let found = self.sandboxes.iter_mut().find(|(_, sandbox)| works(sandbox));
        let Some((&id, sandbox)) = found else { return (false, Vec::new()) };
        let was_made = sandbox.life > 0;
        (sandbox.call, sandbox.busy) = (None, false);
        match sandbox.state {
            Truth::Making if was_made => sandbox.state = Truth::Paused,
            Truth::Making => drop(self.sandboxes.remove(&id)),
            Truth::Pausing => sandbox.state = Truth::Running,
            Truth::Nothing | Truth::Running | Truth::Paused | Truth::Failed => {}
        }
        (true, self.next(id, now_unix, chance))
    }

    /// The moment for something has come.
    pub(crate) fn act(&mut self, later: Later, now_unix: i64, chance: &mut Chance) -> Vec<Out> {
        match later {
            Later::Done(id, number) => {
                let mut out = self.done(id, number, now_unix, chance);
                out.extend(self.next(id, now_unix, chance));
                out
            }
            Later::Idle(id, life) => self.idle(id, life, chance),
            Later::Slept(id) => {
                let mut out = self.slept(id, now_unix, chance);
                out.extend(self.next(id, now_unix, chance));
                out
            }
            Later::Announce(id) => {
                if self.habits.announces {
                    self.announced.push(id);
                }
                vec![Out::Report(ReportKind::AutoPaused, id)]
            }
            Later::PausedAll => {
                let idle =
                    |sandbox: &&mut Sandbox| sandbox.state == Truth::Running && !sandbox.busy;
                self.sandboxes.values_mut().filter(idle).for_each(|s| {
                    (s.state, s.paused_at_unix) = (Truth::Paused, now_unix);
                });
                Vec::new()
            }
            Later::Found => {
                self.blind = false;
                Vec::new()
            }
            Later::Read => {
                self.reading = false;
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

    fn done(&mut self, id: SandboxId, number: u64, now_unix: i64, chance: &mut Chance) -> Vec<Out> {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return Vec::new() };
        let Some(call) = sandbox.call.take_if(|call| call.number == number) else {
            return Vec::new();
        };
        sandbox.busy = false;
        let fails = chance.permille(40) && !self.restful;
        let named = |newer| if self.habits.tells_failures { newer } else { ReportKind::Failed };
        let answer = |result| Out::Answer(call.number, result);
        match call.kind {
            OperationKind::Create if fails => {
                self.sandboxes.remove(&id);
                vec![answer(Err(internal("no such template"))), Out::Report(ReportKind::Failed, id)]
            }
            OperationKind::Resume if fails => {
                sandbox.state = Truth::Paused;
                let report = Out::Report(named(ReportKind::ResumeFailed), id);
                vec![answer(Err(internal("not ready"))), report]
            }
            OperationKind::Create | OperationKind::Resume => {
                self.lives += 1;
                self.forgotten.remove(&id);
                self.untold.remove(&id);
                self.denied.remove(&id);
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
                let report = Out::Report(named(ReportKind::PauseFailed), id);
                vec![answer(Err(internal("snapshot failed"))), report]
            }
            OperationKind::Pause => {
                (sandbox.state, sandbox.paused_at_unix) = (Truth::Paused, now_unix);
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

    fn slept(&mut self, id: SandboxId, now_unix: i64, chance: &mut Chance) -> Vec<Out> {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return Vec::new() };
        (sandbox.state, sandbox.busy) = (Truth::Paused, false);
        sandbox.paused_at_unix = now_unix;
        self.untold.insert(id);
        vec![Out::Later(chance.within(10, ANNOUNCED_WITHIN_MS), Later::Announce(id))]
    }

    /// A microVM dies; gives what is reported of it. `None` when there is none that does
    /// nothing else.
    pub(crate) fn crash(&mut self, id: SandboxId) -> Option<ReportKind> {
        let idle = |s: &&mut Sandbox| s.state == Truth::Running && !s.busy;
        let sandbox = self.sandboxes.get_mut(&id).filter(idle)?;
        match self.habits.tells_failures {
            true => sandbox.state = Truth::Failed,
            false => drop(self.sandboxes.remove(&id)),
        }
        let newer = self.habits.tells_failures;
        Some(if newer { ReportKind::Error } else { ReportKind::Stopped })
    }

    /// The process ends; `found` says that its microVMs live on and that it will find them,
    /// `reading` that the next one reads its disk for a while. Gives the calls that are broken
    /// off.
    pub(crate) fn end(&mut self, found: bool, reading: bool) -> Vec<u64> {
        self.up = false;
        self.boot += 1;
        (self.blind, self.reading, self.draining) = (found, reading, false);
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
                Truth::Making | Truth::Nothing | Truth::Failed => return false,
                Truth::Paused => {}
            }
            sandbox.shelved |= sandbox.state == Truth::Paused;
            found || sandbox.state == Truth::Paused
        });
        broken
    }

    /// An operator removes these on the machine itself.
    pub(crate) fn remove(&mut self, ids: &[SandboxId]) {
        self.sandboxes.retain(|id, sandbox| sandbox.busy || !ids.contains(id));
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
