//! Owns what a simulated agent keeps of one sandbox.
//!
//! Never: changes it (`agent` does). Called by `agent`, `listing` and `fixture`.

use super::template::Template;

/// What a sandbox on a simulated host is doing: the truth, whatever the control plane thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimState {
    /// Being made; not listed yet.
    Creating,
    /// Being started from its snapshot; newer agents list it as paused until it runs.
    Resuming,
    /// Has a microVM.
    Running,
    /// Being paused, or copied to a template; older agents list it as running.
    Pausing,
    /// Has a snapshot; only newer agents list it.
    Paused,
    /// Has a snapshot from before the agent's restart. Older agents never list it; newer ones
    /// have not read it yet.
    Shelved,
    /// Has a microVM that is of no use any more.
    Error,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SimSandbox {
    pub(super) state: SimState,
    /// Last two bytes of its address.
    pub(super) slot: u16,
    pub(super) vcpus: i32,
    pub(super) memory_mb: i32,
    pub(super) timeout_sec: i32,
    pub(super) created_at_unix: i64,
    pub(super) last_active_at_unix: i64,
    /// When it was last paused; its snapshot stays on the disk when it is resumed.
    pub(super) paused_at_unix: Option<i64>,
    /// Boxed because hardly any sandbox has one; `None`: `minimal`.
    pub(super) template: Option<Box<Template>>,
    /// False from when a newer agent reads it from the disk until it is resumed.
    pub(super) has_address: bool,
    /// False once a newer agent has read it from the disk.
    pub(super) has_versions: bool,
}

impl SimSandbox {
    /// With the sizes that an agent gives when it is asked for none.
    pub(super) fn new(state: SimState, slot: u16, created_at_unix: i64) -> SimSandbox {
        let paused = matches!(state, SimState::Paused | SimState::Shelved);
        SimSandbox {
            state,
            slot,
            vcpus: 1,
            memory_mb: 512,
            timeout_sec: 300,
            created_at_unix,
            last_active_at_unix: created_at_unix,
            paused_at_unix: paused.then_some(created_at_unix),
            template: None,
            has_address: true,
            has_versions: true,
        }
    }

    /// Its address on the host's network.
    pub(super) fn host_ip(&self) -> String {
        let [high, low] = self.slot.to_be_bytes();
        format!("10.11.{high}.{low}")
    }

    /// What it was made from.
    pub(super) fn template(&self) -> Template {
        self.template.as_deref().copied().unwrap_or(Template::MINIMAL)
    }
}
