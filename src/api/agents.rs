//! Owns what agents are answered: registration, heartbeats, renewal.
//!
//! Never: an answer that kills where a harmless one is true. Agents obey literally: on
//! `404` to a heartbeat they destroy every sandbox; on `401` or `403` they renew once and
//! pause everything when that fails in any way; any other status is harmless. So `404` is
//! for hosts that were deleted on purpose only, `401` and `403` only for those who can be
//! helped by a renewal right now, and everybody else hears `503`.

use super::body::Fields;
use super::lanes::holder_at;
use super::token::{self, Claims};
use super::{Problem, Ready, Wake, json, secret};
use crate::http::{Holder, Request, Response};
use crate::logging::{foreign, seldom};
use crate::model::endpoint::{Endpoint, Resolved};
use crate::model::host::{AgentAddress, Host};
use crate::model::id::{HostId, PLATFORM_TEAM, SandboxId};
use crate::model::limit::{Allowance, Limiter, Verdict};
use crate::model::time::{Mono, Wall};
use crate::plan::report::ReportKind;
use crate::store::acceptance::LostToken;
use crate::store::identity::{AddressInUse, REFRESH_TOKEN_LIFE, Registered, Registration};
use crate::store::presence::Beat;
use crate::store::read;
use crate::store::reports::AgentReport;
use crate::store::writer::Command;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a registration waits for the name service. Larger: an agent that registers gives
/// up; smaller: a name that a slow service knows is compared as text.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(2);

/// Reports of one host. Larger: a host that reports without pause has the disk written to all
/// the time; smaller: the reports of a large host that pauses everything are refused, which is
/// a contact gap.
const REPORTS: Allowance = Allowance { burst: 2000, per: Duration::from_secs(40) };

/// Renewals of one host. Larger: as above; smaller: an agent that lost some answers waits.
const RENEWALS: Allowance = Allowance { burst: 60, per: Duration::from_secs(60) };

/// Hosts that are remembered; beyond that they share.
const HOSTS_MAX: usize = 16_384;

/// How fast each host sends what is written at once.
#[derive(Debug)]
pub struct Intake {
    reports: Mutex<Limiter<HostId>>,
    renewals: Mutex<Limiter<HostId>>,
}

impl Default for Intake {
    fn default() -> Intake {
        let limiter = || Mutex::new(Limiter::new(HOSTS_MAX));
        Intake { reports: limiter(), renewals: limiter() }
    }
}

impl Intake {
    fn report(&self, host: HostId, now: Mono) -> Result<(), Problem> {
        take(&self.reports, host, REPORTS, now)
    }

    fn renewal(&self, host: HostId, now: Mono) -> Result<(), Problem> {
        take(&self.renewals, host, RENEWALS, now)
    }
}

fn take(
    limiter: &Mutex<Limiter<HostId>>,
    host: HostId,
    allowance: Allowance,
    now: Mono,
) -> Result<(), Problem> {
    let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
    match limiter.take(&host, 1, allowance, now) {
        Verdict::Pass(_) => Ok(()),
        Verdict::Over(wait) => {
            let message = "this host sends more than Roost takes of one host; try again later";
            Err(Problem::new(429, "too_many_requests", message).until(wait))
        }
    }
}

/// What register and refresh answer with. Certificates are left out without mTLS.
#[derive(Serialize)]
struct Credentials {
    host: super::view::HostView,
    token: String,
    refresh_token: String,
    #[serde(flatten)]
    certificates: Option<Certificates>,
}

/// What an agent shows to us, and whom it lets in.
#[derive(Serialize)]
struct Certificates {
    cert_pem: String,
    key_pem: String,
    ca_cert_pem: String,
}

fn credentials(ready: &Ready, host: Host, refresh_token: String) -> Credentials {
    let now = ready.now().wall;
    let token = token::sign(&ready.tokens, host.id, host.registration, now);
    let certificates = certificates(ready, &host, now);
    // What a probe beside us found is no part of this answer.
    let host = super::view::HostView::stored(&Host { probe_failure: None, ..host });
    Credentials { host, token, refresh_token, certificates }
}

