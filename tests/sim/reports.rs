//! What simulated agents report, to whom it gets, and how often they try.

use crate::heartbeats::{HEARTBEAT, REFRESH, Stub, TOKEN, empty, registered};
use crate::world::{FOREVER, LONG, NOW, World, code, new_id, newer, world_with};
use roost::agent::wire::{ConnectCode, Method};
use roost::http::Response;
use roost::sim::{
    AnswerFault, Faults, Habits, HeartbeatFault, Heartbeats, Initially, Report, ReportEvent,
    ReportFault, Reported, SimHost, SimState,
};
use std::time::{Duration, Instant};

fn newer_world() -> World {
    world_with(1, 2, Initially::Running, newer())
}

fn events(host: &SimHost) -> Vec<ReportEvent> {
    host.take_reports().iter().map(|report: &Report| report.event).collect()
}

/// What the agent says when it reports that a sandbox was paused.
fn auto_paused(world: &World, token: &str) -> String {
    let (id, host) = (world.first(0), "host-0000000000000000000000001");
    let at = NOW.unix_seconds();
    format!(
        r#"POST /v1/hosts/sandbox-events {token} {{"event":"sandbox.auto_paused","sandbox_id":"{id}","host_id":"{host}","timestamp":{at}}}"#
    )
}

#[test]
fn each_event_is_reported_by_agents_that_report() {
    type Happens = fn(&World) -> bool;
    let refuse = |world: &World, method| {
        let fault = Faults::answering_to(method, AnswerFault::Refused(ConnectCode::Internal));
        world.fleet.set_faults(0, fault).unwrap();
    };
    let cases: [(ReportEvent, Happens); 7] = [
        (ReportEvent::AutoPaused, |world| world.host(0).auto_pause(world.first(0))),
        (ReportEvent::Stopped, |world| world.host(0).give_up(world.first(0))),
        (ReportEvent::Error, |world| world.host(0).fail(world.first(0))),
        (ReportEvent::Error, |world| world.host(0).lose(world.first(0))),
        (ReportEvent::PauseFailed, |world| world.pause(0, world.first(0)).is_err()),
        (ReportEvent::ResumeFailed, |world| world.resume(0, world.first(0)).is_err()),
        (ReportEvent::AutoPaused, |world| {
            world.host(0).lose(world.host(0).sandboxes()[1].0);
            world.host(0).take_reports();
            world.host(0).pause_all() == 1
        }),
    ];
    for (event, happens) in cases {
        for (habits, expected) in [(newer(), vec![event]), (Habits::default(), vec![])] {
            let world = world_with(1, 2, Initially::Running, habits);
            match event {
                ReportEvent::PauseFailed => refuse(&world, Method::Pause),
                ReportEvent::ResumeFailed => refuse(&world, Method::Resume),
                ReportEvent::AutoPaused | ReportEvent::Stopped | ReportEvent::Error => {}
            }
            assert!(happens(&world), "{event}");
            assert_eq!(events(world.host(0)), expected, "{event}");
        }
    }
}

#[test]
fn a_newer_agent_that_shuts_down_reports_what_it_pauses() {
    let world = newer_world();
    world.host(0).shut_down(FOREVER).unwrap();
    assert_eq!(events(world.host(0)), [ReportEvent::AutoPaused; 2]);
}

#[test]
fn an_agent_that_reports_and_lists_paused_sandboxes_announces_none() {
    for (habits, announced) in [
        (Habits::default(), 1),
        (Habits { lists_paused: true, ..Habits::default() }, 1),
        (Habits { reports: true, ..Habits::default() }, 1),
        (newer(), 0),
    ] {
        let world = world_with(1, 2, Initially::Running, habits);
        world.host(0).auto_pause(world.first(0));
        world.clock.advance(LONG);
        assert_eq!(world.list(0).auto_paused.len(), announced, "{habits:?}");
    }
}

#[test]
fn a_refusal_says_why_in_the_report() {
    let world = newer_world();
    let id = world.first(0);
    world.host(0).fail(id);
    world.host(0).take_reports();
    assert_eq!(code(world.pause(0, id)), ConnectCode::Internal);
    assert_eq!(code(world.resume(0, id)), ConnectCode::Internal);
    // Nothing is there to have failed.
    assert_eq!(code(world.resume(0, new_id())), ConnectCode::NotFound);
    let reports = world.host(0).take_reports();
    let reports: Vec<_> = reports.iter().map(|r| (r.event, r.sandbox, r.error.clone())).collect();
    let not_running = format!("sandbox {id} is not running (status: error)");
    let not_paused = format!("sandbox {id} is not paused (status: error)");
    assert_eq!(
        reports,
        [(ReportEvent::PauseFailed, id, not_running), (ReportEvent::ResumeFailed, id, not_paused),]
    );
    assert_eq!(world.host(0).state(id), Some(SimState::Error));
}

