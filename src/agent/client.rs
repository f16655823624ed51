//! Owns the calls to an agent and what each of their answers means.
//!
//! Never: retries, follows redirects, waits longer than a call's deadline, takes in more
//! than the body limit, tells an inconclusive answer as an observation. Called by `engine`
//! from many threads at once.

pub use super::body::BODY_BYTES_MAX;
use super::body::{Bodies, BodyError};
use super::fence::Fence;
use super::listing;
use super::transport::{Connect, Failure, Wire, words};
use super::trust::Trust;
use super::wire::{
    ConnectCode, CreateSandboxRequest, CreateSandboxResponse, CreateSnapshotRequest, Empty,
    ErrorBody, Method, ResumeSandboxRequest, SERVICE_PATH, SandboxRef, TemplateRef, TemplateSize,
};
use crate::model::UnknownWord;
use crate::model::host::AgentAddress;
use crate::model::id::{HostId, SandboxId, TeamId, TemplateId};
use crate::model::networks::AgentNetworks;
use crate::model::probe::{Details, FailureKind, Listing, Probe, ProbeFailure};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE};
use ureq::http::{HeaderMap, HeaderName, Request};

/// Longest `detail` in characters. Larger: one agent fills logs and tables. Smaller: the
/// cause is cut off.
pub const DETAIL_CHARS_MAX: usize = 200;

/// Longest message of a refusal in characters. Larger: as above. Smaller: agents wrap the
/// cause in several layers and write it last.
pub const MESSAGE_CHARS_MAX: usize = 1000;

/// What all calls have in common.
#[derive(Clone)]
pub struct ClientConfig {
    /// Time to look up a name, and again to connect, TLS included.
    pub connect_timeout: Duration,
    /// Time for a whole `ListSandboxes` call.
    pub probe_timeout: Duration,
    /// TLS to agents whose address has no scheme of its own; none speaks plain HTTP to
    /// them.
    pub tls: Option<Arc<Trust>>,
    /// Where hosts of teams may be although these networks are closed to them.
    pub networks: AgentNetworks,
}

impl Default for ClientConfig {
    /// The defaults of behaviour.md section 3.
    fn default() -> ClientConfig {
        ClientConfig {
            connect_timeout: Duration::from_secs(2),
            probe_timeout: Duration::from_secs(8),
            tls: None,
            networks: AgentNetworks::default(),
        }
    }
}

/// Speaks to every agent; one is shared by all threads. Each call opens its own connection
/// and closes it. It names the host that is meant, which TLS makes sure of; plain HTTP
/// cannot.
#[derive(Debug, Clone)]
pub struct AgentClient {
    wire: Wire,
    plain: ureq::Agent,
    probe_timeout: Duration,
    tls: Option<Arc<Trust>>,
    bodies: Arc<Bodies>,
    networks: AgentNetworks,
    fence: Option<Fence>,
}

/// Why a call did not succeed, by what is known of its execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was sent: the name could not be looked up, nobody listened, the connection
    /// took too long, the certificate is not the host's. Certainly not executed.
    NotReached {
        /// What stood in the way, in a probe's words.
        kind: FailureKind,
        /// One line for people.
        detail: String,
    },
    /// The request, or part of it, was sent and no whole answer came: the deadline passed
    /// or the connection broke. Perhaps executed.
    Unknown {
        /// `timed_out` or `unreachable`.
        kind: FailureKind,
        /// One line for people.
        detail: String,
    },
    /// The agent answered that it did not do it.
    Refused {
        /// Its word for why.
        code: ConnectCode,
        /// Its message for people, one line.
        message: String,
    },
    /// Something answered, but not as the protocol says. Perhaps executed.
    Malformed {
        /// One line for people.
        detail: String,
    },
}

impl CallError {
    /// Whether the agent has no snapshot to resume from: it says `not_found`, or wraps its
    /// "no snapshot found" in `internal` (behaviour.md section 4).
    pub fn is_snapshot_gone(&self) -> bool {
        match self {
            CallError::Refused { code: ConnectCode::NotFound, message: _ } => true,
            CallError::Refused { code: ConnectCode::Internal, message } => {
                message.contains("no snapshot found")
            }
            CallError::Refused { code: _, message: _ }
            | CallError::NotReached { .. }
            | CallError::Unknown { .. }
            | CallError::Malformed { .. } => false,
        }
    }

