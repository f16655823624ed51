//! TLS to agents: the right certificate and no other, our own shown, sessions resumed,
//! and the same deadlines as without.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "agent_raw/mod.rs"]
mod raw;

use raw::{Step, address, json, serve};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};
use roost::agent::authority::{Authority, CaFiles};
use roost::agent::client::{AgentClient, CallError, ClientConfig};
use roost::agent::trust::Trust;
use roost::clock::{Clock, SystemClock};
use roost::model::host::AgentAddress;
use roost::model::id::{HostId, SandboxId};
use roost::model::probe::{FailureKind, Probe};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const AMPLE: Duration = Duration::from_secs(8);
const SHORT: Duration = Duration::from_millis(300);
const LEEWAY: Duration = Duration::from_secs(4);

/// The host that every call means.
fn meant() -> HostId {
    HostId::from_u128(7)
}

/// Our own certificate authority, and certificates that it would never issue.
struct Ca {
    authority: Arc<Authority>,
    issuer: Issuer<'static, KeyPair>,
}

type Leaf = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Ca {
    fn new() -> Ca {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        let files = CaFiles { certificate, key };
        let authority = Authority::load_or_create(&files, SystemClock.now().wall).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_file(&files.key).unwrap();
        let key = KeyPair::try_from(&key).unwrap();
        let issuer = Issuer::from_ca_cert_der(authority.certificate(), key).unwrap();
        Ca { authority: Arc::new(authority), issuer }
    }

    /// A certificate of the host that is meant, at this address, but for a change.
    fn leaf(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, meant().to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().clone()).unwrap();
        Arc::new(roots)
    }

    /// What a control plane with this CA trusts and shows.
    fn trust(&self) -> Arc<Trust> {
        Arc::new(Trust::new(Arc::clone(&self.authority), Arc::new(SystemClock)).unwrap())
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An agent that trusts a CA, shows a certificate, and says how each handshake went.
fn start_agent(
    trusted: &Ca,
    (chain, key): Leaf,
    say: impl Fn(&mut dyn Write) + Send + 'static,
) -> (AgentAddress, Receiver<Option<HandshakeKind>>) {
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted.roots(), provider());
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = address(&listener);
    let (tell, handshakes) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let kind = answer(StreamOwned::new(connection, stream.unwrap()), &say);
            if tell.send(kind).is_err() {
                break;
            }
        }
    });
    (at, handshakes)
}

/// Reads a request and answers; none when there was no request.
fn answer(
    mut stream: StreamOwned<ServerConnection, TcpStream>,
    say: impl Fn(&mut dyn Write),
) -> Option<HandshakeKind> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"}") {
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    say(&mut stream);
    stream.conn.send_close_notify();
    let _ = stream.flush();
    stream.conn.handshake_kind()
}

const LISTING: &[u8] = br#"{"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0"}]}"#;

fn listing(to: &mut dyn Write) {
    to.write_all(&json(LISTING)).unwrap();
}

fn client(tls: Arc<Trust>, probe_timeout: Duration) -> AgentClient {
    AgentClient::new(ClientConfig {
        probe_timeout,
        connect_timeout: AMPLE,
        tls: Some(tls),
        ..ClientConfig::default()
    })
}

#[track_caller]
fn failure(probe: Probe) -> (FailureKind, String) {
    match probe {
        Probe::Failed(failure) => (failure.kind, failure.detail),
        Probe::Listed(listing) => panic!("listed {}", listing.sandboxes.len()),
    }
}

fn any(_: &mut CertificateParams) {}

#[test]
fn both_sides_show_certificates_and_sessions_are_resumed() {
    let ca = Ca::new();
    let (at, handshakes) = start_agent(&ca, ca.leaf("127.0.0.1", any), listing);
    let client = client(ca.trust(), AMPLE);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let Probe::Listed(listing) = client.list_sandboxes(meant(), &at) else { panic!("failed") };
        assert_eq!(listing.sandboxes.len(), 1);
        assert_eq!(handshakes.recv().unwrap(), Some(expected));
    }
    // By name, which the certificate does not have.
    let name: AgentAddress = at.as_str().replace("127.0.0.1", "localhost").parse().unwrap();
    assert_eq!(failure(client.list_sandboxes(meant(), &name)).0, FailureKind::WrongHost);
}

#[test]
fn a_scheme_in_the_address_is_obeyed() {
    let ca = Ca::new();
    let (at, _handshakes) = start_agent(&ca, ca.leaf("127.0.0.1", any), listing);
    let client = client(ca.trust(), AMPLE);
    let https: AgentAddress = format!("https://{at}").parse().unwrap();
    assert!(matches!(client.list_sandboxes(meant(), &https), Probe::Listed(_)));
    let plain = serve(vec![Step::Read, Step::Send(json(LISTING))]);
    let http: AgentAddress = format!("http://{}", plain.address).parse().unwrap();
    assert!(matches!(client.list_sandboxes(meant(), &http), Probe::Listed(_)));
}

