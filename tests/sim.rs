//! Simulated hosts behave as documented: seen through the control plane's own client over
//! real sockets, and through a control plane that says what it is told.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flate2::read::GzDecoder;
use roost::agent::client::{AgentClient, CallError, ClientConfig};
use roost::agent::wire::{ConnectCode, CreateSandboxRequest, Method, ResumeSandboxRequest};
use roost::clock::ManualClock;
use roost::http::{Handler, Request, Response, Server, ServerConfig};
use roost::model::id::{HostId, SandboxId};
use roost::model::probe::{FailureKind, ListedState, Listing, Probe};
use roost::model::sandbox::SandboxStatus;
use roost::model::time::Wall;
use roost::sim::{
    AnswerFault, Beat, Beater, BeaterOptions, Credentials, Faults, FleetOptions, Habits,
    HeartbeatFault, Heartbeats, Initially, RegisterError, SimFleet, SimHost, SimState,
};
use roost::store::fixture;
use rustix::process::{Pid, Signal};
use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than any test may take: what waits for it does not end by itself.
const FOREVER: Duration = Duration::from_secs(3600);

/// Longer than anything takes that is expected to happen.
const LONG: Duration = Duration::from_secs(30);

const NOW: Wall = Wall(1_779_000_000_000);

struct World {
    fleet: SimFleet,
    clock: Arc<ManualClock>,
    client: AgentClient,
}

fn world(hosts: usize, sandboxes: usize) -> World {
    world_with(hosts, sandboxes, Initially::Running, Habits::default())
}

fn world_with(hosts: usize, sandboxes: usize, initially: Initially, habits: Habits) -> World {
    let clock = Arc::new(ManualClock::new(NOW));
    let options = FleetOptions {
        hosts,
        sandboxes,
        base_port: 0,
        initially,
        habits,
        seed: 7,
        clock: clock.clone(),
    };
    let fleet = SimFleet::start(&options).unwrap();
    let client = AgentClient::new(ClientConfig { probe_timeout: LONG, ..ClientConfig::default() });
    World { fleet, clock, client }
}

impl World {
    fn host(&self, number: usize) -> &Arc<SimHost> {
        &self.fleet.hosts()[number]
    }

    fn probe(&self, number: usize) -> Probe {
        self.client.list_sandboxes(self.host(number).id(), self.host(number).agent_address())
    }

    fn list(&self, number: usize) -> Listing {
        match self.probe(number) {
            Probe::Listed(listing) => listing,
            Probe::Failed(failure) => panic!("{failure}"),
        }
    }

    fn running(&self, number: usize) -> Vec<SandboxId> {
        let running = |state| state == ListedState::Running;
        self.list(number).sandboxes.iter().filter(|s| running(s.state)).map(|s| s.id).collect()
    }

    fn failure(&self, number: usize) -> FailureKind {
        match self.probe(number) {
            Probe::Listed(listing) => panic!("{listing:?}"),
            Probe::Failed(failure) => failure.kind,
        }
    }

    fn first(&self, number: usize) -> SandboxId {
        self.host(number).sandboxes()[0].0
    }

    fn create(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        let sandbox_id = Cow::Owned(id.to_string());
        let request = CreateSandboxRequest { sandbox_id, ..CreateSandboxRequest::default() };
        let (host, at) = (self.host(number).id(), self.host(number).agent_address());
        self.client.create(host, at, &request, LONG).map(|details| {
            assert!(details.host_ip.unwrap().starts_with("10.11."));
            assert!(details.metadata.unwrap().contains("kernel_version"));
        })
    }

    fn resume(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        let sandbox_id = Cow::Owned(id.to_string());
        let request = ResumeSandboxRequest { sandbox_id, ..ResumeSandboxRequest::default() };
        let (host, at) = (self.host(number).id(), self.host(number).agent_address());
        self.client.resume(host, at, &request, LONG).map(|_| ())
    }

    fn pause(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        self.client.pause(self.host(number).id(), self.host(number).agent_address(), id, LONG)
    }

    fn destroy(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        self.client.destroy(self.host(number).id(), self.host(number).agent_address(), id, LONG)
    }