    /// What a team may know of a call to a host of its own: see [`FailureKind::for_team`].
    pub fn for_team(&self) -> String {
        let known = |kind: FailureKind| kind.for_team().1;
        match self {
            CallError::Refused { .. } => self.to_string(),
            CallError::NotReached { kind, detail: _ } => format!("not sent: {}", known(*kind)),
            CallError::Unknown { .. } | CallError::Malformed { .. } => {
                format!("outcome unknown: {}", known(FailureKind::Unreachable))
            }
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotReached { kind, detail } => write!(f, "not sent, {kind}: {detail}"),
            CallError::Unknown { kind, detail } => write!(f, "outcome unknown, {kind}: {detail}"),
            CallError::Refused { code, message } => write!(f, "refused, {code}: {message}"),
            CallError::Malformed { detail } => write!(f, "outcome unknown, malformed: {detail}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<Failure> for CallError {
    fn from(Failure { sent, kind, detail }: Failure) -> CallError {
        let detail = one_line(&detail, DETAIL_CHARS_MAX);
        match (sent, kind) {
            (false, kind) => CallError::NotReached { kind, detail },
            (true, FailureKind::Malformed | FailureKind::Refused | FailureKind::WrongHost) => {
                CallError::Malformed { detail }
            }
            (true, FailureKind::Unreachable | FailureKind::TimedOut) => {
                CallError::Unknown { kind, detail }
            }
        }
    }
}

impl AgentClient {
    /// A client; opens nothing yet.
    pub fn new(config: ClientConfig) -> AgentClient {
        let wire = Wire::new(config.connect_timeout);
        AgentClient {
            plain: wire.client(Connect::plain()),
            wire,
            probe_timeout: config.probe_timeout,
            tls: config.tls,
            bodies: Arc::default(),
            networks: config.networks,
            fence: None,
        }
    }

    /// The same client, which connects to no address that is closed to the host's team.
    pub fn fenced(
        mut self,
        team_of: impl Fn(HostId) -> TeamId + Send + Sync + 'static,
    ) -> AgentClient {
        self.fence = Some(Fence::new(self.networks.clone(), team_of));
        self
    }

    /// Whether a host of this team may be at this address.
    pub fn admits(&self, team: TeamId, ip: IpAddr) -> bool {
        self.networks.admit(team, ip)
    }

    /// Whether an answer proves which host gave it.
    pub fn proves_hosts(&self) -> bool {
        self.tls.is_some()
    }

    /// The IP addresses of a named host; waits for the name service at most so long.
    ///
    /// # Errors
    /// In words, when there are none, or not in time.
    pub fn resolve(&self, name: &str, timeout: Duration) -> Result<Vec<IpAddr>, String> {
        let found = self.wire.ips(&format!("http://{name}/"), timeout);
        found.map_err(|error| words(error, timeout))
    }

    /// Who makes the calls to this host.
    fn http(&self, host: HostId) -> Cow<'_, ureq::Agent> {
        let fence = self.fence.as_ref().and_then(|fence| fence.of(host));
        let connect = match &self.tls {
            None if fence.is_none() => return Cow::Borrowed(&self.plain),
            None => Connect::plain(),
            Some(trust) => Connect::to_host(host, trust.config_for(host)),
        };
        Cow::Owned(self.wire.client(connect.within(fence)))
    }

    /// Asks an agent what it has. The agent forgets the auto-paused ids by telling them,
    /// so the caller must keep what it gets, in a failure too.
    pub fn list_sandboxes(&self, host: HostId, at: &AgentAddress) -> Probe {
        let (began, deadline) = (Instant::now(), self.probe_timeout);
        match self.exchange(host, at, Method::List, b"{}", deadline, observed) {
            Ok(Probe::Listed(listing)) if began.elapsed() > deadline => too_late(listing, deadline),
            Ok(probe) => probe,
            Err(Failure { sent, kind, detail }) => failed(kind, &detail, sent, Vec::new()),
        }
    }

    /// Makes a sandbox and tells what the agent says of it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn create(
        &self,
        host: HostId,
        at: &AgentAddress,
        request: &CreateSandboxRequest<'_>,
        deadline: Duration,
    ) -> Result<Details, CallError> {
        self.call(host, at, Method::Create, request, deadline, |body| {
            started(body, &request.sandbox_id)
        })
    }

    /// Starts a paused sandbox again and tells what the agent says of it.
    ///
    /// # Errors
    /// See [`CallError`] and [`CallError::is_snapshot_gone`].
    pub fn resume(
        &self,
        host: HostId,
        at: &AgentAddress,
        request: &ResumeSandboxRequest<'_>,
        deadline: Duration,
    ) -> Result<Details, CallError> {
        self.call(host, at, Method::Resume, request, deadline, |body| {
            started(body, &request.sandbox_id)
        })
    }

    /// Takes a snapshot of a running sandbox and stops it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn pause(
        &self,
        host: HostId,
        at: &AgentAddress,
        id: SandboxId,
        deadline: Duration,
    ) -> Result<(), CallError> {
        self.call(host, at, Method::Pause, &named(id), deadline, done)
    }

