//! Owns which path leads where, and who may go there.
//!
//! Never: does the work of a resource.

use super::access::Caller;
use super::{
    Problem, Ready, agents, audit, capsules, database, history, hosts, keys, metrics, missing,
    notify, page, removal, strangers, stream, templates,
};
use crate::http::Method::{self, Delete, Get, Post};
use crate::http::{Request, Response};
use crate::model::host::Intent;
use crate::model::operation::OperationKind;
use crate::store::templates::Disposal;
use Door::{Admin, Agent, Key, Open, Report};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Answers once the database is open.
pub(super) fn answer(ready: &Arc<Ready>, request: &Request) -> Response {
    settled(ready, route(ready, request))
}

/// What a handler came to, as it is sent.
pub(super) fn settled(ready: &Ready, answer: Answer) -> Response {
    answer.unwrap_or_else(|problem| {
        // Whoever finds damage finds it for all: nobody is sent to renew a token now.
        problem.damage.iter().for_each(|damage| ready.figures.suffer(damage));
        Response::from(problem)
    })
}

/// Answers while it is not: alive, the page, which says that it waits, and 503 to everybody
/// else. An agent that gets an answer, even this one, does not pause its sandboxes.
/// `why`: it cannot be opened as things are.
pub(super) fn answer_while_opening(request: &Request, why: Option<&str>) -> Response {
    match segments(&request.path).as_slice() {
        ["healthz"] => metrics::healthz(),
        [""] if request.method == Get => page::page(request),
        _ => Problem::unavailable(match why {
            Some(why) => format!("the database cannot be opened yet: {why}"),
            None => "the database is being opened; try again".to_owned(),
        })
        .into(),
    }
}

/// The parts of a path; a closing slash makes no difference.
fn segments(path: &str) -> Vec<&str> {
    path.trim_start_matches('/').trim_end_matches('/').split('/').collect()
}

