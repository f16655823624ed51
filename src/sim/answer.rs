//! Owns how a simulated agent answers calls: the wire of interfaces.md section 4, and the
//! faults that spoil it.
//!
//! Never: changes a sandbox itself (`agent` does). Called by the server's workers.

use super::agent::{self, Refusal};
use super::fault::AnswerFault;
use super::host::SimHost;
use crate::agent::wire::{
    ConnectCode, CreateSandboxRequest, Empty, ErrorBody, Method, ResumeSandboxRequest,
    SERVICE_PATH, SandboxRef,
};
use crate::http::{Body, Handler, Method as HttpMethod, Request, Response};
use crate::model::id::SandboxId;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// Answers for all hosts; the listener tells which one is asked.
pub(super) struct Agents {
    pub(super) hosts: Vec<Arc<SimHost>>,
}

impl Handler for Agents {
    fn handle(&self, request: Request) -> Response {
        let Some(host) = self.hosts.get(request.listener) else { return Response::cut() };
        match route(&request) {
            Ok(method) => call(host, method, &request.body, request.accepts_gzip()),
            Err(response) => response,
        }
    }
}

/// The method that is called, or what a real agent's server says instead.
fn route(request: &Request) -> Result<Method, Response> {
    let name = request.path.strip_prefix(SERVICE_PATH);
    let Some(method) = name.and_then(|name| name.parse().ok()) else {
        let body = b"404 page not found\n".to_vec();
        return Err(Response::bytes(404, "text/plain; charset=utf-8", body));
    };
    if request.method != HttpMethod::Post {
        return Err(Response::empty(405).with_header("allow", "POST"));
    }
    let content_type = request.headers.get("content-type").unwrap_or_default();
    if content_type.split(';').next().unwrap_or_default().trim() != "application/json" {
        return Err(Response::empty(415).with_header("accept-post", "application/json"));
    }
    Ok(method)
}

fn call(host: &SimHost, method: Method, body: &[u8], gzip: bool) -> Response {
    let named = named_in(body);
    if let Some(id) = named {
        log::debug!("{}: {method} {id}", host.agent_address());
    }
    host.count_call(method, named);
    host.be_slow(method);
    let faults = host.faults();
    if faults.closed || host.has_exited() {
        return Response::cut();
    }
    let fault = if faults.concern(method) { faults.answers } else { AnswerFault::None };
    match fault {
        AnswerFault::None => carry_out(host, method, body, gzip),
        AnswerFault::Refused(code) => refused((code, "as simulated".to_owned())),
        AnswerFault::Malformed => halved(carry_out(host, method, body, gzip)),
        AnswerFault::Dropped => {
            carry_out(host, method, body, gzip);
            Response::cut()
        }
        AnswerFault::Severed => Response::cut(),
        AnswerFault::Held => {
            let response = carry_out(host, method, body, gzip);
            host.hold_answer(method);
            response
        }
    }
}

/// The sandbox that a call names, if it names one.
fn named_in(body: &[u8]) -> Option<SandboxId> {
    serde_json::from_slice::<SandboxRef<'_>>(body).ok()?.sandbox_id.parse().ok()
}

/// Real agents pack whatever is no error, for those who take it so.
fn carry_out(host: &SimHost, method: Method, body: &[u8], gzip: bool) -> Response {
    let done = match method {
        Method::List => {
            return match message(body) {
                Ok(Empty { .. }) if gzip => packed(host.list().gzipped.to_vec()),
                Ok(Empty { .. }) => Response::json(200, host.list().json.to_vec()),
                Err(refusal) => refused(refusal),
            };
        }
        Method::Create => create(host, body),
        Method::Resume => resume(host, body),
        Method::Pause => named(body, |id| host.pause(id)),
        Method::Destroy => named(body, |id| host.destroy(id)),
        Method::Ping => named(body, |id| host.ping(id)),
        Method::CreateSnapshot | Method::DeleteSnapshot | Method::TemplateSize => {
            Err((ConnectCode::Unimplemented, format!("{method} is not simulated")))
        }
        Method::Terminate => {
            host.terminate();
            Ok(b"{}".to_vec())
        }
    };
    match done {
        Ok(json) if gzip => packed(agent::gzip(&json)),
        Ok(json) => Response::json(200, json),
        Err(refusal) => refused(refusal),
    }
}

fn packed(gzipped: Vec<u8>) -> Response {
    Response::json(200, gzipped).with_header("content-encoding", "gzip")
}

fn create(host: &SimHost, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let request: CreateSandboxRequest<'_> = message(body)?;
    let started = host.create(id(&request.sandbox_id)?, &request)?;
    json(&started)
}

fn resume(host: &SimHost, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let request: ResumeSandboxRequest<'_> = message(body)?;
    let started = host.resume(id(&request.sandbox_id)?, &request)?;
    json(&started)
}

/// A call whose request only names a sandbox and whose answer is empty.
fn named(
    body: &[u8],
    act: impl FnOnce(SandboxId) -> Result<(), Refusal>,
) -> Result<Vec<u8>, Refusal> {
    let request: SandboxRef<'_> = message(body)?;
    act(id(&request.sandbox_id)?)?;
    Ok(b"{}".to_vec())
}

fn message<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| invalid(format!("unmarshal message: {e}")))
}

fn id(text: &str) -> Result<SandboxId, Refusal> {
    text.parse().map_err(|e| invalid(format!("sandbox id {text:?}: {e}")))
}

fn json(message: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(message).map_err(|e| (ConnectCode::Internal, e.to_string()))
}

fn invalid(message: String) -> Refusal {
    (ConnectCode::InvalidArgument, message)
}

fn refused((code, message): Refusal) -> Response {
    let code_word = Cow::Borrowed(code.as_str());
    let error = ErrorBody { code: code_word, message: Cow::Owned(message) };
    // Strings can always be written.
    Response::json(code.http_status(), serde_json::to_vec(&error).unwrap_or_default())
}

/// Half of the body, with everything else as if it were whole.
fn halved(response: Response) -> Response {
    let Response { status, headers, body } = response;
    let body = match body {
        Body::Bytes(mut bytes) => {
            bytes.truncate(bytes.len() / 2);
            Body::Bytes(bytes)
        }
        Body::Empty | Body::Stream(_) | Body::Deferred(_) | Body::Cut => body,
    };
    Response { status, headers, body }
}
