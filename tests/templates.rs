//! Owns the proof that capsules are made from the template that was named, that snapshots
//! make templates, and that what is deleted is deleted: the real `roost serve`, and simulated
//! hosts that look templates up by their ids and refuse what they do not have.
//!
//! Never: a fixed port, a sleep to wait for something. `World::end` compares what the
//! hosts really have with what the database says, whatever a test was about.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;
#[path = "lifecycle/world.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod world;

use roost::agent::wire::{ConnectCode, Method};
use roost::model::id::{TeamId, TemplateId};
use roost::sim::{AnswerFault, Faults, Habits, SimState};
use serde_json::{Value, json};
use std::time::Duration;
use support::{PATIENCE, eventually};
use world::{Api, World, refusal};

/// Longer than any test: what takes so long does not end by itself.
const FOREVER: Duration = Duration::from_secs(3600);

/// The default is that of older agents.
const OLDER: Habits = Habits {
    lists_paused: false,
    reports: false,
    keeps_after_snapshot: false,
    clock_skew_ms: 0,
    index_takes: Duration::ZERO,
    finishes_destroys: false,
    create_takes: Duration::ZERO,
    pause_takes: Duration::ZERO,
    resume_takes: Duration::ZERO,
    destroy_takes: Duration::ZERO,
    snapshot_takes: Duration::ZERO,
};

const NEWER: Habits = Habits { lists_paused: true, keeps_after_snapshot: true, ..OLDER };

fn team(n: u128) -> TeamId {
    TeamId::from_u128(n)
}

/// The API as a team's key sees it.
fn api_of(world: &World, team: TeamId) -> Api {
    let wanted = json!({"name": "ci", "team_id": team.to_string()});
    let (code, made) = world.api.ask("POST", "/v1/api-keys", &wanted);
    assert_eq!(code, 201, "{made}");
    world.api.with_key(made["key"].as_str().unwrap())
}

/// Puts a template on the disks of these hosts, and says so to the control plane.
fn add(world: &World, name: &str, team: TeamId, hosts: &[usize]) -> TemplateId {
    let id = TemplateId::from_u128(0xee00 + name.len() as u128);
    for n in hosts {
        world.host(*n).put_template(&team.to_uuid(), &id.to_uuid()).unwrap();
    }
    let on: Vec<String> = hosts.iter().map(|n| world.host_id(*n)).collect();
    let wanted = json!({"name": name, "id": id.to_uuid(), "team_id": team.to_string(),
        "hosts": on, "vcpus": 2, "memory_mb": 768});
    let (code, added) = world.api.ask("POST", "/v1/templates", &wanted);
    assert_eq!((code, &added["id"]), (201, &json!(id.to_string())), "{added}");
    id
}

/// Creates a capsule of this template and waits until it runs.
fn running(api: &Api, template: &str) -> Value {
    let (code, capsule) = api.create(&json!({"template": template}));
    assert_eq!(code, 202, "{capsule}");
    api.until(capsule["id"].as_str().unwrap(), "running")
}

fn id_of(capsule: &Value) -> &str {
    capsule["id"].as_str().unwrap()
}

fn snapshot(api: &Api, capsule: &str, name: &str) -> (u16, Value) {
    api.ask("POST", "/v1/snapshots", &json!({"sandbox_id": capsule, "name": name}))
}

/// Names of what the key can make capsules from.
fn names(api: &Api) -> Vec<String> {
    let (code, found) = api.ask("GET", "/v1/snapshots", &Value::Null);
    assert_eq!(code, 200, "{found}");
    let name = |template: &Value| template["name"].as_str().unwrap().to_owned();
    found.as_array().unwrap().iter().map(name).collect()
}

fn delete(api: &Api, name: &str) -> (u16, Value) {
    api.ask("DELETE", &format!("/v1/snapshots/{name}"), &Value::Null)
}

/// Waits until a host has no template but `minimal`.
fn until_erased(world: &World, n: usize) {
    let gone = || world.host(n).templates().is_empty().then_some(());
    eventually("every template is deleted", gone);
}

