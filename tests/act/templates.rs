//! Owns `roost templates` and `roost snapshots` from outside.
//!
//! Never: what agents do with templates, which `templates` shows.

use crate::support::{Done, eventually};
use crate::{World, told};
use expect_test::{Expect, expect};
use roost::agent::wire::{ConnectCode, Method};
use roost::model::id::TemplateId;
use roost::sim::{AnswerFault, Faults, Habits};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

/// The text with what the server draws replaced.
fn stable(world: &World, done: &Done) -> String {
    let mut text = world.stable(&told(done));
    for n in 1.. {
        let Some(at) = text.find("tmpl-").filter(|_| n < 9) else { break };
        let id = text[at..at + TemplateId::from_u128(0).to_string().len()].to_owned();
        text = text.replace(&id, &format!("TEMPLATE{n}"));
    }
    let date = |word: &str| word.len() > 16 && word.starts_with("minimal-20");
    let words = text.split_inclusive([' ', '\n']);
    words
        .map(|w| if date(w.trim()) { w.replace(w.trim(), "minimal-DATE") } else { w.into() })
        .collect()
}

fn check(world: &World, args: &[&str], expected: &Expect) {
    expected.assert_eq(&stable(world, &world.roost(args)));
}

#[test]
fn templates_are_added_listed_used_and_forgotten() {
    let world = World::new();
    let (id, uuid) = (TemplateId::from_u128(9).to_string(), TemplateId::from_u128(9).to_uuid());
    world.fleet.hosts()[0].put_template("", &uuid).unwrap();
    let host = world.fleet.hosts()[0].id().to_string();
    let sizes = ["--vcpus", "2", "--memory-mb", "1024", "--disk-size-mb", "10240"];
    let add = ["templates", "add", "python3.12", "--id", &uuid, "--host", &host, "--user", "app"];
    let env = ["-e", "LANG=C.UTF-8", "--env", "EMPTY=", "--format", "json"];
    let made = world.roost(&[&add[..], &sizes, &env].concat()).json();
    let wanted = json!({"id": id, "name": "python3.12", "type": "base", "platform": true,
        "vcpus": 2, "memory_mb": 1024, "disk_size_mb": 10240, "hosts": [host],
        "default_user": "app", "default_env": {"LANG": "C.UTF-8", "EMPTY": ""}});
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(made[name], *value, "{name}");
    }
    let team = "team-0000000000000000000000007";
    check(
        &world,
        &["templates", "add", "node", "--team", team],
        &expect![[r#"
        TEMPLATE1  node
        exit 0
    "#]],
    );
    check(
        &world,
        &["templates", "add", "node", "--team", team],
        &expect![[r#"
        roost: could not add node: there is a template "node" already; remove it first
        exit 1
    "#]],
    );
    check(
        &world,
        &["templates", "add", "x", "--host", "host-0000000000000000000000099"],
        &expect![[r#"
            roost: could not add x: hosts[0]: there is no host host-0000000000000000000000099
            exit 1
        "#]],
    );
    check(
        &world,
        &["templates"],
        &expect![[r#"
        NAME        TYPE  VCPUS   MEMORY    DISK  SIZE  TEAM                            HOSTS
        minimal     base      1  512 MiB   5 GiB        platform                        all
        node        base                                team-0000000000000000000000007  all
        python3.12  base      2    1 GiB  10 GiB        platform                        HOST
        exit 0
    "#]],
    );
    check(
        &world,
        &["templates", "list", "--type", "snapshot"],
        &expect![[r#"
        NAME  TYPE  VCPUS  MEMORY  DISK  SIZE  TEAM  HOSTS
        exit 0
    "#]],
    );
    let listed = world.roost(&["templates", "--format", "json"]).json();
    assert_eq!(listed, world.serving().get("/v1/templates").json(), "what the API lists");

    check(
        &world,
        &["sandboxes", "create", "--template", "python3.12", "--wait"],
        &expect![[r#"
            SANDBOX1  running on HOST
            exit 0
        "#]],
    );
    check(
        &world,
        &["sandboxes", "create", "--template", "python"],
        &expect![[r#"
            roost: could not create a sandbox: no such template "python"; available: minimal, python3.12; `roost templates` lists them
            exit 1
        "#]],
    );
    check(
        &world,
        &["templates", "rm", "python3.12"],
        &expect![[r#"
        python3.12  forgotten
        exit 0
    "#]],
    );
    check(
        &world,
        &["templates", "rm", "python3.12"],
        &expect![[r#"
        roost: could not forget python3.12: no such template "python3.12"; available: minimal, node; `roost templates` lists them
        exit 1
    "#]],
    );
    check(
        &world,
        &["templates", "rm", "minimal"],
        &expect![[r#"
        roost: could not forget minimal: minimal is part of every agent
        exit 1
    "#]],
    );
    check(
        &world,
        &["templates", "rm", "no/name"],
        &expect![[r#"
        roost: could not forget no/name: this is neither a name nor an id
        exit 2
    "#]],
    );
    check(
        &world,
        &["templates", "rm", "node", "--team", team, "--format", "json"],
        &expect![[r#"
            exit 0
        "#]],
    );
}

#[test]
fn a_snapshot_is_made_listed_and_deleted() {
    let world = World::new();
    let id = world.sandbox();
    check(
        &world,
        &["snapshots", "create", &id, "deps"],
        &expect![[r#"
        TEMPLATE1  deps
        exit 0
    "#]],
    );
    check(
        &world,
        &["snapshots"],
        &expect![[r#"
        NAME  TYPE      VCPUS   MEMORY   DISK   SIZE  TEAM      HOSTS
        deps  snapshot      1  512 MiB  5 GiB  1 GiB  platform  HOST
        exit 0
    "#]],
    );
    check(
        &world,
        &["snapshots", "create", &id, "more"],
        &expect![[r#"
        roost: could not make a snapshot of SANDBOX1: cannot snapshot a capsule that is stopped
        exit 1
    "#]],
    );
    let id = world.sandbox();
    check(
        &world,
        &["snapshots", "create", &id, "deps"],
        &expect![[r#"
            roost: could not make a snapshot of SANDBOX1: there is a template of this name already; --overwrite takes the place of a snapshot
            exit 1
        "#]],
    );
    check(
        &world,
        &["snapshots", "create", &id, "deps", "--overwrite"],
        &expect![[r#"
        TEMPLATE1  deps
        exit 0
    "#]],
    );
    let id = world.sandbox();
    let made = world.roost(&["snapshots", "create", &id, "--format", "json"]).json();
    let listed = world.roost(&["snapshots", "list", "--format", "json"]).json();
    assert!(listed.as_array().unwrap().contains(&made), "{made} {listed}");
    check(
        &world,
        &["snapshots", "rm", "deps"],
        &expect![[r#"
        deps  deleted
        exit 0
    "#]],
    );
    check(
        &world,
        &["snapshots", "rm", "deps"],
        &expect![[r#"
        roost: could not delete deps: no such template "deps"; available: minimal, minimal-DATE `roost templates` lists them
        exit 1
    "#]],
    );
    check(
        &world,
        &["snapshots", "rm", made["id"].as_str().unwrap()],
        &expect![[r#"
        TEMPLATE1  deleted
        exit 0
    "#]],
    );
    check(
        &world,
        &["snapshots", "list"],
        &expect![[r#"
        NAME  TYPE  VCPUS  MEMORY  DISK  SIZE  TEAM  HOSTS
        exit 0
    "#]],
    );
}

#[test]
fn a_snapshot_that_fails_says_why() {
    let world = World::new();
    let id = world.sandbox();
    let fails = AnswerFault::Refused(ConnectCode::Internal);
    let faults = Faults::answering_to(Method::CreateSnapshot, fails);
    world.fleet.set_faults(0, faults).unwrap();
    check(
        &world,
        &["snapshots", "create", &id],
        &expect![[r#"
        roost: could not make a snapshot of SANDBOX1: refused, internal: as simulated
        exit 1
    "#]],
    );
    check(
        &world,
        &["snapshots", "create", "cl-0000000000000000000000009"],
        &expect![[r#"
        roost: could not make a snapshot of cl-0000000000000000000000009: no such capsule; `roost sandboxes` lists them
        exit 1
    "#]],
    );
}

/// A server that stops answers before the snapshot is made; the command keeps waiting.
#[test]
fn waiting_for_a_snapshot_outlives_the_server() {
    let mut world = World::new();
    let id = world.sandbox();
    let slow = Habits { snapshot_takes: Duration::from_secs(3600), ..Habits::default() };
    world.habits(slow);
    let (listen, waiting) = (
        world.serving().address().to_string(),
        world.begin(&["snapshots", "create", &id, "deps", "--wait", "--format", "json"]),
    );
    let begun = || {
        let capsule = world.serving().get(&format!("/v1/capsules/{id}")).json();
        (capsule["status"] == "pausing").then_some(())
    };
    eventually("the snapshot begins", begun);
    let mut serving = world.serving.take().unwrap();
    serving.signal(Signal::TERM);
    world.habits(Habits::default());
    assert_eq!(serving.wait(), 0);
    world.serve(&listen);
    let made: Value = Done::of(waiting.wait_with_output().unwrap()).json();
    assert_eq!((&made["name"], &made["type"]), (&json!("deps"), &json!("snapshot")), "{made}");
}
