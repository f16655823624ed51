//! Owns what a simulated agent says to the control plane, and how it obeys the answers.
//!
//! Never: decides when (`pulse` does). The answers mean what they mean to real agents, which
//! take status codes literally (behaviour.md section 6): only 204 is success; 401 and 403 call
//! for one refresh, and a refresh that fails in any way is the end of all heartbeats; 404 is
//! the end of every sandbox; anything else is harmless; three heartbeats without any answer
//! make the agent pause everything and announce nothing.

use super::fault::HeartbeatFault;
use super::host::SimHost;
use super::report::{Report, TRIES_MAX, pause_after};
use super::tls::Certificates;
use crate::agent::transport::Connect;
use crate::model::id::HostId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::unversioned::resolver::DefaultResolver;

/// How long a real agent waits for the answer to a heartbeat or a report.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);

/// Heartbeats without any answer after which an agent pauses everything; fixed in the agents.
const FAILURES_MAX: u32 = 3;

/// Longest answer of the control plane that is read. Larger: buys nothing; smaller: the
/// certificates that come with a registration might not fit.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// What is read from or written to a socket at once. Larger: thousands of hosts hold more;
/// smaller: a head might not fit.
const BUFFER_BYTES: usize = 8 * 1024;

/// How long a connection is kept between two heartbeats. Larger: the server closes it first;
/// smaller: every heartbeat connects again.
const KEEP_ALIVE: Duration = Duration::from_secs(90);

/// What a host proves itself with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The id that the token names.
    pub host_id: HostId,
    /// Goes with every heartbeat.
    pub token: String,
    /// Gets the next token.
    pub refresh_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.host_id)
    }
}

/// What all heartbeats have in common.
#[derive(Debug, Clone)]
pub struct BeaterOptions {
    /// The control plane's URL without a closing slash.
    pub url: String,
    /// For the answer to a heartbeat or a report, [`HEARTBEAT_TIMEOUT`] in real agents. A
    /// renewal may take half as long again, a registration three times as long.
    pub timeout: Duration,
    /// Whom it trusts to be a control plane with an `https` URL.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// What became of one heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// 204.
    Acknowledged,
    /// The token was refused; there is a new one for the next heartbeat.
    Refreshed,
    /// Some other answer, which changes nothing.
    Ignored(u16),
    /// No answer, for so many heartbeats in a row.
    Unanswered(u32),
    /// No answer for the third time or more: everything was paused.
    PausedAll,
    /// 404: every sandbox was destroyed and the agent has ended.
    Deleted,
    /// The refresh failed: everything was paused, and there will be no heartbeat any more.
    Expelled,
    /// There was none.
    NotSent,
}

/// What became of one try to send a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// Any 2xx status.
    Accepted,
    /// Another status; the agent tries again, with a new token after 401 and 403.
    Refused(u16),
    /// No answer; the agent tries again.
    Unanswered,
}

/// Why a host is not registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterError {
    /// No whole answer.
    Unanswered(String),
    /// Another status than the one that counts as success.
    Refused(u16),
    /// The answer does not say what it must.
    Unusable(String),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterError::Unanswered(why) => write!(f, "no answer: {why}"),
            RegisterError::Refused(status) => write!(f, "refused with status {status}"),
            RegisterError::Unusable(why) => write!(f, "unusable answer: {why}"),
        }
    }
}

impl std::error::Error for RegisterError {}

/// The side of one agent that talks to the control plane.
#[derive(Debug)]
pub struct Beater {
    http: ureq::Agent,
    url: String,
    timeout: Duration,
    credentials: Credentials,
    failures: u32,
    over: bool,
}

#[derive(Serialize)]
struct RegisterRequest<'a> {
    token: &'a str,
    arch: &'a str,
    cpu_cores: u32,
    memory_mb: u32,
    disk_gb: u32,
    address: &'a str,
}

#[derive(Serialize)]
struct ReportRequest<'a> {
    event: &'a str,
    sandbox_id: String,
    host_id: String,
    timestamp: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct RefreshRequest<'a> {
    refresh_token: &'a str,
}

/// What a registration and a refresh are answered with; certificates come with mTLS only.
#[derive(Deserialize)]
struct Registered {
    token: String,
    refresh_token: String,
    cert_pem: Option<String>,
    key_pem: Option<String>,
    ca_cert_pem: Option<String>,
}

/// What an agent reads of its token.
#[derive(Deserialize)]
struct Claims {
    host_id: String,
}

