//! Owns TLS between the real server and simulated agents: certificates at registration and
//! refresh, who is refused, renewal, sessions that are resumed.
//!
//! Never: HTTPS for the API.

use super::authority::assert_untold;
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use roost::agent::authority::{Authority, CaFiles};
use roost::agent::client::{AgentClient, ClientConfig};
use roost::agent::trust::{RENEW_AFTER, Trust, time_of};
use roost::clock::{Clock, ManualClock, SystemClock};
use roost::model::id::{HostId, SandboxId};
use roost::model::probe::Probe;
use roost::model::time::Wall;
use roost::sim::{
    Beat, Beater, BeaterOptions, Certificates, FleetOptions, Habits, Initially, SimFleet, SimHost,
};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

const MTLS: &[&str] = &[
    "--agent-tls",
    "mtls",
    "--probe-interval",
    "1s",
    "--probe-timeout",
    "900ms",
    "--confirm-delay",
    "10ms",
];

fn fleet(hosts: usize, clock: Arc<dyn Clock>) -> SimFleet {
    SimFleet::start(&FleetOptions {
        hosts,
        sandboxes: 0,
        base_port: 0,
        initially: Initially::Running,
        habits: Habits::default(),
        seed: 3,
        clock,
    })
    .unwrap()
}

/// Registers a simulated host as its agent would.
fn enrol(serving: &Serving, host: &SimHost) -> Beater {
    let added = serving.post("/v1/hosts", &json!({})).json();
    let url = format!("http://{}", serving.address());
    let options = BeaterOptions { url, timeout: PATIENCE, tls: None };
    Beater::register(&options, host, added["registration_token"].as_str().unwrap()).unwrap()
}

fn host(serving: &Serving, id: HostId) -> Value {
    serving.get(&format!("/v1/hosts/{id}")).json()
}

/// Waits until a probe has this outcome; gives its view.
fn probed(serving: &Serving, id: HostId, outcome: &str) -> Value {
    eventually(&format!("a probe of {id} that is {outcome}"), || {
        let probe = host(serving, id)["last_probe"].clone();
        (probe["outcome"] == outcome).then_some(probe)
    })
}

fn certificates(answer: &Value) -> Certificates {
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    Certificates {
        cert_pem: text("cert_pem"),
        key_pem: text("key_pem"),
        ca_cert_pem: text("ca_cert_pem"),
    }
}