#[test]
fn a_teams_key_creates_minimal_and_its_own_template() {
    let world = World::new(2);
    let own = team(7);
    let api = api_of(&world, own);
    add(&world, "python3.12", own, &[1]);
    add(&world, "shared", team(0), &[0, 1]);
    let minimal = running(&api, "minimal");
    assert_eq!(minimal["team_id"], own.to_string());
    let python = running(&api, "python3.12");
    assert_eq!(python["host_id"], world.host_id(1), "the other host does not have it");
    let sizes = (&python["vcpus"], &python["memory_mb"], &python["disk_size_mb"]);
    assert_eq!(sizes, (&json!(2), &json!(768), &json!(5120)));
    running(&api, "shared");
    // What an agent resumes it has on its disk.
    api.begin(id_of(&python), "pause", "pausing");
    api.until(id_of(&python), "paused");
    api.begin(id_of(&python), "resume", "resuming");
    api.until(id_of(&python), "running");
    world.end(&[]);
}

#[test]
fn a_template_that_its_host_does_not_have_fails_in_the_agents_words() {
    let world = World::new(1);
    let wanted = json!({"name": "nowhere", "id": TemplateId::from_u128(9).to_uuid()});
    assert_eq!(world.api.ask("POST", "/v1/templates", &wanted).0, 201);
    let (code, capsule) = world.api.create(&json!({"template": "nowhere"}));
    assert_eq!(code, 202, "{capsule}");
    let failed = world.api.until(id_of(&capsule), "error");
    let detail = failed["status_detail"].as_str().unwrap();
    assert!(detail.contains("base rootfs not found"), "{detail}");
    world.end(&[]);
}

#[test]
fn an_unknown_template_creates_nothing() {
    let world = World::new(1);
    let api = api_of(&world, team(7));
    add(&world, "python3.12", team(8), &[0]);
    add(&world, "node", team(7), &[0]);
    for name in ["python3.12", "no-such-thing", "Minimal", "tmpl-0000000000000000000000009"] {
        let (code, message) = refusal(api.create(&json!({"template": name})), 404);
        assert_eq!(code, "template_not_found", "{name}");
        assert!(
            message.contains(name) && message.contains("available: minimal, node"),
            "{message}"
        );
    }
    let (_, all) = world.api.ask("GET", "/v1/capsules?all=true", &Value::Null);
    assert_eq!((all, world.host(0).calls(Method::Create)), (json!([]), 0));
    world.end(&[]);
}

#[test]
fn without_a_host_that_has_it_there_is_no_capsule() {
    let world = World::new(2);
    add(&world, "python3.12", team(0), &[1]);
    let drain = format!("/v1/hosts/{}/drain", world.host_id(1));
    assert_eq!(world.api.ask("POST", &drain, &Value::Null).0, 200);
    let (code, message) = refusal(world.api.create(&json!({"template": "python3.12"})), 503);
    assert_eq!(code, "no_hosts_available");
    assert!(message.contains("python3.12"), "{message}");
    running(&world.api, "minimal");
    world.end(&[]);
}

#[test]
fn a_snapshot_makes_a_template_whatever_becomes_of_its_capsule() {
    let cases = [
        (OLDER, "running", ("stopped", "snapshotted")),
        (OLDER, "paused", ("stopped", "snapshotted")),
        (NEWER, "running", ("running", "operation_succeeded")),
        (NEWER, "paused", ("paused", "operation_succeeded")),
    ];
    for (habits, from, (to, reason)) in cases {
        let world = World::with(1, habits, &[]);
        let api = api_of(&world, team(7));
        let capsule = running(&api, "minimal");
        let id = id_of(&capsule);
        if from == "paused" {
            api.begin(id, "pause", "pausing");
            api.until(id, "paused");
        }
        let (code, made) = snapshot(&api, id, "with-deps");
        assert_eq!(code, 201, "{from}: {made}");
        let said = [&made["name"], &made["type"], &made["platform"], &made["memory_mb"]];
        assert_eq!(said, [&json!("with-deps"), &json!("snapshot"), &json!(false), &json!(512)]);
        assert!(made["size_bytes"].as_u64().unwrap() > 1 << 20, "{made}");
        assert_eq!(made["hosts"], json!([world.host_id(0)]));
        let left = api.capsule(id);
        assert_eq!((&left["status"], &left["status_reason"]), (&json!(to), &json!(reason)));

        let fresh = running(&api, "with-deps");
        assert_eq!(fresh["template"], "with-deps");
        let (code, _) = refusal(world.api.create(&json!({"template": "with-deps"})), 404);
        assert_eq!(code, "template_not_found", "another team's");
        // Older agents take a template from under its sandboxes: they have to go first.
        assert_eq!(delete(&api, "with-deps").0, 204);
        assert_eq!(names(&api), ["minimal"]);
        assert_eq!(world.host(0).templates().len(), 1, "a capsule needs it");
        assert_eq!(api.wish(id_of(&fresh), "destroy").0, 202);
        api.until(id_of(&fresh), "stopped");
        until_erased(&world, 0);
        world.end(&[]);
    }
}

