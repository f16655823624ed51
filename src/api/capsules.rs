//! Owns `/v1/capsules`: sandboxes as users see them.
//!
//! Never: talks to an agent itself.

use super::access::Caller;
use super::body::Fields;
use super::query::Query;
use super::templates::unknown_template;
use super::view::CapsuleView;
use super::waiting::deferred;
use super::{Problem, Ready, Wake, json};
use crate::http::{Request, Response};
use crate::model::host::HostStatus;
use crate::model::id::SandboxId;
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Sandbox, SandboxStatus};
use crate::model::template::MINIMAL;
use crate::plan::placement::NoHost;
use crate::store::lifecycle::{Begun, NewSandbox, Wish};
use crate::store::read::{self, SandboxFilter};
use crate::store::templates::NotMade;
use crate::store::writer::Command;
use std::sync::Arc;
use std::time::Duration;

/// Largest number that the agents' wire can say.
pub(super) const WIRE_NUMBER_MAX: u32 = i32::MAX as u32;

/// How long a ping may take; whoever pings waits for it.
const PING_DEADLINE: Duration = Duration::from_secs(5);

/// `POST /v1/capsules`
pub(super) fn create(
    ready: &Ready,
    caller: &Caller,
    request: &Request,
) -> Result<Response, Problem> {
    let fields = Fields::read(&request.body)?;
    let new = NewSandbox {
        team: caller.owner(fields.optional("team_id")?)?,
        template: fields.text("template")?.unwrap_or_else(|| MINIMAL.to_owned()),
        vcpus: fields.within("vcpus", 1..=WIRE_NUMBER_MAX)?,
        memory_mb: fields.within("memory_mb", 1..=WIRE_NUMBER_MAX)?,
        timeout_sec: fields.within("timeout_sec", 0..=WIRE_NUMBER_MAX)?.unwrap_or(0),
        disk_size_mb: fields.within("disk_size_mb", 1..=WIRE_NUMBER_MAX)?,
        actor: caller.actor(),
    };
    let wanted = new.template.clone();
    let created = ready.write(|reply| Command::CreateSandbox(Box::new(new), reply))?;
    let (sandbox, work) = created.map_err(|why| not_made(&wanted, why))?;
    (ready.wake)(Wake::Work(Box::new(work)));
    json(202, &CapsuleView::from(sandbox))
}

fn not_made(wanted: &str, why: NotMade) -> Problem {
    let message = match why {
        NotMade::NoTemplate(unknown) => return unknown_template(wanted, &unknown),
        NotMade::NoHostHas(name) => {
            format!("no host that has the template {name:?} takes new capsules right now")
        }
        NotMade::NoHost(NoHost::NoneAvailable) => {
            "no host takes new capsules right now; see GET /v1/hosts".to_owned()
        }
        NotMade::NoHost(NoHost::TooBig) => {
            "the capsule is bigger than any host; ask for less memory or fewer vcpus".to_owned()
        }
        NotMade::NoHost(NoHost::AllFull) => {
            "every host is full; destroy or pause a capsule, or add a host".to_owned()
        }
    };
    Problem::new(503, "no_host_available", message)
}

/// `POST /v1/capsules/{id}/pause`, `/resume`, and `DELETE /v1/capsules/{id}`
pub(super) fn begin(
    ready: &Ready,
    caller: &Caller,
    id: &str,
    kind: OperationKind,
) -> Result<Response, Problem> {
    let (team, actor) = (caller.team(), caller.actor());
    let wish = Wish { sandbox: capsule_id(id)?, kind, team, actor };
    match ready.write(|reply| Command::Begin(Box::new(wish), reply))? {
        Begun::Started(sandbox, work) => {
            (ready.wake)(Wake::Work(work));
            json(202, &CapsuleView::from(*sandbox))
        }
        Begun::Already(sandbox) => json(202, &CapsuleView::from(*sandbox)),
        Begun::InvalidState(status) => Err(invalid_state(kind.as_str(), status)),
        Begun::HostAway(status) => Err(host_away(status)),
        Begun::NotFound => Err(Problem::not_found("capsule")),
    }
}

pub(super) fn host_away(status: HostStatus) -> Problem {
    let message = format!("the capsule's host is {status}; try again when it is online");
    Problem::new(503, "host_unavailable", message)
}

pub(super) fn invalid_state(what: &str, status: SandboxStatus) -> Problem {
    Problem::new(409, "invalid_state", format!("cannot {what} a capsule that is {status}"))
}

/// `POST /v1/capsules/{id}/ping`
pub(super) fn ping(ready: &Arc<Ready>, caller: &Caller, id: &str) -> Result<Response, Problem> {
    let sandbox = find(ready, caller, id)?;
    if sandbox.status != SandboxStatus::Running {
        return Err(invalid_state("ping", sandbox.status));
    }
    deferred(ready, caller.into(), move |ready, _| ping_agent(ready, &sandbox))
}

fn ping_agent(ready: &Ready, sandbox: &Sandbox) -> Result<Response, Problem> {
    let failed = |detail: String| Problem::new(502, "agent_error", detail);
    let address = ready.presence.get(sandbox.host_id).and_then(|host| host.address);
    let address = address.ok_or_else(|| failed("the capsule's host has no address".to_owned()))?;
    let pinged = ready.agent.ping(sandbox.host_id, &address, sandbox.id, PING_DEADLINE);
    pinged.map(|()| Response::empty(204)).map_err(|error| failed(error.to_string()))
}

/// What is no id names no capsule.
fn capsule_id(id: &str) -> Result<SandboxId, Problem> {
    id.parse().map_err(|_| Problem::not_found("capsule"))
}

/// `GET /v1/capsules[?all=true]`
pub(super) fn list(ready: &Ready, caller: &Caller, request: &Request) -> Result<Response, Problem> {
    let query = Query::read(&request.query)?;
    let filter = SandboxFilter {
        team: caller.team(),
        host: query.parsed("host_id")?,
        status: query.parsed("status")?,
        all: match query.text("all") {
            Some("true" | "1") => true,
            Some("false" | "0") | None => false,
            Some(_) => return Err(Problem::invalid("all must be true or false")),
        },
    };
    let sandboxes = read::sandboxes(&*ready.read()?, &filter)?;
    let views: Vec<CapsuleView> = sandboxes.into_iter().map(CapsuleView::from).collect();
    json(200, &views)
}

/// `GET /v1/capsules/{id}`
pub(super) fn show(ready: &Ready, caller: &Caller, id: &str) -> Result<Response, Problem> {
    json(200, &CapsuleView::from(find(ready, caller, id)?))
}

/// A capsule; another team's is not there.
fn find(ready: &Ready, caller: &Caller, id: &str) -> Result<Sandbox, Problem> {
    let sandbox = read::sandbox(&*ready.read()?, capsule_id(id)?)?;
    let seen = sandbox.filter(|sandbox| caller.sees(sandbox.team_id));
    seen.ok_or_else(|| Problem::not_found("capsule"))
}