#[test]
fn a_registration_brings_certificates_with_mtls_only() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let answer = serving.register("127.0.0.1:1");
    for name in ["cert_pem", "key_pem", "ca_cert_pem"] {
        assert!(answer.get(name).is_none(), "{name}");
    }
    serving.stop();
    assert!(!home.path("ca.pem").exists() && !home.path("ca.key").exists());

    let serving = home.serve(&[MTLS, &["--log", "trace"]].concat());
    let answer = serving.register("127.0.0.1:2");
    let body = json!({"refresh_token": answer["refresh_token"]}).to_string();
    let refreshed = serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body).json();
    let ca = std::fs::read_to_string(home.path("ca.pem")).unwrap();
    let mut serials = Vec::new();
    for answer in [&answer, &refreshed] {
        let certificates = certificates(answer);
        assert_eq!(certificates.ca_cert_pem, ca);
        assert!(certificates.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let der = CertificateDer::from_pem_slice(certificates.cert_pem.as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let name = leaf.subject().iter_common_name().next().unwrap();
        assert_eq!(name.as_str().unwrap(), answer["host"]["id"].as_str().unwrap());
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        serials.push(leaf.raw_serial().to_vec());
    }
    assert_ne!(serials[0], serials[1], "a new one at each refresh");
    let config = home.roost(&["config", "--agent-tls", "mtls"]).ok();
    let log = serving.stop().join("\n");
    for secret in [
        certificates(&answer).key_pem,
        certificates(&refreshed).key_pem,
        std::fs::read_to_string(home.path("ca.key")).unwrap(),
        std::fs::read_to_string(home.path("admin.key")).unwrap(),
        std::fs::read_to_string(home.path("host-token.key")).unwrap(),
        answer["refresh_token"].as_str().unwrap().to_owned(),
    ] {
        assert_untold(&secret, &log);
        assert_untold(&secret, &config);
    }
}

#[test]
fn a_plain_address_is_refused_where_agents_show_certificates() {
    let home = Home::new();
    let try_at = |serving: &Serving, address: &str| {
        let added = serving.post("/v1/hosts", &json!({})).json();
        let body = json!({"token": added["registration_token"], "address": address}).to_string();
        serving.ask("POST", "/v1/hosts/register", &[], &body)
    };
    // One that is there since before.
    let serving = home.serve(&[]);
    assert_eq!(try_at(&serving, "http://127.0.0.1:1").status, 201);
    serving.stop();
    let serving = home.serve(MTLS);
    serving.logged(&["WARN", "http://127.0.0.1:1", "without TLS"]);
    for plain in ["http://127.0.0.1:2", "http://127.0.0.1", "http://agent.example:2/x"] {
        let answer = try_at(&serving, plain);
        assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()), "{plain}");
        let says_what_to_do =
            answer.body.contains("https://") && answer.body.contains("mtls_or_http");
        assert!(says_what_to_do, "{answer:?}");
    }
    for proved in ["127.0.0.1:3", "https://127.0.0.1:4"] {
        assert_eq!(try_at(&serving, proved).status, 201, "{proved}");
    }
    serving.stop();
    let serving = home.serve(&["--agent-tls", "mtls_or_http"]);
    let answer = try_at(&serving, "http://127.0.0.1:5");
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(answer.json()["cert_pem"].is_string(), "as with mtls otherwise");
}

#[test]
fn a_ca_that_cannot_be_used_is_said_at_the_start() {
    let home = Home::new();
    home.serve(MTLS).stop();
    std::fs::remove_file(home.path("ca.pem")).unwrap();
    let flags = ["--listen", "127.0.0.1:0", "--agent-tls", "mtls"];
    for command in [&["serve"][..], &["check", "--dry-run"]] {
        let flags = if command[0] == "serve" { &flags[..] } else { &flags[2..] };
        let done = home.roost(&[command, flags].concat());
        assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        assert!(done.stderr.contains("could not use the CA: "), "{}", done.stderr);
        assert!(done.stderr.contains("ca.pem is not; restore it"), "{}", done.stderr);
    }
}

