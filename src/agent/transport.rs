//! Owns how bytes reach an agent: the HTTP client's settings, name lookup, TCP, TLS, and
//! how a call that got no answer is named.
//!
//! Never: follows a redirect, uses a proxy, keeps a connection, reads a message. Nothing
//! here waits without a deadline. Called by `client`; whoever asks our own API borrows its
//! connections over TLS.

use super::fence::TeamFence;
use super::tcp;
use super::trust::{WrongPeer, check_names};
use crate::model::id::HostId;
use crate::model::probe::FailureKind;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConnection, StreamOwned};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::{Duration as Span, Instant as Moment};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// What is read from a socket at once, and so the longest head of an answer. Larger: every
/// probe in flight holds more. Smaller: more system calls, and long heads are refused.
const INPUT_BYTES: usize = 16 * 1024;

/// Longest head of an answer: one byte less than what is read at once, or a head without
/// end would look like a closed connection.
const HEAD_BYTES_MAX: usize = INPUT_BYTES - 1;

/// What is written to a socket at once. Larger: every probe in flight holds more. Smaller:
/// our own head, whose longest line names the host, might not fit.
const OUTPUT_BYTES: usize = 2 * 1024;

/// Name lookups under way at once, those included whose call has given up: the system's
/// lookup cannot be stopped. Larger: a dead name server costs more threads. Smaller: a
/// slow one holds up hosts that are named, not numbered.
const LOOKUPS_MAX: usize = 64;

/// Stack of a name lookup's thread. Larger: address space is wasted. Smaller: the system's
/// resolver, which keeps its answers on the stack, overruns it.
const LOOKUP_STACK_BYTES: usize = 512 * 1024;

/// Most addresses of one name that are tried: what the HTTP client's array holds.
const ADDRESSES_MAX: usize = 16;

/// How every call to an agent is made: settings, and name lookups that are counted together.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    config: Config,
    names: Names,
}

impl Wire {
    /// For calls that have so long to look up a name, and again to connect. There is no
    /// deadline for a whole call yet.
    pub(super) fn new(connect_timeout: Duration) -> Wire {
        Wire { config: settings(connect_timeout), names: Names::new(look_up) }
    }

    /// An HTTP client that opens its connections in this way.
    pub(super) fn client(&self, connect: Connect) -> ureq::Agent {
        ureq::Agent::with_parts(self.config.clone(), connect, self.names.clone())
    }

    /// The IP addresses of a URL's host; waits for the name service at most so long.
    pub(super) fn ips(&self, url: &str, timeout: Duration) -> Result<Vec<IpAddr>, ureq::Error> {
        let uri: Uri = url.parse().map_err(ureq::http::Error::from)?;
        let timeout = NextTimeout { after: timeout.into(), ..NextTimeout::default() };
        Ok(self.names.addresses(&uri, timeout)?.iter().map(SocketAddr::ip).collect())
    }
}

fn settings(connect_timeout: Duration) -> Config {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("roost/", env!("CARGO_PKG_VERSION")))
        .accept("application/json")
        .accept_encoding("gzip")
        .no_delay(true)
        .max_response_header_size(HEAD_BYTES_MAX)
        .input_buffer_size(INPUT_BYTES)
        .output_buffer_size(OUTPUT_BYTES)
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .timeout_resolve(Some(connect_timeout))
        .timeout_connect(Some(connect_timeout))
        .build()
}

/// A call without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// False when no byte of the request was sent: certainly not executed.
    pub(super) sent: bool,
    /// The kind, in a probe's words.
    pub(super) kind: FailureKind,
    /// For people; not yet made safe to show.
    pub(super) detail: String,
}

impl Failure {
    /// Names what the HTTP client says. `deadline` is the whole call's.
    pub(super) fn of(error: ureq::Error, deadline: Duration) -> Failure {
        let (sent, error) = match taken_from_tag(error) {
            Ok(before) => (false, before),
            Err(error) => (true, error),
        };
        let (kind, detail) = name(&error, sent, deadline);
        Failure { sent, kind, detail }
    }
}

/// Whether the other side may have seen any of a request that failed, whoever was asked.
pub fn may_be_sent(error: &ureq::Error) -> bool {
    let not_resolved = matches!(
        error,
        ureq::Error::HostNotFound
            | ureq::Error::BadUri(_)
            | ureq::Error::Timeout(ureq::Timeout::Resolve)
    );
    let tagged = matches!(error, ureq::Error::Other(other) if other.is::<BeforeSending>());
    !(not_resolved || tagged)
}

