//! Owns what was measured on real agents and once went wrong: one test for each incident,
//! as it happened.
//!
//! Never: tries a rule in every case; `plan` and the simulation do.

use super::slow;
use super::world::World;
use crate::support::{PATIENCE, eventually};
use roost::agent::wire::Method;
use roost::model::id::SandboxId;
use roost::sim::{Faults, Habits, HeartbeatFault, SimState};
use serde_json::{Value, json};
use std::time::Duration;

/// So many observations of host `n`, from now on.
fn observed(world: &World, n: usize, count: u64) {
    let before = world.host(n).calls(Method::List);
    assert!(world.host(n).wait_calls(Method::List, before + count, PATIENCE));
}

/// An agent that starts says that it has no snapshot until it has read its index, and then
/// lists the sandbox.
#[test]
fn an_agent_that_reads_its_index_for_long_keeps_its_snapshots() {
    let habits =
        Habits { lists_paused: true, index_takes: Duration::from_secs(30), ..Habits::default() };
    let flags = ["--zombies", "destroy", "--transient-grace", "1s"];
    let world = World::with(1, habits, &flags);
    let id = world.capsule("paused");
    world.host(0).restart();
    world.api.begin(&id, "resume", "resuming");
    // It says "no snapshot" twice, and was observed in between.
    world.api.until_within(&id, "stopped", PATIENCE);
    assert_eq!(world.api.capsule(&id)["status_reason"], "snapshot_gone");
    let back = world.api.until_within(&id, "paused", PATIENCE);
    assert_eq!(back["status_reason"], "listed_paused");
    observed(&world, 0, 3);
    assert_eq!(world.state(&id), Some(SimState::Paused));
    world.api.begin(&id, "resume", "resuming");
    world.api.until(&id, "running");
    world.end(&[]);
}

/// While Roost was stopped, in order and for seconds, an agent paused what it had and could
/// not report it.
#[test]
fn what_pauses_during_an_orderly_restart_is_not_taken_for_vanished() {
    let mut world = World::new(1);
    let id = world.capsule("running");
    observed(&world, 0, 2);
    world.stop();
    assert_eq!(world.host(0).pause_all(), 1);
    world.start();
    world.api.until_because(&id, "paused", "presumed_paused");
    world.api.begin(&id, "resume", "resuming");
    world.api.until(&id, "running");
    world.end(&[]);
}

/// The answer to a create comes when its host is long unreachable.
#[test]
fn an_answer_of_an_unreachable_host_makes_nothing_run() {
    let flags = ["--unreachable-after", "2s", "--startup-grace", "1s"];
    let world = World::with(1, slow(Method::Create), &flags);
    let id = world.capsule("starting");
    world.wait_called(0, Method::Create, &id, 1);
    world.fault(0, Faults::beating(HeartbeatFault::Silent));
    let path = format!("/v1/hosts/{}", world.host_id(0));
    let status = || world.api.ask("GET", &path, &Value::Null).1["status"].clone();
    eventually("an unreachable host", || (status() == "unreachable").then_some(()));
    world.host(0).set_habits(Habits::default());
    let missing = world.api.until(&id, "missing");
    assert_eq!(missing["status_reason"], "host_unreachable");
    world.fault(0, Faults::default());
    assert_eq!(world.beat(0), 204);
    world.api.until(&id, "running");
    // Its heartbeats are too rare for this server, so its end finds it either way.
    world.terminate();
}

/// A backup was taken during a create; the sandbox was paused later, and then the backup was
/// restored.
#[test]
fn what_was_starting_in_a_backup_can_be_resumed() {
    let mut world = World::with(1, slow(Method::Create), &["--transient-grace", "1s"]);
    let id = world.capsule("starting");
    world.wait_called(0, Method::Create, &id, 1);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    world.backup(&copy);
    world.host(0).set_habits(Habits::default());
    world.api.until(&id, "running");
    world.api.begin(&id, "pause", "pausing");
    world.api.until(&id, "paused");
    world.stop();
    world.restore(&copy);
    world.api.until_because(&id, "paused", "presumed_paused");
    world.api.begin(&id, "resume", "resuming");
    world.api.until(&id, "running");
    world.stop();
}