    /// Removes a sandbox; an unknown one is refused with `not_found`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn destroy(
        &self,
        host: HostId,
        at: &AgentAddress,
        id: SandboxId,
        deadline: Duration,
    ) -> Result<(), CallError> {
        self.call(host, at, Method::Destroy, &named(id), deadline, done)
    }

    /// Resets a sandbox's idle timer; so it is no way to find out whether one is alive.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn ping(
        &self,
        host: HostId,
        at: &AgentAddress,
        id: SandboxId,
        deadline: Duration,
    ) -> Result<(), CallError> {
        self.call(host, at, Method::Ping, &named(id), deadline, done)
    }

    /// Makes a template of a running or paused sandbox; gives its size in bytes when the
    /// agent says it. Older agents destroy the sandbox, newer ones leave it as it was.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn create_snapshot(
        &self,
        host: HostId,
        at: &AgentAddress,
        request: &CreateSnapshotRequest<'_>,
        deadline: Duration,
    ) -> Result<Option<u64>, CallError> {
        self.call(host, at, Method::CreateSnapshot, request, deadline, size)
    }

    /// Removes a template. The ids are those that it was made with; agents do not read its
    /// name. Newer agents refuse while one of their sandboxes was made from it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn delete_snapshot(
        &self,
        host: HostId,
        at: &AgentAddress,
        (team, template): (TeamId, TemplateId),
        deadline: Duration,
    ) -> Result<(), CallError> {
        let request = template_ref(team, template);
        self.call(host, at, Method::DeleteSnapshot, &request, deadline, done)
    }

    /// Bytes of a template on the agent's disk; only newer agents say.
    ///
    /// # Errors
    /// See [`CallError`]; older agents refuse with `unimplemented`.
    pub fn template_size(
        &self,
        host: HostId,
        at: &AgentAddress,
        (team, template): (TeamId, TemplateId),
        deadline: Duration,
    ) -> Result<Option<u64>, CallError> {
        let request = template_ref(team, template);
        self.call(host, at, Method::TemplateSize, &request, deadline, size)
    }

    /// Makes an agent destroy everything it has and exit.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn terminate(
        &self,
        host: HostId,
        at: &AgentAddress,
        deadline: Duration,
    ) -> Result<(), CallError> {
        self.call(host, at, Method::Terminate, &Empty::default(), deadline, done)
    }

    fn call<T>(
        &self,
        host: HostId,
        at: &AgentAddress,
        method: Method,
        request: &impl Serialize,
        deadline: Duration,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(request).map_err(|e| CallError::NotReached {
            kind: FailureKind::Malformed,
            detail: one_line(&format!("request: {e}"), DETAIL_CHARS_MAX),
        })?;
        self.exchange(host, at, method, &body, deadline, |answer| match answer.verdict() {
            Verdict::Success => read(answer.body).map_err(malformed),
            Verdict::Refused(code, message) => {
                Err(CallError::Refused { code, message: one_line(&message, MESSAGE_CHARS_MAX) })
            }
            Verdict::NotJson(detail) | Verdict::NotConnect(detail) => Err(malformed(detail)),
        })?
    }

    /// One request and its whole answer, which `judge` sees before its memory is used for
    /// the next one.
    fn exchange<T>(
        &self,
        host: HostId,
        at: &AgentAddress,
        method: Method,
        body: &[u8],
        deadline: Duration,
        judge: impl FnOnce(&Answer<'_>) -> T,
    ) -> Result<T, Failure> {
        let url = format!("{}{SERVICE_PATH}{method}", at.base_url(self.tls.is_some()));
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("Connect-Protocol-Version", "1")
            .header("Connect-Timeout-Ms", deadline.as_millis().to_string())
            .header(CONNECTION, "close")
            .body(body)
            .map_err(|e| Failure {
                sent: false,
                kind: FailureKind::Unreachable,
                detail: format!("address: {e}"),
            })?;
        let until = Instant::now() + deadline;
        let failure = |error| Failure::of(error, deadline);
        let http = self.http(host);
        let response = http.run(within(&http, deadline, request)).map_err(failure)?;
        let (head, body) = response.into_parts();
        let encoding = header(&head.headers, CONTENT_ENCODING);
        self.bodies.receive((body, until), encoding, |body| {
            let body = body.map_err(|error| match error {
                BodyError::Broken(error) => failure(error),
                BodyError::Bad(detail) => {
                    Failure { sent: true, kind: FailureKind::Malformed, detail }
                }
            })?;
            let content_type = header(&head.headers, CONTENT_TYPE);
            Ok(judge(&Answer { status: head.status.as_u16(), content_type, body }))
        })
    }
}