#[test]
fn whoever_is_not_the_host_is_not_believed() {
    let home = Home::new();
    let fleet = fleet(3, Arc::new(SystemClock));
    let hosts = fleet.hosts();
    let serving = home.serve(MTLS);
    let added = serving.post("/v1/hosts", &json!({})).json();
    let body = json!({"token": added["registration_token"],
        "address": hosts[0].agent_address().as_str(), "cpu_cores": 8, "memory_mb": 16384});
    let answer = serving.ask("POST", "/v1/hosts/register", &[], &body.to_string()).json();
    let own = certificates(&answer);
    hosts[0].use_certificates(&own).unwrap();
    let id: HostId = answer["host"]["id"].as_str().unwrap().parse().unwrap();
    let ok = probed(&serving, id, "observation");
    assert_eq!(ok["sandboxes"], 0);
    let capsule = eventually("a place", || {
        let made = serving.post("/v1/capsules", &json!({}));
        (made.status == 202).then(|| made.json()["id"].as_str().unwrap().to_owned())
    });
    let status = |wanted: &str| {
        eventually(&format!("{capsule} {wanted}"), || {
            let now = serving.get(&format!("/v1/capsules/{capsule}")).json();
            (now["status"] == wanted).then_some(())
        });
    };
    status("running");

    // The host's address now belongs to another of our hosts, which has nothing.
    let other = serving.register(hosts[1].agent_address().as_str());
    let gone: SandboxId = capsule.parse().unwrap();
    hosts[0].use_certificates(&certificates(&other)).unwrap();
    assert!(hosts[0].lose(gone));
    let wrong = probed(&serving, id, "wrong_host");
    let named = other["host"]["id"].as_str().unwrap();
    assert!(wrong["detail"].as_str().unwrap().contains(named), "{wrong}");

    // Somebody with a CA of his own.
    let elsewhere = tempfile::tempdir().unwrap();
    let path = |name: &str| elsewhere.path().join(name);
    let files = CaFiles { certificate: path("ca.pem"), key: path("ca.key") };
    let now = SystemClock.now().wall;
    let foreign = Authority::load_or_create(&files, now).unwrap();
    let issued = foreign.issue_host(id, hosts[0].agent_address(), now).unwrap();
    let forged = Certificates {
        cert_pem: issued.cert_pem(),
        key_pem: issued.key_pem(),
        ca_cert_pem: own.ca_cert_pem.clone(),
    };
    hosts[0].use_certificates(&forged).unwrap();
    eventually("another detail", || {
        let wrong = probed(&serving, id, "wrong_host");
        wrong["detail"].as_str().unwrap().contains("invalid peer certificate").then_some(())
    });

    // Nothing was applied; the host itself is believed again, and then it is.
    let before = serving.get(&format!("/v1/capsules/{capsule}")).json();
    assert_eq!(before["status"], "running", "decided by somebody else's answer");
    hosts[0].use_certificates(&own).unwrap();
    status("stopped");

    // An agent that speaks plainly fails, and harms nobody.
    let plain = serving.register(hosts[2].agent_address().as_str());
    let plain: HostId = plain["host"]["id"].as_str().unwrap().parse().unwrap();
    probed(&serving, plain, "malformed");
    probed(&serving, id, "observation");
    serving.stop();
}

/// A client over TLS and a fleet of hosts with certificates, on one clock.
fn on_one_clock(hosts: usize) -> (Arc<ManualClock>, SimFleet, AgentClient, Arc<Authority>) {
    let dir = tempfile::tempdir().unwrap();
    with_ca_in(dir.path(), hosts)
}

fn with_ca_in(
    dir: &Path,
    hosts: usize,
) -> (Arc<ManualClock>, SimFleet, AgentClient, Arc<Authority>) {
    let clock = Arc::new(ManualClock::new(Wall(1_779_000_000_000)));
    let files = CaFiles { certificate: dir.join("ca.pem"), key: dir.join("ca.key") };
    let authority = Arc::new(Authority::load_or_create(&files, clock.now().wall).unwrap());
    let fleet = fleet(hosts, clock.clone());
    renew(&fleet, &authority, clock.now().wall);
    let trust = Trust::new(Arc::clone(&authority), clock.clone()).unwrap();
    let tls = Some(Arc::new(trust));
    let client = AgentClient::new(ClientConfig { tls, ..ClientConfig::default() });
    (clock, fleet, client, authority)
}

fn renew(fleet: &SimFleet, authority: &Authority, now: Wall) {
    for host in fleet.hosts() {
        let issued = authority.issue_host(host.id(), host.agent_address(), now).unwrap();
        let certificates = Certificates {
            cert_pem: issued.cert_pem(),
            key_pem: issued.key_pem(),
            ca_cert_pem: authority.cert_pem(),
        };
        host.use_certificates(&certificates).unwrap();
    }
}

fn ask(client: &AgentClient, host: &SimHost) {
    let probe = client.list_sandboxes(host.id(), host.agent_address());
    assert!(matches!(probe, Probe::Listed(_)), "{probe:?}");
}

