//! Owns `roost events --follow` beside a server that writes: nothing is missed, nothing
//! shown twice, and it ends when somebody says so or nobody reads.
//!
//! Never: the stream of the API, which has tests of its own.

use crate::World;
use crate::support::{Done, Home, PATIENCE, eventually, host};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// A command that follows.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(home: &Home, args: &[&str]) -> Following {
        let mut command = home.command(&[&["events", "--follow"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Nobody minds once the test has ended.
                let _ = sender.send(line);
            }
        });
        Following { child, lines }
    }

    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Asks it to end, waits, and gives what it still said.
    fn end(self, signal: Signal) -> (Done, Vec<String>) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let done = Done::of(self.child.wait_with_output().unwrap());
        (done, self.lines.iter().collect())
    }
}

/// Sandboxes come and go while the server is stopped, killed and started again.
#[test]
fn every_event_is_shown_once_and_in_order() {
    let mut world = World::new();
    let following = Following::start(&world.home, &["--after", "0", "--format", "json"]);
    for round in 0..3 {
        let id = world.sandbox();
        world.roost(&["sandboxes", "destroy", &id, "--wait"]).ok();
        let serving = world.serving.take().unwrap();
        match round {
            0 => drop(serving.kill()),
            _ => drop(serving.stop()),
        }
        world.serve("127.0.0.1:0");
    }
    world.serving.take().unwrap().stop();
    let newest = world.home.revision();
    let shown: Vec<Value> = (1..=newest).map(|_| following.next()).collect();
    let revisions: Vec<u64> = shown.iter().map(|e| e["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, (1..=newest).collect::<Vec<_>>());
    let stored = world.home.json(&["events", "--after", "0", "--limit", "1000"]);
    assert_eq!(json!(shown), stored);
    let (done, more) = following.end(Signal::INT);
    assert_eq!((done.code, done.stderr.as_str(), more.len()), (0, "", 0), "{more:?}");
}

fn silent_host() -> Home {
    Home::with(&json!({"hosts": [
        {"id": host(1), "status": "online", "heartbeat_age_s": 300},
        {"id": host(2), "status": "online", "heartbeat_age_s": 5},
    ]}))
}

#[test]
fn without_a_revision_it_goes_on_from_now() {
    let home = silent_host();
    let following = Following::start(&home, &["--format", "json"]);
    home.roost(&["check", "--policy", "strict"]).ok();
    let first = following.next();
    assert_eq!((&first["kind"], &first["host_id"]), (&json!("host.down"), &json!(host(1))));
    assert_eq!(following.end(Signal::TERM).0.code, 0);
}

/// A revision that is not there yet is waited for.
#[test]
fn a_revision_of_the_future_is_waited_for() {
    let silent = |n| json!({"id": host(n), "status": "online", "heartbeat_age_s": 300});
    let home = Home::with(&json!({"hosts": [silent(1), silent(2)]}));
    let following = Following::start(&home, &["--after", "1", "--format", "json"]);
    home.roost(&["check", "--policy", "strict"]).ok();
    assert_eq!(following.next()["revision"], 2);
    assert_eq!(following.end(Signal::INT).0.code, 0);
}

/// `roost events --follow | head -1`: it ends when its reader has left, though nothing
/// more happens.
#[test]
fn it_ends_when_nobody_reads() {
    let home = silent_host();
    let mut command = home.command(&["events", "--follow"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = eventually("its end", || child.try_wait().unwrap());
    let done = child.wait_with_output().unwrap();
    assert_eq!((status.code(), done.stderr.as_slice()), (Some(0), &b""[..]));
}
