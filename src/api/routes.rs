//! Owns which path leads where, and who may go there.
//!
//! Never: does the work of a resource.

use super::access::Caller;
use super::lanes::Lane::{self, Conversation, Opening, Read, Vital, Write};
use super::lanes::holder_at;
use super::{
    Problem, Ready, agents, audit, capsules, database, history, hosts, keys, metrics, missing,
    notify, page, removal, strangers, stream, templates,
};
use crate::http::Method::{self, Delete, Get, Post};
use crate::http::{BODY_BYTES_MAX, Caller as Client, Holder, Request, Response};
use crate::model::host::Intent;
use crate::model::operation::OperationKind;
use crate::store::templates::Disposal;
use Door::{Admin, Key, Now, Open, Report};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Answers once the database is open: at once what waits for nothing, else in its lane.
pub(super) fn answer(ready: &Arc<Ready>, request: Request) -> Response {
    let answer = route(ready, request);
    settled(ready, answer)
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
    /// Open to all, at once: neither waits for anything nor reads the database. What agents show
    /// is judged where they are answered: some refusals kill.
    Now(fn(&Ready, &Request, &str) -> Answer),
    /// Everybody.
    Open(fn(&Ready, &Request) -> Answer),
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
    /// Its end of the connection.
    client: &'a mut Client,
    /// What stands for `{id}` in the path; empty where there is none.
    id: &'a str,
}