impl Beater {
    /// For a host that was registered before.
    pub fn new(options: &BeaterOptions, credentials: Credentials) -> Beater {
        let (http, url, timeout) = (http_client(options), options.url.clone(), options.timeout);
        Beater { http, url, timeout, credentials, failures: 0, over: false }
    }

    /// Registers a host with a registration token.
    ///
    /// # Errors
    /// When the answer is not exactly 201 with what an agent needs.
    pub fn register(
        options: &BeaterOptions,
        host: &SimHost,
        token: &str,
    ) -> Result<Beater, RegisterError> {
        let http = http_client(options);
        let request = RegisterRequest {
            token,
            arch: "x86_64",
            cpu_cores: 16,
            memory_mb: 65_536,
            disk_gb: 1000,
            address: host.agent_address().as_str(),
        };
        let request =
            Post { url: format!("{}/v1/hosts/register", options.url), token: None, request };
        let answer = request.send(&http, options.timeout * 3)?;
        let credentials = answer.credentials(201, host)?;
        Ok(Beater::new(options, credentials))
    }

    /// What it proves itself with now.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Whether there will be no heartbeat any more until the host is registered again.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Sends one heartbeat for `host` and obeys the answer.
    pub fn beat(&mut self, host: &SimHost) -> Beat {
        if self.over || host.has_exited() {
            return Beat::NotSent;
        }
        match host.faults().heartbeats {
            HeartbeatFault::Silent => Beat::NotSent,
            HeartbeatFault::CutOff => self.unanswered(host),
            HeartbeatFault::None => match self.send() {
                Ok(status) => self.obey(host, status),
                Err(error) => {
                    log::debug!("a heartbeat of {} got no answer: {error}", host.id());
                    self.unanswered(host)
                }
            },
        }
    }

    fn send(&self) -> Result<u16, ureq::Error> {
        let url = format!("{}/v1/hosts/{}/heartbeat", self.url, self.credentials.host_id);
        let request = self.http.post(url).header("X-Host-Token", &self.credentials.token);
        let request = request.config().timeout_global(Some(self.timeout)).build();
        let mut response = request.send_empty()?;
        // Read to the end, so that the connection can be kept.
        response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(response.status().as_u16())
    }

    fn obey(&mut self, host: &SimHost, status: u16) -> Beat {
        match status {
            204 => {
                self.failures = 0;
                Beat::Acknowledged
            }
            401 | 403 => self.refresh(host),
            404 => {
                self.over = true;
                host.terminate();
                Beat::Deleted
            }
            other => Beat::Ignored(other),
        }
    }

    fn unanswered(&mut self, host: &SimHost) -> Beat {
        self.failures += 1;
        if self.failures < FAILURES_MAX {
            return Beat::Unanswered(self.failures);
        }
        host.pause_all();
        Beat::PausedAll
    }

    fn refresh(&mut self, host: &SimHost) -> Beat {
        if self.renew(host) {
            return Beat::Refreshed;
        }
        self.over = true;
        host.pause_all();
        Beat::Expelled
    }

    /// Gets new credentials; false when that fails in any way.
    fn renew(&mut self, host: &SimHost) -> bool {
        let request = RefreshRequest { refresh_token: &self.credentials.refresh_token };
        let url = format!("{}/v1/hosts/auth/refresh", self.url);
        let answer = Post { url, token: None, request }.send(&self.http, self.timeout * 3 / 2);
        match answer.and_then(|answer| answer.credentials(200, host)) {
            Ok(credentials) => self.credentials = credentials,
            Err(error) => {
                log::debug!("the refresh of {} failed: {error}", host.id());
                return false;
            }
        }
        true
    }

    /// Sends what `host` has to report, each up to three times with the pauses of real agents
    /// between. What is to come late is waited for.
    pub fn send_reports(&mut self, host: &SimHost) {
        for report in host.take_reports() {
            std::thread::sleep(report.due.saturating_duration_since(Instant::now()));
            for tries in 1..=TRIES_MAX {
                if self.report(host, &report) == Reported::Accepted || tries == TRIES_MAX {
                    break;
                }
                std::thread::sleep(pause_after(tries));
            }
        }
    }

