//! Owns how a simulated agent answers calls: the wire of interfaces.md section 4, and the
//! faults that spoil it.
//!
//! Never: changes a sandbox itself (`calls` does), lets a worker wait. Called by the server's
//! workers, and by threads of its own for calls that take time.

use super::agent::{Change, Done};
use super::calls::End;
use super::fault::AnswerFault;
use super::host::SimHost;
use super::listing;
use super::refusal::{self, Refusal, invalid};
use super::template::Template;
use super::wait::Client;
use crate::agent::wire::{
    ConnectCode, CreateSandboxRequest, CreateSnapshotRequest, Empty, ErrorBody, Method,
    ResumeSandboxRequest, SERVICE_PATH, SandboxRef, TemplateRef, TemplateSize,
};
use crate::http::{Body, Handler, Method as HttpMethod, Request, Response};
use crate::model::id::SandboxId;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// Answers for all hosts; the listener says which one is called.
pub(super) struct Agents {
    pub(super) hosts: Vec<Arc<SimHost>>,
}

impl Handler for Agents {
    fn handle(&self, request: Request) -> Response {
        let Some(host) = self.hosts.get(request.listener) else { return Response::cut() };
        let method = match route(&request) {
            Ok(method) => method,
            Err(response) => return response,
        };
        // Decided before the call is counted: a test that waits for that may end the fault at
        // once.
        let on_arrival = host.faults().answer_to(method);
        let gzip = request.accepts_gzip();
        let call = Call { method, gzip, on_arrival, body: request.body };
        host.count_call(method, call.named());
        if !host.takes_time(method) {
            return call.answer(host, &mut Client::Brief);
        }
        let host = Arc::clone(host);
        Response::deferred(move |caller| call.answer(&host, &mut Client::Waiting(caller)))
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

/// One call.
struct Call {
    method: Method,
    body: Vec<u8>,
    gzip: bool,
    /// What was to become of the answer when the call came in; a refusal stays one.
    on_arrival: AnswerFault,
}

impl Call {
    /// The sandbox that it names, if it names one.
    fn named(&self) -> Option<SandboxId> {
        serde_json::from_slice::<SandboxRef<'_>>(&self.body).ok()?.sandbox_id.parse().ok()
    }

    fn answer(&self, host: &SimHost, client: &mut Client<'_>) -> Response {
        let method = self.method;
        if !host.be_slow(method, client) {
            return Response::cut();
        }
        let faults = host.faults();
        if faults.closed || host.has_exited() {
            return Response::cut();
        }
        if host.is_shutting_down() && method != Method::List {
            return refused(refusal::shutting_down());
        }
        if let AnswerFault::Refused(code) = self.on_arrival {
            return self.refuse(host, code);
        }
        match faults.answer_to(method) {
            AnswerFault::None => self.carry_out(host, client),
            AnswerFault::Refused(code) => self.refuse(host, code),
            AnswerFault::Malformed => halved(self.carry_out(host, client)),
            AnswerFault::Dropped => {
                self.carry_out(host, client);
                Response::cut()
            }
            AnswerFault::Severed => Response::cut(),
            AnswerFault::Held => {
                let response = self.carry_out(host, client);
                host.hold_answer(method, client);
                response
            }
        }
    }

    fn refuse(&self, host: &SimHost, code: ConnectCode) -> Response {
        let refusal = (code, "as simulated".to_owned());
        if let Some(id) = self.named() {
            host.report_failure(id, self.method, &refusal);
        }
        refused(refusal)
    }

    /// Real agents compress every answer that is not an error, for clients that accept it.
    fn carry_out(&self, host: &SimHost, client: &mut Client<'_>) -> Response {
        if let Some(id) = self.named() {
            log::debug!("{}: {} {id}", host.agent_address(), self.method);
        }
        if self.method == Method::List {
            return match message(&self.body) {
                Ok(Empty { .. }) if self.gzip => gzipped(host.list().gzipped.to_vec()),
                Ok(Empty { .. }) => Response::json(200, host.list().json.to_vec()),
                Err(refusal) => refused(refusal),
            };
        }
        match self.done(host, client) {
            Ok(json) if self.gzip => gzipped(listing::gzip(&json)),
            Ok(json) => Response::json(200, json),
            Err(End::Refused(refusal)) => refused(refusal),
            Err(End::Cut) => Response::cut(),
        }
    }

    /// The JSON of what the call has become.
    fn done(&self, host: &SimHost, client: &mut Client<'_>) -> Result<Vec<u8>, End> {
        let mut change = |id, change| answer_of(host.carry_out(id, &change, client)?);
        match self.method {
            Method::Create => {
                let request: CreateSandboxRequest<'_> = message(&self.body)?;
                let template = template(&request.team_id, &request.template_id)?;
                change(id(&request.sandbox_id)?, Change::Create(&request, template))
            }
            Method::Resume => {
                let request: ResumeSandboxRequest<'_> = message(&self.body)?;
                let timeout_sec = request.timeout_sec;
                change(id(&request.sandbox_id)?, Change::Resume { timeout_sec })
            }
            Method::Pause => change(self.sandbox()?, Change::Pause),
            Method::Destroy => change(self.sandbox()?, Change::Destroy),
            Method::CreateSnapshot => {
                let request: CreateSnapshotRequest<'_> = message(&self.body)?;
                let template = template(&request.team_id, &request.template_id)?;
                change(id(&request.sandbox_id)?, Change::Snapshot(template))
            }
            Method::Ping => Ok(host.ping(self.sandbox()?).map(|()| EMPTY.to_vec())?),
            Method::DeleteSnapshot => {
                Ok(host.delete_template(self.template()?).map(|()| EMPTY.to_vec())?)
            }
            Method::TemplateSize => json(&TemplateSize::of(host.template_size(self.template()?)?)),
            Method::Terminate => {
                host.terminate();
                Ok(EMPTY.to_vec())
            }
            Method::List => Ok(host.list().json.to_vec()),
        }
    }

    fn sandbox(&self) -> Result<SandboxId, Refusal> {
        let request: SandboxRef<'_> = message(&self.body)?;
        id(&request.sandbox_id)
    }

    fn template(&self) -> Result<Template, Refusal> {
        let request: TemplateRef<'_> = message(&self.body)?;
        template(&request.team_id, &request.template_id)
    }
}

const EMPTY: &[u8] = b"{}";

fn answer_of(done: Done) -> Result<Vec<u8>, End> {
    match done {
        Done::Started(started) => json(&started),
        Done::Template(size_bytes) => json(&TemplateSize::of(size_bytes)),
        Done::Nothing => Ok(EMPTY.to_vec()),
    }
}

fn gzipped(body: Vec<u8>) -> Response {
    Response::json(200, body).with_header("content-encoding", "gzip")
}

fn message<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| invalid(format!("unmarshal message: {e}")))
}

fn id(text: &str) -> Result<SandboxId, Refusal> {
    text.parse().map_err(|e| invalid(format!("sandbox id {text:?}: {e}")))
}

fn template(team_id: &str, template_id: &str) -> Result<Template, Refusal> {
    Template::parse(team_id, template_id).map_err(invalid)
}

fn json(message: &impl Serialize) -> Result<Vec<u8>, End> {
    let json = serde_json::to_vec(message);
    json.map_err(|e| End::Refused((ConnectCode::Internal, e.to_string())))
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
        Body::Empty | Body::Stream(_) | Body::Feed(_) | Body::Deferred(..) | Body::Cut => body,
    };
    Response { status, headers, body }
}
