//! Owns what one simulated agent has, and how each call and each habit changes it.
//!
//! Never: I/O, threads, clocks: the moment is an argument. Called by `host`.
//!
//! The habits are those of real agents (behaviour.md sections 4 and 7): a sandbox is listed
//! from when it is ready, and as `running` until it is gone; one that the agent pauses by
//! itself leaves the list a moment before it is announced; what was announced is forgotten;
//! a restart empties the list and keeps the snapshots.

use crate::agent::wire::{
    ConnectCode, CreateSandboxRequest, CreateSandboxResponse, ListSandboxesResponse, Metadata,
    SandboxInfo,
};
use crate::model::id::{PLATFORM_TEAM, SandboxId};
use crate::model::time::{Mono, Now};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// From when a sandbox leaves the list because the agent pauses it by itself, to when it is
/// announced. Larger: probes find neither more often than in reality; smaller: hardly ever.
pub(super) const ANNOUNCED_AFTER: Duration = Duration::from_millis(100);

/// What every simulated agent says of itself with each sandbox.
pub(super) const METADATA: &str = r#"{"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}"#;

/// What a sandbox on a simulated host is doing: the truth, whatever anybody thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimState {
    /// Being made; not listed yet.
    Creating,
    /// Being started from its snapshot; not listed yet.
    Resuming,
    /// Has a microVM.
    Running,
    /// Being paused; still listed as running.
    Pausing,
    /// Has a snapshot; listed as paused by newer agents only.
    Paused,
    /// Has a snapshot from before the agent's restart; listed by none.
    Shelved,
}

/// One sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SimSandbox {
    pub(super) state: SimState,
    /// Last two bytes of its address.
    pub(super) slot: u16,
    pub(super) vcpus: i32,
    pub(super) memory_mb: i32,
    pub(super) timeout_sec: i32,
    pub(super) created_at_unix: i64,
    pub(super) last_active_at_unix: i64,
}

impl SimSandbox {
    /// A usual one.
    pub(super) fn new(state: SimState, slot: u16, created_at_unix: i64) -> SimSandbox {
        SimSandbox {
            state,
            slot,
            vcpus: 1,
            memory_mb: 512,
            timeout_sec: 300,
            created_at_unix,
            last_active_at_unix: created_at_unix,
        }
    }

    /// Its address on the host's network.
    pub(super) fn host_ip(&self) -> String {
        let [high, low] = self.slot.to_be_bytes();
        format!("10.11.{high}.{low}")
    }
}

/// Why a call is refused: code and message as a real agent words them.
pub(super) type Refusal = (ConnectCode, String);

