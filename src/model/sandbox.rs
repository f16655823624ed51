//! Owns the states of a sandbox and the reasons for moving between them.
//!
//! Never: decides a move (`plan::reconcile` does).

use super::id::{HostId, SandboxId, TeamId, TemplateId};
use super::time::Wall;
use super::vocabulary;
use std::fmt;

vocabulary! {
    /// What the database says of a sandbox.
    SandboxStatus, "sandbox status", {
        /// Row exists, nothing has been asked of a host.
        Pending = "pending",
        /// A create is under way.
        Starting = "starting",
        /// Has a microVM.
        Running = "running",
        /// A pause is under way.
        Pausing = "pausing",
        /// Has a snapshot, can be resumed.
        Paused = "paused",
        /// A resume is under way.
        Resuming = "resuming",
        /// A destroy is under way.
        Stopping = "stopping",
        /// Gone for good.
        Stopped = "stopped",
        /// Its host is silent; nobody knows.
        Missing = "missing",
        /// Failed; needs a person.
        Error = "error",
        /// Set aside by another system; not ours to touch.
        Hibernated = "hibernated",
    }
}

impl SandboxStatus {
    /// Whether an operation is under way by the status alone.
    pub const fn is_transient(self) -> bool {
        match self {
            SandboxStatus::Starting
            | SandboxStatus::Resuming
            | SandboxStatus::Pausing
            | SandboxStatus::Stopping => true,
            SandboxStatus::Pending
            | SandboxStatus::Running
            | SandboxStatus::Paused
            | SandboxStatus::Stopped
            | SandboxStatus::Missing
            | SandboxStatus::Error
            | SandboxStatus::Hibernated => false,
        }
    }

    /// Whether nothing of the sandbox is expected to exist any more: hidden from lists.
    pub const fn is_over(self) -> bool {
        match self {
            SandboxStatus::Stopped | SandboxStatus::Error => true,
            SandboxStatus::Pending
            | SandboxStatus::Starting
            | SandboxStatus::Running
            | SandboxStatus::Pausing
            | SandboxStatus::Paused
            | SandboxStatus::Resuming
            | SandboxStatus::Stopping
            | SandboxStatus::Missing
            | SandboxStatus::Hibernated => false,
        }
    }
}

vocabulary! {
    /// Why a host has a sandbox that this database does not place there.
    StrangerKind, "kind of stranger", {
        /// A user has had it destroyed, or there is no such sandbox.
        Zombie = "zombie",
        /// It was made after the backup that this database was restored from.
        Forgotten = "forgotten",
        /// It belongs to another host.
        Misplaced = "misplaced",
    }
}

/// A sandbox as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The host it lives on.
    pub host_id: HostId,
    /// Who owns it.
    pub team_id: TeamId,
    /// What we know of it.
    pub status: SandboxStatus,
    /// Why it is in this status.
    pub status_reason: Option<Reason>,
    /// Since when.
    pub status_changed_at: Wall,
    /// Revision of its last status change.
    pub revision: u64,
    /// What it was made from.
    pub template: Option<String>,
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Idle seconds after which the agent pauses it; 0 is never.
    pub timeout_sec: Option<i64>,
    /// Disk in MiB.
    pub disk_size_mb: Option<u64>,
    /// Its address inside.
    pub guest_ip: Option<String>,
    /// Its address on the host's network.
    pub host_ip: Option<String>,
    /// A JSON object of strings from the agent.
    pub metadata: Option<String>,
    /// When the row was made.
    pub created_at: Wall,
    /// When it first ran.
    pub started_at: Option<Wall>,
    /// When somebody last used it.
    pub last_active_at: Option<Wall>,
    /// Why it failed, in the agent's words; bounded.
    pub status_detail: Option<String>,
    /// The template it was made from; `None` for `minimal`.
    pub template_id: Option<TemplateId>,
    /// User that its commands run as; from the template.
    pub default_user: Option<String>,
    /// A JSON object of strings: the environment of its commands; from the template.
    pub default_env: Option<String>,
}

impl Sandbox {
    /// A sandbox of which nothing else is known yet.
    pub fn new(
        id: SandboxId,
        host_id: HostId,
        team_id: TeamId,
        status: SandboxStatus,
        now: Wall,
    ) -> Sandbox {
        Sandbox {
            id,
            host_id,
            team_id,
            status,
            status_reason: None,
            status_changed_at: now,
            revision: 0,
            template: None,
            vcpus: None,
            memory_mb: None,
            timeout_sec: None,
            disk_size_mb: None,
            guest_ip: None,
            host_ip: None,
            metadata: None,
            created_at: now,
            started_at: None,
            last_active_at: None,
            status_detail: None,
            template_id: None,
            default_user: None,
            default_env: None,
        }
    }

    /// Whether it stopped at a user's request: nothing else ends it for good.
    pub fn is_ended_by_user(&self) -> bool {
        let reason = self.status_reason.as_ref();
        self.status == SandboxStatus::Stopped && reason.is_some_and(Reason::is_users_destroy)
    }
}