/// A host that gets none goes on with what it has: a refusal would end its agent.
fn certificates(ready: &Ready, host: &Host, now: Wall) -> Option<Certificates> {
    let authority = ready.authority.as_ref()?;
    let Some(address) = &host.address else {
        let id = host.id;
        seldom!(Warn, "hosts without an address", id =>
            "{id} has no address; it gets no certificate");
        return None;
    };
    match authority.issue_host(host.id, address, now) {
        Ok(issued) => Some(Certificates {
            cert_pem: issued.cert_pem(),
            key_pem: issued.key_pem(),
            ca_cert_pem: authority.cert_pem(),
        }),
        Err(error) => {
            let id = host.id;
            seldom!(Error, "certificates that could not be issued", id =>
                "could not issue a certificate to {id} at {address}: {error}");
            None
        }
    }
}

/// `POST /v1/hosts/register`. Waits for the name service where an address is a name; so the
/// token is looked at first.
pub(super) fn register(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let fields = Fields::read(request)?;
    let token = secret::hash(&fields.required("token")?);
    let address: AgentAddress = fields.parsed("address")?;
    let known = read::host_to_register(&*ready.read()?, &token)?;
    let host = known.ok_or_else(bad_registration_token)?;
    refuse_plain(ready, &address)?;
    let refresh_token = token::refresh_token(&ready.tokens, host, ready.now().wall);
    let registration = Registration {
        token,
        refresh: secret::hash(&refresh_token),
        address,
        resolved: Resolved::new(),
        arch: fields.text("arch")?,
        cpu_cores: fields.count("cpu_cores")?,
        memory_mb: fields.count("memory_mb")?.map(u64::from),
        disk_gb: fields.count("disk_gb")?.map(u64::from),
    };
    let wanted = names_to_resolve(ready, host, &registration.address)?;
    if wanted.is_empty() {
        return register_now(ready, host, registration, refresh_token);
    }
    let resolved = resolve(ready, host, wanted);
    register_now(ready, host, Registration { resolved, ..registration }, refresh_token)
}

/// An attacker on the path could command an agent that is spoken to plainly, although the
/// setting says that none is.
fn refuse_plain(ready: &Ready, address: &AgentAddress) -> Result<(), Problem> {
    match address.is_plain() && !ready.plain_agents {
        false => Ok(()),
        true => Err(Problem::invalid(format!(
            "address: {address} is plain HTTP, and this server speaks to agents over mutual TLS; \
             register host:port or https://host:port, or set agent_tls = \"mtls_or_http\""
        ))),
    }
}

/// A host of a team must not be where only the operator may send us.
fn refuse_closed(ready: &Ready, host: HostId, address: &Registration) -> Result<(), Problem> {
    let Registration { address, resolved, .. } = address;
    let (team, endpoint) = (ready.presence.team_of(host), Endpoint::of(address, resolved));
    match endpoint.ips().iter().find(|ip| !ready.agent.admits(team, **ip)) {
        None => Ok(()),
        Some(ip) => Err(Problem::invalid(format!(
            "address: {address} is in a network that is closed to the hosts of teams ({ip}); \
             register another address, or have the operator allow it with agent_networks"
        ))),
    }
}

fn bad_registration_token() -> Problem {
    Problem::unauthorized("the registration token is not valid; make a new one for the host")
}

/// Names that must be resolved before it can be told whether another host has this address,
/// and whether a team's host may.
fn names_to_resolve(
    ready: &Ready,
    host: HostId,
    address: &AgentAddress,
) -> Result<BTreeSet<String>, Problem> {
    let nothing = Resolved::new();
    let own = Endpoint::of(address, &nothing);
    let hosts = read::hosts(&*ready.read()?)?;
    let others = hosts.iter().filter(|other| other.id != host);
    let others = others.filter_map(|other| other.address.as_ref());
    let near: Vec<Endpoint> = others
        .map(|other| Endpoint::of(other, &nothing))
        .filter(|other| other.may_be_same(&own))
        .collect();
    let of_team = ready.presence.team_of(host) != PLATFORM_TEAM;
    let own = Some(&own).filter(|_| of_team || !near.is_empty());
    let names = own.into_iter().chain(&near).filter_map(Endpoint::unresolved);
    Ok(crate::model::order::set_of(names.map(str::to_owned)))
}