/// What one agent has.
#[derive(Debug, Default)]
pub(super) struct SimAgent {
    /// Whether it is new enough to list paused sandboxes.
    lists_paused: bool,
    sandboxes: BTreeMap<SandboxId, SimSandbox>,
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
    pub(super) fn new(lists_paused: bool) -> SimAgent {
        SimAgent { lists_paused, next_slot: 2, ..SimAgent::default() }
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

    /// Begins to make a sandbox.
    pub(super) fn begin_create(
        &mut self,
        id: SandboxId,
        request: &CreateSandboxRequest<'_>,
        now: Now,
    ) -> Result<(), Refusal> {
        let slot = self.take_slot();
        let Entry::Vacant(place) = self.sandboxes.entry(id) else {
            return Err(internal(format!("create sandbox: sandbox already exists: {id}")));
        };
        let or_usual = |asked: i32, usual: i32| if asked > 0 { asked } else { usual };
        let usual = SimSandbox::new(SimState::Creating, slot, now.wall.unix_seconds());
        place.insert(SimSandbox {
            vcpus: or_usual(request.vcpus, usual.vcpus),
            memory_mb: or_usual(request.memory_mb, usual.memory_mb),
            timeout_sec: request.timeout_sec,
            ..usual
        });
        Ok(())
    }

    /// Begins to start a sandbox from its snapshot.
    pub(super) fn begin_resume(&mut self, id: SandboxId, timeout_sec: i32) -> Result<(), Refusal> {
        match self.state(id) {
            None => Err(internal(format!("resume sandbox: no snapshot found for {id}"))),
            Some(SimState::Paused | SimState::Shelved) => {
                self.change(id, SimState::Resuming);
                if let Some(sandbox) = self.sandboxes.get_mut(&id) {
                    sandbox.timeout_sec = timeout_sec;
                }
                Ok(())
            }
            Some(
                SimState::Creating | SimState::Resuming | SimState::Running | SimState::Pausing,
            ) => Err(internal(format!("resume sandbox: sandbox is not paused: {id}"))),
        }
    }

    /// A create or resume is done: the sandbox is listed from now on.
    pub(super) fn finish_start(
        &mut self,
        id: SandboxId,
        now: Now,
    ) -> Result<CreateSandboxResponse<'static>, Refusal> {
        match self.state(id) {
            Some(SimState::Creating | SimState::Resuming) => {}
            // Destroyed, or the agent was restarted, meanwhile.
            None
            | Some(SimState::Running | SimState::Pausing | SimState::Paused | SimState::Shelved) => {
                return Err(internal(format!("start sandbox: aborted: {id}")));
            }
        }
        self.change(id, SimState::Running);
        let mut host_ip = String::new();
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.created_at_unix = now.wall.unix_seconds();
            sandbox.last_active_at_unix = sandbox.created_at_unix;
            host_ip = sandbox.host_ip();
        }
        Ok(CreateSandboxResponse {
            sandbox_id: Cow::Owned(id.to_string()),
            status: Cow::Borrowed("running"),
            host_ip: Cow::Owned(host_ip),
            metadata: Metadata::from_compact(METADATA),
        })
    }

    /// Begins to pause a sandbox; it stays listed as running.
    pub(super) fn begin_pause(&mut self, id: SandboxId) -> Result<(), Refusal> {
        match self.state(id) {
            Some(SimState::Running) => {
                self.change(id, SimState::Pausing);
                Ok(())
            }
            None
            | Some(
                SimState::Creating
                | SimState::Resuming
                | SimState::Pausing
                | SimState::Paused
                | SimState::Shelved,
            ) => Err(internal(format!("pause sandbox: sandbox not running: {id}"))),
        }
    }

    /// A pause is done.
    pub(super) fn finish_pause(&mut self, id: SandboxId) -> Result<(), Refusal> {
        match self.state(id) {
            Some(SimState::Pausing) => {
                self.change(id, SimState::Paused);
                Ok(())
            }
            None
            | Some(
                SimState::Creating
                | SimState::Resuming
                | SimState::Running
                | SimState::Paused
                | SimState::Shelved,
            ) => Err(internal(format!("pause sandbox: aborted: {id}"))),
        }
    }

    /// Refuses what is not there.
    pub(super) fn find(&self, id: SandboxId) -> Result<(), Refusal> {
        self.state(id).map(|_| ()).ok_or_else(|| not_found(id))
    }

    /// Removes a sandbox and its snapshot.
    pub(super) fn destroy(&mut self, id: SandboxId) -> Result<(), Refusal> {
        let removed = self.sandboxes.remove(&id);
        self.rendered = None;
        removed.map(|_| ()).ok_or_else(|| not_found(id))
    }

    /// Resets the idle timer.
    pub(super) fn ping(&mut self, id: SandboxId, now: Now) -> Result<(), Refusal> {
        let running = self.state(id) == Some(SimState::Running);
        let sandbox = self.sandboxes.get_mut(&id).filter(|_| running);
        let sandbox = sandbox.ok_or_else(|| not_found(id))?;
        sandbox.last_active_at_unix = now.wall.unix_seconds();
        self.rendered = None;
        Ok(())
    }

    /// Pauses a running sandbox on the agent's own account. False when it does not run.
    pub(super) fn auto_pause(&mut self, id: SandboxId, now: Mono) -> bool {
        let running = self.state(id) == Some(SimState::Running);
        if running {
            self.change(id, SimState::Paused);
            self.unannounced.push((id, now.after(ANNOUNCED_AFTER)));
        }
        running
    }

    /// Pauses whatever runs and announces nothing, as after three lost heartbeats. Says how
    /// many.
    pub(super) fn pause_all(&mut self) -> usize {
        let mut paused = 0;
        for sandbox in self.sandboxes.values_mut() {
            if matches!(sandbox.state, SimState::Running | SimState::Pausing) {
                sandbox.state = SimState::Paused;
                paused += 1;
            }
        }
        self.rendered = None;
        paused
    }

    /// The agent starts anew: what ran is gone, what had a snapshot keeps it, nothing is
    /// listed, nothing is left to announce.
    pub(super) fn restart(&mut self) {
        self.sandboxes.retain(|_, sandbox| match sandbox.state {
            SimState::Creating | SimState::Running | SimState::Pausing => false,
            SimState::Resuming | SimState::Paused | SimState::Shelved => {
                sandbox.state = SimState::Shelved;
                true
            }
        });
        self.unannounced.clear();
        self.announced.clear();
        self.rendered = None;
    }

    /// Removes everything, snapshots included.
    pub(super) fn destroy_all(&mut self) {
        self.sandboxes.clear();
        self.restart();
    }

    /// The answer to `ListSandboxes` as JSON. What it announces is forgotten.
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
        let listed = self.all().filter_map(|(id, sandbox)| {
            Some(info(id, sandbox, listed_as(sandbox.state, self.lists_paused)?))
        });
        let auto_paused = announced.iter().map(|id| Cow::Owned(id.to_string()));
        let answer = ListSandboxesResponse {
            sandboxes: listed.collect(),
            auto_paused_sandbox_ids: auto_paused.collect(),
        };
        // Strings and numbers can always be written.
        let json = serde_json::to_vec(&answer).unwrap_or_default();
        Rendered { gzipped: gzip(&json).into(), json: json.into() }
    }

    fn change(&mut self, id: SandboxId, state: SimState) {
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.state = state;
            self.rendered = None;
        }
    }
}

