//! Owns the commands that act, from outside: the real `roost` asks a real `roost serve`
//! with a simulated host behind it, and what is printed is held whole.
//!
//! Never: what the server decides, which `operations` and `lifecycle` show.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[path = "act/following.rs"]
mod following;
#[path = "act/lying.rs"]
mod lying;
#[path = "act/stub.rs"]
mod stub;
#[path = "act/stubbed.rs"]
mod stubbed;
#[path = "act/templates.rs"]
mod templates;

use expect_test::{Expect, expect};
use roost::agent::wire::{ConnectCode, Method};
use roost::sim::{AnswerFault, Faults, Habits, SimFleet};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::server::Serving;
use support::{Done, Home, PATIENCE, host, sandbox, sim_fleet};

/// Longer than any test: what takes so long does not end by itself.
const FOREVER: Duration = Duration::from_secs(3600);

/// A server with one simulated host.
struct World {
    home: Home,
    fleet: SimFleet,
    serving: Option<Serving>,
}

impl World {
    fn new() -> World {
        let fleet = sim_fleet(1, 0);
        let sim = &fleet.hosts()[0];
        let home = Home::with(&json!({"hosts": [{"id": sim.id().to_string(), "status": "online",
            "address": sim.address().to_string(), "heartbeat_age_s": 5, "cpu_cores": 4,
            "memory_mb": 8192}], "sandboxes": []}));
        let mut world = World { home, fleet, serving: None };
        world.serve("127.0.0.1:0");
        world
    }

    fn serve(&mut self, listen: &str) {
        // Nothing but the agents' answers and the server's own probes ends an operation.
        let flags = ["--probe-interval", "2s", "--confirm-delay", "100ms", "--probe-timeout", "1s"];
        let mut command = self.home.command(&["serve", "--listen", listen]);
        command.args(flags);
        self.serving = Some(self.home.served(command));
    }

