//! Owns how hosts are deleted: what stands in the way, and who is told.
//!
//! Never: ends an agent that is not proved to be the host's; waits for one without a bound;
//! takes a host for empty without an observation newer than the request.

use super::access::operator;
use super::hosts::{PROBE_PATIENCE, host_id, observe};
use super::query::Query;
use super::view::HostView;
use super::{Problem, Ready, Wake, json};
use crate::http::{Caller as Client, Request, Response};
use crate::model::host::{AgentAddress, Host, HostStatus, Liveness};
use crate::model::id::{HostId, SandboxId};
use crate::model::time::Mono;
use crate::store::deletion::{Deleted, Deletion, may_exist};
use crate::store::read::{self, SandboxFilter};
use crate::store::writer::Command;
use serde::Serialize;
use std::time::Duration;

/// How long the agent of a deleted host may take to say that it ends. Larger: the operator
/// who deletes a dead host waits longer; smaller: a busy agent is logged as not reached. Its
/// next heartbeat tells it all the same.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(3);

/// How long a deletion by force waits for a probe that proves the agent: the usual deadline
/// of one and a little. Larger: the operator who deletes a dead host waits longer; smaller: a
/// slow agent keeps its sandboxes until its next heartbeat.
const PROOF_PATIENCE: Duration = Duration::from_secs(10);

/// What a deletion would destroy.
#[derive(Serialize)]
struct DeletePreview {
    host: HostView,
    /// How many.
    sandboxes: usize,
    sandbox_ids: Vec<SandboxId>,
}

/// `GET /v1/hosts/{id}/delete-preview`
pub(super) fn preview(ready: &Ready, id: &str) -> Result<Response, Problem> {
    let (host, sandbox_ids) = in_the_way(ready, host_id(id)?)?;
    let host = HostView::of(&host, &ready.presence);
    json(200, &DeletePreview { host, sandboxes: sandbox_ids.len(), sandbox_ids })
}

/// A host and those of its sandboxes that may exist.
fn in_the_way(ready: &Ready, id: HostId) -> Result<(Host, Vec<SandboxId>), Problem> {
    let (reader, now) = (ready.read()?, ready.now().wall);
    let host = read::host(&reader, id)?.ok_or_else(|| Problem::not_found("host"))?;
    let of_host = SandboxFilter { host: Some(id), all: true, ..SandboxFilter::default() };
    let sandboxes = read::sandboxes(&reader, &of_host)?;
    let ids = sandboxes.iter().filter(|sandbox| may_exist(sandbox, now)).map(|s| s.id);
    Ok((host, ids.collect()))
}

/// `DELETE /v1/hosts/{id}[?force=true]`
pub(super) fn delete(
    ready: &Ready,
    client: &mut Client,
    id: &str,
    request: &Request,
) -> Result<Response, Problem> {
    let (id, force) = (host_id(id)?, forced(&request.query)?);
    match force {
        true => by_force(ready, client, id),
        false => when_empty(ready, client, id),
    }
}

fn forced(query: &str) -> Result<bool, Problem> {
    match Query::read(query)?.text("force") {
        Some("true" | "1") => Ok(true),
        Some("false" | "0") | None => Ok(false),
        Some(_) => Err(Problem::invalid("force must be true or false")),
    }
}

/// Deletes a host that a new observation shows to be empty.
fn when_empty(ready: &Ready, client: &mut Client, id: HostId) -> Result<Response, Problem> {
    let (host, active) = in_the_way(ready, id)?;
    if !active.is_empty() {
        return Err(has_active(&active));
    }
    let begun = ready.now().mono;
    match host.status() {
        HostStatus::Pending => {}
        HostStatus::Online | HostStatus::Draining if host.address.is_none() => {
            return Err(not_observed("it has no address"));
        }
        HostStatus::Online | HostStatus::Draining => must_answer(ready, client, id, begun)?,
        HostStatus::Unreachable => return Err(not_observed("it is unreachable")),
        HostStatus::Offline => {
            return Err(not_observed("it is offline; undrain it to have it probed"));
        }
    }
    loop {
        let deletion = delete_now(ready, id, false, begun)?;
        let in_time = ready.now().mono.since(begun) < PROBE_PATIENCE;
        if !(in_time && matches!(deletion, Deletion::NotObserved)) {
            return answer(ready, deletion);
        }
        // The host changed between question and answer, which said nothing then.
        must_answer(ready, client, id, begun)?;
    }
}