    fn ping(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        self.client.ping(self.host(number).id(), self.host(number).agent_address(), id, LONG)
    }
}

fn code(result: Result<(), CallError>) -> ConnectCode {
    match result {
        Err(CallError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

fn new_id() -> SandboxId {
    SandboxId::from_u128(1)
}

#[test]
fn a_listing_says_what_is_there() {
    let world = world(2, 3);
    let listing = world.list(1);
    let truth: Vec<_> = world.host(1).sandboxes();
    assert_eq!(listing.sandboxes.iter().map(|s| s.id).collect::<Vec<_>>(), ids(&truth));
    assert!(truth.iter().all(|(_, state)| *state == SimState::Running));
    for listed in &listing.sandboxes {
        assert_eq!(listed.state, ListedState::Running);
        assert_eq!(listed.created_at_unix, NOW.unix_seconds() - 600);
        assert!(listed.details.host_ip.as_deref().unwrap().starts_with("10.11.0."));
    }
    let other: HashSet<_> = world.running(0).into_iter().collect();
    assert!(listing.sandboxes.iter().all(|s| !other.contains(&s.id)), "an id is there twice");
    assert_eq!(listing, world.list(1), "asking changed something");
}

fn ids(truth: &[(SandboxId, SimState)]) -> Vec<SandboxId> {
    truth.iter().map(|(id, _)| *id).collect()
}

/// Head and body of one answer, asked over a bare socket with these headers.
fn raw(address: &str, method: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /hostagent.v1.HostAgentService/{method} HTTP/1.1\r\nHost: {address}\r\n\
         Content-Type: application/json\r\n{headers}Connection: close\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
    (head, answer[end + 4..].to_vec())
}

#[test]
fn answers_are_packed_for_whoever_takes_them_so_as_real_agents_do() {
    let world = world(1, 50);
    let address = world.host(0).agent_address().to_string();
    let (head, plain) = raw(&address, "ListSandboxes", "");
    assert!(!head.contains("content-encoding"), "{head}");
    let (head, packed) = raw(&address, "ListSandboxes", "Accept-Encoding: br, gzip\r\n");
    assert!(head.contains("\r\ncontent-encoding: gzip"), "{head}");
    let mut unpacked = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    assert!(packed.len() * 5 < plain.len(), "{} of {} bytes", packed.len(), plain.len());
    // An error is never packed.
    let (head, error) = raw(&address, "DestroySandbox", "Accept-Encoding: gzip\r\n");
    assert!(!head.contains("content-encoding") && error.starts_with(b"{\"code\""), "{head}");
}

#[test]
fn an_auto_paused_sandbox_leaves_the_list_before_it_is_announced_once() {
    let world = world(1, 2);
    let id = world.first(0);
    assert!(world.host(0).auto_pause(id));
    assert!(!world.host(0).auto_pause(id), "it was paused already");

    let between = world.list(0);
    assert!(!between.sandboxes.iter().any(|s| s.id == id));
    assert_eq!(between.auto_paused, []);

    world.clock.advance(Duration::from_secs(1));
    let announced = world.list(0);
    assert_eq!((announced.sandboxes.len(), announced.auto_paused), (1, vec![id]));
    assert_eq!(world.list(0).auto_paused, [], "it was told before");
    assert_eq!(world.host(0).state(id), Some(SimState::Paused));
}

#[test]
fn a_fleet_can_start_with_everything_paused() {
    let habits = Habits { lists_paused: true, ..Habits::default() };
    let newer = world_with(1, 3, Initially::Paused, habits);
    let states: Vec<_> = newer.list(0).sandboxes.iter().map(|s| s.state).collect();
    assert_eq!(states, [ListedState::Paused; 3]);

    let older = world_with(1, 3, Initially::Paused, Habits::default());
    assert_eq!(older.list(0), Listing::default());

    let told = world_with(1, 3, Initially::AutoPaused, Habits::default());
    let listing = told.list(0);
    assert_eq!((listing.sandboxes.len(), listing.auto_paused.len()), (0, 3));
    assert_eq!(told.list(0), Listing::default());
}

#[test]
fn a_sandbox_is_listed_when_it_is_ready() {
    let habits = Habits { create_takes: FOREVER, ..Habits::default() };
    let world = world_with(1, 0, Initially::Running, habits);
    std::thread::scope(|scope| {
        let created = scope.spawn(|| world.create(0, new_id()));
        assert!(world.host(0).wait_state(new_id(), Some(SimState::Creating), LONG));
        assert_eq!(world.running(0), []);
        world.host(0).set_habits(Habits::default());
        created.join().unwrap().unwrap();
    });
    assert_eq!(world.running(0), [new_id()]);
    assert_eq!(world.list(0).sandboxes[0].created_at_unix, NOW.unix_seconds());
    assert_eq!(code(world.create(0, new_id())), ConnectCode::Internal);
}

#[test]
fn a_sandbox_is_listed_as_running_while_it_is_paused() {
    let habits = Habits { pause_takes: FOREVER, ..Habits::default() };
    let world = world_with(1, 1, Initially::Running, habits);
    let id = world.first(0);
    std::thread::scope(|scope| {
        let paused = scope.spawn(|| world.pause(0, id));
        assert!(world.host(0).wait_state(id, Some(SimState::Pausing), LONG));
        assert_eq!(world.running(0), [id]);
        world.host(0).set_habits(Habits::default());
        paused.join().unwrap().unwrap();
    });
    let after = world.list(0);
    assert_eq!((after.sandboxes.len(), after.auto_paused.len()), (0, 0));
    world.resume(0, id).unwrap();
    assert_eq!(world.running(0), [id]);
}

#[test]
fn refusals_have_the_codes_of_real_agents() {
    let world = world(1, 1);
    let (known, unknown) = (world.first(0), new_id());
    assert_eq!(code(world.destroy(0, unknown)), ConnectCode::NotFound);
    assert_eq!(code(world.ping(0, unknown)), ConnectCode::NotFound);
    assert_eq!(code(world.pause(0, unknown)), ConnectCode::Internal);
    assert_eq!(code(world.resume(0, known)), ConnectCode::Internal);
    let gone = world.resume(0, unknown).unwrap_err();
    assert!(gone.is_snapshot_gone(), "{gone}");
    assert!(!world.resume(0, known).unwrap_err().is_snapshot_gone());

    world.ping(0, known).unwrap();
    world.pause(0, known).unwrap();
    assert_eq!(code(world.pause(0, known)), ConnectCode::Internal);
    assert_eq!(code(world.ping(0, known)), ConnectCode::NotFound);
    world.destroy(0, known).unwrap();
    assert_eq!(world.host(0).state(known), None);
    assert_eq!(code(world.destroy(0, known)), ConnectCode::NotFound);
}

#[test]
fn a_restart_empties_the_list_and_keeps_the_snapshots() {
    let habits = Habits { lists_paused: true, ..Habits::default() };
    let world = world_with(1, 3, Initially::Running, habits);
    let [paused, announced, ran] = ids(&world.host(0).sandboxes())[..] else { panic!() };
    world.pause(0, paused).unwrap();
    world.host(0).auto_pause(announced);
    world.clock.advance(LONG);
    world.host(0).restart();

    assert_eq!(world.list(0), Listing::default());
    assert_eq!(world.host(0).state(ran), None);
    assert_eq!(world.host(0).state(paused), Some(SimState::Shelved));
    world.resume(0, paused).unwrap();
    world.resume(0, announced).unwrap();
    assert!(world.resume(0, ran).unwrap_err().is_snapshot_gone());
    assert_eq!(world.running(0).len(), 2);
}

#[test]
fn what_a_restart_interrupts_is_not_finished() {
    let habits = Habits { create_takes: FOREVER, ..Habits::default() };
    let world = world_with(1, 0, Initially::Running, habits);
    std::thread::scope(|scope| {
        let created = scope.spawn(|| world.create(0, new_id()));
        assert!(world.host(0).wait_state(new_id(), Some(SimState::Creating), LONG));
        world.host(0).restart();
        assert_eq!(code(created.join().unwrap()), ConnectCode::Unavailable);
    });
    assert_eq!(world.host(0).sandboxes(), []);
}

#[test]
fn a_hang_harms_only_its_own_host_and_ends_when_told() {
    let world = world(3, 2);
    world.fleet.set_faults(0, Faults::slow(FOREVER)).unwrap();
    std::thread::scope(|scope| {
        // More than may ever wait at a time: the others must still be answered.
        let hung: Vec<_> = (0..40).map(|_| scope.spawn(|| world.probe(0))).collect();
        assert!(world.host(0).wait_calls(Method::List, 20, LONG));
        assert_eq!(world.running(1).len(), 2);
        assert_eq!(world.running(2).len(), 2);
        world.fleet.set_faults(0, Faults::default()).unwrap();
        for probe in hung {
            assert!(matches!(probe.join().unwrap(), Probe::Listed(_)));
        }
    });
}

#[test]
fn a_closed_port_refuses_and_opens_again() {
    let world = world(2, 1);
    let closed = Faults { closed: true, ..Faults::default() };
    for _ in 0..3 {
        world.fleet.set_faults(0, closed).unwrap();
        world.fleet.set_faults(0, closed).unwrap();
        assert_eq!(world.failure(0), FailureKind::Unreachable);
        let ping = world.ping(0, new_id());
        assert!(matches!(ping, Err(CallError::NotReached { .. })), "{ping:?}");
        assert_eq!(world.running(1).len(), 1);
        world.fleet.set_faults(0, Faults::default()).unwrap();
        assert_eq!(world.running(0).len(), 1);
    }
}

#[test]
fn answers_are_spoiled_as_told() {
    let world = world(1, 2);
    let id = world.first(0);
    let spoil = |fault| world.fleet.set_faults(0, Faults::answering(fault)).unwrap();

    spoil(AnswerFault::Refused(ConnectCode::Unavailable));
    assert_eq!(world.failure(0), FailureKind::Refused);
    assert_eq!(code(world.pause(0, id)), ConnectCode::Unavailable);
    assert_eq!(world.host(0).state(id), Some(SimState::Running));

    spoil(AnswerFault::Malformed);
    assert_eq!(world.failure(0), FailureKind::Malformed);

    world.host(0).auto_pause(id);
    world.clock.advance(LONG);
    spoil(AnswerFault::Dropped);
    assert_eq!(world.failure(0), FailureKind::Unreachable);
    spoil(AnswerFault::None);
    assert_eq!(world.list(0).auto_paused, [], "what was told is forgotten, heard or not");
}

#[test]
fn one_method_is_spoiled_and_the_others_are_not() {
    let world = world(1, 2);
    let id = world.first(0);
    let spoil = |fault| {
        world.fleet.set_faults(0, Faults::answering_to(Method::Pause, fault)).unwrap();
    };
    spoil(AnswerFault::Refused(ConnectCode::Internal));
    assert_eq!(code(world.pause(0, id)), ConnectCode::Internal);
    spoil(AnswerFault::Severed);
    let severed = world.pause(0, id);
    assert!(matches!(severed, Err(CallError::Unknown { .. })), "{severed:?}");
    assert_eq!(world.running(0).len(), 2, "nothing was done, and listings are well");

    spoil(AnswerFault::Held);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| world.pause(0, id));
        assert!(world.host(0).wait_state(id, Some(SimState::Paused), LONG));
        assert_eq!(world.running(0).len(), 1, "it is done before it is answered");
        assert!(!held.is_finished());
        world.fleet.set_faults(0, Faults::default()).unwrap();
        held.join().unwrap().unwrap();
    });
    assert_eq!(world.host(0).calls_of(Method::Pause, id), 3);
    assert_eq!(world.host(0).calls_of(Method::Ping, id), 0);
}