/// Lane, method, path and door.
type Route = (Lane, Method, &'static str, Door);

/// Bytes of body that most routes take. Larger: unfinished bodies of many clients hold more
/// memory; smaller: a capsule with a long list of settings is refused.
const SMALL_BODY_BYTES_MAX: usize = 64 * 1024;

/// Lane, method, path and door of everything that can be asked. The first that fits counts.
const ROUTES: &[Route] = &[
    (Vital, Get, "", Now(|_, request, _| Ok(page::page(request)))),
    (Vital, Get, "healthz", Now(|_, _, _| Ok(metrics::healthz()))),
    (Vital, Get, "readyz", Open(|ready, _| metrics::readyz(ready))),
    (Read, Get, "metrics", Open(|ready, _| Ok(metrics::metrics(ready)))),
    (Vital, Post, "v1/hosts/register", Open(agents::register)),
    (Vital, Post, "v1/hosts/auth/refresh", Open(agents::refresh)),
    (Vital, Post, "v1/hosts/{id}/heartbeat", Now(agents::heartbeat)),
    (Vital, Post, "v1/hosts/sandbox-events", Report),
    (Read, Get, "v1/hosts", Key(|a| hosts::list(a.ready, &a.caller, a.request))),
    (Write, Post, "v1/hosts", Admin(|a| hosts::create(a.ready, a.request))),
    (Read, Get, "v1/hosts/{id}", Key(|a| hosts::show(a.ready, &a.caller, a.id))),
    (
        Conversation,
        Delete,
        "v1/hosts/{id}",
        Admin(|a| removal::delete(a.ready, a.client, a.id, a.request)),
    ),
    (Read, Get, "v1/hosts/{id}/delete-preview", Admin(|a| removal::preview(a.ready, a.id))),
    (Conversation, Post, "v1/hosts/{id}/probe", Admin(|a| hosts::probe(a.ready, a.client, a.id))),
    (Write, Post, "v1/hosts/{id}/token", Admin(|a| hosts::new_token(a.ready, a.id))),
    (
        Write,
        Post,
        "v1/hosts/{id}/drain",
        Admin(|a| hosts::set_intent(a.ready, a.id, Intent::Draining)),
    ),
    (
        Write,
        Post,
        "v1/hosts/{id}/undrain",
        Admin(|a| hosts::set_intent(a.ready, a.id, Intent::Active)),
    ),
    (
        Write,
        Post,
        "v1/hosts/{id}/offline",
        Admin(|a| hosts::set_intent(a.ready, a.id, Intent::Offline)),
    ),
    (Write, Post, "v1/hosts/{id}/maintenance", Admin(|a| notify::begin(a.ready, a.id, a.request))),
    (Write, Delete, "v1/hosts/{id}/maintenance", Admin(|a| notify::end(a.ready, a.id))),
    (Read, Get, "v1/unknown-hosts", Admin(|a| hosts::unknown(a.ready))),
    (Read, Get, "v1/notifications", Admin(|a| notify::overview(a.ready))),
    (Conversation, Post, "v1/notifications/test", Admin(|a| notify::test(a.ready))),
    (Read, Get, "v1/capsules", Key(|a| capsules::list(a.ready, &a.caller, a.request))),
    (Write, Post, "v1/capsules", Key(|a| capsules::create(a.ready, &a.caller, a.request))),
    (Read, Get, "v1/capsules/{id}", Key(|a| capsules::show(a.ready, &a.caller, a.id))),
    (
        Write,
        Delete,
        "v1/capsules/{id}",
        Key(|a| capsules::begin(a.ready, &a.caller, a.id, OperationKind::Destroy, a.request)),
    ),
    (
        Write,
        Post,
        "v1/capsules/{id}/pause",
        Key(|a| capsules::begin(a.ready, &a.caller, a.id, OperationKind::Pause, a.request)),
    ),
    (
        Write,
        Post,
        "v1/capsules/{id}/resume",
        Key(|a| capsules::begin(a.ready, &a.caller, a.id, OperationKind::Resume, a.request)),
    ),
    (
        Conversation,
        Post,
        "v1/capsules/{id}/ping",
        Key(|a| capsules::ping(a.ready, &a.caller, a.id)),
    ),
    (Read, Get, "v1/snapshots", Key(|a| templates::list(a.ready, &a.caller, a.request))),
    (Write, Post, "v1/snapshots", Key(|a| templates::snapshot(a.ready, &a.caller, a.request))),
    (
        Write,
        Delete,
        "v1/snapshots/{id}",
        Key(|a| templates::remove(a.ready, &a.caller, a.id, a.request, Disposal::Delete)),
    ),
    (Read, Get, "v1/templates", Admin(|a| templates::list(a.ready, &a.caller, a.request))),
    (Write, Post, "v1/templates", Admin(|a| templates::add(a.ready, a.request))),
    (
        Write,
        Delete,
        "v1/templates/{id}",
        Admin(|a| templates::remove(a.ready, &a.caller, a.id, a.request, Disposal::Forget)),
    ),
    (Read, Get, "v1/strangers", Admin(|a| strangers::list(a.ready, a.request))),
    (
        Write,
        Delete,
        "v1/strangers/{id}",
        Admin(|a| strangers::destroy(a.ready, &a.caller, a.id, a.request)),
    ),
    (
        Write,
        Post,
        "v1/strangers/{id}/adopt",
        Admin(|a| strangers::adopt(a.ready, &a.caller, a.id, a.request)),
    ),
    (Opening, Get, "v1/events", Key(|a| stream::events(a.ready, a.caller, a.request))),
    (Read, Get, "v1/history", Admin(|a| history::history(a.ready))),
    (Read, Get, "v1/audit", Key(|a| audit::list(a.ready, &a.caller, a.request))),
    (Read, Get, "v1/api-keys", Admin(|a| keys::list(a.ready))),
    (Write, Post, "v1/api-keys", Admin(|a| keys::create(a.ready, a.request))),
    (Write, Delete, "v1/api-keys/{id}", Admin(|a| keys::revoke(a.ready, a.id))),
    (Write, Post, ACCEPT, Admin(|a| database::accept(a.ready, &a.caller))),
];

/// The one change that a restored database takes before it is accepted.
const ACCEPT: &str = "v1/database/accept";

fn route(ready: &Arc<Ready>, request: Request) -> Answer {
    let path = segments(&request.path);
    // First: some would be taken for the id of a capsule.
    if let Some(refusal) = missing::by_host(&request).or_else(|| missing::by_path(&path)) {
        return Err(refusal);
    }
    let Some((route, id)) = find(request.method, &path) else { return Err(refuse(&path)) };
    let lane = route.0;
    match &route.3 {
        Now(answer) => {
            may_go_on(ready, route)?;
            answer(ready, &request, id)
        }
        Open(answer) => {
            may_go_on(ready, route)?;
            let holder = holder_at(request.peer.ip());
            in_lane(ready, lane, holder, request, |ready, request, _| answer(ready, request))
        }
        Report => {
            // Whatever becomes of it from here on, it was said.
            let report = agents::UnacceptedReport::new(ready, &request);
            may_go_on(ready, route)?;
            let holder = report.holder(&request);
            in_lane(ready, lane, holder, request, |ready, request, _| {
                agents::sandbox_event(ready, request, report)
            })
        }
        Key(answer) => ask(ready, route, Caller::of(ready, &request)?, request, *answer),
        Admin(answer) => {
            let caller = Caller::of(ready, &request)?;
            caller.must_be_admin()?;
            ask(ready, route, caller, request, *answer)
        }
    }
}

/// The answer to a caller who is let in.
fn ask(
    ready: &Arc<Ready>,
    route: &'static Route,
    caller: Caller,
    request: Request,
    answer: fn(Asked<'_>) -> Answer,
) -> Answer {
    begins_nothing_when_stopping(ready, changes(route))?;
    may_go_on(ready, route)?;
    let holder = Holder::from(&caller);
    in_lane(ready, route.0, holder, request, move |ready, request, client| {
        let id = fits(route.2, &segments(&request.path)).unwrap_or_default();
        answer(Asked { ready, request, caller, client, id })
    })
}

/// An answer that is made in this lane; 503 when there is no place for this holder.
fn in_lane(
    ready: &Ready,
    lane: Lane,
    holder: Holder,
    request: Request,
    work: impl FnOnce(&Arc<Ready>, &Request, &mut Client) -> Answer + Send + 'static,
) -> Answer {
    let slot = ready.place(lane, holder)?;
    Ok(ready.in_lane(lane, slot, move |ready, client| work(ready, &request, client)))
}

/// Whether a route changes what a restored database says, once it is accepted.
fn changes(route: &Route) -> bool {
    route.1 != Get && route.2 != ACCEPT
}

fn may_go_on(ready: &Ready, route: &Route) -> Result<(), Problem> {
    if changes(route) { database::awaits(ready) } else { Ok(()) }
}

/// Bytes of body that a request may have: few need many.
pub(super) fn body_bytes_max(method: Method, path: &str) -> usize {
    match find(method, &segments(path)) {
        // A list of the hosts that have it.
        Some(((_, _, "v1/templates", _), _)) => BODY_BYTES_MAX,
        Some(_) | None => SMALL_BODY_BYTES_MAX,
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

/// The route of a method and path, and what stands for `{id}`.
fn find<'a>(method: Method, path: &[&'a str]) -> Option<(&'static Route, &'a str)> {
    // The transport leaves a HEAD's body out.
    let method = if method == Method::Head { Get } else { method };
    let route = there(path).find(|route| route.1 == method)?;
    Some((route, fits(route.2, path)?))
}

/// The routes of a path. One that is written out is not some `{id}` as well.
fn there(path: &[&str]) -> impl Iterator<Item = &'static Route> {
    let is_written_out =
        ROUTES.iter().any(|(_, _, p, _)| !p.contains('{') && fits(p, path).is_some());
    let fitting = move |(_, _, p, _): &&Route| {
        fits(p, path).is_some() && !(is_written_out && p.contains('{'))
    };
    ROUTES.iter().filter(fitting)
}

/// A path that is known takes other methods; any other is nobody's.
fn refuse(path: &[&str]) -> Problem {
    let mut methods: Vec<&str> = there(path).map(|(_, method, _, _)| word(*method)).collect();
    if methods.is_empty() {
        return Problem::not_found("path");
    }
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    crate::model::order::sort_by_key(&mut methods, |method| *method);
    let methods = methods.join(", ");
    let problem = Problem::new(405, "method_not_allowed", format!("this path takes {methods}"));
    Problem { allow: Some(methods.into()), ..problem }
}

/// Method and path of everything that can be asked, for what must name them all.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(_, method, path, _)| (word(*method), *path))
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
