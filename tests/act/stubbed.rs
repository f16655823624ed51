//! Owns what the commands for keys, probes and deletions make of the API's answers, as
//! interfaces.md says they are. Each test builds its stand-in first; a real server that
//! was brought to give the same answers can take its place.
//!
//! Never: judges the answers.

use crate::stub::{Says, Stub};
use crate::support::{Done, eventually, host, sandbox};
use crate::told;
use expect_test::{Expect, expect};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

const KEY: &str = "key-0000000000000000000000001";

fn api_key() -> Value {
    json!({"id": KEY, "name": "ci\u{1b}[31m", "team_id": "team-0000000000000000000000000",
        "created_at": "2026-05-17T06:40:00.000Z"})
}

/// How a command ends, and what was asked meanwhile.
fn check(stub: &Stub, args: &[&str], expected: &Expect) {
    let done = told(&stub.roost(args));
    expected.assert_eq(&format!("{done}{}\n", stub.asked().join("\n")));
}

#[test]
fn a_key_is_shown_once() {
    let made = json!({"api_key": api_key(), "key": "roost_secret"});
    let stub = Stub::start(vec![Says { to: "POST /v1/api-keys", status: 201, body: made }], vec![]);
    check(
        &stub,
        &["keys", "create", "ci"],
        &expect![[r#"
        id    key-0000000000000000000000001
        name  ci\u{1b}[31m
        team  team-0000000000000000000000000
        key   roost_secret
        Keep the key in a safe place; it is not shown again.
        exit 0
        POST /v1/api-keys {"name":"ci"}
    "#]],
    );
    let team = ["keys", "create", "ci", "--team", "team-0000000000000000000000007"];
    check(
        &stub,
        &[&team[..], &["--format", "json"]].concat(),
        &expect![[r#"
        {"api_key":{"created_at":"2026-05-17T06:40:00.000Z","id":"key-0000000000000000000000001","name":"ci\u001b[31m","team_id":"team-0000000000000000000000000"},"key":"roost_secret"}
        exit 0
        POST /v1/api-keys {"name":"ci","team_id":"team-0000000000000000000000007"}
    "#]],
    );
}

#[test]
fn keys_are_listed_and_revoked() {
    let mut used = api_key();
    used["last_used_at"] = json!("2026-05-18T06:40:00.000Z");
    let list = json!([api_key(), used]);
    let revoke = "DELETE /v1/api-keys/key-0000000000000000000000001";
    let says = vec![
        Says { to: "GET /v1/api-keys", status: 200, body: list },
        Says { to: revoke, status: 204, body: Value::Null },
    ];
    let stub = Stub::start(says, vec![]);
    check(
        &stub,
        &["keys", "list"],
        &expect![[r#"
        KEY                            TEAM                            CREATED                   LAST USED                 NAME
        key-0000000000000000000000001  team-0000000000000000000000000  2026-05-17T06:40:00.000Z  never                     ci\u{1b}[31m
        key-0000000000000000000000001  team-0000000000000000000000000  2026-05-17T06:40:00.000Z  2026-05-18T06:40:00.000Z  ci\u{1b}[31m
        exit 0
        GET /v1/api-keys
    "#]],
    );
    check(
        &stub,
        &["keys", "list", "--format", "json"],
        &expect![[r#"
        [{"created_at":"2026-05-17T06:40:00.000Z","id":"key-0000000000000000000000001","name":"ci\u001b[31m","team_id":"team-0000000000000000000000000"},{"created_at":"2026-05-17T06:40:00.000Z","id":"key-0000000000000000000000001","last_used_at":"2026-05-18T06:40:00.000Z","name":"ci\u001b[31m","team_id":"team-0000000000000000000000000"}]
        exit 0
        GET /v1/api-keys
    "#]],
    );
    check(
        &stub,
        &["keys", "revoke", KEY],
        &expect![[r#"
        key-0000000000000000000000001  revoked
        exit 0
        DELETE /v1/api-keys/key-0000000000000000000000001
    "#]],
    );
    check(
        &stub,
        &["keys", "revoke", KEY, "--format", "json"],
        &expect![[r#"
        exit 0
        DELETE /v1/api-keys/key-0000000000000000000000001
    "#]],
    );
    check(
        &stub,
        &["keys", "revoke", "key-0000000000000000000000002"],
        &expect![[r#"
            roost: could not revoke key-0000000000000000000000002: no such thing; `roost keys list` lists them
            exit 1
            DELETE /v1/api-keys/key-0000000000000000000000002
        "#]],
    );
}

#[test]
fn a_probe_tells_what_the_agent_said() {
    let answer = |more: Value| {
        let mut answer =
            json!({"host_id": host(1), "took_ms": 12, "at": "2026-05-17T06:40:00.000Z"});
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let to = "POST /v1/hosts/host-0000000000000000000000001/probe";
        Stub::start(vec![Says { to, status: 200, body: answer }], vec![])
    };
    let id = host(1);
    let listed = answer(json!({"outcome": "observation", "sandboxes": 3}));
    check(
        &listed,
        &["probe", &id],
        &expect![[r#"
        host-0000000000000000000000001  listed 3 sandboxes in 12 ms
        exit 0
        POST /v1/hosts/host-0000000000000000000000001/probe
    "#]],
    );
    check(
        &listed,
        &["probe", &id, "--format", "json"],
        &expect![[r#"
        {"at":"2026-05-17T06:40:00.000Z","host_id":"host-0000000000000000000000001","outcome":"observation","sandboxes":3,"took_ms":12}
        exit 0
        POST /v1/hosts/host-0000000000000000000000001/probe
    "#]],
    );
    let refused = answer(json!({"outcome": "refused", "detail": "unavailable:\nnot now"}));
    check(
        &refused,
        &["probe", &id],
        &expect![[r#"
        host-0000000000000000000000001  no listing in 12 ms (refused: unavailable:\nnot now)
        exit 1
        POST /v1/hosts/host-0000000000000000000000001/probe
    "#]],
    );
    check(
        &refused,
        &["probe", &id, "--format", "json"],
        &expect![[r#"
        {"at":"2026-05-17T06:40:00.000Z","detail":"unavailable:\nnot now","host_id":"host-0000000000000000000000001","outcome":"refused","took_ms":12}
        exit 1
        POST /v1/hosts/host-0000000000000000000000001/probe
    "#]],
    );
    check(
        &refused,
        &["probe", &host(2)],
        &expect![[r#"
            roost: could not probe host-0000000000000000000000002: no such thing; `roost hosts` lists them
            exit 1
            POST /v1/hosts/host-0000000000000000000000002/probe
        "#]],
    );
}

/// A host with two sandboxes, which only force deletes.
fn host_with_sandboxes() -> Stub {
    let ids = json!([sandbox(1), sandbox(2)]);
    let refusal = json!({"error": {"code": "has_active_sandboxes",
        "message": "in the words of the API", "sandbox_ids": ids}});
    let preview = json!({"host": {"id": host(1), "status": "online"}, "sandbox_ids": ids});
    let delete = "DELETE /v1/hosts/host-0000000000000000000000001";
    let force = "DELETE /v1/hosts/host-0000000000000000000000001?force=true";
    let show = "GET /v1/hosts/host-0000000000000000000000001/delete-preview";
    let says = vec![
        Says { to: delete, status: 409, body: refusal },
        Says { to: force, status: 204, body: Value::Null },
        Says { to: show, status: 200, body: preview },
    ];
    Stub::start(says, vec![])
}

#[test]
fn a_host_with_sandboxes_is_deleted_by_force_only() {
    let stub = host_with_sandboxes();
    let id = host(1);
    check(
        &stub,
        &["hosts", "rm", &id],
        &expect![[r#"
        cl-0000000000000000000000001
        cl-0000000000000000000000002
        roost: could not delete host-0000000000000000000000001: it has 2 sandboxes; destroy them first, or delete it together with them: --force
        exit 1
        DELETE /v1/hosts/host-0000000000000000000000001
    "#]],
    );
    check(
        &stub,
        &["hosts", "rm", &id, "--format", "json"],
        &expect![[r#"
        {"error":{"code":"has_active_sandboxes","message":"in the words of the API","sandbox_ids":["cl-0000000000000000000000001","cl-0000000000000000000000002"]}}
        roost: could not delete host-0000000000000000000000001: it has 2 sandboxes; destroy them first, or delete it together with them: --force
        exit 1
        DELETE /v1/hosts/host-0000000000000000000000001
    "#]],
    );
    check(
        &stub,
        &["hosts", "rm", &id, "--force"],
        &expect![[r#"
        roost: could not delete host-0000000000000000000000001: --force asks first, and nobody is there to answer; add --yes
        exit 2

    "#]],
    );
    check(
        &stub,
        &["hosts", "rm", &id, "--force", "--yes"],
        &expect![[r#"
        host-0000000000000000000000001  deleted
        exit 0
        DELETE /v1/hosts/host-0000000000000000000000001?force=true
    "#]],
    );
    check(
        &stub,
        &["hosts", "rm", &host(2)],
        &expect![[r#"
            roost: could not delete host-0000000000000000000000002: no such thing; `roost hosts` lists them
            exit 1
            DELETE /v1/hosts/host-0000000000000000000000002
        "#]],
    );
}

/// Runs `hosts rm --force` on a terminal and gives this answer: how it ends, and what the
/// terminal shows.
fn at_a_terminal(stub: &Stub, answer: &str) -> (Done, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let mut screen = File::from(terminal);
    let end = || File::options().read(true).write(true).open(&name).unwrap();
    let mut command = stub.command(&["hosts", "rm", &host(1), "--force"]);
    command.stdin(end()).stderr(end()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    // It holds our ends of the terminal, which must close for the screen to end.
    drop(command);
    let mut shown = Vec::new();
    let mut read = |screen: &mut File| {
        let mut some = [0; 1024];
        // A terminal whose other ends are closed reads as an error.
        let count = screen.read(&mut some).unwrap_or(0);
        shown.extend_from_slice(&some[..count]);
        (count, String::from_utf8_lossy(&shown).replace("\r\n", "\n"))
    };
    eventually("the question", || read(&mut screen).1.contains("[y/N]").then_some(()));
    screen.write_all(format!("{answer}\n").as_bytes()).unwrap();
    let done = Done::of(child.wait_with_output().unwrap());
    let shown = eventually("the end of the screen", || {
        let (count, shown) = read(&mut screen);
        (count == 0).then_some(shown)
    });
    (done, shown)
}

#[test]
fn somebody_at_a_terminal_is_asked() {
    for (answer, expected, code, deleted) in [
        (
            "y",
            expect![[r#"
            cl-0000000000000000000000001
            cl-0000000000000000000000002
            Delete host-0000000000000000000000001 (online) and 2 sandboxes? What runs there is lost. [y/N] y
            host-0000000000000000000000001  deleted
        "#]],
            0,
            true,
        ),
        (
            "n",
            expect![[r#"
            cl-0000000000000000000000001
            cl-0000000000000000000000002
            Delete host-0000000000000000000000001 (online) and 2 sandboxes? What runs there is lost. [y/N] n
            roost: could not delete host-0000000000000000000000001: nobody said yes
        "#]],
            1,
            false,
        ),
    ] {
        let stub = host_with_sandboxes();
        let (done, shown) = at_a_terminal(&stub, answer);
        expected.assert_eq(&format!("{shown}{}", done.stdout));
        assert_eq!(done.code, code);
        let asked = stub.asked();
        assert_eq!(asked.iter().any(|line| line.starts_with("DELETE")), deleted, "{asked:?}");
    }
}

/// The row never shows the wished status; the stream does, between two others.
#[test]
fn what_passes_quickly_is_seen() {
    let event = |revision: u64, to: &str| {
        json!({"revision": revision, "kind": format!("sandbox.{to}"), "to": to,
            "reason": "requested", "sandbox_id": sandbox(1), "host_id": host(1)})
    };
    let capsule = |status: &str| json!({"id": sandbox(1), "status": status, "host_id": host(1)});
    let pause = "POST /v1/capsules/cl-0000000000000000000000001/pause";
    let show = "GET /v1/capsules/cl-0000000000000000000000001";
    let says = vec![
        Says { to: pause, status: 202, body: capsule("pausing") },
        Says { to: show, status: 200, body: capsule("resuming") },
    ];
    let events = vec![event(7, "pausing"), event(8, "paused"), event(9, "resuming")];
    let stub = Stub::start(says, events);
    check(
        &stub,
        &["sandboxes", "pause", &sandbox(1), "--wait", "--timeout", "20s"],
        &expect![[r#"
        cl-0000000000000000000000001  resuming on host-0000000000000000000000001
        exit 0
        POST /v1/capsules/cl-0000000000000000000000001/pause
        GET /v1/events?sandbox_id=cl-0000000000000000000000001
        GET /v1/capsules/cl-0000000000000000000000001
        GET /v1/capsules/cl-0000000000000000000000001
    "#]],
    );
}

/// The server dies with the request unanswered; the one that follows it had done it.
#[test]
fn a_question_that_was_cut_is_asked_again_by_whoever_waits() {
    let says = || {
        let refusal = json!({"error": {"code": "invalid_state", "message": "it is paused"}});
        let capsule = json!({"id": sandbox(1), "status": "paused", "host_id": host(1)});
        let pause = "POST /v1/capsules/cl-0000000000000000000000001/pause";
        let show = "GET /v1/capsules/cl-0000000000000000000000001";
        vec![
            Says { to: pause, status: 409, body: refusal },
            Says { to: show, status: 200, body: capsule },
        ]
    };
    let id = sandbox(1);
    let (stub, done) = Stub::cut_first(says(), &["sandboxes", "pause", &id, "--wait"]);
    expect![[r#"
        cl-0000000000000000000000001  paused on host-0000000000000000000000001
        exit 0
    "#]]
    .assert_eq(&told(&done));
    assert_eq!(stub.asked()[0], format!("POST /v1/capsules/{id}/pause"));
    for args in [&["sandboxes", "pause", &id][..], &["sandboxes", "create", "--wait"]] {
        let (stub, done) = Stub::cut_first(says(), args);
        assert!(done.stderr.ends_with("it may have been done; look before you ask again\n"));
        assert_eq!((done.code, stub.asked().len()), (1, 0), "asked once: {args:?}");
    }
}