#[test]
fn a_name_is_taken_until_it_is_replaced_or_deleted() {
    let world = World::with(1, NEWER, &[]);
    let api = api_of(&world, team(7));
    let capsule = running(&api, "minimal");
    let id = id_of(&capsule);
    let (_, first) = snapshot(&api, id, "deps");
    let (code, message) = refusal(snapshot(&api, id, "deps"), 409);
    assert_eq!(code, "template_exists");
    assert!(message.contains("overwrite=true"), "{message}");
    let wanted = json!({"sandbox_id": id, "name": "deps"});
    let (code, second) = api.ask("POST", "/v1/snapshots?overwrite=true", &wanted);
    assert_eq!(code, 201, "{second}");
    assert_ne!(first["id"], second["id"]);
    assert_eq!(names(&api), ["minimal", "deps"]);
    let uuid = |template: &Value| {
        let id: TemplateId = template["id"].as_str().unwrap().parse().unwrap();
        id.to_uuid()
    };
    let only_second = || {
        let found = world.host(0).templates();
        (found == [(team(7).to_uuid(), uuid(&second))]).then_some(())
    };
    eventually("the first is deleted", only_second);
    // Without a name it is called after its template and the moment.
    let (code, third) = api.ask("POST", "/v1/snapshots", &json!({"sandbox_id": id}));
    assert_eq!(code, 201, "{third}");
    assert!(third["name"].as_str().unwrap().starts_with("minimal-20"), "{third}");
    assert_eq!(api.capsule(id)["status"], "running");
    world.end(&[]);
}

#[test]
fn a_snapshot_that_fails_says_why_and_leaves_nothing() {
    let world = World::with(1, NEWER, &[]);
    let api = api_of(&world, team(7));
    let capsule = running(&api, "minimal");
    let id = id_of(&capsule);
    let fails = AnswerFault::Refused(ConnectCode::Internal);
    world.fault(0, Faults::answering_to(Method::CreateSnapshot, fails));
    let (code, message) = refusal(snapshot(&api, id, "deps"), 502);
    assert_eq!(code, "agent_error");
    assert!(message.contains("as simulated"), "{message}");
    assert_eq!(
        (names(&api), api.capsule(id)["status"].as_str()),
        (vec!["minimal".into()], Some("running"))
    );
    world.fault(0, Faults::default());
    assert_eq!(snapshot(&api, id, "deps").0, 201, "the name is free");
    world.end(&[]);
}

#[test]
fn who_may_snapshot_and_delete() {
    let world = World::with(1, NEWER, &[]);
    let (own, other) = (api_of(&world, team(7)), api_of(&world, team(8)));
    let capsule = running(&own, "minimal");
    let id = id_of(&capsule);
    assert_eq!(refusal(snapshot(&other, id, "deps"), 404).0, "not_found");
    assert_eq!(snapshot(&own, id, "deps").0, 201);
    assert_eq!(refusal(delete(&other, "deps"), 404).0, "template_not_found");
    add(&world, "shared", team(0), &[0]);
    assert_eq!(refusal(delete(&own, "shared"), 403).0, "forbidden");
    assert_eq!(refusal(delete(&world.api, "shared"), 409).0, "not_a_snapshot");
    assert_eq!(names(&other), ["minimal", "shared"]);
    assert_eq!(delete(&world.api, "deps").0, 204, "an operator deletes what is there once");
    world.end(&[]);
}