#[test]
fn a_report_is_sent_until_it_is_accepted_and_three_times_at_most() {
    for (answers, sent) in [
        (vec![empty(204)], 1),
        (vec![empty(202)], 1),
        (vec![empty(503), empty(204)], 2),
        (vec![Response::cut(), empty(400), empty(503)], 3),
    ] {
        let world = newer_world();
        let stub = Stub::saying(answers);
        world.host(0).auto_pause(world.first(0));
        let began = Instant::now();
        stub.beater().send_reports(world.host(0));
        assert_eq!(stub.asked(), vec![auto_paused(&world, "token-1"); sent]);
        let pauses = [0, 500, 1500][sent - 1];
        assert!(began.elapsed() >= Duration::from_millis(pauses), "{:?}", began.elapsed());
        assert_eq!(world.host(0).take_reports(), []);
    }
}

#[test]
fn a_refused_token_is_renewed_before_the_next_try() {
    for status in [401, 403] {
        let world = newer_world();
        let stub = Stub::saying(vec![empty(status), registered(200), empty(204)]);
        world.host(0).auto_pause(world.first(0));
        stub.beater().send_reports(world.host(0));
        let expected =
            [auto_paused(&world, "token-1"), REFRESH.to_owned(), auto_paused(&world, TOKEN)];
        assert_eq!(stub.asked(), expected);
    }
    // Other than for a heartbeat, a renewal that fails ends nothing.
    let world = newer_world();
    let stub = Stub::saying(vec![empty(401), empty(401), empty(204)]);
    world.host(0).auto_pause(world.first(0));
    let mut beater = stub.beater();
    let reports = world.host(0).take_reports();
    assert_eq!(beater.report(world.host(0), &reports[0]), Reported::Refused(401));
    assert_eq!(beater.report(world.host(0), &reports[0]), Reported::Accepted);
    assert!(!beater.is_over());
}

#[test]
fn reports_are_lost_or_late_as_a_fault() {
    let world = newer_world();
    let reporting = |reports| Faults { reports, ..Faults::default() };
    world.fleet.set_faults(0, reporting(ReportFault::Lost)).unwrap();
    world.host(0).auto_pause(world.first(0));
    assert_eq!(world.host(0).take_reports(), []);
    assert_eq!(world.host(0).state(world.first(0)), Some(SimState::Paused));

    let world = newer_world();
    let late = Duration::from_millis(300);
    world.fleet.set_faults(0, reporting(ReportFault::Late(late))).unwrap();
    let (stub, began) = (Stub::saying(vec![empty(204)]), Instant::now());
    world.host(0).auto_pause(world.first(0));
    world.clock.advance(LONG);
    stub.beater().send_reports(world.host(0));
    assert!(began.elapsed() >= late);
    assert_eq!(stub.asked(), [auto_paused(&world, "token-1")], "with the time of the pause");

    let world = newer_world();
    world.fleet.set_faults(0, Faults::beating(HeartbeatFault::CutOff)).unwrap();
    let stub = Stub::saying(vec![]);
    world.host(0).auto_pause(world.first(0));
    let reports = world.host(0).take_reports();
    assert_eq!(stub.beater().report(world.host(0), &reports[0]), Reported::Unanswered);
    assert_eq!(stub.asked(), Vec::<String>::new());
}

#[test]
fn a_crash_loses_what_was_not_sent() {
    let world = newer_world();
    world.host(0).auto_pause(world.first(0));
    world.host(0).restart();
    assert_eq!(world.host(0).take_reports(), []);
}

#[test]
fn the_thread_of_the_heartbeats_sends_reports_too() {
    let world = newer_world();
    // One that happens before the host is enrolled, and two after; the second is refused.
    let answers = [204, 204, 503, 204, 204, 204];
    let stub = Stub::saying(answers.map(empty).into());
    world.host(0).auto_pause(world.first(0));
    let heartbeats = Heartbeats::start(FOREVER).unwrap();
    heartbeats.enrol(world.host(0).clone(), stub.beater());
    stub.wait_asked(2);
    let other = world.host(0).sandboxes()[1].0;
    world.host(0).fail(other);
    world.host(0).give_up(other);
    stub.wait_asked(5);
    let asked = stub.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!(count(HEARTBEAT), 1, "{asked:?}");
    assert_eq!(count("sandbox.auto_paused"), 1, "{asked:?}");
    assert_eq!(count("sandbox.error") + count("sandbox.stopped"), 3, "{asked:?}");
    assert_eq!(count(&other.to_string()), 3, "{asked:?}");
    drop(heartbeats);
    // The thread is gone; the host is not, and happens to report again.
    world.host(0).pause_all();
}