    fn serving(&self) -> &Serving {
        self.serving.as_ref().unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}", self.serving().address())
    }

    /// `roost` that finds the server by `ROOST_URL`, and the key in the data directory.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(args);
        command.env("ROOST_URL", self.url());
        command
    }

    fn roost(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// Begins a command that waits.
    fn begin(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn habits(&self, habits: Habits) {
        self.fleet.hosts()[0].set_habits(habits);
    }

    /// Creates a sandbox and waits until it runs.
    fn sandbox(&self) -> String {
        let line = self.roost(&["sandboxes", "create", "--wait"]).ok();
        line.split_whitespace().next().unwrap().to_owned()
    }

    /// How a command ends: stdout, stderr and code.
    fn check(&self, args: &[&str], expected: &Expect) {
        expected.assert_eq(&self.stable(&told(&self.roost(args))));
    }

    fn stable(&self, text: &str) -> String {
        numbered(&text.replace(&self.url(), "URL"))
            .replace(&self.fleet.hosts()[0].id().to_string(), "HOST")
            .replace(&format!("({})", self.fleet.hosts()[0].address()), "(AT)")
    }
}

/// The text with ids of sandboxes that the server drew as numbers, in order.
fn numbered(text: &str) -> String {
    let mut text = text.to_owned();
    let drawn = |at: &usize, text: &str| !text[*at..].starts_with("cl-0000");
    for n in 1.. {
        let found = text.match_indices("cl-").map(|(at, _)| at).find(|at| drawn(at, &text));
        let Some(at) = found else { break };
        let id = text[at..at + sandbox(0).len()].to_owned();
        text = text.replace(&id, &format!("SANDBOX{n}"));
    }
    text
}

fn told(done: &Done) -> String {
    format!("{}{}exit {}\n", done.stdout, done.stderr, done.code)
}

#[test]
fn a_sandbox_is_created_paused_resumed_and_destroyed() {
    let world = World::new();
    let made = world.roost(&[
        "sandboxes",
        "create",
        "--template",
        "minimal",
        "--vcpus",
        "2",
        "--memory-mb",
        "1024",
        "--timeout-sec",
        "60",
        "--disk-size-mb",
        "2048",
        "--wait",
        "--format",
        "json",
    ]);
    let capsule: Value = serde_json::from_str(&made.ok()).unwrap();
    let id = capsule["id"].as_str().unwrap();
    let wanted = json!({"status": "running", "template": "minimal", "vcpus": 2,
        "memory_mb": 1024, "timeout_sec": 60, "disk_size_mb": 2048});
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(capsule[name], *value, "{name}");
    }
    let answered = world.serving().get(&format!("/v1/capsules/{id}")).json();
    assert_eq!(capsule, answered, "what the API answered");

    let check = |args: &[&str], expected: Expect| world.check(args, &expected);
    check(
        &["sandboxes", "pause", id, "--wait"],
        expect![[r#"
        SANDBOX1  paused on HOST
        exit 0
    "#]],
    );
    check(
        &["sandboxes", "pause", id],
        expect![[r#"
        roost: could not pause SANDBOX1: cannot pause a capsule that is paused
        exit 1
    "#]],
    );
    check(
        &["sandboxes", "resume", id, "--wait"],
        expect![[r#"
        SANDBOX1  running on HOST
        exit 0
    "#]],
    );
    check(
        &["sandboxes", "destroy", id, "--wait"],
        expect![[r#"
        SANDBOX1  stopped on HOST
        exit 0
    "#]],
    );
    check(
        &["sandboxes", "destroy", id],
        expect![[r#"
        SANDBOX1  stopped on HOST
        exit 0
    "#]],
    );
    check(
        &["sandboxes", "destroy", id, "--wait"],
        expect![[r#"
        SANDBOX1  stopped on HOST
        exit 0
    "#]],
    );
    check(
        &["sandboxes", "resume", id],
        expect![[r#"
        roost: could not resume SANDBOX1: cannot resume a capsule that is stopped
        exit 1
    "#]],
    );
}

#[test]
fn without_waiting_the_status_is_that_of_the_moment() {
    let world = World::new();
    world.habits(Habits { create_takes: FOREVER, pause_takes: FOREVER, ..Habits::default() });
    let line = world.roost(&["sandboxes", "create"]).ok();
    assert_eq!(world.stable(&line), "SANDBOX1  starting on HOST\n");
    world.check(&["sandboxes", "create", "--wait", "--timeout", "1s"], &expect![[r#"
        roost: could not create SANDBOX1: it was starting when last seen, and 1s are over; it may still be done; see `roost sandboxes show SANDBOX1`
        exit 1
    "#]]);
}

#[test]
fn each_of_several_is_tried_and_told() {
    let world = World::new();
    let (first, second) = (world.sandbox(), world.sandbox());
    let (ids, nobody) = ([first.as_str(), &second], sandbox(9));
    let pause = ["sandboxes", "pause", &first, &nobody, &second, "--wait"];
    world.check(&pause, &expect![[r#"
        SANDBOX1  paused on HOST
        SANDBOX2  paused on HOST
        roost: could not pause cl-0000000000000000000000009: no such capsule; `roost sandboxes` lists them
        exit 1
    "#]]);
    let done =
        world.roost(&["sandboxes", "destroy", "--wait", "--format", "json", &first, &second]);
    let lines: Vec<Value> =
        done.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = lines.iter().map(|c| (c["id"].as_str().unwrap(), c["status"].as_str().unwrap()));
    assert_eq!(told.collect::<Vec<_>>(), [(ids[0], "stopped"), (ids[1], "stopped")]);
}

#[test]
fn an_operation_that_fails_says_where_the_sandbox_is_left() {
    let world = World::new();
    let id = world.sandbox();
    let refuse = |method| {
        let fault = AnswerFault::Refused(ConnectCode::Internal);
        world.fleet.set_faults(0, Faults::answering_to(method, fault)).unwrap();
    };
    refuse(Method::Pause);
    world.check(&["sandboxes", "pause", &id, "--wait"], &expect![[r#"
        roost: could not pause SANDBOX1: its status is running (operation_failed: refused, internal: as simulated); `roost audit --sandbox SANDBOX1` says what was done
        exit 1
    "#]]);
    refuse(Method::Create);
    let done = world.roost(&["sandboxes", "create", "--wait"]);
    expect![[r#"
        roost: could not create SANDBOX1: its status is error (operation_failed: refused, internal: as simulated); `roost audit --sandbox SANDBOX1` says what was done
        exit 1
    "#]].assert_eq(&world.stable(&told(&done)));
}

/// The server is killed while somebody waits, and starts again where it was: whoever waits
/// sees the end of the operation, and nothing of the kill.
#[test]
fn waiting_outlives_the_server() {
    let mut world = World::new();
    let slow = Duration::from_millis(1500);
    world.habits(Habits { pause_takes: slow, resume_takes: slow, ..Habits::default() });
    // Else the agent undoes what the killed server asked for.
    let finishes = Faults { finishes_orphans: true, ..Faults::default() };
    world.fleet.set_faults(0, finishes).unwrap();
    let id = world.sandbox();
    for (what, method, ends) in
        [("pause", Method::Pause, "paused"), ("resume", Method::Resume, "running")]
    {
        let child = world.begin(&["sandboxes", what, &id, "--wait"]);
        assert!(world.fleet.hosts()[0].wait_calls(method, 1, PATIENCE));
        let listen = world.serving().address().to_string();
        world.serving.take().unwrap().kill();
        world.serve(&listen);
        let done = Done::of(child.wait_with_output().unwrap());
        assert_eq!(world.stable(&done.ok()), format!("SANDBOX1  {ends} on HOST\n"));
    }
}

/// Nothing comes back: whoever waits leaves when the time is up.
#[test]
fn waiting_ends_when_the_time_is_up() {
    let mut world = World::new();
    let id = world.sandbox();
    world.habits(Habits { pause_takes: FOREVER, ..Habits::default() });
    let child = world.begin(&["sandboxes", "pause", &id, "--wait", "--timeout", "3s"]);
    assert!(world.fleet.hosts()[0].wait_calls(Method::Pause, 1, PATIENCE));
    world.serving.take().unwrap().kill();
    let done = Done::of(child.wait_with_output().unwrap());
    expect![[r#"
        roost: could not pause SANDBOX1: it was pausing when last seen, and 3s are over; it may still be done; see `roost sandboxes show SANDBOX1`
        exit 1
    "#]].assert_eq(&numbered(&told(&done)));
}

#[test]
fn hosts_are_drained_undrained_and_set_aside() {
    let world = World::new();
    let id = world.fleet.hosts()[0].id().to_string();
    for (verb, expected) in [
        (
            "drain",
            expect![[r#"
            HOST (AT)  draining
            exit 0
        "#]],
        ),
        (
            "undrain",
            expect![[r#"
            HOST (AT)  online
            exit 0
        "#]],
        ),
        (
            "offline",
            expect![[r#"
            HOST (AT)  offline
            exit 0
        "#]],
        ),
    ] {
        world.check(&["hosts", verb, &id], &expected);
    }
    let done = world.roost(&["hosts", "drain", &id, "--format", "json"]).ok();
    let shown: Value = serde_json::from_str(&done).unwrap();
    assert_eq!((&shown["id"], &shown["intent"]), (&json!(id), &json!("draining")));
    world.check(
        &["sandboxes", "create"],
        &expect![[r#"
        roost: could not create a sandbox: no host takes new capsules right now; see GET /v1/hosts
        exit 1
    "#]],
    );
    let lines: Vec<String> = ["drain", "undrain", "offline", "token"]
        .into_iter()
        .map(|verb| told(&world.roost(&["hosts", verb, &host(9)])))
        .collect();
    expect![[r#"
        roost: could not drain host-0000000000000000000000009: no such host; `roost hosts` lists them
        exit 1
        roost: could not undrain host-0000000000000000000000009: no such host; `roost hosts` lists them
        exit 1
        roost: could not set host-0000000000000000000000009 offline: no such host; `roost hosts` lists them
        exit 1
        roost: could not make a registration token for host-0000000000000000000000009: no such host; `roost hosts` lists them
        exit 1
    "#]].assert_eq(&lines.concat());
}

#[test]
fn a_host_is_probed_and_deleted_with_what_it_has() {
    let world = World::new();
    let host = world.fleet.hosts()[0].id().to_string();
    let probed = world.roost(&["probe", &host]).ok();
    assert!(probed.starts_with(&format!("{host}  listed 0 sandboxes in ")), "{probed}");
    let sandbox = world.sandbox();
    world.check(
        &["hosts", "rm", &host],
        &expect![[r#"
            SANDBOX1
            roost: could not delete HOST: it has 1 sandbox; destroy them first, or delete it together with them: --force
            exit 1
        "#]],
    );
    let deleted = world.roost(&["hosts", "rm", &host, "--force", "--yes"]).ok();
    assert_eq!(deleted, format!("{host}  deleted\n"));
    assert!(world.fleet.hosts()[0].has_exited(), "its agent was told to end");
    world.check(
        &["probe", &host],
        &expect![[r#"
            roost: could not probe HOST: no such host; `roost hosts` lists them
            exit 1
        "#]],
    );
    assert_eq!(world.serving().get(&format!("/v1/capsules/{sandbox}")).status, 404);
}

#[test]
fn a_key_is_made_used_and_revoked() {
    let world = World::new();
    let of_team = ["--team", "team-0000000000000000000000007", "--format", "json"];
    let made = world.roost(&[&["keys", "create", "ci"][..], &of_team].concat()).json();
    let (id, key) = (made["api_key"]["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let with_it = |args: &[&str]| {
        let mut command = world.command(args);
        Done::of(command.env("ROOST_API_KEY", key).output().unwrap())
    };
    with_it(&["sandboxes", "create", "--wait"]).ok();
    let refused = with_it(&["hosts", "add"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{refused:?}");
    assert!(!refused.stderr.contains(key), "{refused:?}");

    let listed = world.roost(&["keys", "list", "--format", "json"]).json();
    assert_eq!((listed[0]["id"].as_str(), &listed[0]["name"]), (Some(id), &json!("ci")));
    assert!(!listed.to_string().contains(key));
    assert_eq!(world.roost(&["keys", "revoke", id]).ok(), format!("{id}  revoked\n"));
    assert_eq!(with_it(&["sandboxes", "create"]).code, 1);
    assert_eq!(world.roost(&["keys", "list", "--format", "json"]).json(), json!([]));
}

#[test]
fn health_is_for_scripts() {
    let mut world = World::new();
    world.check(
        &["health"],
        &expect![[r#"
        ready at URL
        exit 0
    "#]],
    );
    world.check(
        &["health", "--format", "json"],
        &expect![[r#"
        {"ready":true,"url":"URL"}
        exit 0
    "#]],
    );
    let url = world.url();
    world.serving.take().unwrap().stop();
    let done = world.home.roost(&["health", "--url", &url]);
    expect![[r#"
        roost: could not find URL ready: Connection refused (os error 111); start `roost serve`, or set ROOST_URL
        exit 1
    "#]].assert_eq(&told(&done).replace(&url, "URL"));
}

#[test]
fn without_the_right_key_or_the_server_nothing_is_done() {
    let world = World::new();
    let with_key = |key: &str| {
        let mut command = world.command(&["sandboxes", "create"]);
        told(&Done::of(command.env("ROOST_API_KEY", key).output().unwrap()))
    };
    expect![[r#"
        roost: could not create a sandbox: the API key is not valid; set ROOST_API_KEY, or name the server's data directory with --data-dir
        exit 1
    "#]].assert_eq(&with_key("roost_wrong"));
    let nowhere = ["sandboxes", "pause", &sandbox(1), "--wait", "--url", "http://127.0.0.1:1"];
    expect![[r#"
        roost: could not pause cl-0000000000000000000000001: http://127.0.0.1:1: Connection refused (os error 111); start `roost serve`, or set ROOST_URL
        exit 1
    "#]].assert_eq(&told(&world.home.roost(&nowhere)));
    assert_eq!(world.serving().get("/v1/capsules?all=true").json(), json!([]));
}

/// What is no id is refused before anybody is asked: there is no server here.
#[test]
fn what_is_no_id_is_refused_with_an_example() {
    let home = Home::new();
    let check = |args: &[&str], expected: Expect| {
        let done = home.roost(args);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{args:?}: {done:?}");
        expected.assert_eq(done.stderr.lines().next().unwrap());
    };
    check(
        &["hosts", "drain", "host-1"],
        expect![
            "error: invalid value 'host-1' for '<ID>': id has 1 digits after its prefix instead of 25; one looks like host-0000000000000000000000001"
        ],
    );
    check(
        &["probe", &sandbox(1)],
        expect![[
            r#"error: invalid value 'cl-0000000000000000000000001' for '<ID>': id does not start with "host-"; one looks like host-0000000000000000000000001"#
        ]],
    );
    check(
        &["sandboxes", "pause", &sandbox(1), "7"],
        expect![[
            r#"error: invalid value '7' for '<ID>...': id does not start with "cl-"; one looks like cl-0000000000000000000000001"#
        ]],
    );
    check(
        &["keys", "revoke", &host(1)],
        expect![[
            r#"error: invalid value 'host-0000000000000000000000001' for '<ID>': id does not start with "key-"; one looks like key-0000000000000000000000001"#
        ]],
    );
}