/// Bounds every phase of a request by the whole call's deadline; resolving and connecting
/// have their own bounds below it.
fn within<'b>(
    http: &ureq::Agent,
    deadline: Duration,
    request: Request<&'b [u8]>,
) -> Request<&'b [u8]> {
    let deadline = Some(deadline);
    http.configure_request(request)
        .timeout_global(deadline)
        .timeout_per_call(deadline)
        .timeout_send_request(deadline)
        .timeout_send_body(deadline)
        .timeout_recv_response(deadline)
        .timeout_recv_body(deadline)
        .build()
}

fn named(id: SandboxId) -> SandboxRef<'static> {
    SandboxRef { sandbox_id: Cow::Owned(id.to_string()) }
}

fn template_ref(team: TeamId, template: TemplateId) -> TemplateRef<'static> {
    TemplateRef { team_id: Cow::Owned(team.to_uuid()), template_id: Cow::Owned(template.to_uuid()) }
}

/// A whole answer, decoded.
struct Answer<'a> {
    status: u16,
    content_type: &'a str,
    body: &'a [u8],
}

/// What an answer is before its message is read.
enum Verdict {
    /// Status 200 and JSON.
    Success,
    /// A Connect error.
    Refused(ConnectCode, String),
    /// Status 200 and another content type.
    NotJson(String),
    /// Another status without a Connect error.
    NotConnect(String),
}

impl Answer<'_> {
    fn verdict(&self) -> Verdict {
        let json = is_json(self.content_type);
        if self.status == 200 {
            return match json {
                true => Verdict::Success,
                false => Verdict::NotJson(format!("content type {:?}", self.content_type)),
            };
        }
        let error =
            if json { serde_json::from_slice::<ErrorBody<'_>>(self.body).ok() } else { None };
        match error.map(|error| (error.code.parse(), error.message)) {
            Some((Ok(code), message)) => Verdict::Refused(code, message.into_owned()),
            Some((Err(UnknownWord { found, .. }), _)) => Verdict::NotConnect(format!(
                "status {}: unknown Connect code {found:?}",
                self.status
            )),
            None if (300..400).contains(&self.status) => {
                Verdict::NotConnect(format!("status {}: redirects are not followed", self.status))
            }
            None => Verdict::NotConnect(format!(
                "status {} without a Connect error, content type {:?}",
                self.status, self.content_type
            )),
        }
    }
}

/// Parameters are allowed, and JSON has only one charset.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split_once(';').map_or(content_type, |(essence, _)| essence);
    essence.trim().eq_ignore_ascii_case("application/json")
}