#[test]
fn sessions_are_kept_by_host_not_by_address() {
    // Two agents on one machine: neither can resume what was begun with the other.
    let ca = Ca::new();
    let (at, handshakes) = start_agent(&ca, ca.leaf("127.0.0.1", any), listing);
    let name = |params: &mut CertificateParams| {
        params.distinguished_name.push(DnType::CommonName, HostId::from_u128(8).to_string());
    };
    let (beside, others) = start_agent(&ca, ca.leaf("127.0.0.1", name), listing);
    let client = client(ca.trust(), AMPLE);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        assert!(matches!(client.list_sandboxes(meant(), &at), Probe::Listed(_)));
        assert!(matches!(client.list_sandboxes(HostId::from_u128(8), &beside), Probe::Listed(_)));
        assert_eq!(handshakes.recv().unwrap(), Some(expected));
        assert_eq!(others.recv().unwrap(), Some(expected));
    }
}

#[test]
fn certificates_that_are_not_the_host_s() {
    let (ca, other) = (Ca::new(), Ca::new());
    let old = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let only_client = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let for_nothing = |params: &mut CertificateParams| params.extended_key_usages = Vec::new();
    let named = |name: &'static str| {
        move |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::CommonName, name);
        }
    };
    let nameless = |params: &mut CertificateParams| {
        params.distinguished_name.remove(DnType::CommonName);
    };
    let invalid = "TLS: invalid peer certificate";
    let b = "host-0000000000000000000000008";
    let cases = [
        ("another CA", other.leaf("127.0.0.1", any), FailureKind::WrongHost, invalid),
        ("another host", ca.leaf("127.0.0.1", named(b)), FailureKind::WrongHost, b),
        ("another host elsewhere", ca.leaf("127.0.0.2", named(b)), FailureKind::WrongHost, b),
        ("ourselves", ca.leaf("127.0.0.1", named("wrenn-cp")), FailureKind::WrongHost, "wrenn-cp"),
        ("nobody", ca.leaf("127.0.0.1", nameless), FailureKind::WrongHost, "names \"\""),
        ("another address", ca.leaf("127.0.0.2", any), FailureKind::WrongHost, "another address"),
        ("another name", ca.leaf("localhost", any), FailureKind::WrongHost, "another address"),
        ("a client's", ca.leaf("127.0.0.1", only_client), FailureKind::WrongHost, invalid),
        ("nothing's", ca.leaf("127.0.0.1", for_nothing), FailureKind::WrongHost, "for servers"),
        ("out of date", ca.leaf("127.0.0.1", old), FailureKind::Malformed, invalid),
    ];
    for (name, leaf, expected, words) in cases {
        let (at, handshakes) = start_agent(&ca, leaf, listing);
        let client = client(ca.trust(), AMPLE);
        let (kind, detail) = failure(client.list_sandboxes(meant(), &at));
        assert_eq!(kind, expected, "{name}: {detail}");
        assert!(detail.starts_with("TLS: ") && detail.contains(words), "{name}: {detail}");
        assert_eq!(handshakes.recv().unwrap(), None, "{name}: a request was sent");
        let error = client.destroy(meant(), &at, SandboxId::from_u128(1), AMPLE).unwrap_err();
        let CallError::NotReached { kind, .. } = error else { panic!("{name}: {error}") };
        assert_eq!(kind, expected, "{name}");
    }
}

#[test]
fn an_agent_that_does_not_accept_our_certificate() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (at, handshakes) = start_agent(&other, ca.leaf("127.0.0.1", any), listing);
    let client = client(ca.trust(), AMPLE);
    let (kind, detail) = failure(client.list_sandboxes(meant(), &at));
    assert_eq!(kind, FailureKind::Unreachable, "{detail}");
    assert_eq!(handshakes.recv().unwrap(), None);
}

#[test]
fn servers_that_do_not_speak_tls() {
    let ca = Ca::new();
    let tls = ca.trust();
    let plain = serve(vec![Step::Send(json(b"{}")), Step::Hold]);
    let (kind, detail) =
        failure(client(Arc::clone(&tls), AMPLE).list_sandboxes(meant(), &plain.address));
    assert_eq!(kind, FailureKind::Malformed, "{detail}");
    let closing = serve(vec![]);
    let (kind, detail) =
        failure(client(Arc::clone(&tls), AMPLE).list_sandboxes(meant(), &closing.address));
    assert_eq!(kind, FailureKind::Unreachable, "{detail}");

    let impatient = AgentClient::new(ClientConfig {
        connect_timeout: SHORT,
        tls: Some(tls),
        ..ClientConfig::default()
    });
    for silent in [vec![Step::Hold], vec![Step::Drip(vec![0x16, 3, 3, 0x40, 0])]] {
        let silent = serve(silent);
        let start = Instant::now();
        let error =
            impatient.ping(meant(), &silent.address, SandboxId::from_u128(1), AMPLE).unwrap_err();
        let CallError::NotReached { kind, detail } = error else { panic!("{error}") };
        assert_eq!(kind, FailureKind::TimedOut, "{detail}");
        assert!(start.elapsed() >= SHORT / 2 && start.elapsed() < SHORT + LEEWAY);
    }
}

#[test]
fn the_deadline_holds_inside_tls() {
    let ca = Ca::new();
    let slow = |to: &mut dyn Write| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
        let _ = to.write_all(head.as_bytes());
        while to.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    };
    let (at, _handshakes) = start_agent(&ca, ca.leaf("127.0.0.1", any), slow);
    let client = client(ca.trust(), SHORT);
    let start = Instant::now();
    let (kind, detail) = failure(client.list_sandboxes(meant(), &at));
    assert_eq!(kind, FailureKind::TimedOut, "{detail}");
    assert!(start.elapsed() >= SHORT && start.elapsed() < SHORT + LEEWAY);
}