#[test]
fn a_terminated_agent_is_silent_until_it_is_started_again() {
    let world = world(1, 2);
    world.client.terminate(world.host(0).id(), world.host(0).agent_address(), LONG).unwrap();
    assert!(world.host(0).has_exited());
    assert_eq!(world.host(0).sandboxes(), []);
    assert_eq!(world.failure(0), FailureKind::Unreachable);
    world.host(0).restart();
    assert_eq!(world.list(0), Listing::default());
}

#[test]
fn things_happen_behind_everybodys_back() {
    let world = world(1, 1);
    let id = world.first(0);
    assert!(world.host(0).lose(id));
    assert!(!world.host(0).lose(id));
    world.host(0).put(new_id(), SimState::Running, Duration::from_secs(300));
    let listing = world.list(0);
    assert_eq!(listing.sandboxes.len(), 1);
    assert_eq!(listing.sandboxes[0].id, new_id());
    assert_eq!(listing.sandboxes[0].created_at_unix, NOW.unix_seconds() - 300);
}

#[test]
fn the_fixture_matches_the_hosts() {
    let world = world(3, 2);
    let mut text = Vec::new();
    world.fleet.write_fixture(SandboxStatus::Missing, &mut text).unwrap();
    let fleet = fixture::parse(std::str::from_utf8(&text).unwrap(), NOW).unwrap();
    assert_eq!(fleet.hosts.len(), 3);
    for (row, host) in fleet.hosts.iter().zip(world.fleet.hosts()) {
        assert_eq!(row.id, host.id());
        assert_eq!(row.address.as_ref(), Some(host.agent_address()));
        let rows = fleet.sandboxes.iter().filter(|s| s.row.host_id == host.id());
        let rows: Vec<_> = rows.map(|s| (s.row.id, s.row.status)).collect();
        let truth = host.sandboxes().into_iter().map(|(id, _)| (id, SandboxStatus::Missing));
        assert_eq!(rows, truth.collect::<Vec<_>>());
    }
}

