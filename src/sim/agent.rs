//! Owns what one simulated agent has, and how each call and each habit changes it.
//!
//! Never: I/O, threads, clocks: the moment is an argument. Called by `host` and `calls`.
//!
//! The behaviour is that of real agents (behaviour.md sections 4, 7 and 10), older and newer
//! ones. An older agent knows only what has a microVM, calls it running until it is gone, and
//! announces in a listing what it paused by itself. A newer one also knows what is paused and
//! reads it from the disk after a restart. Either finds nothing until it has read its disk.

use super::listing::{Rendered, details, render};
use super::refusal::{self, Refusal, internal};
use super::sandbox::{SimSandbox, SimState};
use super::template::Template;
use crate::agent::wire::{ConnectCode, CreateSandboxRequest, CreateSandboxResponse};
use crate::model::id::SandboxId;
use crate::model::time::{Mono, Now};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// From when a sandbox leaves the list because the agent pauses it by itself, to when it is
/// announced. Larger: probes find neither more often than in reality; smaller: hardly ever.
const ANNOUNCED_AFTER: Duration = Duration::from_millis(100);

/// Size of a template's disk. Larger or smaller: it only has to look like one.
const ROOTFS_BYTES: i64 = 512 << 20;

/// What distinguishes one version of the agent from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Version {
    /// Knows paused sandboxes.
    pub(super) newer: bool,
    /// Announces in a listing what it paused by itself.
    pub(super) announces: bool,
    /// Leaves a sandbox as it was after a template was made of it, instead of destroying it.
    pub(super) keeps_after_snapshot: bool,
}

/// A call that changes a sandbox, and what it needs.
#[derive(Debug)]
pub(super) enum Change<'a> {
    Create(&'a CreateSandboxRequest<'a>, Template),
    Resume { timeout_sec: i32 },
    Pause,
    Destroy,
    Snapshot(Template),
}

/// A call that has begun; it is finished or undone, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    Create,
    Resume { from: SimState },
    Pause,
    Destroy,
    Snapshot { from: SimState, template: Template },
}

/// What a call has become when it is not refused.
#[derive(Debug)]
pub(super) enum Done {
    /// The sandbox runs.
    Started(CreateSandboxResponse<'static>),
    /// The template has so many bytes.
    Template(i64),
    /// Nothing more to say.
    Nothing,
}

/// How a call begins when it is not refused.
#[derive(Debug)]
pub(super) enum Step {
    /// It takes time.
    Takes(Begun),
    /// It finds its work done.
    Done(Done),
}

/// What one agent has.
#[derive(Debug)]
pub(super) struct SimAgent {
    version: Version,
    sandboxes: BTreeMap<SandboxId, SimSandbox>,
    /// Templates beside `minimal`, and their bytes.
    templates: BTreeMap<Template, i64>,
    /// Until when nothing of what is on the disk is found; `None`: the disk was read.
    index_until: Option<Mono>,
    /// Off the list because the agent paused them, and from when they are announced.
    unannounced: Vec<(SandboxId, Mono)>,
    /// What the next listing announces.
    announced: Vec<SandboxId>,
    /// The listing without announcements, until something changes.
    rendered: Option<Rendered>,
    next_slot: u16,
}

impl SimAgent {
    /// An agent that has nothing.
    pub(super) fn new(version: Version) -> SimAgent {
        SimAgent {
            version,
            sandboxes: BTreeMap::new(),
            templates: BTreeMap::new(),
            index_until: None,
            unannounced: Vec::new(),
            announced: Vec::new(),
            rendered: None,
            next_slot: 2,
        }
    }

    /// Puts a sandbox there, as if it had come about long ago.
    pub(super) fn put(&mut self, id: SandboxId, state: SimState, created_at_unix: i64) {
        let slot = self.take_slot();
        self.sandboxes.insert(id, SimSandbox::new(state, slot, created_at_unix));
        self.rendered = None;
    }

    /// Makes the next listing announce a sandbox, which has its snapshot by now.
    pub(super) fn announce(&mut self, id: SandboxId) {
        self.announced.push(id);
    }

    /// Puts a template there.
    pub(super) fn put_template(&mut self, template: Template) {
        if template != Template::MINIMAL {
            self.templates.insert(template, ROOTFS_BYTES);
        }
    }

    /// Templates beside `minimal`.
    pub(super) fn templates(&self) -> impl Iterator<Item = Template> {
        self.templates.keys().copied()
    }

