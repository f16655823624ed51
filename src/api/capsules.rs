//! Owns `/v1/capsules`: sandboxes as users see them.
//!
//! Never: talks to an agent itself.

use super::access::Caller;
use super::body::Fields;
use super::query::Query;
use super::templates::unknown_template;
use super::view::CapsuleView;
use super::when_done::{self, Accepted};
use super::{Problem, Ready, Wake, json, secret};
use crate::agent::client::CallError;
use crate::agent::wire::ConnectCode;
use crate::http::{Request, Response};
use crate::model::host::HostStatus;
use crate::model::id::{SandboxId, TeamId};
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Sandbox, SandboxStatus};
use crate::model::template::MINIMAL;
use crate::plan::placement::{Free, NoHost};
use crate::store::idempotency::{Once, OnceKey};
use crate::store::journal::Actor;
use crate::store::lifecycle::{Begun, NewSandbox, Wish};
use crate::store::read::{self, SandboxFilter};
use crate::store::templates::NotMade;
use crate::store::writer::Command;
use std::sync::Arc;
use std::time::Duration;

/// Largest number that the agents' wire can say.
pub(super) const WIRE_NUMBER_MAX: u32 = i32::MAX as u32;

/// Longest `Idempotency-Key`.
const ONCE_KEY_BYTES_MAX: usize = 255;

/// How long a ping may take; its client waits for it.
const PING_DEADLINE: Duration = Duration::from_secs(5);

/// `POST /v1/capsules`
pub(super) fn create(
    ready: &Arc<Ready>,
    caller: &Caller,
    request: &Request,
) -> Result<Response, Problem> {
    let fields = Fields::read(request)?;
    if fields.has("metadata") {
        return Err(Problem::invalid(
            "metadata: labels of capsules are not supported; leave the field out",
        ));
    }
    let new = NewSandbox {
        team: caller.owner(fields.optional("team_id")?)?,
        template: fields.text("template")?.unwrap_or_else(|| MINIMAL.to_owned()),
        vcpus: fields.count_in("vcpus", 1..=WIRE_NUMBER_MAX)?,
        memory_mb: fields.count_in("memory_mb", 1..=WIRE_NUMBER_MAX)?,
        timeout_sec: fields.count_in("timeout_sec", 0..=WIRE_NUMBER_MAX)?.unwrap_or(0),
        disk_size_mb: fields.count_in("disk_size_mb", 1..=WIRE_NUMBER_MAX)?,
        actor: caller.actor(),
    };
    let once = once_key(caller, request)?;
    when_done::answer(ready, caller, request, OperationKind::Create, move |ready| {
        create_now(ready, new, once)
    })
}

fn create_now(ready: &Ready, new: NewSandbox, once: Option<OnceKey>) -> Result<Accepted, Problem> {
    let wanted = new.template.clone();
    let new = Box::new(new);
    let created = match once {
        None => ready.write(|reply| Command::CreateSandbox(new, reply))?,
        Some(once) => match ready.write(|reply| Command::CreateOnce(new, once, reply))? {
            Once::First(created) => *created,
            Once::Again(sandbox) => return Ok(Accepted::InFlight(sandbox)),
            Once::Gone(id) => {
                let message = format!("{id}, which this Idempotency-Key created, is gone");
                return Err(Problem::new(404, "not_found", message));
            }
            Once::Reused => {
                let message = "Idempotency-Key: used for another request within the last day; \
                               take a new key for each create";
                return Err(Problem::new(422, "idempotency_key_reused", message));
            }
        },
    };
    let (sandbox, work) = created.map_err(|why| not_made(&wanted, why))?;
    (ready.wake)(Wake::Work(Box::new(work)));
    Ok(Accepted::InFlight(Box::new(sandbox)))
}

/// What a client repeats its create with; keys of different teams have nothing to do with
/// each other.
fn once_key(caller: &Caller, request: &Request) -> Result<Option<OnceKey>, Problem> {
    let all = request.headers.iter();
    let mut keys = all.filter(|(name, _)| name.eq_ignore_ascii_case("idempotency-key"));
    let Some((_, key)) = keys.next() else { return Ok(None) };
    let printable = key.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    if keys.next().is_some() || key.is_empty() || key.len() > ONCE_KEY_BYTES_MAX || !printable {
        return Err(Problem::invalid(format!(
            "Idempotency-Key must be given once and be 1 to {ONCE_KEY_BYTES_MAX} printable ASCII \
             characters"
        )));
    }
    let scope = caller.team().map_or_else(|| "admin".to_owned(), |team| team.to_string());
    let key = String::from_utf8_lossy(key).into_owned();
    Ok(Some(OnceKey { scope, key, body_hash: secret::hash_bytes(&request.body) }))
}

