//! Simulated hosts behave as documented: seen through the control plane's own client over
//! real sockets, and through a control plane that answers what it is told to.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(unreachable_pub, reason = "each file uses its part of what is shared")]

#[path = "sim/command.rs"]
mod command;
#[path = "sim/heartbeats.rs"]
mod heartbeats;
#[path = "sim/orphans.rs"]
mod orphans;
#[path = "sim/refusals.rs"]
mod refusals;
#[path = "sim/reports.rs"]
mod reports;
#[path = "sim/restarts.rs"]
mod restarts;
#[path = "sim/templates.rs"]
mod templates;
#[path = "sim/world.rs"]
mod world;

use flate2::read::GzDecoder;
use roost::agent::client::CallError;
use roost::agent::wire::{ConnectCode, Method};
use roost::model::id::SandboxId;
use roost::model::probe::{FailureKind, ListedState, Listing, Probe};
use roost::model::sandbox::SandboxStatus;
use roost::sim::{AnswerFault, Faults, Habits, Initially, SimState};
use roost::store::fixture;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use world::{FOREVER, LONG, NOW, code, new_id, world, world_with};

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