/// Why a sandbox or host is in its status. Closed for what Roost writes itself; a fixture
/// or another system may bring its own words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The host fell silent.
    HostUnreachable,
    /// The host was heard again.
    HeartbeatReceived,
    /// Confirmed absent from a host in steady contact.
    Vanished,
    /// Listed again after its host was silent.
    Restored,
    /// The agent said it paused the sandbox by itself.
    AutoPaused,
    /// Listed by the agent as paused.
    ListedPaused,
    /// Absent after a gap in contact: agents pause everything then and do not say so.
    PresumedPaused,
    /// Found running although we thought it was not.
    Adopted,
    /// Listed as running while a create or resume was under way.
    ListedRunning,
    /// A create or resume left nothing on the host within the grace.
    NotStarted,
    /// A resume left nothing running; the snapshot is still there.
    NotResumed,
    /// Absent after a pause was asked for.
    PauseFinished,
    /// Absent after a destroy was asked for.
    DestroyFinished,
    /// The agent said so through its callback.
    Reported,
    /// A user asked for it.
    Requested,
    /// An operation ended well.
    OperationSucceeded,
    /// An operation failed.
    OperationFailed,
    /// The agent has no snapshot of it.
    SnapshotGone,
    /// Its host was deleted with everything on it.
    HostDeleted,
    /// Listed by the agent as failed.
    ListedError,
    /// Its first host refused the create; another one was chosen.
    PlacedElsewhere,
    /// The agent made a template of it and gave it up.
    Snapshotted,
    /// Somebody else's words.
    Other(Box<str>),
}

impl Reason {
    /// Every reason that Roost writes.
    pub const ALL: &'static [Reason] = &[
        Reason::HostUnreachable,
        Reason::HeartbeatReceived,
        Reason::Vanished,
        Reason::Restored,
        Reason::AutoPaused,
        Reason::ListedPaused,
        Reason::PresumedPaused,
        Reason::Adopted,
        Reason::ListedRunning,
        Reason::NotStarted,
        Reason::NotResumed,
        Reason::PauseFinished,
        Reason::DestroyFinished,
        Reason::Reported,
        Reason::Requested,
        Reason::OperationSucceeded,
        Reason::OperationFailed,
        Reason::SnapshotGone,
        Reason::HostDeleted,
        Reason::ListedError,
        Reason::PlacedElsewhere,
        Reason::Snapshotted,
    ];

    /// The word in SQL, JSON and logs.
    pub fn as_str(&self) -> &str {
        match self {
            Reason::HostUnreachable => "host_unreachable",
            Reason::HeartbeatReceived => "heartbeat_received",
            Reason::Vanished => "vanished",
            Reason::Restored => "restored",
            Reason::AutoPaused => "auto_paused",
            Reason::ListedPaused => "listed_paused",
            Reason::PresumedPaused => "presumed_paused",
            Reason::Adopted => "adopted",
            Reason::ListedRunning => "listed_running",
            Reason::NotStarted => "not_started",
            Reason::NotResumed => "not_resumed",
            Reason::PauseFinished => "pause_finished",
            Reason::DestroyFinished => "destroy_finished",
            Reason::Reported => "reported",
            Reason::Requested => "requested",
            Reason::OperationSucceeded => "operation_succeeded",
            Reason::OperationFailed => "operation_failed",
            Reason::SnapshotGone => "snapshot_gone",
            Reason::HostDeleted => "host_deleted",
            Reason::ListedError => "listed_error",
            Reason::PlacedElsewhere => "placed_elsewhere",
            Reason::Snapshotted => "snapshotted",
            Reason::Other(words) => words,
        }
    }
}

impl Reason {
    /// Whether a sandbox that stopped for this reason did so at a user's request. Anything
    /// else is no proof against a host that shows it alive.
    pub fn is_users_destroy(&self) -> bool {
        match self {
            Reason::Requested | Reason::OperationSucceeded | Reason::DestroyFinished => true,
            Reason::HostUnreachable
            | Reason::HeartbeatReceived
            | Reason::Vanished
            | Reason::Restored
            | Reason::AutoPaused
            | Reason::ListedPaused
            | Reason::PresumedPaused
            | Reason::Adopted
            | Reason::ListedRunning
            | Reason::NotStarted
            | Reason::NotResumed
            | Reason::PauseFinished
            | Reason::Reported
            | Reason::OperationFailed
            | Reason::SnapshotGone
            | Reason::HostDeleted
            | Reason::ListedError
            | Reason::PlacedElsewhere
            | Reason::Snapshotted
            | Reason::Other(_) => false,
        }
    }
}

impl From<&str> for Reason {
    fn from(word: &str) -> Reason {
        let known = Reason::ALL.iter().find(|r| r.as_str() == word);
        known.cloned().unwrap_or_else(|| Reason::Other(word.into()))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back() {
        for reason in Reason::ALL {
            assert_eq!(&Reason::from(reason.as_str()), reason);
        }
        assert_eq!(Reason::from("moved by hand").as_str(), "moved by hand");
    }

    #[test]
    fn every_status_reads_back() {
        for &status in SandboxStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        let unknown = "Running".parse::<SandboxStatus>().unwrap_err().to_string();
        assert!(unknown.starts_with("unknown sandbox status \"Running\"; allowed: pending, "));
    }
}