/// Waits for an observation of a host.
fn must_answer(ready: &Ready, client: &mut Client, id: HostId, begun: Mono) -> Result<(), Problem> {
    let left = PROBE_PATIENCE.saturating_sub(ready.now().mono.since(begun));
    match observe(ready, client, id, left)?.map(|probe| probe.outcome) {
        Some(Ok(_)) => Ok(()),
        Some(Err(failure)) => Err(not_observed(&format!("{}: {}", failure.kind, failure.detail))),
        None => Err(not_observed("its agent did not answer in time")),
    }
}

/// Deletes a host with all that it has. A live one is probed first, unless its certificate
/// proves it: the observation says whose agent answers there.
fn by_force(ready: &Ready, client: &mut Client, id: HostId) -> Result<Response, Problem> {
    let host = read::host(&*ready.read()?, id)?.ok_or_else(|| Problem::not_found("host"))?;
    let since = ready.now().mono;
    let has_proof = host.address.as_ref().is_none_or(|address| is_proved_by_tls(ready, address));
    if host.is_live() && !has_proof {
        match observe(ready, client, id, PROOF_PATIENCE) {
            // Whatever came of it: the deletion does not depend on it.
            Ok(_) => {}
            Err(problem) => log::info!("{id} is deleted without a probe: {}", problem.message),
        }
    }
    let deletion = delete_now(ready, id, true, since)?;
    answer(ready, deletion)
}

fn delete_now(ready: &Ready, host: HostId, force: bool, since: Mono) -> Result<Deletion, Problem> {
    let actor = operator();
    ready.write(|reply| Command::DeleteHost { host, force, since, actor, reply })
}

fn answer(ready: &Ready, deletion: Deletion) -> Result<Response, Problem> {
    match deletion {
        Deletion::NotFound => Err(Problem::not_found("host")),
        Deletion::HasActive(ids) => Err(has_active(&ids)),
        Deletion::Lists(count) => Err(not_empty(&format!(
            "its agent lists {count} sandboxes that are not to be there; destroy them first"
        ))),
        Deletion::NotObserved => Err(not_observed("no observation of it was conclusive")),
        Deletion::Deleted(deleted) => {
            (ready.wake)(Wake::Changed(deleted.host.id));
            terminate(ready, &deleted);
            Ok(Response::empty(204))
        }
    }
}

fn has_active(ids: &[SandboxId]) -> Problem {
    let message = "the host has capsules, or had until lately; destroy them first, or add \
                   ?force=true";
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    Problem::new(409, "has_active_sandboxes", message).with("sandbox_ids", ids)
}

fn not_observed(why: &str) -> Problem {
    not_empty(&format!("it cannot be observed: {why}"))
}

fn not_empty(why: &str) -> Problem {
    let message = format!(
        "the host cannot be shown to be empty: {why}; or add ?force=true, which destroys whatever \
         it has"
    );
    Problem::new(409, "invalid_state", message)
}

/// Whether the agent at this address shows a certificate of the host that is meant.
fn is_proved_by_tls(ready: &Ready, address: &AgentAddress) -> bool {
    ready.agent.proves_hosts() && address.base_url(true).starts_with("https://")
}

/// Has the agent of a deleted host destroy everything and end, if it is proved to be that
/// host's. Otherwise the answer to its next heartbeat says the same.
fn terminate(ready: &Ready, deleted: &Deleted) {
    let Deleted { host, is_its_agent } = deleted;
    let Some(address) = &host.address else { return };
    let why_not = match (host.liveness, *is_its_agent || is_proved_by_tls(ready, address)) {
        (Liveness::Unreachable, _) => Some("it is unreachable".to_owned()),
        (Liveness::Alive, false) => Some(format!("nothing proves whose agent is at {address}")),
        (Liveness::Alive, true) => {
            let told = ready.agent.terminate(host.id, address, TERMINATE_DEADLINE);
            told.err().map(|error| error.to_string())
        }
    };
    match why_not {
        None => log::info!("{} was deleted; its agent destroys everything and ends", host.id),
        Some(why) => {
            log::warn!("{} was deleted; its next heartbeat tells its agent: {why}", host.id);
        }
    }
}