fn not_made(wanted: &str, why: NotMade) -> Problem {
    let message = match why {
        NotMade::NoTemplate(unknown) => return unknown_template(wanted, &unknown),
        NotMade::NoHostHas(name) => {
            format!("no host that has the template {name} takes new capsules right now")
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
    Problem::new(503, "no_hosts_available", message)
}

/// `POST /v1/capsules/{id}/pause`, `/resume`, and `DELETE /v1/capsules/{id}`
pub(super) fn begin(
    ready: &Arc<Ready>,
    caller: &Caller,
    id: &str,
    kind: OperationKind,
    request: &Request,
) -> Result<Response, Problem> {
    let (team, actor) = (caller.team(), caller.actor());
    let wish = Wish { sandbox: capsule_id(id)?, kind, team, actor };
    when_done::answer(ready, caller, request, kind, move |ready| begin_now(ready, wish))
}

fn begin_now(ready: &Ready, wish: Wish) -> Result<Accepted, Problem> {
    let kind = wish.kind;
    let stranger = (wish.sandbox, wish.team, wish.actor.clone());
    match ready.write(|reply| Command::Begin(Box::new(wish), reply))? {
        Begun::Started(sandbox, work) => {
            (ready.wake)(Wake::Work(work));
            Ok(Accepted::InFlight(sandbox))
        }
        Begun::Already(sandbox) => Ok(Accepted::InFlight(sandbox)),
        Begun::AlreadyTerminal(work) => {
            if let Some(work) = work {
                (ready.wake)(Wake::Work(work));
            }
            Ok(Accepted::NothingToDo)
        }
        Begun::NoRoom(free) => Err(no_room(free)),
        Begun::InvalidState(status) => Err(invalid_state(kind.as_str(), status)),
        Begun::HostAway(status) => Err(host_away(status)),
        Begun::NotFound if kind == OperationKind::Destroy && stranger.1.is_none() => {
            destroy_stranger(ready, stranger)
        }
        Begun::NotFound => Err(Problem::not_found("capsule")),
    }
}

/// What has no row may be there all the same, where an operator has it destroyed.
fn destroy_stranger(
    ready: &Ready,
    (sandbox, _, actor): (SandboxId, Option<TeamId>, Actor),
) -> Result<Accepted, Problem> {
    let host = None;
    let begun = ready.write(|reply| Command::DestroyStranger { sandbox, host, actor, reply })?;
    for work in begun.ok_or_else(|| Problem::not_found("capsule"))? {
        (ready.wake)(Wake::Work(Box::new(work)));
    }
    Ok(Accepted::NothingToDo)
}

fn no_room(free: Free) -> Problem {
    let part = |what: &str, left: Option<u64>| left.map(|left| format!("{left} {what}"));
    let left = [part("MiB of memory", free.memory_mb), part("vCPUs", free.vcpus)];
    let left: Vec<String> = left.into_iter().flatten().collect();
    let message = format!(
        "the capsule's host has no room for it: {} free; destroy or pause a capsule there",
        left.join(" and ")
    );
    Problem::new(503, "no_room", message)
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
    ping_agent(ready, &sandbox)
}

fn ping_agent(ready: &Ready, sandbox: &Sandbox) -> Result<Response, Problem> {
    let failed = |detail: String| Problem::new(502, "agent_error", detail);
    let address = ready.presence.get(sandbox.host_id).and_then(|host| host.address);
    let address = address.ok_or_else(|| failed("the capsule's host has no address".to_owned()))?;
    match ready.agent.ping(sandbox.host_id, &address, sandbox.id, PING_DEADLINE) {
        Ok(()) => {
            ready.presence.activity.note(sandbox.id, ready.now().wall);
            Ok(Response::empty(204))
        }
        Err(CallError::Refused { code: ConnectCode::NotFound, message }) => {
            // It paused by itself, or is gone: what the host lists will tell.
            (ready.wake)(Wake::ProbeNow(sandbox.host_id));
            let message = format!(
                "cannot ping a capsule that its host does not run: {message}; its status is being \
                 determined"
            );
            Err(Problem::new(409, "invalid_state", message))
        }
        Err(error) => Err(failed(error.to_string())),
    }
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
        newest_first: true,
        host: query.parsed("host_id")?,
        status: query.parsed("status")?,
        all: match query.text("all") {
            Some("true" | "1") => true,
            Some("false" | "0") | None => false,
            Some(_) => return Err(Problem::invalid("all must be true or false")),
        },
    };
    let sandboxes = read::sandboxes(&*ready.read()?, &filter)?;
    let view = |sandbox| CapsuleView::of(sandbox, &ready.presence);
    let views: Vec<CapsuleView> = sandboxes.into_iter().map(view).collect();
    json(200, &views)
}

/// `GET /v1/capsules/{id}`
pub(super) fn show(ready: &Ready, caller: &Caller, id: &str) -> Result<Response, Problem> {
    json(200, &CapsuleView::of(find(ready, caller, id)?, &ready.presence))
}

/// A capsule; another team's is not there.
fn find(ready: &Ready, caller: &Caller, id: &str) -> Result<Sandbox, Problem> {
    let sandbox = read::sandbox(&*ready.read()?, capsule_id(id)?)?;
    let seen = sandbox.filter(|sandbox| caller.sees(sandbox.team_id));
    seen.ok_or_else(|| Problem::not_found("capsule"))
}
