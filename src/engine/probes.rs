//! Owns how a host is asked for its sandboxes, on a thread of the pool.
//!
//! Never: decides when to ask (`monitor`) or what an answer means (`store`).

use super::pool::Pool;
use crate::agent::client::AgentClient;
use crate::clock::Clock;
use crate::model::host::AgentAddress;
use crate::model::id::HostId;
use crate::model::probe::{FailureKind, LastProbe, Probe, ProbeFailure};
use crate::model::time::{Mono, Now};
use crate::store::writer::Revision;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

/// A host to ask.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) host: HostId,
    pub(super) address: AgentAddress,
}

/// What asking brought.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) host: HostId,
    /// The newest revision before the question.
    pub(super) revision: u64,
    pub(super) asked_at: Mono,
    pub(super) now: Now,
    pub(super) took: Duration,
    pub(super) probe: Probe,
    /// Whether the connection proved that this host has answered.
    pub(super) proven: bool,
}

impl Answered {
    pub(super) fn summary(&self) -> LastProbe {
        let outcome = match &self.probe {
            Probe::Listed(listing) => Ok(listing.sandboxes.len()),
            Probe::Failed(failure) => Err(failure.clone()),
        };
        LastProbe { asked_at: self.asked_at, at: self.now.wall, took: self.took, outcome }
    }
}

/// A pool that asks. `deliver` is called once for every job, and may block.
pub(super) fn pool(
    agent: AgentClient,
    clock: Arc<dyn Clock>,
    revision: Arc<Revision>,
    threads_max: usize,
    deliver: Box<dyn Fn(Answered) + Send + Sync>,
) -> Pool<Job> {
    let run = move |job: Job| {
        let newest = revision.newest();
        let asked_at = clock.now().mono;
        let ask = AssertUnwindSafe(|| agent.list_sandboxes(job.host, &job.address));
        let probe = std::panic::catch_unwind(ask).unwrap_or_else(|_| {
            let detail = "reading the answer failed; this is a bug in roost";
            Probe::Failed(ProbeFailure::new(FailureKind::Malformed, detail))
        });
        let now = clock.now();
        let took = now.mono.since(asked_at);
        let (host, revision, proven) = (job.host, newest, agent.proves_hosts());
        deliver(Answered { host, revision, asked_at, now, took, probe, proven });
    };
    Pool::new("probe", threads_max, Box::new(run))
}