#[test]
fn a_template_is_kept_while_a_capsule_is_being_made_from_it() {
    let world = World::with(1, NEWER, &[]);
    let capsule = running(&world.api, "minimal");
    assert_eq!(snapshot(&world.api, id_of(&capsule), "deps").0, 201);
    world.host(0).set_habits(Habits { create_takes: FOREVER, ..NEWER });
    let (_, starting) = world.api.create(&json!({"template": "deps"}));
    let (code, answer) = delete(&world.api, "deps");
    assert_eq!((code, &answer["error"]["code"]), (409, &json!("template_in_use")));
    assert_eq!(answer["error"]["sandbox_ids"], json!([starting["id"]]));
    world.wait_called(0, Method::Create, id_of(&starting), 1);
    world.host(0).set_habits(NEWER);
    world.api.until(id_of(&starting), "running");
    assert_eq!(delete(&world.api, "deps").0, 204);
    world.end(&[]);
}

#[test]
fn a_deletion_survives_refusals_and_kills() {
    let mut world = World::with(2, NEWER, &[]);
    let capsule = running(&world.api, "minimal");
    assert_eq!(snapshot(&world.api, id_of(&capsule), "deps").0, 201);
    let n = usize::from(capsule["host_id"] != world.host_id(0));
    let refuses = AnswerFault::Refused(ConnectCode::Internal);
    world.fault(n, Faults::answering_to(Method::DeleteSnapshot, refuses));
    assert_eq!(delete(&world.api, "deps").0, 204);
    assert!(world.host(n).wait_calls(Method::DeleteSnapshot, 2, PATIENCE), "asked again");
    assert_eq!(world.metric("roost_templates_to_delete"), 1);
    world.kill();
    world.fault(n, Faults::default());
    world.start();
    until_erased(&world, n);
    let recorded = || (world.metric("roost_templates_to_delete") == 0).then_some(());
    eventually("nothing is left to delete", recorded);
    assert_eq!(world.host(1 - n).calls(Method::DeleteSnapshot), 0, "it never had it");
    world.end(&[]);
}

#[test]
fn a_snapshot_survives_an_orderly_restart() {
    let habits = Habits { snapshot_takes: FOREVER, ..OLDER };
    let mut world = World::with(1, habits, &[]);
    let capsule = running(&world.api, "minimal");
    let id = id_of(&capsule).to_owned();
    let (api, of) = (world.api.clone(), id.clone());
    let waiting = std::thread::spawn(move || snapshot(&api, &of, "deps"));
    world.wait_called(0, Method::CreateSnapshot, &id, 1);
    let (code, again) = snapshot_status(&world.api, &id);
    assert_eq!((code, again.as_str()), (200, "pausing"));
    world.begin_stop();
    let (code, answer) = waiting.join().unwrap();
    assert_eq!((code, &answer["status"]), (202, &json!("pausing")), "{answer}");
    world.host(0).set_habits(OLDER);
    world.stopped();
    world.start();
    world.api.until_because(&id, "stopped", "snapshotted");
    assert_eq!(names(&world.api), ["minimal", "deps"]);
    assert_eq!(world.state(&id), None::<SimState>);
    running(&world.api, "deps");
    world.end(&[]);
}

fn snapshot_status(api: &Api, id: &str) -> (u16, String) {
    let (code, capsule) = api.ask("GET", &format!("/v1/capsules/{id}"), &Value::Null);
    (code, capsule["status"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn with_its_last_host_a_template_is_gone() {
    let world = World::with(2, NEWER, &[]);
    let capsule = running(&world.api, "minimal");
    assert_eq!(snapshot(&world.api, id_of(&capsule), "deps").0, 201);
    add(&world, "both", team(0), &[0, 1]);
    let path = format!("/v1/hosts/{}?force=true", capsule["host_id"].as_str().unwrap());
    assert_eq!(world.api.ask("DELETE", &path, &Value::Null).0, 204);
    assert_eq!(names(&world.api), ["minimal", "both"]);
    let left = running(&world.api, "both");
    assert_ne!(left["host_id"], capsule["host_id"]);
}