/// A name that does not resolve in time is compared as text.
fn resolve(ready: &Ready, host: HostId, names: BTreeSet<String>) -> Resolved {
    let until = ready.now().mono.after(RESOLVE_PATIENCE);
    let mut resolved = Resolved::new();
    for name in names {
        let left = until.since(ready.now().mono);
        if left.is_zero() {
            break;
        }
        match ready.agent.resolve(&name, left) {
            Ok(ips) => drop(resolved.insert(name, ips)),
            Err(error) => seldom!(Info, "unresolved addresses", host =>
                "{} of {host}'s address cannot be resolved: {error}", foreign(&name)),
        }
    }
    resolved
}

fn register_now(
    ready: &Ready,
    host: HostId,
    registration: Registration,
    refresh_token: String,
) -> Result<Response, Problem> {
    refuse_closed(ready, host, &registration)?;
    let address = registration.address.clone();
    match ready.write(|reply| Command::Register(Box::new(registration), reply))? {
        Registered::Done(host) => {
            let id = host.id;
            let answer = json(201, &credentials(ready, *host, refresh_token));
            (ready.wake)(Wake::Registered(id));
            answer
        }
        Registered::BadToken => Err(bad_registration_token()),
        Registered::AddressInUse(in_use) => Err(address_in_use(&in_use, &address)),
    }
}

/// The operator hears whose address it is; another team does not.
fn address_in_use(in_use: &AddressInUse, address: &AgentAddress) -> Problem {
    let AddressInUse { host, by, may_know } = in_use;
    seldom!(Warn, "registrations at the address of another host", host =>
        "{host} wants to register at {}, the address of {by}, which is alive: refused; \
         remove {by} first, or wait until it is unreachable", foreign(address.as_str()));
    let by = if *may_know { by.to_string() } else { "another host".to_owned() };
    Problem::new(
        409,
        "address_in_use",
        format!(
            "address: {address} is the address of {by}, which is alive; give another address, \
             remove that host, or wait until it is unreachable"
        ),
    )
}

/// `POST /v1/hosts/auth/refresh`
pub(super) fn refresh(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let shown = Fields::read(request)?.required("refresh_token")?;
    let hash = secret::hash(&shown);
    let known = read::host_to_refresh(&*ready.read()?, &hash)?;
    let Some(host) = known.map_or_else(|| take_back(ready, &shown), |host| Ok(Some(host)))? else {
        return Err(unknown_token(ready));
    };
    ready.intake.renewal(host, ready.now().mono)?;
    let fresh = token::refresh_token(&ready.tokens, host, ready.now().wall);
    let lenient = ready.presence.clock_is_suspect(ready.now().mono);
    let (shown, fresh_hash) = (hash, secret::hash(&fresh));
    let refreshed =
        ready.write(|reply| Command::Refresh { shown, fresh: fresh_hash, lenient, reply })?;
    match refreshed {
        Some(host) => json(200, &credentials(ready, host, fresh)),
        None => Err(unknown_token(ready)),
    }
}

