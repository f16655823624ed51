//! Owns the vocabulary of history: event kinds, audit actions, actors.
//!
//! Never: decides what is worth an entry (`plan` does).

use super::id::{HostId, LogId, SandboxId, TeamId};
use super::sandbox::{Reason, SandboxStatus};
use super::time::Wall;
use super::vocabulary;

vocabulary! {
    /// What an event says. One per transition, by revision.
    EventKind, "event kind", {
        /// A host's agent registered.
        HostRegistered = "host.registered",
        /// A host fell silent.
        HostDown = "host.down",
        /// A host was heard again.
        HostUp = "host.up",
        /// Probes fail while heartbeats arrive.
        HostDegraded = "host.degraded",
        /// Probes succeed again.
        HostRecovered = "host.recovered",
        /// An operator deleted a host.
        HostDeleted = "host.deleted",
        /// An operator changed what is wanted of a host.
        HostIntent = "host.intent",
        /// A host lost most of its sandboxes at once; held for another look.
        HostMassVanish = "host.mass_vanish",
        /// A refresh token of the host that was used up was shown.
        HostTokenReused = "host.token_reused",
        /// A sandbox runs that should not exist.
        SandboxZombie = "sandbox.zombie",
        /// A host lists a sandbox that belongs to another host.
        SandboxMisplaced = "sandbox.misplaced",
        /// A host lists a sandbox that a restore has forgotten.
        SandboxForgotten = "sandbox.forgotten",
        /// Became `pending`.
        SandboxPending = "sandbox.pending",
        /// Became `starting`.
        SandboxStarting = "sandbox.starting",
        /// Became `running`.
        SandboxRunning = "sandbox.running",
        /// Became `pausing`.
        SandboxPausing = "sandbox.pausing",
        /// Became `paused`.
        SandboxPaused = "sandbox.paused",
        /// Became `resuming`.
        SandboxResuming = "sandbox.resuming",
        /// Became `stopping`.
        SandboxStopping = "sandbox.stopping",
        /// Became `stopped`.
        SandboxStopped = "sandbox.stopped",
        /// Became `missing`.
        SandboxMissing = "sandbox.missing",
        /// Became `error`.
        SandboxError = "sandbox.error",
        /// Became `hibernated`.
        SandboxHibernated = "sandbox.hibernated",
    }
}

impl EventKind {
    /// The kind that announces this status.
    pub const fn of(status: SandboxStatus) -> EventKind {
        match status {
            SandboxStatus::Pending => EventKind::SandboxPending,
            SandboxStatus::Starting => EventKind::SandboxStarting,
            SandboxStatus::Running => EventKind::SandboxRunning,
            SandboxStatus::Pausing => EventKind::SandboxPausing,
            SandboxStatus::Paused => EventKind::SandboxPaused,
            SandboxStatus::Resuming => EventKind::SandboxResuming,
            SandboxStatus::Stopping => EventKind::SandboxStopping,
            SandboxStatus::Stopped => EventKind::SandboxStopped,
            SandboxStatus::Missing => EventKind::SandboxMissing,
            SandboxStatus::Error => EventKind::SandboxError,
            SandboxStatus::Hibernated => EventKind::SandboxHibernated,
        }
    }
}

vocabulary! {
    /// What an audit entry is about.
    ResourceType, "resource type", {
        /// A host.
        Host = "host",
        /// A template.
        Template = "template",
        /// A sandbox.
        Sandbox = "sandbox",
        /// An API key.
        ApiKey = "api_key",
        /// The database as a whole.
        Database = "database",
    }
}

vocabulary! {
    /// What was done, as the audit log says it.
    AuditAction, "audit action", {
        /// Created.
        Create = "create",
        /// Registered by its agent.
        Register = "register",
        /// A refresh token that was used up was shown.
        TokenReused = "token_reused",
        /// Judged silent.
        MarkedDown = "marked_down",
        /// Heard again.
        MarkedUp = "marked_up",
        /// Set to take nothing new.
        Drain = "drain",
        /// Set to take part again.
        Undrain = "undrain",
        /// Set aside.
        Offline = "offline",
        /// Deleted.
        Delete = "delete",
        /// A key that counts no more.
        Revoke = "revoke",
        /// Paused.
        Pause = "pause",
        /// Resumed.
        Resume = "resume",
        /// Destroyed.
        Destroy = "destroy",
        /// Made a template of.
        Snapshot = "snapshot",
        /// Inferred gone.
        Vanish = "vanish",
        /// Inferred running again.
        Restore = "restore",
        /// Found running, taken over.
        Adopt = "adopt",
        /// Inferred failed.
        Error = "error",
        /// A restored database counts from now on.
        Accept = "accept",
    }
}

vocabulary! {
    /// How an audit entry is to be read.
    AuditStatus, "audit status", {
        /// Went as wished.
        Success = "success",
        /// Happened without anybody's wish.
        Info = "info",
        /// Gave something up.
        Warning = "warning",
        /// Something is wrong.
        Error = "error",
    }
}

vocabulary! {
    /// Who acts.
    ActorType, "actor type", {
        /// A person.
        User = "user",
        /// A key.
        ApiKey = "api_key",
        /// Roost.
        System = "system",
    }
}

/// One event as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order of everything.
    pub revision: u64,
    /// When it was written.
    pub at: Wall,
    /// What it says.
    pub kind: EventKind,
    /// About, or on, which host.
    pub host_id: HostId,
    /// About which sandbox, if about one.
    pub sandbox_id: Option<SandboxId>,
    /// Who may see it.
    pub team_id: TeamId,
    /// Status before.
    pub from: Option<String>,
    /// Status after.
    pub to: Option<String>,
    /// Why.
    pub reason: Reason,
    /// Who made it happen.
    pub actor: ActorType,
    /// Why it failed, in the agent's words.
    pub detail: Option<String>,
}

/// One audit entry as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its place in the log; cursors are made of it.
    pub seq: u64,
    /// Its id.
    pub id: LogId,
    /// Who may see it.
    pub team_id: TeamId,
    /// Who did it.
    pub actor_type: ActorType,
    /// Id of the key or person.
    pub actor_id: Option<String>,
    /// Name for people.
    pub actor_name: Option<String>,
    /// What it is about.
    pub resource_type: ResourceType,
    /// Which one.
    pub resource_id: String,
    /// What was done.
    pub action: AuditAction,
    /// Who is meant to care; always `team`.
    pub scope: String,
    /// How to read it.
    pub status: AuditStatus,
    /// A JSON object: from, to, reason and more.
    pub metadata: String,
    /// When.
    pub created_at: Wall,
}
