//! `roost agent-sim`, from outside.

use crate::heartbeats::{Stub, empty, registered};
use crate::world::{LONG, NOW, TEAM, TEMPLATE, answer, begin, post};
use roost::agent::client::{AgentClient, ClientConfig};
use roost::model::probe::{ListedState, Probe};
use roost::store::fixture;
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

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
        // Another process, most likely another test, was quicker.
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

/// The command with one host on a free port, and its address.
fn one_host(options: &[&str]) -> (Child, String) {
    let (child, line) = agent_sim(&[&["--hosts", "1", "--base-port", "0"], options].concat());
    (child, address_in(&line))
}

fn address_in(line: &str) -> String {
    let address = line.trim().strip_prefix("ready 1 hosts ").unwrap_or_else(|| panic!("{line}"));
    address.rsplit_once('-').unwrap().0.to_owned()
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

fn terminate(child: Child) {
    signal(&child, Signal::TERM);
    assert_eq!(end(child), (Some(0), String::new()));
}

#[test]
fn a_host_has_the_templates_that_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("templates");
    std::fs::write(&file, format!("{TEAM}/{TEMPLATE}\n")).unwrap();
    let named = format!("{TEAM}/00000000-0000-0000-0000-000000000000");
    let options = ["--template", &named, "--template-file", file.to_str().unwrap()];
    let (child, address) = one_host(&options);
    for (n, (template, status)) in [(TEMPLATE, 200), ("", 200), (TEAM, 500)].iter().enumerate() {
        let id = roost::model::id::SandboxId::from_u128(n as u128 + 1);
        let body = format!(r#"{{"sandboxId":"{id}","teamId":"{TEAM}","templateId":"{template}"}}"#);
        assert_eq!(post(&address, "CreateSandbox", &body).0, *status, "{template}");
    }
    terminate(child);

    for (template, why) in [("python", "it has no slash"), ("python/x", "invalid UUID")] {
        let (child, _) = agent_sim(&["--base-port", "0", "--template", template]);
        let (exit, stderr) = end(child);
        assert_eq!(exit, Some(2), "{stderr}");
        let start = format!("roost: could not use template {template:?}: {why}");
        assert!(stderr.starts_with(&start), "{stderr}");
    }
}

#[test]
fn a_host_has_the_clock_and_the_version_that_are_asked_for() {
    let options = ["--sandboxes", "1", "--clock-skew-ms", "-7200000", "--lists-paused"];
    let (child, address) = one_host(&options);
    let (_, listing) = post(&address, "ListSandboxes", "{}");
    let (_, rest) = listing.split_once(r#""createdAtUnix":""#).unwrap();
    let created: u64 = rest.split('"').next().unwrap().parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // Two hours behind, and ten minutes old.
    assert!((7000 + 600..8000 + 600).contains(&(now - created)), "{created} {now}");
    let (_, rest) = listing.split_once(r#""sandboxId":""#).unwrap();
    let named = format!(r#"{{"sandboxId":"{}"}}"#, rest.split('"').next().unwrap());
    assert_eq!(post(&address, "PauseSandbox", &named).0, 200);
    let (_, listing) = post(&address, "ListSandboxes", "{}");
    assert!(listing.contains(r#""status":"paused""#), "{listing}");
    terminate(child);
}

/// Begins a create that takes long, leaves it, and says what the agent answers.
fn leave_a_create(options: &[&str], calls_ms: &str) -> Option<u16> {
    let (child, address) = one_host(&[&["--calls-ms", calls_ms], options].concat());
    let create = r#"{"sandboxId":"cl-0000000000000000000000001"}"#;
    let stream = begin(&address, "CreateSandbox", create);
    stream.shutdown(Shutdown::Write).unwrap();
    let answered = answer(stream).map(|(status, _)| status);
    terminate(child);
    answered
}

#[test]
fn calls_end_with_their_callers_unless_orphans_finish() {
    assert_eq!(leave_a_create(&[], "3600000"), None);
    assert_eq!(leave_a_create(&["--orphans-finish"], "200"), Some(200));
}

#[test]
fn agents_crash_and_take_time_to_read_their_disks() {
    let options = ["--sandboxes", "2", "--paused", "--restart-every-s", "1", "--index-ms", "50"];
    let (child, address) = one_host(&options);
    // Two that run, until the agent crashes.
    let running = r#"{"sandboxId":"cl-0000000000000000000000001"}"#;
    assert_eq!(post(&address, "CreateSandbox", running).0, 200);
    let until = Instant::now() + LONG;
    while post(&address, "ListSandboxes", "{}").1.contains("running") {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    // What is on the disk is listed again.
    while post(&address, "ListSandboxes", "{}").1.matches(r#""status":"paused""#).count() != 2 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    terminate(child);
}

#[test]
fn an_agent_that_is_stopped_refuses_calls_until_it_exits_or_is_forced() {
    let (child, address) = one_host(&["--sandboxes", "1", "--shutdown-ms", "3600000"]);
    signal(&child, Signal::TERM);
    let ping = r#"{"sandboxId":"cl-0000000000000000000000001"}"#;
    let until = Instant::now() + LONG;
    while post(&address, "PingSandbox", ping).0 != 503 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    let shutting_down = r#"{"code":"unavailable","message":"sandbox host is shutting down"}"#;
    assert_eq!(post(&address, "PingSandbox", ping), (503, shutting_down.to_owned()));
    assert_eq!(post(&address, "ListSandboxes", "{}").0, 200);
    terminate(child);
    assert!(TcpStream::connect(&address).is_err());

    let (child, _) = one_host(&["--shutdown-ms", "1"]);
    terminate(child);
}

#[test]
fn newer_agents_report_what_they_pause_when_they_are_stopped() {
    let stub = Stub::saying(vec![registered(201), empty(204), empty(204), empty(204)]);
    let options = ["--join", &stub.options.url, "--token", "secret", "--base-port", "0"];
    let newer = ["--lists-paused", "--reports", "--sandboxes", "1", "--shutdown-ms", "3600000"];
    let (child, line) = agent_sim(&[&options[..], &newer].concat());
    assert!(line.starts_with("ready 1 hosts "), "{line}");
    stub.wait_asked(2);
    signal(&child, Signal::TERM);
    stub.wait_asked(3);
    let asked = stub.asked().pop().unwrap();
    assert!(asked.contains(r#"{"event":"sandbox.auto_paused","sandbox_id":"cl-"#), "{asked}");
    terminate(child);
}
