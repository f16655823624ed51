//! Owns `/v1/hosts` for operators.
//!
//! Never: shows a token twice; waits for an agent without a bound.

use super::access::{Caller, operator};
use super::body::Fields;
use super::view::{HostView, ProbeView, UnknownHostView};
use super::waiting::{Ended, NOTICE, still_needed};
use super::{Problem, Ready, Wake, json, secret};
use crate::http::{Caller as Client, Request, Response};
use crate::model::host::{Host, HostStatus, Intent};
use crate::model::id::{HostId, PLATFORM_TEAM};
use crate::model::probe::LastProbe;
use crate::store::identity::NewHost;
use crate::store::notify::maintenance;
use crate::store::read;
use crate::store::unknown::UnknownHost;
use crate::store::writer::Command;
use serde::Serialize;
use std::time::Duration;

/// How long whoever asks for a probe waits for it: two of the usual deadline, one that is
/// in flight and the one that was asked for. Larger: a host behind many hung ones holds
/// the client; smaller: a slow agent's answer is not seen.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(20);

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
    let fields = Fields::read(request)?;
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

/// What a probe that was asked for brought.
#[derive(Serialize)]
struct Probed {
    host_id: HostId,
    #[serde(flatten)]
    probe: ProbeView,
}

/// `POST /v1/hosts/{id}/probe`
pub(super) fn probe(ready: &Ready, client: &mut Client, id: &str) -> Result<Response, Problem> {
    let host_id = host_id(id)?;
    probed_as(ready, host_id)?;
    match observe(ready, client, host_id, PROBE_PATIENCE)? {
        Some(probe) => {
            let status = probed_as(ready, host_id)?;
            json(200, &Probed { host_id, probe: ProbeView::live(probe, status) })
        }
        None => {
            let message = "the probe did not end in time; last_probe of the host will show it";
            Err(Problem::new(504, "timed_out", message))
        }
    }
}

/// Has a host probed and waits for the outcome; `None`: there is none in time.
pub(super) fn observe(
    ready: &Ready,
    client: &mut Client,
    host: HostId,
    patience: Duration,
) -> Result<Option<LastProbe>, Problem> {
    // A probe in flight was asked for before this request.
    let since = ready.now().mono;
    (ready.wake)(Wake::ProbeNow(host));
    loop {
        let probe = ready.presence.wait_probe(host, since, NOTICE);
        probed_as(ready, host)?;
        if probe.is_some() {
            return Ok(probe);
        }
        let refuse = |ended: Ended| ended.refusal("the host was not probed");
        still_needed(ready, client).map_err(refuse)?;
        if ready.now().mono.since(since) >= patience {
            return Ok(None);
        }
    }
}

/// The status of a host that can be probed.
fn probed_as(ready: &Ready, id: HostId) -> Result<HostStatus, Problem> {
    let host = ready.presence.get(id).ok_or_else(|| Problem::not_found("host"))?;
    let refuse =
        |why: &str| Err(Problem::new(409, "invalid_state", format!("cannot probe: {why}")));
    match (host.intent, host.active, host.address) {
        (Intent::Offline, _, _) => refuse("the host is offline; undrain it first"),
        (Intent::Active | Intent::Draining, false, _) => refuse("the host has never registered"),
        (Intent::Active | Intent::Draining, true, None) => refuse("the host has no address"),
        (Intent::Active | Intent::Draining, true, Some(_)) => {
            Ok(HostStatus::derive(true, host.intent, host.liveness))
        }
    }
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
    let reader = ready.read()?;
    let (hosts, maintained) = (read::hosts(&reader)?, maintenance(&reader, ready.now().wall)?);
    let seen = hosts.iter().filter(|host| caller.sees(host.team_id));
    let view = |host: &Host| {
        HostView::of(host, &ready.presence).maintained(maintained.get(&host.id).copied())
    };
    let views: Vec<HostView> = seen.map(view).collect();
    json(200, &views)
}

/// `GET /v1/unknown-hosts`
pub(super) fn unknown(ready: &Ready) -> Result<Response, Problem> {
    json(200, &unknown_now(ready).iter().map(UnknownHostView::from).collect::<Vec<_>>())
}

/// Hosts that send heartbeats and are not known.
pub(super) fn unknown_now(ready: &Ready) -> Vec<UnknownHost> {
    let presence = &ready.presence;
    presence.unknown.list(|id| presence.is_recorded(id), ready.now().wall)
}

/// `GET /v1/hosts/{id}`
pub(super) fn show(ready: &Ready, caller: &Caller, id: &str) -> Result<Response, Problem> {
    let reader = ready.read()?;
    let host = read::host(&reader, host_id(id)?)?;
    let host = host.filter(|host| caller.sees(host.team_id));
    let host = host.ok_or_else(|| Problem::not_found("host"))?;
    let until = maintenance(&reader, ready.now().wall)?.get(&host.id).copied();
    json(200, &HostView::of(&host, &ready.presence).maintained(until))
}

/// What is no id names no host.
pub(super) fn host_id(id: &str) -> Result<HostId, Problem> {
    id.parse().map_err(|_| Problem::not_found("host"))
}