/// What a failed request says to people, whoever was asked.
pub fn words(error: ureq::Error, deadline: Duration) -> String {
    Failure::of(error, deadline).detail
}

fn name(error: &ureq::Error, sent: bool, deadline: Duration) -> (FailureKind, String) {
    if let ureq::Error::Timeout(phase) = error {
        let detail = match (sent, phase) {
            (true, _) => format!("no whole answer within {deadline:?}"),
            (false, ureq::Timeout::Resolve) => "name not looked up in time".to_owned(),
            (false, _) => "no connection in time".to_owned(),
        };
        return (FailureKind::TimedOut, detail);
    }
    if let Some(tls) = tls_error(error) {
        return (tls_kind(tls), format!("TLS: {tls}"));
    }
    if let ureq::Error::Other(other) = error
        && let Some(wrong) = other.downcast_ref::<WrongPeer>()
    {
        return (FailureKind::WrongHost, format!("TLS: {wrong}"));
    }
    if let ureq::Error::Io(e) = error {
        let timed_out = e.kind() == io::ErrorKind::TimedOut;
        let kind = if timed_out { FailureKind::TimedOut } else { FailureKind::Unreachable };
        return (kind, e.to_string());
    }
    // What was not asked cannot have answered wrongly.
    let kind = if sent { FailureKind::Malformed } else { FailureKind::Unreachable };
    (kind, error.to_string())
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    if let ureq::Error::Rustls(tls) = error {
        return Some(tls);
    }
    let ureq::Error::Io(io) = error else { return None };
    io.get_ref()?.downcast_ref::<rustls::Error>()
}

fn tls_kind(error: &rustls::Error) -> FailureKind {
    if let rustls::Error::InvalidCertificate(certificate) = error {
        let wrong_host = !is_out_of_date(certificate);
        return if wrong_host { FailureKind::WrongHost } else { FailureKind::Malformed };
    }
    // An alert: the other side will not have us.
    let alert = matches!(error, rustls::Error::AlertReceived(_));
    if alert { FailureKind::Unreachable } else { FailureKind::Malformed }
}

/// The right host may show it; every other fault means that somebody else answered.
fn is_out_of_date(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// What went wrong before the first byte of a request was sent.
#[derive(Debug)]
struct BeforeSending(ureq::Error);

impl fmt::Display for BeforeSending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for BeforeSending {}

fn before_sending(error: ureq::Error) -> ureq::Error {
    ureq::Error::Other(Box::new(BeforeSending(error)))
}

fn taken_from_tag(error: ureq::Error) -> Result<ureq::Error, ureq::Error> {
    let ureq::Error::Other(other) = error else { return Err(error) };
    other.downcast::<BeforeSending>().map(|tag| tag.0).map_err(ureq::Error::Other)
}

/// Opens connections: TCP, and TLS in it where the URL says so.
#[derive(Default)]
pub struct Connect {
    tls: Option<Arc<rustls::ClientConfig>>,
    meant: Option<HostId>,
    refusal: Option<String>,
    fence: Option<TeamFence>,
}

impl Connect {
    /// Without TLS.
    pub fn plain() -> Connect {
        Connect::default()
    }

    /// With these settings, whose verifier says all there is to say of the other side.
    pub fn over_tls(tls: Arc<rustls::ClientConfig>) -> Connect {
        Connect { tls: Some(tls), ..Connect::default() }
    }

    /// To nobody, for this reason.
    pub fn refusing(why: String) -> Connect {
        Connect { refusal: Some(why), ..Connect::default() }
    }

    /// With these settings, to this host and no other.
    pub(super) fn to_host(host: HostId, tls: Arc<rustls::ClientConfig>) -> Connect {
        Connect { tls: Some(tls), meant: Some(host), ..Connect::default() }
    }

    /// To addresses within the fence only.
    pub(super) fn within(self, fence: Option<TeamFence>) -> Connect {
        Connect { fence, ..self }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("tls", &self.tls.is_some()).finish()
    }
}

impl Connector<()> for Connect {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _nothing: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        self.open(details).map(Some).map_err(before_sending)
    }
}

impl Connect {
    fn open(&self, details: &ConnectionDetails<'_>) -> Result<Box<dyn Transport>, ureq::Error> {
        if let Some(why) = &self.refusal {
            return Err(io::Error::other(why.clone()).into());
        }
        let tls = match (details.needs_tls(), &self.tls) {
            (false, _) => None,
            (true, Some(config)) => Some(config),
            (true, None) => return Err(ureq::Error::Tls("the address says https, agent_tls off")),
        };
        let tcp = tcp::connect(details, self.fence.as_ref())?;
        match tls {
            None => Ok(Box::new(tcp)),
            Some(config) => {
                Ok(Box::new(Tls::handshake(config, self.meant, details, Box::new(tcp))?))
            }
        }
    }
}