/// Who may go somewhere, and what answers them.
enum Door {
    /// Everybody.
    Open(fn(&Ready, &Request) -> Answer),
    /// Agents. What they show is judged where they are answered: some refusals kill.
    Agent(fn(&Arc<Ready>, &Request, &str) -> Answer),
    /// Agents that report of a sandbox: also one that is refused says something.
    Report,
    /// Whoever has a key, for what its team owns; 401 for everybody else.
    Key(fn(Asked<'_>) -> Answer),
    /// The holder of the admin key; 403 for those with another.
    Admin(fn(Asked<'_>) -> Answer),
}

type Answer = Result<Response, Problem>;

/// A request of somebody who was let in.
struct Asked<'a> {
    ready: &'a Arc<Ready>,
    request: &'a Request,
    caller: Caller,
    /// What stands for `{id}` in the path; empty where there is none.
    id: &'a str,
}

/// Method, path and door of everything that can be asked. The first that fits counts.
const ROUTES: &[(Method, &str, Door)] = &[
    (Get, "", Open(|_, request| Ok(page::page(request)))),
    (Get, "healthz", Open(|_, _| Ok(metrics::healthz()))),
    (Get, "readyz", Open(|ready, _| metrics::readyz(ready))),
    (Get, "metrics", Open(|ready, _| Ok(metrics::metrics(ready)))),
    (Post, "v1/hosts/register", Agent(|ready, request, _| agents::register(ready, request))),
    (Post, "v1/hosts/auth/refresh", Agent(|ready, request, _| agents::refresh(ready, request))),
    (
        Post,
        "v1/hosts/{id}/heartbeat",
        Agent(|ready, request, id| agents::heartbeat(ready, request, id)),
    ),
    (Post, "v1/hosts/sandbox-events", Report),
    (Get, "v1/hosts", Key(|a| hosts::list(a.ready, &a.caller))),
    (Post, "v1/hosts", Admin(|a| hosts::create(a.ready, a.request))),
    (Get, "v1/hosts/{id}", Key(|a| hosts::show(a.ready, &a.caller, a.id))),
    (Delete, "v1/hosts/{id}", Admin(|a| removal::delete(a.ready, &a.caller, a.id, a.request))),
    (Get, "v1/hosts/{id}/delete-preview", Admin(|a| removal::preview(a.ready, a.id))),
    (Post, "v1/hosts/{id}/probe", Admin(|a| hosts::probe(a.ready, &a.caller, a.id))),
    (Post, "v1/hosts/{id}/token", Admin(|a| hosts::new_token(a.ready, a.id))),
    (Post, "v1/hosts/{id}/drain", Admin(|a| hosts::set_intent(a.ready, a.id, Intent::Draining))),
    (Post, "v1/hosts/{id}/undrain", Admin(|a| hosts::set_intent(a.ready, a.id, Intent::Active))),
    (Post, "v1/hosts/{id}/offline", Admin(|a| hosts::set_intent(a.ready, a.id, Intent::Offline))),
    (Post, "v1/hosts/{id}/maintenance", Admin(|a| notify::begin(a.ready, a.id, a.request))),
    (Delete, "v1/hosts/{id}/maintenance", Admin(|a| notify::end(a.ready, a.id))),
    (Get, "v1/unknown-hosts", Admin(|a| hosts::unknown(a.ready))),
    (Get, "v1/notifications", Admin(|a| notify::overview(a.ready))),
    (Post, "v1/notifications/test", Admin(|a| notify::test(a.ready, &a.caller))),
    (Get, "v1/capsules", Key(|a| capsules::list(a.ready, &a.caller, a.request))),
    (Post, "v1/capsules", Key(|a| capsules::create(a.ready, &a.caller, a.request))),
    (Get, "v1/capsules/{id}", Key(|a| capsules::show(a.ready, &a.caller, a.id))),
    (
        Delete,
        "v1/capsules/{id}",
        Key(|a| capsules::begin(a.ready, &a.caller, a.id, OperationKind::Destroy, a.request)),
    ),
    (
        Post,
        "v1/capsules/{id}/pause",
        Key(|a| capsules::begin(a.ready, &a.caller, a.id, OperationKind::Pause, a.request)),
    ),
    (
        Post,
        "v1/capsules/{id}/resume",
        Key(|a| capsules::begin(a.ready, &a.caller, a.id, OperationKind::Resume, a.request)),
    ),
    (Post, "v1/capsules/{id}/ping", Key(|a| capsules::ping(a.ready, &a.caller, a.id))),
    (Get, "v1/snapshots", Key(|a| templates::list(a.ready, &a.caller, a.request))),
    (Post, "v1/snapshots", Key(|a| templates::snapshot(a.ready, &a.caller, a.request))),
    (
        Delete,
        "v1/snapshots/{id}",
        Key(|a| templates::remove(a.ready, &a.caller, a.id, a.request, Disposal::Delete)),
    ),
    (Get, "v1/templates", Admin(|a| templates::list(a.ready, &a.caller, a.request))),
    (Post, "v1/templates", Admin(|a| templates::add(a.ready, a.request))),
    (
        Delete,
        "v1/templates/{id}",
        Admin(|a| templates::remove(a.ready, &a.caller, a.id, a.request, Disposal::Forget)),
    ),
    (Get, "v1/strangers", Admin(|a| strangers::list(a.ready))),
    (
        Delete,
        "v1/strangers/{id}",
        Admin(|a| strangers::destroy(a.ready, &a.caller, a.id, a.request)),
    ),
    (
        Post,
        "v1/strangers/{id}/adopt",
        Admin(|a| strangers::adopt(a.ready, &a.caller, a.id, a.request)),
    ),
    (Get, "v1/events", Key(|a| stream::events(a.ready, a.caller, a.request))),
    (Get, "v1/history", Admin(|a| history::history(a.ready))),
    (Get, "v1/audit", Key(|a| audit::list(a.ready, &a.caller, a.request))),
    (Get, "v1/api-keys", Admin(|a| keys::list(a.ready))),
    (Post, "v1/api-keys", Admin(|a| keys::create(a.ready, a.request))),
    (Delete, "v1/api-keys/{id}", Admin(|a| keys::revoke(a.ready, a.id))),
    (Post, ACCEPT, Admin(|a| database::accept(a.ready, &a.caller))),
];

/// The one change that a restored database takes before it is accepted.
const ACCEPT: &str = "v1/database/accept";

fn route(ready: &Arc<Ready>, request: &Request) -> Answer {
    let path = segments(&request.path);
    // First: some would be taken for the id of a capsule.
    if let Some(refusal) = missing::by_host(request).or_else(|| missing::by_path(&path)) {
        return Err(refusal);
    }
    // The transport leaves a HEAD's body out.
    let method = if request.method == Method::Head { Get } else { request.method };
    let mut there = there(&path).filter_map(|(m, p, door)| Some((m, door, fits(p, &path)?)));
    let Some((_, door, id)) = there.find(|(m, _, _)| **m == method) else {
        return Err(refuse(&path));
    };
    let asked = |caller| Asked { ready, request, caller, id };
    let changes = method != Get && path.join("/") != ACCEPT;
    let may_go_on = || if changes { database::awaits(ready) } else { Ok(()) };
    match door {
        Open(answer) => answer(ready, request),
        Agent(answer) => {
            may_go_on()?;
            answer(ready, request, id)
        }
        Report => agents::sandbox_event(ready, request, may_go_on),
        Key(answer) => {
            let caller = Caller::of(ready, request)?;
            begins_nothing_when_stopping(ready, changes)?;
            may_go_on()?;
            answer(asked(caller))
        }
        Admin(answer) => {
            let caller = Caller::of(ready, request)?;
            caller.must_be_admin()?;
            begins_nothing_when_stopping(ready, changes)?;
            may_go_on()?;
            answer(asked(caller))
        }
    }
}

/// A server that is told to stop waits for what is in flight, and takes nothing new.
fn begins_nothing_when_stopping(ready: &Ready, changes: bool) -> Result<(), Problem> {
    match changes && ready.pulse.stopping.load(Ordering::Relaxed) {
        true => Err(Problem::unavailable("shutting down; try again when the server is back")),
        false => Ok(()),
    }
}

/// What stands for `{id}` in a path of this pattern; `None` when the path is another.
fn fits<'a>(pattern: &str, path: &[&'a str]) -> Option<&'a str> {
    let mut id = "";
    let mut path = path.iter();
    for part in pattern.split('/') {
        match (part, *path.next()?) {
            ("{id}", found) => id = found,
            (part, found) if part == found => {}
            (_, _) => return None,
        }
    }
    path.next().is_none().then_some(id)
}

