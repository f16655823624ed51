//! Owns the outcome of one `ListSandboxes` call, as the edge hands it inwards.
//!
//! Never: wire JSON, retries. Made by `agent`, read by `plan` and `store`.

use super::id::SandboxId;
use super::time::{Mono, Wall};
use super::vocabulary;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What one probe found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The agent answered as the protocol says; the only outcome that may move a sandbox.
    Listed(Listing),
    /// The question got no usable answer. Says nothing about any sandbox.
    Failed(ProbeFailure),
}

impl Probe {
    /// Ids that the agent announced with this answer and has forgotten since.
    pub fn drained(&self) -> &[SandboxId] {
        match self {
            Probe::Listed(listing) => &listing.auto_paused,
            Probe::Failed(failure) => &failure.drained,
        }
    }

    /// Whether the agent may have announced something that did not arrive.
    pub fn answer_lost(&self) -> bool {
        match self {
            Probe::Listed(_) => false,
            Probe::Failed(failure) => failure.answer_lost,
        }
    }
}

/// One conclusive answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// What the agent has, each id once, in the agent's order.
    pub sandboxes: Vec<Listed>,
    /// Ids the agent paused by itself since the last answer, each once. The agent has
    /// forgotten them by telling us.
    pub auto_paused: Vec<SandboxId>,
}

/// One sandbox in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Whose entry this is.
    pub id: SandboxId,
    /// Running or paused.
    pub state: ListedState,
    /// When the microVM was made by the agent's clock, unix seconds; 0 when not said.
    pub created_at_unix: i64,
    /// What fills a row that becomes `running`.
    pub details: Details,
}

/// State of a listed sandbox. Anything but `paused` and `error` is running: older agents list every
/// sandbox as `running`, also while it is being paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedState {
    /// Has a microVM.
    Running,
    /// Listed with status `paused`.
    Paused,
    /// Listed with status `error`.
    Error,
}

/// What an agent says of a running sandbox beyond its id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// Address on the host's network, as the agent wrote it.
    pub host_ip: Option<Box<str>>,
    /// A compact JSON object of strings, for example kernel and agent versions; the
    /// sandboxes of one host share it.
    pub metadata: Option<Arc<str>>,
}

/// What the last probe of a host brought, for people to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastProbe {
    /// When the agent was asked.
    pub asked_at: Mono,
    /// When it ended.
    pub at: Wall,
    /// How long the agent took.
    pub took: Duration,
    /// How many sandboxes it listed, or how it failed.
    pub outcome: Result<usize, ProbeFailure>,
}

vocabulary! {
    /// How a probe failed.
    FailureKind, "probe failure", {
        /// No connection, or it broke before a whole answer was there.
        Unreachable = "unreachable",
        /// No whole answer within the deadline.
        TimedOut = "timed_out",
        /// The agent answered with a Connect error.
        Refused = "refused",
        /// The answer is not what the protocol says.
        Malformed = "malformed",
        /// Another host answered.
        WrongHost = "wrong_host",
    }
}

impl FailureKind {
    /// What the team of a host may know of a probe that failed, and its words for people.
    /// Roost opens connections to the address that a team names: whether a port there is
    /// open, and what answers, is not for the team.
    pub fn for_team(self) -> (FailureKind, &'static str) {
        match self {
            FailureKind::Refused => (FailureKind::Refused, "the agent refused the request"),
            FailureKind::Unreachable
            | FailureKind::TimedOut
            | FailureKind::Malformed
            | FailureKind::WrongHost => {
                (FailureKind::Unreachable, "the agent could not be reached")
            }
        }
    }
}

/// A probe without an observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeFailure {
    /// The kind.
    pub kind: FailureKind,
    /// One line for people: what was wrong, without secrets, bounded in length.
    pub detail: String,
    /// Auto-paused ids that could be read from an answer which is otherwise unusable:
    /// the agent will not say them again.
    pub drained: Vec<SandboxId>,
    /// The agent may have answered, and what it announced did not arrive.
    pub answer_lost: bool,
}

impl ProbeFailure {
    /// A failure of which nothing was lost.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> ProbeFailure {
        ProbeFailure { kind, detail: detail.into(), drained: Vec::new(), answer_lost: false }
    }
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}