/// `roost agent-sim` with these options, and what it says first.
fn agent_sim(options: &[&str]) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    command.arg("agent-sim").args(options).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

/// Exit code and stderr of a command that has ended or is about to.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The command with two hosts, started where two ports are free, and the first of them.
fn two_hosts(options: &[&str]) -> (Child, u16) {
    loop {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        drop(held);
        let base_port = port.to_string();
        let (child, line) =
            agent_sim(&[&["--hosts", "2", "--base-port", &base_port], options].concat());
        if line.starts_with("ready ") {
            assert_eq!(line, format!("ready 2 hosts 127.0.0.1:{port}-{}\n", port + 1));
            return (child, port);
        }
        // Somebody else, most likely another test, was quicker.
        let (_, stderr) = end(child);
        assert!(stderr.starts_with("roost: could not "), "{stderr}");
    }
}

#[test]
fn the_command_answers_until_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = dir.path().join("fleet.json");
    for signal in [Signal::TERM, Signal::INT] {
        let file = fleet.to_str().unwrap();
        let (child, port) = two_hosts(&["--sandboxes", "3", "--paused", "--fleet", file]);

        let text = std::fs::read_to_string(&fleet).unwrap();
        let hosts = fixture::parse(&text, NOW).unwrap().hosts;
        let client = AgentClient::new(ClientConfig::default());
        for host in &hosts {
            let probe = client.list_sandboxes(host.id, host.address.as_ref().unwrap());
            let Probe::Listed(listing) = probe else { panic!("{probe:?}") };
            let states: Vec<_> = listing.sandboxes.iter().map(|s| s.state).collect();
            assert_eq!(states, [ListedState::Paused; 3]);
        }
        assert_eq!(hosts.len(), 2);
        assert_eq!(hosts[0].address, format!("127.0.0.1:{port}").parse().ok());

        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(end(child), (Some(0), String::new()));
    }
}