#[test]
fn our_certificate_is_renewed_at_half_its_life_and_sessions_are_resumed_until_then() {
    let (clock, fleet, client, authority) = on_one_clock(3);
    for _ in 0..5 {
        fleet.hosts().iter().for_each(|host| ask(&client, host));
    }
    let first: Vec<_> = fleet.hosts().iter().map(|host| host.callers()).collect();
    assert!(first.iter().all(|callers| callers.handshakes == 1), "{first:?}");

    let host = &fleet.hosts()[0];
    clock.advance(RENEW_AFTER - Duration::from_secs(60));
    ask(&client, host);
    assert_eq!(host.callers().last_serial, first[0].last_serial);
    clock.advance(Duration::from_secs(60));
    ask(&client, host);
    let second = host.callers();
    assert_ne!(second.last_serial, first[0].last_serial, "the very next call shows the new one");
    let whole = second.handshakes;
    ask(&client, host);
    assert_eq!(host.callers().handshakes, whole, "and is resumed again");

    // A clock that was wrong, in either direction, makes it stale at once.
    let now = clock.now().wall;
    for wall in [now.after(Duration::from_secs(30 * 86_400)), now] {
        clock.set_wall(wall);
        renew(&fleet, &authority, wall);
        let before = host.callers().last_serial;
        ask(&client, host);
        assert_ne!(host.callers().last_serial, before);
    }
}

#[test]
fn only_the_control_plane_is_let_in() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (clock, fleet, client, authority) = with_ca_in(ours.path(), 1);
    let host = &fleet.hosts()[0];
    let path = |name: &str| theirs.path().join(name);
    let files = CaFiles { certificate: path("ca.pem"), key: path("ca.key") };
    let foreign = Authority::load_or_create(&files, clock.now().wall).unwrap();
    let strange = Trust::new(Arc::new(foreign), clock.clone()).unwrap();
    let tls = Some(Arc::new(strange));
    let strange = AgentClient::new(ClientConfig { tls, ..ClientConfig::default() });
    let plain = AgentClient::new(ClientConfig::default());
    for client in [strange, plain] {
        let probe = client.list_sandboxes(host.id(), host.agent_address());
        assert!(matches!(probe, Probe::Failed(_)), "{probe:?}");
    }
    // Of our CA, for clients, and not ours.
    let key = std::fs::read(ours.path().join("ca.key")).unwrap();
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key).unwrap();
    let key = KeyPair::try_from(&key).unwrap();
    let issuer = Issuer::from_ca_cert_der(authority.certificate(), key).unwrap();
    let answer = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let shown = params.signed_by(&key, &issuer).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        call_as(host, authority.certificate(), shown, key, &clock)
    };
    assert_eq!(answer("somebody"), None);
    assert_eq!(host.callers().handshakes, 0);
    assert_eq!(answer("wrenn-cp").as_deref(), Some("HTTP/1.1 404"));
    ask(&client, host);
    assert_eq!(host.callers().handshakes, 2);
}

/// What the agent's server answers to whoever shows this; `None`: it hangs up.
fn call_as(
    host: &SimHost,
    ca: &CertificateDer<'static>,
    shown: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    clock: &Arc<ManualClock>,
) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let clock: Arc<dyn Clock> = clock.clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_details(provider, time_of(&clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![shown], key.into())
        .unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(host.address()).unwrap());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn a_refresh_replaces_what_the_agent_shows() {
    let home = Home::new();
    let fleet = fleet(1, Arc::new(SystemClock));
    let agent = &fleet.hosts()[0];
    let serving = home.serve(MTLS);
    let mut beater = enrol(&serving, agent);
    let id = beater.credentials().host_id;
    probed(&serving, id, "observation");
    serving.stop();

    // Its token is no longer genuine: it must refresh.
    std::fs::remove_file(home.path("host-token.key")).unwrap();
    let serving = home.serve(MTLS);
    probed(&serving, id, "observation");
    let before = agent.callers().handshakes;
    let url = format!("http://{}", serving.address());
    let options = BeaterOptions { url, timeout: PATIENCE, tls: None };
    beater = Beater::new(&options, beater.credentials().clone());
    assert_eq!(beater.beat(agent), Beat::Refreshed);
    // Sessions with what it showed before are of no use any more.
    eventually("a whole handshake", || (agent.callers().handshakes > before).then_some(()));
    assert_eq!(beater.beat(agent), Beat::Acknowledged);
    let at = host(&serving, id)["last_probe"]["at"].clone();
    eventually("the next probe", || {
        let probe = host(&serving, id)["last_probe"].clone();
        (probe["at"] != at && probe["outcome"] == "observation").then_some(())
    });
    serving.stop();
}