/// A notice of one host names a sandbox of another.
#[test]
fn a_notice_about_the_sandbox_of_another_host_costs_nothing() {
    let world = World::new(2);
    let id = world.capsule("running");
    let sandbox: SandboxId = id.parse().unwrap();
    let own = (0..2).find(|&n| world.host(n).state(sandbox).is_some()).unwrap();
    let other = 1 - own;
    world.host(other).put(sandbox, SimState::Running, Duration::from_secs(600));
    assert!(world.host(other).auto_pause(sandbox));
    eventually("a foreign notice", || {
        (world.metric("roost_foreign_notices_total") > 0).then_some(())
    });
    // Every host is probed once a second, and none more often.
    let before = world.host(own).calls(Method::List);
    observed(&world, other, 4);
    assert!(world.host(own).calls(Method::List) <= before + 7);
    assert_eq!(world.api.capsule(&id)["status"], "running");
    // Its own host is still believed about it.
    assert!(world.host(own).lose(sandbox) && world.host(other).lose(sandbox));
    world.api.until_because(&id, "stopped", "vanished");
    world.end(&[]);
}

/// What its host lists as failed was shown as running.
#[test]
fn what_its_host_lists_as_failed_has_failed() {
    let world = World::new(1);
    let id = world.capsule("running");
    assert!(world.host(0).fail(id.parse().unwrap()));
    world.api.until_because(&id, "error", "listed_error");
    world.api.begin(&id, "destroy", "stopping");
    world.api.until(&id, "stopped");
    world.end(&[]);
}

/// A pause that its agent refused again and again had its cause in the log only.
#[test]
fn the_agents_words_are_shown_wherever_a_failure_is() {
    let world = World::new(1);
    let id = world.capsule("running");
    let refused = roost::sim::AnswerFault::Refused(roost::agent::wire::ConnectCode::Internal);
    world.fault(0, Faults::answering_to(Method::Pause, refused));
    let failed = world.cli(&["sandboxes", "pause", &id, "--wait"]);
    assert_ne!(failed.code, 0);
    let capsule = world.api.until(&id, "running");
    let words = capsule["status_detail"].as_str().unwrap_or_default().to_owned();
    assert!(!words.is_empty(), "{capsule}");
    assert!(failed.stderr.contains(&words), "{}", failed.stderr);
    for command in [&["sandboxes", "list"][..], &["sandboxes", "show", &id], &["events"]] {
        let shown = world.cli(command).stdout;
        assert!(shown.contains(&words), "{command:?}: {shown}");
    }
    let audit = world.cli(&["audit", "--sandbox", &id, "--format", "json"]).stdout;
    assert!(audit.contains(&words), "{audit}");
    world.end(&[]);
}

/// A host moved while its pause was in progress: the call to the old address ends, and the
/// new address says what came of it.
#[test]
fn a_call_ends_when_its_host_moves() {
    let world = World::with(1, slow(Method::Pause), &[]);
    let id = world.capsule("running");
    let sandbox: SandboxId = id.parse().unwrap();
    world.api.begin(&id, "pause", "pausing");
    world.wait_called(0, Method::Pause, &id, 1);
    let moved = crate::support::sim_fleet(1, 0);
    let there = &moved.hosts()[0];
    there.put(sandbox, SimState::Running, Duration::from_secs(600));
    let path = format!("/v1/hosts/{}/token", world.host_id(0));
    let (code, token) = world.api.ask("POST", &path, &json!({}));
    assert!(code < 300, "{token}");
    let wanted = json!({"token": token["registration_token"],
        "address": there.address().to_string()});
    let (code, registered) = world.api.ask("POST", "/v1/hosts/register", &wanted);
    assert_eq!(code, 201, "{registered}");
    let began = std::time::Instant::now();
    world.api.until(&id, "paused");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(there.state(sandbox), Some(SimState::Paused));
}
