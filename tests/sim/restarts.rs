//! What a simulated agent does when it restarts or shuts down, by whose clock it says so, and
//! how it lists what is broken.

use crate::world::{FOREVER, LONG, NOW, World, answer, begin, code, new_id, newer, world_with};
use roost::agent::client::CallError;
use roost::agent::wire::{ConnectCode, Method};
use roost::model::id::SandboxId;
use roost::model::probe::{FailureKind, ListedState, Listing};
use roost::sim::{Faults, Habits, Initially, SimState};
use std::time::Duration;

/// How long the agents of these tests take to read their disks.
const INDEX: Duration = Duration::from_secs(20);

/// Three sandboxes: one that runs, one that was paused by a call, one that the agent paused.
fn restarted(habits: Habits) -> (World, [SandboxId; 3]) {
    let world = world_with(1, 3, Initially::Running, habits);
    let ids: Vec<_> = world.host(0).sandboxes().into_iter().map(|(id, _)| id).collect();
    let ids @ [_, paused, auto_paused]: [SandboxId; 3] = ids.try_into().unwrap();
    world.pause(0, paused).unwrap();
    world.clock.advance(LONG);
    assert!(world.host(0).auto_pause(auto_paused));
    world.clock.advance(LONG);
    world.host(0).restart();
    (world, ids)
}

#[test]
fn an_agent_finds_nothing_before_it_has_read_its_disk() {
    for habits in [Habits::default(), newer()] {
        let (world, [ran, paused, _]) = restarted(Habits { index_takes: INDEX, ..habits });
        assert_eq!(world.list(0), Listing::default());
        assert!(world.resume(0, paused).unwrap_err().is_snapshot_gone());
        assert_eq!(code(world.pause(0, paused)), ConnectCode::Internal);
        assert_eq!(code(world.ping(0, paused)), ConnectCode::NotFound);
        assert_eq!(code(world.destroy(0, paused)), ConnectCode::NotFound);
        assert_eq!(world.host(0).state(paused), Some(SimState::Shelved), "it is all there");

        world.clock.advance(INDEX);
        world.resume(0, paused).unwrap();
        assert_eq!(world.running(0), [paused]);
        assert!(world.resume(0, ran).unwrap_err().is_snapshot_gone(), "what ran is gone");
    }
}

