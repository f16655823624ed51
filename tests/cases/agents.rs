//! Owns the simulated agents of a case: what each one answers next.
//!
//! Never: decides anything about a sandbox, knows the control plane. Bodies go through
//! the reader that the real client uses.

use crate::script::{Answer, Says};
use roost::agent::listing;
use roost::model::host::Host;
use roost::model::id::HostId;
use roost::model::probe::{FailureKind, Probe, ProbeFailure};
use roost::model::sandbox::SandboxStatus;
use roost::store::fixture::{Fleet, FleetSandbox};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// What came of a question, and after how long.
pub(crate) struct Reply {
    pub(crate) probe: Probe,
    pub(crate) after: Duration,
}

/// All agents of a fleet.
pub(crate) struct Agents(BTreeMap<HostId, Agent>);

struct Agent {
    /// One for each question; the last stays.
    answers: Vec<Answer>,
    next: usize,
}

impl Agents {
    /// Agents that list what the database takes for running, until the script says more.
    pub(crate) fn faithful_to(fleet: &Fleet) -> Agents {
        let agent = |host: &Host| Agent { answers: vec![faithful(host.id, fleet)], next: 0 };
        Agents(fleet.hosts.iter().map(|host| (host.id, agent(host))).collect())
    }

    /// From now on this agent answers so.
    pub(crate) fn answer_with(&mut self, host: HostId, answers: &[Answer]) {
        assert!(!answers.is_empty(), "{host} needs at least one answer");
        self.0.insert(host, Agent { answers: answers.to_vec(), next: 0 });
    }

    /// Asks the agent.
    pub(crate) fn ask(&mut self, host: HostId) -> Reply {
        let agent = self.0.get_mut(&host).expect("every host of the fleet has an agent");
        let at = agent.next.min(agent.answers.len() - 1);
        let answer = agent.answers[at].clone();
        agent.answers[at] = answer.clone().told();
        agent.next = at + 1;
        Reply { probe: probe(&answer.says), after: Duration::from_millis(answer.after_ms) }
    }
}

fn faithful(host: HostId, fleet: &Fleet) -> Answer {
    let runs = |s: &&FleetSandbox| s.row.host_id == host && s.row.status == SandboxStatus::Running;
    let entry = |s: &FleetSandbox| json!({"sandboxId": s.row.id, "status": "running"});
    let entries: Vec<Value> = fleet.sandboxes.iter().filter(runs).map(entry).collect();
    Answer::listing(json!({"sandboxes": entries}))
}

fn probe(says: &Says) -> Probe {
    match says {
        Says::Lists(body) => read(body.to_string().as_bytes()),
        Says::Body(body) => read(body.as_bytes()),
        Says::Fails(kind) => Probe::Failed(ProbeFailure {
            answer_lost: *kind == FailureKind::TimedOut,
            ..ProbeFailure::new(*kind, "as the case wants it")
        }),
    }
}

fn read(body: &[u8]) -> Probe {
    match listing::read(body) {
        Ok(listing) => Probe::Listed(listing),
        Err(unreadable) => Probe::Failed(ProbeFailure {
            kind: FailureKind::Malformed,
            detail: unreadable.detail,
            answer_lost: unreadable.drained.is_empty(),
            drained: unreadable.drained,
        }),
    }
}