fn observed(answer: &Answer<'_>) -> Probe {
    match answer.verdict() {
        Verdict::Success => match listing::read(answer.body) {
            Ok(listing) => Probe::Listed(listing),
            Err(unreadable) => {
                failed(FailureKind::Malformed, &unreadable.detail, true, unreadable.drained)
            }
        },
        Verdict::NotJson(detail) => {
            failed(FailureKind::Malformed, &detail, true, listing::drained(answer.body))
        }
        Verdict::NotConnect(detail) => failed(FailureKind::Malformed, &detail, false, Vec::new()),
        Verdict::Refused(code, message) => {
            failed(FailureKind::Refused, &format!("{code}: {message}"), false, Vec::new())
        }
    }
}

/// A listing that was not read in time is no observation, but it was read: nothing of what
/// it announces is lost.
fn too_late(listing: Listing, deadline: Duration) -> Probe {
    let detail = format!("no whole answer within {deadline:?}: it took too long to read");
    failed(FailureKind::TimedOut, &detail, false, listing.auto_paused)
}

fn failed(kind: FailureKind, detail: &str, sent: bool, drained: Vec<SandboxId>) -> Probe {
    let detail = one_line(detail, DETAIL_CHARS_MAX);
    let may_have_told = match kind {
        FailureKind::Unreachable | FailureKind::TimedOut | FailureKind::Malformed => true,
        FailureKind::Refused | FailureKind::WrongHost => false,
    };
    let answer_lost = sent && may_have_told && drained.is_empty();
    Probe::Failed(ProbeFailure { kind, detail, drained, answer_lost })
}

fn malformed(detail: String) -> CallError {
    CallError::Malformed { detail: one_line(&detail, DETAIL_CHARS_MAX) }
}

fn started(body: &[u8], asked: &str) -> Result<Details, String> {
    let CreateSandboxResponse { sandbox_id, status: _, host_ip, metadata } = message(body)?;
    if !sandbox_id.is_empty() && sandbox_id != asked {
        return Err(format!("asked for {asked}, answered for {sandbox_id:?}"));
    }
    listing::details(&host_ip, metadata)
}

fn done(body: &[u8]) -> Result<(), String> {
    message(body).map(|Empty { .. }| ())
}

/// Zero is not written, so it is no size.
fn size(body: &[u8]) -> Result<Option<u64>, String> {
    let TemplateSize { size_bytes, .. } = message(body)?;
    let size = u64::try_from(size_bytes).map_err(|_| format!("a size of {size_bytes} bytes"))?;
    Ok((size > 0).then_some(size))
}

fn message<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    let json = std::str::from_utf8(body).map_err(|e| format!("not UTF-8: {e}"))?;
    serde_json::from_str(json).map_err(|e| format!("unexpected answer: {e}"))
}

/// A text of somebody else as one line that can be shown: control characters and what
/// turns the direction of writing become spaces, and it ends after `chars_max`.
fn one_line(text: &str, chars_max: usize) -> String {
    let shown = |c: char| {
        let hidden = c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if hidden { ' ' } else { c }
    };
    let mut line: String = text.chars().take(chars_max).map(shown).collect();
    if text.chars().nth(chars_max).is_some() {
        line.pop();
        line.push('…');
    }
    line
}

fn header(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_was_read_too_late_keeps_what_it_announces() {
        let auto_paused = vec![SandboxId::from_u128(1)];
        let listing = Listing { sandboxes: Vec::new(), auto_paused: auto_paused.clone() };
        let deadline = Duration::from_secs(8);
        let Probe::Failed(failure) = too_late(listing, deadline) else { panic!("listed") };
        assert_eq!(failure.kind, FailureKind::TimedOut);
        assert_eq!(failure.detail, "no whole answer within 8s: it took too long to read");
        assert_eq!(failure.drained, auto_paused);
        assert!(!failure.answer_lost);
        let Probe::Failed(failure) = too_late(Listing::default(), deadline) else { panic!() };
        assert!(!failure.answer_lost, "it announced nothing");
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(one_line("plain, ü", 200), "plain, ü");
        assert_eq!(one_line("a\r\nb\tc\u{1b}[31m\u{7f}\u{9b}", 200), "a  b c [31m  ");
        assert_eq!(one_line("a\u{202e}b\u{2028}c\u{2066}", 200), "a b c ");
        assert_eq!(one_line("äääää", 5), "äääää");
        assert_eq!(one_line("ääääää", 5), "ääää…");
        assert_eq!(one_line("", 5), "");
    }
}