/// An answer's body in both forms that real agents send it in.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    pub(super) json: Arc<[u8]>,
    pub(super) gzipped: Arc<[u8]>,
}

/// A body as agents send it to whoever takes it so.
pub(super) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Memory takes everything.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

/// The status that a listing says, if it says anything.
fn listed_as(state: SimState, lists_paused: bool) -> Option<&'static str> {
    match state {
        SimState::Running | SimState::Pausing => Some("running"),
        SimState::Paused => lists_paused.then_some("paused"),
        SimState::Creating | SimState::Resuming | SimState::Shelved => None,
    }
}

fn info(id: SandboxId, sandbox: &SimSandbox, status: &'static str) -> SandboxInfo<'static> {
    SandboxInfo {
        sandbox_id: Cow::Owned(id.to_string()),
        status: Cow::Borrowed(status),
        template: Cow::Borrowed(""),
        vcpus: sandbox.vcpus,
        memory_mb: sandbox.memory_mb,
        host_ip: Cow::Owned(sandbox.host_ip()),
        created_at_unix: sandbox.created_at_unix,
        last_active_at_unix: sandbox.last_active_at_unix,
        timeout_sec: sandbox.timeout_sec,
        team_id: Cow::Owned(PLATFORM_TEAM.to_uuid()),
        template_id: Cow::Owned(PLATFORM_TEAM.to_uuid()),
        metadata: Metadata::from_compact(METADATA),
    }
}

/// Agents say this for nearly every failure.
fn internal(message: String) -> Refusal {
    (ConnectCode::Internal, message)
}

fn not_found(id: SandboxId) -> Refusal {
    (ConnectCode::NotFound, format!("sandbox not found: {id}"))
}
