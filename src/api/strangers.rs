//! Owns `/v1/strangers`: sandboxes that a host has although the database does not place them
//! there, and what an operator does with them.
//!
//! Never: decides which sandbox is one (`plan` does).

use super::access::Caller;
use super::body::Fields;
use super::listing::{self, Both, Part};
use super::query::Query;
use super::view::{CapsuleView, StrangerView};
use super::{Problem, Ready, Wake, json};
use crate::http::{Request, Response};
use crate::model::id::{HostId, SandboxId};
use crate::store::strangers::{Adopted, Adoption, strangers_after};
use crate::store::writer::Command;

/// `GET /v1/strangers[?limit=&after=]`
pub(super) fn list(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let (query, readers) = (Query::read(&request.query)?, ready.readers.clone());
    listing::answer(request, &query, move |after: Option<Both<HostId, SandboxId>>, limit| {
        let after = after.map(|Both(host, id)| (host, id));
        let page = strangers_after(&*readers.get()?, after, limit.into())?;
        let after = page.rows.last().map(|last| Both(last.host, last.sandbox));
        let mut part = Part::new(page.more, after);
        for recorded in &page.rows {
            part.push(&StrangerView::from(recorded))?;
        }
        Ok(part)
    })
}

/// `POST /v1/strangers/{id}/adopt`
pub(super) fn adopt(
    ready: &Ready,
    caller: &Caller,
    id: &str,
    request: &Request,
) -> Result<Response, Problem> {
    let fields = Fields::read(request)?;
    let adoption = Adoption {
        sandbox: stranger_id(id)?,
        host: fields.optional("host_id")?,
        team: fields.optional("team_id")?,
        actor: caller.actor(),
    };
    match ready.write(|reply| Command::Adopt(Box::new(adoption), reply))? {
        Adopted::Done(sandbox) => {
            (ready.wake)(Wake::ProbeNow(sandbox.host_id));
            json(200, &CapsuleView::of(*sandbox, &ready.presence))
        }
        Adopted::NotSeen => Err(not_seen()),
        Adopted::Several(hosts) => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let message = format!("several hosts have it; name one: {}", hosts.join(", "));
            Err(Problem::invalid(format!("host_id: {message}")))
        }
        Adopted::Busy(status) => {
            let message = format!("an operation on it is in progress, it is {status}; try again");
            Err(Problem::new(409, "invalid_state", message))
        }
    }
}

/// `DELETE /v1/strangers/{id}[?host_id=]`
pub(super) fn destroy(
    ready: &Ready,
    caller: &Caller,
    id: &str,
    request: &Request,
) -> Result<Response, Problem> {
    let host = Query::read(&request.query)?.parsed("host_id")?;
    destroy_on(ready, caller, stranger_id(id)?, host)
}

fn destroy_on(
    ready: &Ready,
    caller: &Caller,
    sandbox: SandboxId,
    host: Option<HostId>,
) -> Result<Response, Problem> {
    let actor = caller.actor();
    let begun = ready.write(|reply| Command::DestroyStranger { sandbox, host, actor, reply })?;
    for work in begun.ok_or_else(not_seen)? {
        (ready.wake)(Wake::Work(Box::new(work)));
    }
    Ok(Response::empty(204))
}

fn not_seen() -> Problem {
    let message = "no host is known to have such a stranger; see GET /v1/strangers";
    Problem::new(404, "not_found", message)
}

fn stranger_id(id: &str) -> Result<SandboxId, Problem> {
    id.parse().map_err(|_| not_seen())
}