/// A TLS connection under the caller's own settings: client certificate, verifier and
/// session cache.
struct Tls {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
}

impl Tls {
    fn handshake(
        config: &Arc<rustls::ClientConfig>,
        meant: Option<HostId>,
        details: &ConnectionDetails<'_>,
        tcp: Box<dyn Transport>,
    ) -> Result<Tls, ureq::Error> {
        let host = bare_host(details.uri).to_owned();
        let name = ServerName::try_from(host)
            .map_err(|_| ureq::Error::Tls("no certificate can name this address"))?;
        let mut conn = ClientConnection::new(Arc::clone(config), name.clone())?;
        let mut sock = TransportAdapter::new(tcp, Arc::clone(&details.current_time));
        sock.set_timeout(left_to_connect(details));
        conn.complete_io(&mut sock)?;
        if let Some(host) = meant {
            check_names(conn.peer_certificates(), host, &name)
                .map_err(|wrong| ureq::Error::Other(Box::new(wrong)))?;
        }
        Ok(Tls {
            stream: StreamOwned { conn, sock },
            buffers: LazyBuffers::new(INPUT_BYTES, OUTPUT_BYTES),
        })
    }
}

/// What the TCP connection left of the time to connect.
fn left_to_connect(details: &ConnectionDetails<'_>) -> NextTimeout {
    let mut left = details.timeout;
    if let (Span::Exact(after), Moment::Exact(start)) = (left.after, details.now) {
        left.after = Span::Exact(after.saturating_sub(start.elapsed()));
    }
    left
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Transport for Tls {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Connections are not used twice.
        false
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// The host of a URL without the brackets around an IPv6 literal.
fn bare_host(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

/// Asks the system for a name's addresses; may take minutes.
type Lookup = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (name, port).to_socket_addrs().map(Iterator::collect)
}

/// Turns the host of a URL into addresses. Literals and `localhost` never reach the
/// system: a static glibc would load the machine's name-service modules for them.
#[derive(Clone)]
struct Names {
    lookup: Lookup,
    under_way: Arc<AtomicUsize>,
}

impl Names {
    fn new(lookup: Lookup) -> Names {
        Names { lookup, under_way: Arc::default() }
    }

    fn addresses(
        &self,
        uri: &Uri,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = bare_host(uri);
        let port =
            uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut addresses = self.empty();
        if let Ok(ip) = host.parse::<IpAddr>() {
            addresses.push(SocketAddr::new(ip, port));
        } else if is_localhost(host) {
            addresses.push((Ipv4Addr::LOCALHOST, port).into());
            addresses.push((Ipv6Addr::LOCALHOST, port).into());
        } else {
            for address in self.ask_system(host, port, timeout)?.into_iter().take(ADDRESSES_MAX) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }

    /// Asks in a thread of its own, which outlives the call when the system is slower
    /// than `timeout`.
    fn ask_system(
        &self,
        host: &str,
        port: u16,
        timeout: NextTimeout,
    ) -> Result<Vec<SocketAddr>, ureq::Error> {
        let slot = Slot::take(&self.under_way)
            .ok_or_else(|| io::Error::other(format!("{LOOKUPS_MAX} name lookups are stuck")))?;
        let (answer, answered) = mpsc::sync_channel(1);
        let (lookup, host) = (self.lookup, host.to_owned());
        std::thread::Builder::new()
            .name("lookup".to_owned())
            .stack_size(LOOKUP_STACK_BYTES)
            .spawn(move || {
                let found = lookup(&host, port);
                drop(slot);
                // Nobody listens any more when the call has given up.
                let _ = answer.send(found);
            })?;
        match answered.recv_timeout(*timeout.after) {
            Ok(found) => Ok(found?),
            Err(RecvTimeoutError::Timeout) => Err(ureq::Error::Timeout(timeout.reason)),
            Err(RecvTimeoutError::Disconnected) => Err(ureq::Error::HostNotFound),
        }
    }
}

fn is_localhost(host: &str) -> bool {
    host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case("localhost")
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.addresses(uri, timeout).map_err(before_sending)
    }
}

/// One of the lookups that may be under way; given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(under_way: &Arc<AtomicUsize>) -> Option<Slot> {
        let slot = Slot(Arc::clone(under_way));
        let before = under_way.fetch_add(1, Ordering::Relaxed);
        if before < LOOKUPS_MAX { Some(slot) } else { None }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses of a URL's host, as text.
    fn found(names: &Names, url: &str, timeout: Duration) -> Result<String, String> {
        let timeout = NextTimeout { after: timeout.into(), ..NextTimeout::default() };
        let addresses = names.addresses(&url.parse().unwrap(), timeout);
        let shown = |addresses: ResolvedSocketAddrs| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        addresses.map(shown).map_err(|e| e.to_string())
    }

    const AMPLE: Duration = Duration::from_secs(8);

    fn never(name: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other(format!("{name} reached the system")))
    }

    #[test]
    fn literals_and_localhost_never_reach_the_system() {
        let names = Names::new(never);
        let found = |url| found(&names, url, AMPLE);
        assert_eq!(found("http://10.0.0.7:50051/x"), Ok("10.0.0.7:50051".to_owned()));
        assert_eq!(found("http://10.0.0.7"), Ok("10.0.0.7:80".to_owned()));
        assert_eq!(found("https://[fe80::1]/x"), Ok("[fe80::1]:443".to_owned()));
        let both = Ok("127.0.0.1:9 [::1]:9".to_owned());
        assert_eq!(found("http://localhost:9"), both);
        assert_eq!(found("https://LocalHost.:9"), both);
        assert_eq!(found("http://localhost.x:9"), Err("io: localhost.x reached the system".into()));
    }

    fn many(_name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((0..20).map(|n| SocketAddr::from(([10, 0, 0, n], port))).collect())
    }

    fn none(_name: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(Vec::new())
    }

    #[test]
    fn names_are_asked_of_the_system() {
        let names = Names::new(many);
        let sixteen = found(&names, "http://edge-1.example:7", AMPLE).unwrap();
        assert_eq!(sixteen.split(' ').count(), ADDRESSES_MAX);
        assert!(sixteen.starts_with("10.0.0.0:7 10.0.0.1:7 "), "{sixteen}");
        assert_eq!(names.under_way.load(Ordering::Relaxed), 0);
        let nothing = found(&Names::new(none), "http://edge-1.example:7", AMPLE);
        assert_eq!(nothing, Err("host not found".to_owned()));
    }

    fn stuck(_name: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn lookups_that_hang_are_left_and_counted() {
        let names = Names::new(stuck);
        for n in 1..=LOOKUPS_MAX {
            let late = found(&names, "http://edge-1.example:7", Duration::from_millis(1));
            assert_eq!(late, Err("timeout: global".to_owned()));
            assert_eq!(names.under_way.load(Ordering::Relaxed), n);
        }
        let refused = found(&names, "http://edge-1.example:7", AMPLE);
        assert_eq!(refused, Err("io: 64 name lookups are stuck".to_owned()));
        assert_eq!(names.under_way.load(Ordering::Relaxed), LOOKUPS_MAX);
        assert!(found(&names, "http://localhost:7", AMPLE).is_ok(), "needs no lookup");
    }

    #[test]
    fn what_happened_before_sending_is_told_from_what_happened_after() {
        let broken = || ureq::Error::Io(io::ErrorKind::ConnectionReset.into());
        let protocol = || ureq::Error::ConnectionFailed;
        let deadline = Duration::from_secs(3);
        let shown = |error| {
            let Failure { sent, kind, detail } = Failure::of(error, deadline);
            format!("{sent} {kind}: {detail}")
        };
        let outcomes = [
            shown(broken()),
            shown(before_sending(broken())),
            shown(protocol()),
            shown(before_sending(protocol())),
            shown(ureq::Error::Timeout(ureq::Timeout::RecvBody)),
            shown(before_sending(ureq::Error::Timeout(ureq::Timeout::Connect))),
            shown(before_sending(ureq::Error::Timeout(ureq::Timeout::Resolve))),
            shown(before_sending(ureq::Error::HostNotFound)),
            shown(ureq::Error::Other(Box::new(io::Error::other("else")))),
        ];
        expect_test::expect![[r#"
            true unreachable: connection reset
            false unreachable: connection reset
            true malformed: connection failed
            false unreachable: connection failed
            true timed_out: no whole answer within 3s
            false timed_out: no connection in time
            false timed_out: name not looked up in time
            false unreachable: host not found
            true malformed: other: else"#]]
        .assert_eq(&outcomes.join("\n"));
    }
}
