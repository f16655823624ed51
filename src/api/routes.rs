//! Owns which path leads where, and who may go there.
//!
//! Never: does the work of a resource.

use super::{Problem, Ready, agents, capsules, hosts, metrics, stream};
use crate::http::{Method, Request, Response};
use crate::model::host::Intent;
use crate::model::operation::OperationKind;

/// Answers once the database is open.
pub(super) fn answer(ready: &Ready, request: &Request) -> Response {
    route(ready, request).unwrap_or_else(|problem| {
        // Whoever finds damage finds it for all: nobody is sent to renew a token now.
        problem.damage.iter().for_each(|damage| ready.figures.suffer(damage));
        Response::from(problem)
    })
}

/// Answers while it is not: alive, not ready, and 503 to everybody else. An agent that
/// gets an answer, even this one, does not pause its sandboxes.
pub(super) fn answer_while_opening(request: &Request) -> Response {
    match segments(&request.path).as_slice() {
        ["healthz"] => Response::bytes(200, "text/plain; charset=utf-8", b"ok\n".to_vec()),
        _ => Problem::unavailable("the database is being opened; try again").into(),
    }
}

/// Whether the answer has to wait for an agent.
pub(super) fn waits_for_agent(request: &Request) -> bool {
    matches!(segments(&request.path).as_slice(), ["v1", "capsules", _, "ping"])
}

/// The parts of a path; a closing slash makes no difference.
fn segments(path: &str) -> Vec<&str> {
    path.trim_start_matches('/').trim_end_matches('/').split('/').collect()
}

fn route(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    use Method::{Get, Post};
    let path = segments(&request.path);
    // The transport leaves a HEAD's body out.
    let method = if request.method == Method::Head { Get } else { request.method };
    match (method, path.as_slice()) {
        (Get, ["healthz"]) => Ok(metrics::healthz()),
        (Get, ["readyz"]) => metrics::readyz(ready),
        (Get, ["metrics"]) => metrics::metrics(ready),

        (Post, ["v1", "hosts", "register"]) => agents::register(ready, request),
        (Post, ["v1", "hosts", "auth", "refresh"]) => agents::refresh(ready, request),
        (Post, ["v1", "hosts", id, "heartbeat"]) => agents::heartbeat(ready, request, id),

        (Post, ["v1", "hosts", "sandbox-events"]) => agents::sandbox_event(ready, request),
        (Get, ["v1", "events"]) => {
            admin(ready, request).and_then(|()| stream::events(ready, request))
        }

        (Post, ["v1", "hosts", id, "drain"]) => {
            admin(ready, request).and_then(|()| hosts::set_intent(ready, id, Intent::Draining))
        }
        (Post, ["v1", "hosts", id, "undrain"]) => {
            admin(ready, request).and_then(|()| hosts::set_intent(ready, id, Intent::Active))
        }
        (Post, ["v1", "hosts", id, "offline"]) => {
            admin(ready, request).and_then(|()| hosts::set_intent(ready, id, Intent::Offline))
        }
        (Post, ["v1", "hosts"]) => {
            admin(ready, request).and_then(|()| hosts::create(ready, request))
        }
        (Get, ["v1", "hosts"]) => admin(ready, request).and_then(|()| hosts::list(ready)),
        (Get, ["v1", "hosts", id]) => admin(ready, request).and_then(|()| hosts::show(ready, id)),
        (Post, ["v1", "hosts", id, "token"]) => {
            admin(ready, request).and_then(|()| hosts::new_token(ready, id))
        }
        (Get, ["v1", "capsules"]) => {
            admin(ready, request).and_then(|()| capsules::list(ready, &request.query))
        }
        (Post, ["v1", "capsules"]) => {
            admin(ready, request).and_then(|()| capsules::create(ready, request))
        }
        (Post, ["v1", "capsules", id, "pause"]) => {
            admin(ready, request).and_then(|()| capsules::begin(ready, id, OperationKind::Pause))
        }
        (Post, ["v1", "capsules", id, "resume"]) => {
            admin(ready, request).and_then(|()| capsules::begin(ready, id, OperationKind::Resume))
        }
        (Method::Delete, ["v1", "capsules", id]) => {
            admin(ready, request).and_then(|()| capsules::begin(ready, id, OperationKind::Destroy))
        }
        (Post, ["v1", "capsules", id, "ping"]) => {
            admin(ready, request).and_then(|()| capsules::ping(ready, id))
        }
        (Get, ["v1", "capsules", id]) => {
            admin(ready, request).and_then(|()| capsules::show(ready, id))
        }
        (_, known) => Err(refuse(known)),
    }
}

/// A path that is known takes other methods; any other is nobody's.
fn refuse(path: &[&str]) -> Problem {
    let methods = match path {
        ["healthz" | "readyz" | "metrics"] | ["v1", "events"] => "GET",
        ["v1", "capsules"] | ["v1", "hosts"] => "GET, POST",
        ["v1", "capsules", _] => "GET, DELETE",
        ["v1", "capsules", _, "pause" | "resume" | "ping"] => "POST",
        ["v1", "hosts", "register" | "sandbox-events"]
        | ["v1", "hosts", "auth", "refresh"]
        | ["v1", "hosts", _, "heartbeat" | "token" | "drain" | "undrain" | "offline"] => "POST",
        ["v1", "hosts", _] => "GET",
        _ => return Problem::not_found("path"),
    };
    Problem::new(405, "method_not_allowed", format!("this path takes {methods}"))
}

/// Lets the operator's key through.
fn admin(ready: &Ready, request: &Request) -> Result<(), Problem> {
    match request.headers.get("x-api-key") {
        Some(key) if ready.admin.is(key) => Ok(()),
        Some(_) => Err(Problem::unauthorized("the API key is not valid")),
        None => Err(Problem::unauthorized(
            "an API key is needed: send X-API-Key; the first one is in admin.key in the data directory",
        )),
    }
}
