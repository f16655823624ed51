//! Owns `/v1/hosts` for operators.
//!
//! Never: shows a token twice.

use super::access::{Caller, operator};
use super::body::Fields;
use super::view::HostView;
use super::{Problem, Ready, Wake, json, secret};
use crate::http::{Request, Response};
use crate::model::host::{Host, Intent};
use crate::model::id::{HostId, PLATFORM_TEAM};
use crate::store::identity::NewHost;
use crate::store::read;
use crate::store::writer::Command;
use serde::Serialize;

/// A host with a registration token, which is shown this once.
#[derive(Serialize)]
struct WithToken {
    host: HostView,
    registration_token: String,
}

fn with_token(ready: &Ready, host: &Host, registration_token: String) -> Result<Response, Problem> {
    json(201, &WithToken { host: HostView::of(host, &ready.presence), registration_token })
}

/// `POST /v1/hosts`
pub(super) fn create(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let fields = Fields::read(&request.body)?;
    let token = secret::fresh();
    let new = NewHost {
        team: fields.optional("team_id")?.unwrap_or(PLATFORM_TEAM),
        kind: fields.text("type")?.unwrap_or_else(|| "regular".to_owned()),
        provider: fields.text("provider")?,
        availability_zone: fields.text("availability_zone")?,
        token: secret::hash(&token),
        actor: operator(),
    };
    let host = ready.write(|reply| Command::CreateHost(new, reply))?;
    (ready.wake)(Wake::Changed(host.id));
    with_token(ready, &host, token)
}

/// `POST /v1/hosts/{id}/token`
pub(super) fn new_token(ready: &Ready, id: &str) -> Result<Response, Problem> {
    let id = host_id(id)?;
    let token = secret::fresh();
    let hash = secret::hash(&token);
    let host = ready.write(|reply| Command::NewRegistrationToken(id, hash, reply))?;
    with_token(ready, &host.ok_or_else(|| Problem::not_found("host"))?, token)
}

/// `POST /v1/hosts/{id}/drain`, `/undrain`, `/offline`
pub(super) fn set_intent(ready: &Ready, id: &str, intent: Intent) -> Result<Response, Problem> {
    let id = host_id(id)?;
    let host = ready.write(|reply| Command::SetIntent(id, intent, operator(), reply))?;
    let host = host.ok_or_else(|| Problem::not_found("host"))?;
    (ready.wake)(Wake::Changed(id));
    json(200, &HostView::of(&host, &ready.presence))
}

/// `GET /v1/hosts`
pub(super) fn list(ready: &Ready, caller: &Caller) -> Result<Response, Problem> {
    let hosts = read::hosts(&*ready.read()?)?;
    let seen = hosts.iter().filter(|host| caller.sees(host.team_id));
    let views: Vec<HostView> = seen.map(|host| HostView::of(host, &ready.presence)).collect();
    json(200, &views)
}

/// `GET /v1/hosts/{id}`
pub(super) fn show(ready: &Ready, caller: &Caller, id: &str) -> Result<Response, Problem> {
    let host = read::host(&*ready.read()?, host_id(id)?)?;
    let host = host.filter(|host| caller.sees(host.team_id));
    let host = host.ok_or_else(|| Problem::not_found("host"))?;
    json(200, &HostView::of(&host, &ready.presence))
}

/// What is no id names no host.
fn host_id(id: &str) -> Result<HostId, Problem> {
    id.parse().map_err(|_| Problem::not_found("host"))
}