/// A restored database has forgotten the tokens that were given out after the backup; their
/// signature has not. Whose this one is, if it counts again.
fn take_back(ready: &Ready, shown: &str) -> Result<Option<HostId>, Problem> {
    let owner = token::owner(&ready.tokens, shown, ready.presence.ids());
    let Some((host, issued_at)) = owner else { return Ok(None) };
    let expires_at = issued_at.after(REFRESH_TOKEN_LIFE);
    // Of a moment that has not come yet: a clock was ahead, and that one is not believed.
    let now = ready.now();
    if issued_at > now.wall && !ready.presence.clock_is_suspect(now.mono) {
        return Ok(None);
    }
    let lost = LostToken { hash: secret::hash(shown), host, issued_at, expires_at };
    let counts = ready.write(|reply| Command::TakeBack(lost, reply))?;
    if counts {
        seldom!(Warn, "forgotten refresh tokens", host =>
            "{} shows a refresh token of {issued_at} that this database does not know: it was \
             restored from an older backup; the token counts again", ready.presence.named(host));
    }
    Ok(counts.then_some(host))
}

/// Who shows a token that is not known may be told so only where none can have been
/// forgotten.
fn unknown_token(ready: &Ready) -> Problem {
    // A database without any host is an empty one: its agents must wait, not give up.
    if ready.presence.is_empty() {
        return Problem::unavailable("this database knows no host; restore the right one");
    }
    let now = ready.now().wall;
    let restored = ready.acceptance.newest();
    if restored.is_some_and(|restore| now < restore.restored_at.after(REFRESH_TOKEN_LIFE)) {
        return Problem::unavailable(
            "this refresh token is not known since the database was restored from a backup",
        );
    }
    Problem::unauthorized("the refresh token is not valid; register the host anew")
}

/// `POST /v1/hosts/{id}/heartbeat`
pub(super) fn heartbeat(ready: &Ready, request: &Request, id: &str) -> Result<Response, Problem> {
    let answer = beat(ready, request, id);
    let status = answer.as_ref().map_or_else(|problem| problem.status, |answer| answer.status);
    ready.scraped.count_heartbeat(status);
    answer
}

fn beat(ready: &Ready, request: &Request, id: &str) -> Result<Response, Problem> {
    let host = authenticate(ready, request)?;
    let id: HostId = id.parse().map_err(|e| Problem::invalid(format!("host id: {e}")))?;
    if id != host {
        return Err(Problem::new(403, "forbidden", "the token names another host"));
    }
    match ready.presence.heartbeat(host, ready.now()) {
        Beat::Known { wake } => {
            if wake {
                (ready.wake)(Wake::Heard(host));
            }
            Ok(Response::empty(204))
        }
        Beat::Deleted => Err(Problem::new(404, "not_found", "this host was deleted")),
        Beat::Unknown => Err(unknown_host()),
    }
}

/// `POST /v1/hosts/sandbox-events`
pub(super) fn sandbox_event(
    ready: &Ready,
    request: &Request,
    report: UnacceptedReport,
) -> Result<Response, Problem> {
    let answer = take_report(ready, request);
    let status = answer.as_ref().map_or_else(|problem| problem.status, |answer| answer.status);
    if matches!(status, 204 | 400 | 403) {
        report.accept();
    }
    answer
}

/// A report that was not accepted: when it is dropped, also because its turn did not come or
/// of a panic, the host that a genuine token names has a contact gap. Its agent gives up after
/// three tries.
pub(super) struct UnacceptedReport {
    ready: Arc<Ready>,
    claims: Option<Claims>,
}

impl UnacceptedReport {
    /// A report that has just arrived.
    pub(super) fn new(ready: &Arc<Ready>, request: &Request) -> UnacceptedReport {
        let token = request.headers.get("x-host-token");
        let claims = token.and_then(|token| token::read(&ready.tokens, token));
        let claims = claims.filter(|claims| claims.genuine);
        UnacceptedReport { ready: Arc::clone(ready), claims }
    }

    /// Whose share it takes: its host's, if it proves to be of one.
    pub(super) fn holder(&self, request: &Request) -> Holder {
        let address = || holder_at(request.peer.ip());
        self.claims.as_ref().map_or_else(address, |claims| Holder::Other(claims.host.as_u128()))
    }

    fn accept(mut self) {
        self.claims = None;
    }
}