    fn take_slot(&mut self) -> u16 {
        let slot = self.next_slot;
        self.next_slot = slot.checked_add(1).unwrap_or(2);
        slot
    }

    /// Everything there is, in order of ids.
    pub(super) fn all(&self) -> impl Iterator<Item = (SandboxId, &SimSandbox)> {
        self.sandboxes.iter().map(|(id, sandbox)| (*id, sandbox))
    }

    /// One of them.
    pub(super) fn state(&self, id: SandboxId) -> Option<SimState> {
        self.sandboxes.get(&id).map(|sandbox| sandbox.state)
    }

    /// Does what time alone does: the agent has read its disk; a newer one knows from then on
    /// what is on it.
    pub(super) fn pass(&mut self, now: Mono) {
        if self.index_until.take_if(|until| *until <= now).is_none() || !self.version.newer {
            return;
        }
        for sandbox in self.sandboxes.values_mut() {
            if sandbox.state == SimState::Shelved {
                sandbox.state = SimState::Paused;
            }
        }
        self.rendered = None;
    }

    /// What the agent itself knows a sandbox to do.
    fn known(&self, id: SandboxId) -> Option<SimState> {
        self.state(id).filter(|state| self.status(*state).is_some())
    }

    /// The status that a listing says, if the agent knows such a sandbox at all.
    fn status(&self, state: SimState) -> Option<&'static str> {
        let newer = self.version.newer;
        match state {
            SimState::Running => Some("running"),
            SimState::Pausing => Some(if newer { "pausing" } else { "running" }),
            SimState::Paused | SimState::Resuming => newer.then_some("paused"),
            SimState::Error => Some("error"),
            SimState::Creating | SimState::Shelved => None,
        }
    }

    /// Whether the agent finds a snapshot from which the sandbox can be started.
    fn finds_snapshot(&self, state: SimState) -> bool {
        match state {
            SimState::Paused => true,
            SimState::Shelved => self.index_until.is_none(),
            SimState::Creating
            | SimState::Resuming
            | SimState::Running
            | SimState::Pausing
            | SimState::Error => false,
        }
    }

    /// Begins a call, or refuses it.
    pub(super) fn begin(
        &mut self,
        id: SandboxId,
        change: &Change<'_>,
        now: Now,
    ) -> Result<Step, Refusal> {
        match change {
            Change::Create(request, template) => self.begin_create(id, request, *template, now),
            Change::Resume { timeout_sec } => self.begin_resume(id, *timeout_sec),
            Change::Pause => self.begin_pause(id),
            Change::Destroy => self.begin_destroy(id),
            Change::Snapshot(template) => self.begin_snapshot(id, *template),
        }
    }

    fn begin_create(
        &mut self,
        id: SandboxId,
        request: &CreateSandboxRequest<'_>,
        template: Template,
        now: Now,
    ) -> Result<Step, Refusal> {
        if self.sandboxes.contains_key(&id) {
            return Err(refusal::exists(id));
        }
        if !self.has_template(template) {
            return Err(refusal::no_template(template));
        }
        let or_usual = |asked: i32, usual: i32| if asked > 0 { asked } else { usual };
        let slot = self.take_slot();
        let usual = SimSandbox::new(SimState::Creating, slot, now.wall.unix_seconds());
        let sandbox = SimSandbox {
            vcpus: or_usual(request.vcpus, usual.vcpus),
            memory_mb: or_usual(request.memory_mb, usual.memory_mb),
            timeout_sec: request.timeout_sec,
            template: (template != Template::MINIMAL).then(|| Box::new(template)),
            ..usual
        };
        self.sandboxes.insert(id, sandbox);
        Ok(Step::Takes(Begun::Create))
    }

    fn begin_resume(&mut self, id: SandboxId, timeout_sec: i32) -> Result<Step, Refusal> {
        let from = match self.state(id) {
            Some(state) if self.finds_snapshot(state) => state,
            Some(SimState::Running) if self.version.newer => {
                return Ok(Step::Done(Done::Started(self.started(id))));
            }
            state => return Err(self.cannot_resume(id, state)),
        };
        let newer = self.version.newer;
        self.change(id, |sandbox| {
            sandbox.state = SimState::Resuming;
            if timeout_sec > 0 || !newer {
                sandbox.timeout_sec = timeout_sec;
            }
        });
        Ok(Step::Takes(Begun::Resume { from }))
    }