/// `roost agent-sim` that has joined.
pub(crate) struct Joined {
    child: Child,
}

impl Joined {
    pub(crate) fn start(home: &Home, url: &str, tokens: &[String], options: &[&str]) -> Joined {
        home.write("tokens", &tokens.join("\n"));
        let file = home.path("tokens");
        let file = file.to_str().unwrap();
        loop {
            let held = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = held.local_addr().unwrap().port().to_string();
            drop(held);
            let fixed = ["agent-sim", "--join", url, "--token-file", file, "--base-port", &port];
            let mut command = home.command(&[&fixed, options].concat());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if line.starts_with(&format!("ready {} hosts ", tokens.len())) {
                return Joined { child };
            }
            // Somebody else, most likely another test, took the port.
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8(ended.stderr).unwrap();
            assert!(said.starts_with("roost: could not listen on ports "), "{said}");
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // It has often ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn joined_agents_serve_over_tls_and_live_through_a_power_cut() {
    let home = Home::new();
    let serving = home.serve(MTLS);
    let listen = serving.address().to_string();
    let mut ids: Vec<HostId> = Vec::new();
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let added = serving.post("/v1/hosts", &json!({})).json();
        ids.push(added["host"]["id"].as_str().unwrap().parse().unwrap());
        tokens.push(added["registration_token"].as_str().unwrap().to_owned());
    }
    let options = ["--heartbeat-ms", "200", "--calls-ms", "50"];
    let mut joined = Joined::start(&home, &format!("http://{listen}"), &tokens, &options);
    for id in &ids {
        assert_eq!(probed(&serving, *id, "observation")["sandboxes"], 0);
    }
    let made = eventually("a place", || {
        let made = serving.post("/v1/capsules", &json!({"memory_mb": 256}));
        (made.status == 202).then(|| made.json()["id"].as_str().unwrap().to_owned())
    });
    let until = |serving: &Serving, wanted: &str| {
        eventually(&format!("{made} {wanted}"), || {
            let now = serving.get(&format!("/v1/capsules/{made}")).json();
            (now["status"] == wanted).then_some(())
        });
    };
    until(&serving, "running");
    let checked = home.roost(&["check", "--dry-run", "--agent-tls", "mtls", "--format", "json"]);
    let checked = checked.json();
    assert_eq!((&checked["observations"], &checked["failed_probes"]), (&json!(2), &json!([])));

    serving.kill();
    let again = [&["serve", "--listen", &listen], MTLS].concat();
    let serving = home.served(home.command(&again));
    for id in &ids {
        probed(&serving, *id, "observation");
        let heard = || host(&serving, *id)["last_heartbeat_at"].clone();
        let before = heard();
        eventually("the next beat", || (heard() != before).then_some(()));
    }
    assert_eq!(
        serving
            .ask("DELETE", &format!("/v1/capsules/{made}"), &[("X-API-Key", serving.key())], "")
            .status,
        202
    );
    until(&serving, "stopped");
    kill_process(Pid::from_child(&joined.child), Signal::TERM).unwrap();
    assert_eq!(joined.child.wait().unwrap().code(), Some(0));
    serving.stop();
    home.verify();
}

#[test]
fn joining_says_why_it_cannot() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let url = format!("http://{}", serving.address());
    let join = |url: &str, token: &str| loop {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port().to_string();
        drop(held);
        let options = ["agent-sim", "--join", url, "--token", token, "--base-port", &port];
        let done = home.roost(&options);
        // Somebody else, most likely another test, took the port.
        if !done.stderr.starts_with("roost: could not listen on ports ") {
            return done;
        }
    };
    let done = join(&url, "no-such-token");
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    assert!(done.stderr.contains("refused with status 401"), "{}", done.stderr);
    assert!(!done.stderr.contains("no-such-token"), "{}", done.stderr);
    let done = join("https://127.0.0.1:1", "x");
    assert!(done.code == 1 && done.stderr.contains("--ca"), "{}", done.stderr);
    serving.stop();
}