impl Drop for UnacceptedReport {
    fn drop(&mut self) {
        let Some(claims) = &self.claims else { return };
        // A machine that is no longer this host says nothing of it.
        if !self.ready.presence.is_superseded(claims.host, claims.registration) {
            self.ready.presence.report_refused(claims.host, self.ready.now().mono);
        }
    }
}

fn take_report(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let caller = authenticate(ready, request)?;
    ready.intake.report(caller, ready.now().mono)?;
    let fields = Fields::read(request)?;
    let event = fields.required("event")?;
    let sandbox = fields.required("sandbox_id")?;
    let host: HostId = fields.parsed("host_id")?;
    if host != caller {
        return Err(Problem::new(403, "forbidden", "the token names another host"));
    }
    // Of the host's own clock, which says nothing here; only its form is checked.
    fields.time("timestamp")?;
    let (host_ip, error) = (fields.text("host_ip")?, fields.words("error")?);
    // What we do not know is accepted all the same, so that agents do not send it again.
    let (Ok(kind), Ok(sandbox)) = (event.parse::<ReportKind>(), sandbox.parse::<SandboxId>())
    else {
        seldom!(Info, "reports that mean nothing", host =>
            "{} reports \"{}\" of \"{}\", which means nothing here",
            ready.presence.named(host), foreign(&event), foreign(&sandbox));
        return Ok(Response::empty(204));
    };
    let report = AgentReport { host, sandbox, kind, host_ip, error };
    if ready.write(|reply| Command::Report(Box::new(report), reply))? {
        (ready.wake)(Wake::ProbeNow(host));
    }
    Ok(Response::empty(204))
}

fn unknown_host() -> Problem {
    Problem::unavailable("this host is not known here; is this the right database?")
}

/// The host that a request's token names and proves.
pub(super) fn authenticate(ready: &Ready, request: &Request) -> Result<HostId, Problem> {
    let token = request
        .headers
        .get("x-host-token")
        .ok_or_else(|| Problem::unauthorized("a host token is needed: send X-Host-Token"))?;
    let claims = token::read(&ready.tokens, token)
        .ok_or_else(|| Problem::unauthorized("the host token cannot be read"))?;
    believe(ready, claims)
}

fn believe(ready: &Ready, claims: Claims) -> Result<HostId, Problem> {
    let now = ready.now();
    let expired = now.wall >= claims.expires_at;
    match ready.presence.lookup(claims.host) {
        // Whatever its signature: after a lost data directory agents must wait.
        Beat::Unknown => {
            if ready.presence.unknown.heard(claims.host, claims.genuine, now.wall) {
                let whose = if claims.genuine { "this server" } else { "another server" };
                let host = claims.host;
                seldom!(Warn, "unknown hosts", host =>
                    "{host} sends heartbeats with a token of {whose} and is not in this database");
            }
            Err(unknown_host())
        }
        Beat::Known { .. } | Beat::Deleted if !claims.genuine => {
            Err(renew_or_wait(ready, "the host token is not genuine"))
        }
        // Another machine has registered as this host since, and only that one counts.
        Beat::Known { .. } if ready.presence.is_superseded(claims.host, claims.registration) => {
            Err(renew_or_wait(
                ready,
                "the host token belongs to an earlier registration of this host; register again",
            ))
        }
        Beat::Known { .. } if expired && !ready.presence.clock_is_suspect(now.mono) => {
            Err(renew_or_wait(ready, "the host token has expired"))
        }
        // Nothing is left to renew a deleted host's token with. An agent that was away for
        // longer than its token lives must still hear that it was deleted.
        Beat::Known { .. } | Beat::Deleted => Ok(claims.host),
    }
}

/// Asks for a renewal only when one could be served right now.
fn renew_or_wait(ready: &Ready, why: &str) -> Problem {
    let can_renew =
        ready.figures.trouble().is_none() && !ready.pulse.stopping.load(Ordering::Relaxed);
    match can_renew {
        true => Problem::unauthorized(why),
        false => Problem::unavailable(format!("{why}, and it cannot be renewed right now")),
    }
}
