//! What becomes of a call whose caller disconnects before the agent is done.

use crate::world::{
    FOREVER, LONG, TEAM, TEMPLATE, World, answer, begin, new_id, newer, world_with,
};
use roost::agent::wire::Method;
use roost::sim::{Faults, Habits, Initially, ReportEvent, SimState};
use std::net::{Shutdown, TcpStream};

/// A call that takes long: from which state, what the sandbox does meanwhile, and what there
/// is when it is done.
struct Case {
    method: Method,
    before: Option<SimState>,
    during: Option<SimState>,
    done: Option<SimState>,
}

const CASES: [Case; 7] = [
    Case {
        method: Method::Create,
        before: None,
        during: Some(SimState::Creating),
        done: Some(SimState::Running),
    },
    Case {
        method: Method::Pause,
        before: Some(SimState::Running),
        during: Some(SimState::Pausing),
        done: Some(SimState::Paused),
    },
    Case {
        method: Method::Resume,
        before: Some(SimState::Paused),
        during: Some(SimState::Resuming),
        done: Some(SimState::Running),
    },
    Case {
        method: Method::Destroy,
        before: Some(SimState::Running),
        during: Some(SimState::Running),
        done: None,
    },
    Case {
        method: Method::Destroy,
        before: Some(SimState::Paused),
        during: Some(SimState::Paused),
        done: None,
    },
    Case {
        method: Method::CreateSnapshot,
        before: Some(SimState::Running),
        during: Some(SimState::Pausing),
        done: Some(SimState::Running),
    },
    Case {
        method: Method::CreateSnapshot,
        before: Some(SimState::Paused),
        during: Some(SimState::Paused),
        done: Some(SimState::Paused),
    },
];

impl Case {
    /// Begins the call and waits until the agent works on it.
    fn begun(&self, world: &World) -> TcpStream {
        let host = world.host(0);
        if let Some(state) = self.before {
            host.put(new_id(), state, LONG);
        }
        let slow = Habits {
            create_takes: FOREVER,
            pause_takes: FOREVER,
            resume_takes: FOREVER,
            destroy_takes: FOREVER,
            snapshot_takes: FOREVER,
            ..host.habits()
        };
        host.set_habits(slow);
        let template = if self.method == Method::CreateSnapshot {
            format!(r#","teamId":"{TEAM}","templateId":"{TEMPLATE}""#)
        } else {
            String::new()
        };
        let body = format!(r#"{{"sandboxId":"{}"{template}}}"#, new_id());
        let stream = begin(host.agent_address().as_str(), self.method.as_str(), &body);
        assert!(host.wait_calls(self.method, 1, LONG));
        assert!(host.wait_state(new_id(), self.during, LONG));
        stream
    }

    fn templates(&self, done: bool) -> usize {
        usize::from(done && self.method == Method::CreateSnapshot)
    }
}

/// The caller leaves; it still hears whether the agent closes the connection or answers.
fn leave(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn what_loses_its_caller_is_undone() {
    for habits in [Habits::default(), newer()] {
        for case in &CASES {
            let world = world_with(1, 0, Initially::Running, habits);
            let stream = case.begun(&world);
            leave(&stream);
            assert_eq!(answer(stream), None, "{}", case.method);
            world.host(0).set_habits(habits);
            assert_eq!(world.host(0).state(new_id()), case.before, "{}", case.method);
            assert_eq!(world.host(0).templates().len(), case.templates(false));
        }
    }
}

#[test]
fn a_destroy_that_loses_its_caller_may_be_done() {
    let habits = Habits { finishes_destroys: true, ..Habits::default() };
    for case in CASES.iter().filter(|case| case.method == Method::Destroy) {
        let world = world_with(1, 0, Initially::Running, habits);
        let stream = case.begun(&world);
        leave(&stream);
        assert_eq!(answer(stream), None);
        assert_eq!(world.host(0).state(new_id()), None);
    }
}

#[test]
fn what_loses_its_caller_is_finished_as_a_fault() {
    for case in &CASES {
        let world = world_with(1, 0, Initially::Running, newer());
        world.fleet.set_faults(0, Faults { finishes_orphans: true, ..Faults::default() }).unwrap();
        let stream = case.begun(&world);
        leave(&stream);
        // A call that is over would not be there for the habits to change.
        world.host(0).set_habits(newer());
        let (status, _) = answer(stream).unwrap();
        assert_eq!((status, world.host(0).state(new_id())), (200, case.done), "{}", case.method);
        assert_eq!(world.host(0).templates().len(), case.templates(true));
    }
}

#[test]
fn a_call_that_has_not_begun_never_does() {
    for case in &CASES {
        let world = world_with(1, 0, Initially::Running, newer());
        world.fleet.set_faults(0, Faults::slow(FOREVER)).unwrap();
        if let Some(state) = case.before {
            world.host(0).put(new_id(), state, LONG);
        }
        let body = format!(r#"{{"sandboxId":"{}"}}"#, new_id());
        let at = world.host(0).agent_address().as_str();
        let stream = begin(at, case.method.as_str(), &body);
        assert!(world.host(0).wait_calls(case.method, 1, LONG));
        leave(&stream);
        assert_eq!(answer(stream), None);
        assert_eq!(world.host(0).state(new_id()), case.before);
    }
}

#[test]
fn a_caller_that_is_gone_altogether_is_noticed_too() {
    for case in CASES.iter().filter(|case| case.before != case.during) {
        let world = world_with(1, 0, Initially::Running, Habits::default());
        drop(case.begun(&world));
        assert!(world.host(0).wait_state(new_id(), case.before, LONG), "{}", case.method);
    }
}

#[test]
fn newer_agents_report_what_they_broke_off() {
    for (method, event) in
        [(Method::Pause, ReportEvent::PauseFailed), (Method::Resume, ReportEvent::ResumeFailed)]
    {
        let world = world_with(1, 0, Initially::Running, newer());
        let case = CASES.iter().find(|case| case.method == method).unwrap();
        let stream = case.begun(&world);
        leave(&stream);
        assert_eq!(answer(stream), None);
        let reports = world.host(0).take_reports();
        let reports: Vec<_> = reports.iter().map(|r| (r.event, r.error.as_str())).collect();
        assert_eq!(reports, [(event, "context canceled")]);
    }
}

/// Many calls that wait take no thread from those that do not.
#[test]
fn calls_that_wait_hold_up_no_other() {
    let world = world_with(2, 0, Initially::Running, Habits::default());
    world.host(0).set_habits(Habits { create_takes: FOREVER, ..Habits::default() });
    let at = world.host(0).agent_address().as_str();
    let waiting: Vec<TcpStream> = (1..=200_u128)
        .map(|n| {
            let id = roost::model::id::SandboxId::from_u128(n);
            begin(at, "CreateSandbox", &format!(r#"{{"sandboxId":"{id}"}}"#))
        })
        .collect();
    assert!(world.host(0).wait_calls(Method::Create, 200, LONG));
    assert_eq!((world.running(0), world.running(1)), (vec![], vec![]));
    drop(waiting);
    assert!((1..=200).all(|n| {
        let id = roost::model::id::SandboxId::from_u128(n);
        world.host(0).wait_state(id, None, LONG)
    }));
}