    /// Sends a report of `host` once.
    pub fn report(&mut self, host: &SimHost, report: &Report) -> Reported {
        if host.faults().heartbeats == HeartbeatFault::CutOff {
            return Reported::Unanswered;
        }
        let request = ReportRequest {
            event: report.event.as_str(),
            sandbox_id: report.sandbox.to_string(),
            host_id: self.credentials.host_id.to_string(),
            timestamp: report.at_unix,
            error: &report.error,
        };
        let url = format!("{}/v1/hosts/sandbox-events", self.url);
        let token = Some(self.credentials.token.as_str());
        match (Post { url, token, request }).send(&self.http, self.timeout) {
            Ok(Answer { status: 200..=299, .. }) => Reported::Accepted,
            Ok(Answer { status: status @ (401 | 403), .. }) => {
                self.renew(host);
                Reported::Refused(status)
            }
            Ok(Answer { status, .. }) => Reported::Refused(status),
            Err(error) => {
                log::debug!("a report of {} got no answer: {error}", host.id());
                Reported::Unanswered
            }
        }
    }
}

/// One agent for each host, as in reality: each keeps its own connection.
fn http_client(options: &BeaterOptions) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent("roost-agent-sim")
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        .max_idle_age(KEEP_ALIVE)
        .no_delay(true)
        .build();
    match &options.tls {
        None => ureq::Agent::new_with_config(config),
        Some(tls) => {
            let connect = Connect::over_tls(Arc::clone(tls));
            ureq::Agent::with_parts(config, connect, DefaultResolver::default())
        }
    }
}

/// A whole answer.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// One request with a body.
struct Post<'a, T> {
    url: String,
    token: Option<&'a str>,
    request: T,
}

impl<T: Serialize> Post<'_, T> {
    fn send(&self, http: &ureq::Agent, timeout: Duration) -> Result<Answer, RegisterError> {
        let unanswered = |e: ureq::Error| RegisterError::Unanswered(e.to_string());
        let body = serde_json::to_vec(&self.request);
        let body = body.map_err(|e| RegisterError::Unusable(e.to_string()))?;
        let mut request = http.post(&self.url).header("Content-Type", "application/json");
        if let Some(token) = self.token {
            request = request.header("X-Host-Token", token);
        }
        let request = request.config().timeout_global(Some(timeout)).build();
        let mut response = request.send(&body[..]).map_err(unanswered)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        Ok(Answer { status, body: body.map_err(unanswered)? })
    }
}

impl Answer {
    /// What an agent keeps; its certificates are in use when this returns.
    fn credentials(&self, success: u16, host: &SimHost) -> Result<Credentials, RegisterError> {
        if self.status != success {
            return Err(RegisterError::Refused(self.status));
        }
        let unusable = |e: serde_json::Error| RegisterError::Unusable(e.to_string());
        let Registered { token, refresh_token, cert_pem, key_pem, ca_cert_pem } =
            serde_json::from_slice(&self.body).map_err(unusable)?;
        if let (Some(cert_pem), Some(key_pem), Some(ca_cert_pem)) = (cert_pem, key_pem, ca_cert_pem)
        {
            host.use_certificates(&Certificates { cert_pem, key_pem, ca_cert_pem })
                .map_err(|why| RegisterError::Unusable(format!("certificates: {why}")))?;
        }
        let host_id = named_host(&token)
            .ok_or_else(|| RegisterError::Unusable("the token names no host".to_owned()))?;
        Ok(Credentials { host_id, token, refresh_token })
    }
}

/// The host that a token names; an agent has no other way to learn its own id.
fn named_host(token: &str) -> Option<HostId> {
    let claims = decode(token.split('.').nth(1)?)?;
    let Claims { host_id } = serde_json::from_slice(&claims).ok()?;
    host_id.parse().ok()
}

/// Base64url without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().map(digit).collect::<Option<Vec<u32>>>()?;
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        if group.len() == 1 {
            return None;
        }
        let value = group.iter().fold(0, |value, digit| value << 6 | digit);
        let value = value << (6 * (4 - group.len()) + 8);
        bytes.extend(value.to_be_bytes().iter().take(group.len() - 1));
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url() {
        let text = |encoded| decode(encoded).map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(text(""), Some(String::new()));
        assert_eq!(text("Zg"), Some("f".to_owned()));
        assert_eq!(text("Zm8"), Some("fo".to_owned()));
        assert_eq!(text("Zm9v"), Some("foo".to_owned()));
        assert_eq!(text("Zm9vYg"), Some("foob".to_owned()));
        assert_eq!(decode("-_8"), Some(vec![0xfb, 0xff]));
        assert_eq!(text("Z"), None);
        assert_eq!(text("Zg=="), None);
    }
}