#[test]
fn only_a_newer_agent_lists_what_it_has_read_with_the_time_of_its_pause() {
    let (older, [_, paused, auto_paused]) = restarted(Habits::default());
    assert_eq!(older.list(0), Listing::default());
    older.destroy(0, paused).unwrap();
    older.resume(0, auto_paused).unwrap();
    assert_eq!(older.list(0).sandboxes[0].created_at_unix, NOW.unix_seconds() + 60);

    let (newer, [_, paused, auto_paused]) = restarted(Habits { index_takes: INDEX, ..newer() });
    assert_eq!(newer.list(0), Listing::default());
    newer.clock.advance(INDEX);
    let listed: Vec<_> =
        newer.list(0).sandboxes.iter().map(|s| (s.id, s.state, s.created_at_unix)).collect();
    let now = NOW.unix_seconds();
    assert_eq!(
        listed,
        [(paused, ListedState::Paused, now), (auto_paused, ListedState::Paused, now + 30),]
    );
    newer.resume(0, paused).unwrap();
    assert_eq!(newer.list(0).sandboxes[0].created_at_unix, now, "as before the resume");
    // Neither its address nor its versions were on the disk.
    let (_, listing) = newer.post("ListSandboxes", "{}");
    assert_eq!(listing.matches(r#""hostIp":"<nil>""#).count(), 1, "{listing}");
    assert_eq!(listing.matches("metadata").count(), 0, "{listing}");
}

#[test]
fn what_a_crash_interrupts_is_cut_and_not_finished() {
    let habits = Habits { create_takes: FOREVER, ..Habits::default() };
    let world = world_with(1, 0, Initially::Running, habits);
    std::thread::scope(|scope| {
        let created = scope.spawn(|| world.create(0, new_id()));
        assert!(world.host(0).wait_state(new_id(), Some(SimState::Creating), LONG));
        world.host(0).restart();
        let created = created.join().unwrap();
        assert!(matches!(created, Err(CallError::Unknown { .. })), "{created:?}");
    });
    assert_eq!(world.host(0).sandboxes(), []);
}

/// Whether a call was certainly not carried out because nothing listens.
fn is_refused_connection(result: Result<(), CallError>) -> bool {
    matches!(result, Err(CallError::NotReached { .. }))
}

#[test]
fn an_agent_that_shuts_down_refuses_all_but_listings_and_then_its_port() {
    for (habits, kept) in [(Habits::default(), false), (newer(), true)] {
        let world = world_with(1, 1, Initially::Running, habits);
        let (host, id) = (world.host(0), world.first(0));
        host.set_habits(Habits { create_takes: FOREVER, ..habits });
        let body = format!(r#"{{"sandboxId":"{}"}}"#, new_id());
        let creating = begin(host.agent_address().as_str(), "CreateSandbox", &body);
        assert!(host.wait_state(new_id(), Some(SimState::Creating), LONG));

        host.shut_down(FOREVER).unwrap();
        assert!(host.is_shutting_down());
        for refused in [
            world.create(0, SandboxId::from_u128(2)),
            world.pause(0, id),
            world.resume(0, id),
            world.ping(0, id),
            world.destroy(0, id),
            world.client.terminate(host.id(), host.agent_address(), LONG),
        ] {
            let expected = "refused, unavailable: sandbox host is shutting down";
            assert_eq!(refused.unwrap_err().to_string(), expected);
        }
        assert_eq!(world.running(0).len(), usize::from(!kept));
        // A call in progress continues.
        host.set_habits(habits);
        assert_eq!(answer(creating).unwrap().0, 200);

        host.shut_down(Duration::ZERO).unwrap();
        assert!(host.wait_exited(LONG));
        assert!(is_refused_connection(world.ping(0, id)));
        assert_eq!(world.failure(0), FailureKind::Unreachable);
        world.fleet.set_faults(0, Faults::default()).unwrap();
        assert!(is_refused_connection(world.ping(0, id)), "until it is started again");
        host.restart();
        let expected: &[_] = if kept { &[new_id(), id] } else { &[] };
        let listed: Vec<_> = world.list(0).sandboxes.iter().map(|s| s.id).collect();
        assert_eq!(listed, expected);
        assert_eq!(host.state(id), kept.then_some(SimState::Paused));
    }
}

#[test]
fn what_a_shutdown_leaves_is_cut() {
    let habits = Habits { pause_takes: FOREVER, ..Habits::default() };
    let world = world_with(1, 1, Initially::Running, habits);
    let (host, id) = (world.host(0), world.first(0));
    let body = format!(r#"{{"sandboxId":"{id}"}}"#);
    let pausing = begin(host.agent_address().as_str(), "PauseSandbox", &body);
    assert!(host.wait_state(id, Some(SimState::Pausing), LONG));
    host.shut_down(Duration::from_millis(10)).unwrap();
    assert_eq!(answer(pausing), None);
    assert_eq!(host.sandboxes(), []);
    assert_eq!(host.calls(Method::Pause), 1);
}

#[test]
fn a_restart_ends_a_shutdown() {
    let world = world_with(1, 1, Initially::Running, newer());
    let host = world.host(0);
    host.shut_down(FOREVER).unwrap();
    host.restart();
    assert!(!host.is_shutting_down());
    assert_eq!(world.list(0).sandboxes.len(), 1);
    world.resume(0, world.first(0)).unwrap();
}

#[test]
fn a_host_says_what_its_own_clock_says() {
    for skew_ms in [-2000, 0, 90_000] {
        let habits = Habits { clock_skew_ms: skew_ms, ..newer() };
        let world = world_with(1, 1, Initially::Running, habits);
        let now = NOW.unix_seconds() + skew_ms / 1000;
        assert_eq!(world.list(0).sandboxes[0].created_at_unix, now - 600);
        let id = world.first(0);
        world.ping(0, id).unwrap();
        let (_, listing) = world.post("ListSandboxes", "{}");
        assert!(listing.contains(&format!(r#""lastActiveAtUnix":"{now}""#)), "{listing}");
        world.create(0, new_id()).unwrap();
        let created = world.list(0).sandboxes.iter().find(|s| s.id == new_id()).cloned();
        assert_eq!(created.unwrap().created_at_unix, now);
        world.clock.advance(LONG);
        world.host(0).auto_pause(id);
        assert_eq!(world.host(0).take_reports()[0].at_unix, now + 30);
    }
}

#[test]
fn a_broken_sandbox_is_listed_as_error() {
    for habits in [Habits::default(), newer()] {
        let world = world_with(1, 2, Initially::Running, habits);
        let id = world.first(0);
        assert!(world.host(0).fail(id));
        assert!(!world.host(0).fail(id), "it is broken already");
        assert!(!world.host(0).fail(new_id()));
        let listed = world.list(0).sandboxes;
        let state = |id| listed.iter().find(|s| s.id == id).unwrap().state;
        assert_eq!(state(id), ListedState::Error);
        assert_eq!(listed.len(), 2);
        world.destroy(0, id).unwrap();
        assert_eq!(world.list(0).sandboxes.len(), 1);
    }
}