    fn cannot_resume(&self, id: SandboxId, state: Option<SimState>) -> Refusal {
        let known = self.known(id);
        if self.version.newer {
            return match known {
                Some(state) => internal(refusal::not_paused(id, word(state))),
                None => refusal::not_found(id),
            };
        }
        // The snapshot of a sandbox that was paused before is still there, but not its disk.
        let was_paused = self.sandboxes.get(&id).is_some_and(|s| s.paused_at_unix.is_some());
        match state {
            Some(SimState::Resuming) => refusal::disk_in_use(id),
            Some(SimState::Running | SimState::Pausing | SimState::Error) if was_paused => {
                refusal::disk_in_use(id)
            }
            None
            | Some(
                SimState::Creating
                | SimState::Running
                | SimState::Pausing
                | SimState::Paused
                | SimState::Shelved
                | SimState::Error,
            ) => internal(refusal::no_snapshot(id)),
        }
    }

    fn begin_pause(&mut self, id: SandboxId) -> Result<Step, Refusal> {
        match self.known(id) {
            Some(SimState::Running) => {
                self.change(id, |sandbox| sandbox.state = SimState::Pausing);
                Ok(Step::Takes(Begun::Pause))
            }
            // Older agents no longer know it.
            Some(SimState::Paused) => Ok(Step::Done(Done::Nothing)),
            Some(state) => Err(internal(refusal::not_running(id, word(state)))),
            None => Err(internal(refusal::no_sandbox(id))),
        }
    }

    fn begin_destroy(&self, id: SandboxId) -> Result<Step, Refusal> {
        let found = match self.state(id) {
            None => false,
            // An older agent learns of it when it is ready; the create continues.
            Some(SimState::Creating) => self.version.newer,
            Some(SimState::Shelved) => self.index_until.is_none(),
            Some(
                SimState::Resuming
                | SimState::Running
                | SimState::Pausing
                | SimState::Paused
                | SimState::Error,
            ) => true,
        };
        if found { Ok(Step::Takes(Begun::Destroy)) } else { Err(refusal::not_found(id)) }
    }

    fn begin_snapshot(&mut self, id: SandboxId, template: Template) -> Result<Step, Refusal> {
        let refused = |why: String| internal(format!("create snapshot: {why}"));
        if self.version.newer && self.has_template(template) {
            return Err(refusal::template_exists(template));
        }
        let from = match self.state(id) {
            Some(SimState::Running) => SimState::Running,
            Some(state) if self.finds_snapshot(state) => state,
            Some(_) | None => {
                let older = if self.version.newer { "" } else { "pause sandbox: " };
                return Err(refused(match (self.known(id), self.version.newer) {
                    (Some(state), _) => {
                        format!("{older}{}", refusal::not_running(id, word(state)))
                    }
                    (None, true) => refusal::no_sandbox(id),
                    (None, false) => refusal::no_snapshot(id),
                }));
            }
        };
        if from == SimState::Running {
            self.change(id, |sandbox| sandbox.state = SimState::Pausing);
        }
        Ok(Step::Takes(Begun::Snapshot { from, template }))
    }

    /// Finishes a call, unless something else ended the sandbox meanwhile.
    pub(super) fn finish(
        &mut self,
        id: SandboxId,
        begun: Begun,
        now: Now,
    ) -> Result<Done, Refusal> {
        match (begun, self.state(id)) {
            (Begun::Create, Some(SimState::Creating)) => {
                self.start(id, now, true);
                Ok(Done::Started(self.started(id)))
            }
            (Begun::Create, _) => Err(refusal::canceled("create sandbox: wait for envd")),
            (Begun::Resume { .. }, Some(SimState::Resuming)) => {
                self.start(id, now, !self.version.newer);
                Ok(Done::Started(self.started(id)))
            }
            (Begun::Resume { .. }, _) => Err(refusal::canceled("wait for envd")),
            (Begun::Pause, Some(SimState::Pausing)) => {
                self.pause(id, now);
                Ok(Done::Nothing)
            }
            // The agent paused everything meanwhile.
            (Begun::Pause, Some(SimState::Paused)) => Ok(Done::Nothing),
            (Begun::Pause, _) => Err(refusal::canceled("pause VM")),
            (Begun::Destroy, Some(_)) => {
                self.remove(id);
                Ok(Done::Nothing)
            }
            (Begun::Destroy, None) => Err(refusal::not_found(id)),
            (Begun::Snapshot { from, template }, Some(state)) if state == during(from) => {
                Ok(Done::Template(self.copy(id, from, template)))
            }
            (Begun::Snapshot { .. }, _) => Err(refusal::canceled("create snapshot: vm.snapshot")),
        }
    }