#[test]
fn the_command_says_why_it_cannot_start() {
    let (child, line) = agent_sim(&["--hosts", "2", "--base-port", "65535"]);
    let (exit, stderr) = end(child);
    assert_eq!((exit, line.as_str()), (Some(2), ""));
    assert!(stderr.contains("could not give 2 hosts a port each"), "{stderr}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let base_port = taken.local_addr().unwrap().port().to_string();
    let (child, line) = agent_sim(&["--hosts", "1", "--base-port", &base_port]);
    let (exit, stderr) = end(child);
    assert_eq!((exit, line.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("roost: could not listen on ports "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// A control plane that says what it is told, in order, and remembers what it was asked.
struct Stub {
    server: Server,
    script: Arc<Script>,
    options: BeaterOptions,
}

#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Response>>,
    asked: Mutex<Vec<String>>,
}

impl Handler for Script {
    fn handle(&self, request: Request) -> Response {
        let token = request.headers.get("x-host-token").unwrap_or("-");
        let body = String::from_utf8(request.body.clone()).unwrap();
        let asked = format!("{} {} {token} {body}", request.method, request.path);
        self.asked.lock().unwrap().push(asked);
        self.answers.lock().unwrap().pop_front().unwrap()
    }
}

impl Stub {
    fn saying(answers: Vec<Response>) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Mutex::new(answers.into());
        let script = Arc::new(Script { answers, ..Script::default() });
        let config = ServerConfig { workers: 2, ..ServerConfig::default() };
        let server = Server::start(vec![listener], script.clone(), config).unwrap();
        Stub { server, script, options: BeaterOptions { url, timeout: LONG, tls: None } }
    }

    fn beater(&self) -> Beater {
        let (token, refresh_token) = ("token-1".to_owned(), "refresh-1".to_owned());
        Beater::new(&self.options, Credentials { host_id: host_id(), token, refresh_token })
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.asked.lock().unwrap())
    }
}

fn host_id() -> HostId {
    HostId::from_u128(1)
}

const HEARTBEAT: &str = "POST /v1/hosts/host-0000000000000000000000001/heartbeat";

/// `{"host_id":"host-0000000000000000000000001"}` as an agent finds it in its token.
const TOKEN: &str = "h.eyJob3N0X2lkIjoiaG9zdC0wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAxIn0.s";

fn empty(status: u16) -> Response {
    Response::empty(status)
}

fn registered(status: u16) -> Response {
    let body = format!(r#"{{"host":{{}},"token":"{TOKEN}","refresh_token":"refresh-2"}}"#);
    Response::json(status, body.into_bytes())
}

fn running(host: &SimHost) -> usize {
    host.sandboxes().iter().filter(|(_, state)| *state == SimState::Running).count()
}

#[test]
fn a_host_registers_and_learns_its_id_from_the_token() {
    let world = world(1, 0);
    let stub = Stub::saying(vec![registered(201), registered(200), empty(401)]);
    let register = || Beater::register(&stub.options, world.host(0), "secret");
    let beater = register().unwrap();
    assert_eq!(beater.credentials().host_id, host_id());
    assert_eq!(beater.credentials().refresh_token, "refresh-2");
    let address = world.host(0).address();
    let asked = stub.asked().pop().unwrap();
    assert!(asked.starts_with("POST /v1/hosts/register - {\"token\":\"secret\""), "{asked}");
    assert!(asked.contains(&format!("\"address\":\"{address}\"")), "{asked}");
    assert_eq!(register().unwrap_err(), RegisterError::Refused(200));
    assert_eq!(register().unwrap_err(), RegisterError::Refused(401));
}

#[test]
fn a_refused_token_is_refreshed_once() {
    let world = world(1, 2);
    for status in [401, 403] {
        let stub = Stub::saying(vec![empty(status), registered(200), empty(204)]);
        let mut beater = stub.beater();
        assert_eq!(beater.beat(world.host(0)), Beat::Refreshed);
        assert_eq!(beater.beat(world.host(0)), Beat::Acknowledged);
        assert_eq!(
            stub.asked(),
            [
                format!("{HEARTBEAT} token-1 "),
                r#"POST /v1/hosts/auth/refresh - {"refresh_token":"refresh-1"}"#.to_owned(),
                format!("{HEARTBEAT} {TOKEN} "),
            ]
        );
        assert_eq!(running(world.host(0)), 2);
    }
}

#[test]
fn a_refresh_that_fails_in_any_way_is_the_end() {
    let unusable = || Response::json(200, b"{}".to_vec());
    for answer in [empty(401), empty(500), registered(201), unusable(), Response::cut()] {
        let world = world(1, 2);
        let stub = Stub::saying(vec![empty(401), answer]);
        let mut beater = stub.beater();
        assert_eq!(beater.beat(world.host(0)), Beat::Expelled);
        assert_eq!(running(world.host(0)), 0);
        assert_eq!(world.host(0).sandboxes().len(), 2, "paused, not destroyed");
        assert_eq!(world.list(0), Listing::default(), "nothing is announced");
        assert!(beater.is_over());
        assert_eq!(beater.beat(world.host(0)), Beat::NotSent);
        assert_eq!(stub.asked().len(), 2);
    }
}

#[test]
fn not_found_is_the_end_of_everything() {
    let world = world(1, 2);
    let stub = Stub::saying(vec![empty(404)]);
    let mut beater = stub.beater();
    assert_eq!(beater.beat(world.host(0)), Beat::Deleted);
    assert_eq!(world.host(0).sandboxes(), []);
    assert_eq!(beater.beat(world.host(0)), Beat::NotSent);
    assert_eq!(world.failure(0), FailureKind::Unreachable);
    assert_eq!(stub.asked().len(), 1);
}

#[test]
fn other_answers_are_harmless() {
    let world = world(1, 2);
    let statuses = [500, 503, 200, 302, 429];
    let stub = Stub::saying(statuses.map(empty).into());
    let mut beater = stub.beater();
    for status in statuses {
        assert_eq!(beater.beat(world.host(0)), Beat::Ignored(status));
    }
    assert_eq!(running(world.host(0)), 2);
}

#[test]
fn three_beats_without_an_answer_pause_everything_unannounced() {
    let world = world(1, 2);
    let answered = vec![Response::cut(), Response::cut(), empty(204), Response::cut()];
    let stub = Stub::saying(answered);
    let mut beater = stub.beater();
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(1));
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(2));
    assert_eq!(beater.beat(world.host(0)), Beat::Acknowledged, "and the count starts anew");
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(1));
    stub.server.shutdown(LONG);
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(2));
    assert_eq!(running(world.host(0)), 2);
    assert_eq!(beater.beat(world.host(0)), Beat::PausedAll);
    assert_eq!(running(world.host(0)), 0);
    world.clock.advance(LONG);
    assert_eq!(world.list(0), Listing::default());
    let id = world.first(0);
    world.resume(0, id).unwrap();
}