/// The routes of a path. One that is written out is not some `{id}` as well.
fn there(path: &[&str]) -> impl Iterator<Item = &'static (Method, &'static str, Door)> {
    let is_written_out = ROUTES.iter().any(|(_, p, _)| !p.contains('{') && fits(p, path).is_some());
    let fitting = move |(_, p, _): &&(Method, &str, Door)| {
        fits(p, path).is_some() && !(is_written_out && p.contains('{'))
    };
    ROUTES.iter().filter(fitting)
}

/// A path that is known takes other methods; any other is nobody's.
fn refuse(path: &[&str]) -> Problem {
    let mut methods: Vec<&str> = there(path).map(|(method, _, _)| word(*method)).collect();
    if methods.is_empty() {
        return Problem::not_found("path");
    }
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.sort_unstable();
    let methods = methods.join(", ");
    let problem = Problem::new(405, "method_not_allowed", format!("this path takes {methods}"));
    Problem { allow: Some(methods.into()), ..problem }
}

/// Method and path of everything that can be asked, for what must name them all.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(method, path, _)| (word(*method), *path))
}

/// A method as it is written.
fn word(method: Method) -> &'static str {
    match method {
        Get => "GET",
        Post => "POST",
        Method::Put => "PUT",
        Delete => "DELETE",
        Method::Head => "HEAD",
        Method::Options => "OPTIONS",
        Method::Patch => "PATCH",
        Method::Other => "another method",
    }
}