    /// Undoes a call that was not finished, unless something else changed the sandbox.
    pub(super) fn undo(&mut self, id: SandboxId, begun: Begun) {
        let back_to = match (begun, self.state(id)) {
            (Begun::Create, Some(SimState::Creating)) => return self.remove(id),
            (Begun::Resume { from }, Some(SimState::Resuming)) => from,
            (Begun::Pause, Some(SimState::Pausing)) => SimState::Running,
            (Begun::Snapshot { from, .. }, Some(state)) if state == during(from) => from,
            (
                Begun::Create
                | Begun::Resume { .. }
                | Begun::Pause
                | Begun::Destroy
                | Begun::Snapshot { .. },
                _,
            ) => return,
        };
        self.change(id, |sandbox| sandbox.state = back_to);
    }

    /// A microVM runs from now on; `made` when it counts as one that was just made.
    fn start(&mut self, id: SandboxId, now: Now, made: bool) {
        let now_unix = now.wall.unix_seconds();
        self.change(id, |sandbox| {
            sandbox.state = SimState::Running;
            sandbox.last_active_at_unix = now_unix;
            sandbox.has_address = true;
            if made {
                sandbox.created_at_unix = now_unix;
                sandbox.has_versions = true;
            }
            if made && sandbox.paused_at_unix.is_some() {
                // Older agents do not keep with a snapshot what the sandbox was made from.
                sandbox.template = None;
            }
        });
    }

    fn pause(&mut self, id: SandboxId, now: Now) {
        self.change(id, |sandbox| {
            sandbox.state = SimState::Paused;
            sandbox.paused_at_unix = Some(now.wall.unix_seconds());
        });
    }

    /// Makes the template; its size in bytes.
    fn copy(&mut self, id: SandboxId, from: SimState, template: Template) -> i64 {
        let memory_mb = self.sandboxes.get(&id).map_or(0, |sandbox| sandbox.memory_mb);
        let size_bytes = ROOTFS_BYTES + (i64::from(memory_mb) << 20);
        self.templates.insert(template, size_bytes);
        if self.version.keeps_after_snapshot {
            self.change(id, |sandbox| sandbox.state = from);
        } else {
            self.remove(id);
        }
        size_bytes
    }