#[test]
fn silence_goes_unnoticed_by_the_agent_and_a_partition_does_not() {
    let world = world(1, 2);
    let stub = Stub::saying(vec![]);
    let mut beater = stub.beater();
    world.fleet.set_faults(0, Faults::beating(HeartbeatFault::Silent)).unwrap();
    for _ in 0..5 {
        assert_eq!(beater.beat(world.host(0)), Beat::NotSent);
    }
    assert_eq!(running(world.host(0)), 2);
    world.fleet.set_faults(0, Faults::partitioned()).unwrap();
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(1));
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(2));
    assert_eq!(beater.beat(world.host(0)), Beat::PausedAll);
    assert_eq!(running(world.host(0)), 0);
    assert_eq!(world.failure(0), FailureKind::Unreachable);
    assert_eq!(stub.asked(), Vec::<String>::new());
}

#[test]
fn one_thread_beats_for_all_hosts() {
    let world = world(3, 1);
    let stub = Stub::saying((0..6).map(|_| empty(204)).collect());
    let heartbeats = Heartbeats::start(FOREVER).unwrap();
    for host in world.fleet.hosts() {
        heartbeats.enrol(host.clone(), stub.beater());
    }
    // The first beats are due at enrolment; whether they came before these or come after
    // does not matter.
    assert_eq!(heartbeats.beat_all(), [Beat::Acknowledged; 3]);
    heartbeats.enrol(world.host(0).clone(), stub.beater());
    world.fleet.set_faults(1, Faults::beating(HeartbeatFault::Silent)).unwrap();
    world.host(2).terminate();
    let beats = heartbeats.beat_all();
    assert_eq!(beats[1..], [Beat::NotSent, Beat::NotSent]);
}