    fn started(&self, id: SandboxId) -> CreateSandboxResponse<'static> {
        let newer = self.version.newer;
        let known = self.sandboxes.get(&id).map(|sandbox| details(sandbox, newer));
        let (host_ip, metadata) = known.unwrap_or_default();
        CreateSandboxResponse {
            sandbox_id: Cow::Owned(id.to_string()),
            status: Cow::Borrowed("running"),
            host_ip: Cow::Owned(host_ip),
            metadata,
        }
    }

    /// Resets the idle timer.
    pub(super) fn ping(&mut self, id: SandboxId, now: Now) -> Result<(), Refusal> {
        match self.known(id) {
            Some(SimState::Running) => {
                let now_unix = now.wall.unix_seconds();
                self.change(id, |sandbox| sandbox.last_active_at_unix = now_unix);
                Ok(())
            }
            Some(state) => {
                Err((ConnectCode::FailedPrecondition, refusal::not_running(id, word(state))))
            }
            None => Err(refusal::not_found(id)),
        }
    }

    fn has_template(&self, template: Template) -> bool {
        template == Template::MINIMAL || self.templates.contains_key(&template)
    }

    /// Removes a template; one that is not there was removed before.
    pub(super) fn delete_template(&mut self, template: Template) -> Result<(), Refusal> {
        let users = self
            .all()
            .filter(|(id, sandbox)| self.known(*id).is_some() && sandbox.template() == template);
        let users: Vec<SandboxId> = users.map(|(id, _)| id).collect();
        if self.version.newer && !users.is_empty() {
            return Err(refusal::template_in_use(template, &users));
        }
        self.templates.remove(&template);
        Ok(())
    }

    /// Bytes of a template.
    pub(super) fn template_size(&self, template: Template) -> Result<i64, Refusal> {
        match self.templates.get(&template) {
            Some(size_bytes) => Ok(*size_bytes),
            None if template == Template::MINIMAL => Ok(ROOTFS_BYTES),
            None => Err(refusal::no_size(template)),
        }
    }

    /// Pauses a running sandbox on the agent's own account. False when it does not run.
    pub(super) fn auto_pause(&mut self, id: SandboxId, now: Now) -> bool {
        let running = self.state(id) == Some(SimState::Running);
        if running {
            self.pause(id, now);
        }
        if running && self.version.announces {
            self.unannounced.push((id, now.mono.after(ANNOUNCED_AFTER)));
        }
        running
    }

    /// Pauses whatever has a microVM and announces nothing, as after three lost heartbeats.
    /// Says which.
    pub(super) fn pause_all(&mut self, now: Now) -> Vec<SandboxId> {
        let runs = |state| matches!(state, SimState::Running | SimState::Pausing);
        let running = self.all().filter(|(_, sandbox)| runs(sandbox.state));
        let running: Vec<SandboxId> = running.map(|(id, _)| id).collect();
        running.iter().for_each(|id| self.pause(*id, now));
        running
    }

    /// A microVM breaks and stays. False when there is none.
    pub(super) fn fail(&mut self, id: SandboxId) -> bool {
        let runs = matches!(self.state(id), Some(SimState::Running | SimState::Pausing));
        if runs {
            self.change(id, |sandbox| sandbox.state = SimState::Error);
        }
        runs
    }

    /// Removes a sandbox and its snapshot without a call. False when there is none.
    pub(super) fn lose(&mut self, id: SandboxId) -> bool {
        let known = self.sandboxes.contains_key(&id);
        self.remove(id);
        known
    }

    /// The agent's process ends: what has a microVM is gone, what has a snapshot keeps it,
    /// nothing is left to announce.
    pub(super) fn stop(&mut self) {
        self.sandboxes.retain(|_, sandbox| match sandbox.state {
            SimState::Creating | SimState::Running | SimState::Pausing | SimState::Error => false,
            SimState::Resuming | SimState::Paused | SimState::Shelved => {
                sandbox.state = SimState::Shelved;
                true
            }
        });
        self.unannounced.clear();
        self.announced.clear();
        self.rendered = None;
    }

    /// The agent's process starts, and takes so long to read what is on the disk.
    pub(super) fn start_up(&mut self, now: Mono, index_takes: Duration) {
        self.index_until = Some(now.after(index_takes));
        if self.version.newer {
            self.sandboxes.values_mut().for_each(as_on_disk);
        }
    }

    /// Removes everything, snapshots included.
    pub(super) fn destroy_all(&mut self) {
        self.sandboxes.clear();
        self.stop();
    }

    /// The answer to `ListSandboxes`. What it announces is forgotten.
    pub(super) fn list(&mut self, now: Mono) -> Rendered {
        let due = |&mut (_, at): &mut (SandboxId, Mono)| at <= now;
        self.announced.extend(self.unannounced.extract_if(.., due).map(|(id, _)| id));
        if !self.announced.is_empty() {
            let announced = std::mem::take(&mut self.announced);
            return self.render(&announced);
        }
        if let Some(rendered) = &self.rendered {
            return rendered.clone();
        }
        let rendered = self.render(&[]);
        self.rendered = Some(rendered.clone());
        rendered
    }

    fn render(&self, announced: &[SandboxId]) -> Rendered {
        let listed = self.all();
        let listed = listed.filter_map(|(id, s)| Some((id, s, self.status(s.state)?)));
        render(listed, announced, self.version.newer)
    }

    fn change(&mut self, id: SandboxId, act: impl FnOnce(&mut SimSandbox)) {
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            act(sandbox);
            self.rendered = None;
        }
    }

    fn remove(&mut self, id: SandboxId) {
        self.sandboxes.remove(&id);
        self.rendered = None;
    }
}

/// What a sandbox does while a template is made of it.
fn during(from: SimState) -> SimState {
    if from == SimState::Running { SimState::Pausing } else { from }
}

/// A newer agent keeps with a snapshot when it was made, and neither address nor versions.
fn as_on_disk(sandbox: &mut SimSandbox) {
    if let Some(paused_at_unix) = sandbox.paused_at_unix {
        sandbox.created_at_unix = paused_at_unix;
        sandbox.last_active_at_unix = paused_at_unix;
    }
    sandbox.has_address = false;
    sandbox.has_versions = false;
}

/// What an agent calls a state when it refuses a call because of it.
fn word(state: SimState) -> &'static str {
    match state {
        SimState::Creating => "starting",
        SimState::Resuming => "resuming",
        SimState::Running => "running",
        SimState::Pausing => "pausing",
        SimState::Paused | SimState::Shelved => "paused",
        SimState::Error => "error",
    }
}
