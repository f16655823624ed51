//! Owns the proof that lifecycle operations end well: the real `roost serve`, simulated
//! hosts that hang, refuse and drop calls, and servers that are killed in the middle.
//!
//! Never: a fixed port, a sleep to wait for something. `World::end` compares what the
//! hosts really have with what the database says, whatever a test was about.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "lifecycle/clients.rs"]
mod clients;
#[path = "lifecycle/incidents.rs"]
mod incidents;
mod support;
#[path = "lifecycle/world.rs"]
mod world;

use roost::agent::wire::{ConnectCode, Method};
use roost::model::id::SandboxId;
use roost::sim::{AnswerFault, Faults, Habits, SimState};
use serde_json::{Value, json};
use std::time::Duration;
use support::{PATIENCE, eventually};
use world::{World, refusal};

/// Most operations that six kills may have interrupted before the agent could say anything.
const INTERRUPTED_MAX: usize = 24;

/// Longer than any test: what takes so long does not end by itself.
const FOREVER: Duration = Duration::from_secs(3600);

/// Calls of this method take for ever.
fn slow(method: Method) -> Habits {
    let takes = |which: Method| if which == method { FOREVER } else { Duration::ZERO };
    Habits {
        create_takes: takes(Method::Create),
        pause_takes: takes(Method::Pause),
        resume_takes: takes(Method::Resume),
        ..Habits::default()
    }
}

/// What the agent of a fault says to calls of a method.
fn says(method: Method, code: ConnectCode) -> Faults {
    Faults::answering_to(method, AnswerFault::Refused(code))
}

#[test]
fn a_capsule_lives() {
    let world = World::new(1);
    let api = &world.api;
    let wanted = json!({"template": "minimal", "vcpus": 2, "memory_mb": 1024, "timeout_sec": 60,
        "disk_size_mb": 2048, "unheard_of": true});
    let (code, capsule) = api.create(&wanted);
    assert_eq!(code, 202, "{capsule}");
    assert_eq!(capsule["status"], "starting");
    assert_eq!(capsule["host_id"], world.host_id(0));
    for (name, value) in wanted.as_object().unwrap().iter().filter(|(k, _)| *k != "unheard_of") {
        assert_eq!(capsule[name], *value);
    }
    let id = capsule["id"].as_str().unwrap();

    let running = api.until(id, "running");
    assert_eq!(running["host_ip"], "10.11.0.2");
    assert_eq!(running["metadata"]["kernel_version"], "6.1.102");
    assert!(running["started_at"].is_string(), "{running}");
    assert_eq!(api.wish(id, "ping"), (204, Value::Null));

    api.begin(id, "pause", "pausing");
    api.until(id, "paused");
    assert_eq!(world.state(id), Some(SimState::Paused));
    api.begin(id, "resume", "resuming");
    let resumed = api.until(id, "running");
    assert_eq!(resumed["started_at"], running["started_at"], "it first ran then");
    api.begin(id, "destroy", "stopping");
    api.until_because(id, "stopped", "operation_succeeded");
    assert_eq!(world.state(id), None);

    let (_, listed) = api.ask("GET", "/v1/capsules", &Value::Null);
    assert_eq!(listed, json!([]));
    let (_, listed) = api.ask("GET", "/v1/capsules?all=true", &Value::Null);
    assert_eq!(listed[0]["id"], *id);
    let path = ["starting", "running", "pausing", "paused", "resuming", "running", "stopping"];
    assert_eq!(world.path(id), [&path[..], &["stopped"]].concat());
    let by_user: Vec<_> = world.audit(id).into_iter().filter(|e| e.0 != "system").collect();
    let of = |(_, action, status): (String, String, String)| (action, status);
    let expected = [
        ("create", "success"),
        ("pause", "success"),
        ("resume", "success"),
        ("destroy", "warning"),
    ];
    let expected = expected.map(|(action, status)| (action.to_owned(), status.to_owned()));
    assert_eq!(by_user.into_iter().map(of).collect::<Vec<_>>(), expected);
    let by_system = world.audit(id).into_iter().filter(|e| e.0 == "system").count();
    assert_eq!(by_system, 0, "a wish that comes true is audited once");
    world.end(&[]);
}

#[test]
fn a_create_has_defaults_and_names_what_is_wrong() {
    let world = World::new(1);
    let (code, capsule) = world.api.create(&json!({"template": "", "vcpus": null}));
    assert_eq!(code, 202, "{capsule}");
    let defaults = [
        ("template", json!("minimal")),
        ("vcpus", json!(1)),
        ("memory_mb", json!(512)),
        ("timeout_sec", json!(0)),
        ("disk_size_mb", json!(5120)),
    ];
    for (name, value) in defaults {
        assert_eq!(capsule[name], value, "{name}");
    }
    let wrong = [
        ("vcpus", json!({"vcpus": 0})),
        ("vcpus", json!({"vcpus": "two"})),
        ("vcpus", json!({"vcpus": 1.5})),
        ("memory_mb", json!({"memory_mb": 0})),
        ("memory_mb", json!({"memory_mb": -1})),
        ("memory_mb", json!({"memory_mb": 1u64 << 31})),
        ("timeout_sec", json!({"timeout_sec": -1})),
        ("disk_size_mb", json!({"disk_size_mb": true})),
        ("template", json!({"template": 7})),
        ("template", json!({"template": "x".repeat(5000)})),
        ("object", json!([])),
    ];
    for (field, body) in wrong {
        let (code, message) = refusal(world.api.create(&body), 400);
        assert_eq!(code, "invalid_request", "{body}");
        assert!(message.contains(field), "{body}: {message}");
    }
    let (status, _) = world.api.try_ask("POST", "/v1/capsules", "{").unwrap();
    assert_eq!(status, 400);
    world.api.until(capsule["id"].as_str().unwrap(), "running");
    world.end(&[]);
}

#[test]
fn without_a_fitting_host_there_is_no_capsule() {
    let world = World::new(0);
    let (code, message) = refusal(world.api.create(&json!({})), 503);
    assert_eq!(code, "no_hosts_available");
    assert!(message.contains("no host takes"), "{message}");
    world.end(&[]);

    let world = World::new(2);
    for body in [json!({"memory_mb": 70_000}), json!({"vcpus": 17})] {
        let (code, message) = refusal(world.api.create(&body), 503);
        assert_eq!(code, "no_hosts_available");
        assert!(message.contains("bigger than any host"), "{message}");
    }
    for _ in 0..2 {
        let (code, capsule) = world.api.create(&json!({"memory_mb": 60_000}));
        assert_eq!(code, 202);
        world.api.until(capsule["id"].as_str().unwrap(), "running");
    }
    let (_, message) = refusal(world.api.create(&json!({"memory_mb": 10_000})), 503);
    assert!(message.contains("full"), "{message}");
    world.end(&[]);
}

#[test]
fn capsules_go_where_there_is_most_room() {
    let world = World::new(3);
    let place = |body: Value| {
        let (code, capsule) = world.api.create(&body);
        assert_eq!(code, 202, "{capsule}");
        capsule["host_id"].as_str().unwrap().to_owned()
    };
    let heavy = place(json!({"memory_mb": 20_000}));
    let busy = place(json!({"vcpus": 16}));
    assert_ne!(heavy, busy);
    let hosts: Vec<String> = (0..3).map(|n| world.host_id(n)).collect();
    let free = hosts.iter().find(|host| **host != heavy && **host != busy).unwrap();
    // Memory on one and processors on the other are scarcer than anything on the third.
    for _ in 0..4 {
        assert_eq!(place(json!({"memory_mb": 1024})), *free);
    }
    eventually("all to run", || {
        let (_, listed) = world.api.ask("GET", "/v1/capsules?status=running", &Value::Null);
        (listed.as_array().unwrap().len() == 6).then_some(())
    });
    world.end(&[]);
}

/// A wish that the status does not allow is refused by naming the status.
fn refused_for(world: &World, id: &str, verbs: &[&str], status: &str) {
    for verb in verbs {
        let (code, message) = refusal(world.api.wish(id, verb), 409);
        assert_eq!(code, "invalid_state", "{verb}");
        assert!(message.contains(status), "{verb} while {status}: {message}");
    }
}

#[test]
fn a_status_allows_some_wishes_and_repeats_of_its_own() {
    let world = World::with(1, slow(Method::Create), &[]);
    let (api, host) = (&world.api, world.host(0));
    let id = &world.capsule("starting");
    refused_for(&world, id, &["pause", "resume", "ping"], "starting");
    host.set_habits(slow(Method::Pause));
    api.until(id, "running");
    refused_for(&world, id, &["resume"], "running");

    api.begin(id, "pause", "pausing");
    world.wait_called(0, Method::Pause, id, 1);
    api.begin(id, "pause", "pausing");
    refused_for(&world, id, &["resume", "ping"], "pausing");
    host.set_habits(slow(Method::Resume));
    api.until(id, "paused");
    refused_for(&world, id, &["pause", "ping"], "paused");

    api.begin(id, "resume", "resuming");
    world.wait_called(0, Method::Resume, id, 1);
    api.begin(id, "resume", "resuming");
    refused_for(&world, id, &["pause", "ping"], "resuming");
    host.set_habits(Habits::default());
    api.until(id, "running");

    world.fault(0, Faults { closed: true, ..Faults::default() });
    api.begin(id, "destroy", "stopping");
    api.begin(id, "destroy", "stopping");
    refused_for(&world, id, &["pause", "resume", "ping"], "stopping");
    world.fault(0, Faults::default());
    api.until(id, "stopped");
    refused_for(&world, id, &["pause", "resume", "ping"], "stopped");
    assert_eq!(api.wish(id, "destroy"), (204, Value::Null), "there is nothing left to do");
    let done = [Method::Create, Method::Pause, Method::Resume, Method::Destroy];
    assert_eq!(done.map(|method| host.calls_of(method, id.parse().unwrap())), [1; 4]);

    for unknown in [SandboxId::from_u128(7).to_string(), "cl-nonsense".to_owned()] {
        for verb in ["pause", "resume", "destroy", "ping"] {
            assert_eq!(refusal(api.wish(&unknown, verb), 404).0, "not_found");
        }
    }
    world.end(&[]);
}

#[test]
fn an_agent_that_cannot_be_asked_fails_a_ping() {
    let world = World::new(1);
    let id = &world.capsule("running");
    let faults = [
        Faults { closed: true, ..Faults::default() },
        says(Method::Ping, ConnectCode::Internal),
        Faults::answering_to(Method::Ping, AnswerFault::Dropped),
        Faults { only: Some(Method::Ping), ..Faults::slow(FOREVER) },
    ];
    for fault in faults {
        world.fault(0, fault);
        assert_eq!(refusal(world.api.wish(id, "ping"), 502).0, "agent_error", "{fault:?}");
        world.fault(0, Faults::default());
    }
    assert_eq!(world.api.wish(id, "ping").0, 204);
    world.end(&[]);
}

#[test]
fn a_destroy_is_possible_from_every_status() {
    let world = World::new(1);
    let api = &world.api;
    let destroy = |id: &str| {
        api.begin(id, "destroy", "stopping");
        api.until(id, "stopped");
        assert_eq!(world.state(id), None);
    };
    destroy(&world.capsule("running"));
    destroy(&world.capsule("paused"));

    world.fault(0, says(Method::Create, ConnectCode::Internal));
    let failed = world.capsule("starting");
    api.until_because(&failed, "error", "operation_failed");
    world.fault(0, Faults::default());
    destroy(&failed);

    // Overtaken in the middle: what was asked of the agent before must not come true later.
    let overtaken = [
        (Method::Create, "starting", ""),
        (Method::Pause, "running", "pause"),
        (Method::Resume, "paused", "resume"),
    ];
    for (method, status, verb) in overtaken {
        world.host(0).set_habits(Habits::default());
        let before = if method == Method::Create { None } else { Some(world.capsule(status)) };
        world.host(0).set_habits(slow(method));
        let id = before.unwrap_or_else(|| world.capsule(status));
        if !verb.is_empty() {
            assert_eq!(api.wish(&id, verb).0, 202);
        }
        world.wait_called(0, method, &id, 1);
        api.begin(&id, "destroy", "stopping");
        world.host(0).set_habits(Habits::default());
        api.until(&id, "stopped");
        assert_eq!(world.state(&id), None, "{method} was overtaken");
    }
    world.end(&[]);
}

#[test]
fn a_destroy_does_not_wait_for_a_call_that_hangs() {
    let world = World::new(1);
    for (method, status, verb) in
        [(Method::Pause, "running", "pause"), (Method::Resume, "paused", "resume")]
    {
        world.host(0).set_habits(Habits::default());
        let id = &world.capsule(status);
        world.host(0).set_habits(slow(method));
        assert_eq!(world.api.wish(id, verb).0, 202);
        world.wait_called(0, method, id, 1);
        world.api.begin(id, "destroy", "stopping");
        world.wait_state(id, None);
        if method == Method::Pause {
            // Nothing that was asked before can bring it back.
            world.api.until(id, "stopped");
        }
        world.host(0).set_habits(Habits::default());
        world.api.until(id, "stopped");
        assert_eq!(world.state(id), None);
    }
    world.end(&[]);
}

#[test]
fn of_two_wishes_at_once_one_wins() {
    let world = World::new(1);
    let at_once = |id: &str, verbs: &[&str]| -> Vec<u16> {
        let barrier = std::sync::Barrier::new(verbs.len());
        std::thread::scope(|scope| {
            let ask = |verb| {
                let (barrier, api) = (&barrier, world.api.clone());
                scope.spawn(move || {
                    barrier.wait();
                    api.wish(id, verb).0
                })
            };
            let asked: Vec<_> = verbs.iter().map(|verb| ask(*verb)).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        })
    };
    for round in 0..4 {
        world.host(0).set_habits(Habits::default());
        let id = &world.capsule("running");
        world.host(0).set_habits(slow(Method::Pause));
        let answers = at_once(id, &["pause", "resume", "pause", "resume"]);
        assert_eq!(answers, [202, 409, 202, 409], "round {round}");
        world.host(0).set_habits(slow(Method::Resume));
        world.api.until(id, "paused");
        let answers = at_once(id, &["pause", "resume", "pause", "resume"]);
        assert_eq!(answers, [409, 202, 409, 202], "round {round}");
        world.host(0).set_habits(Habits::default());
        world.api.until(id, "running");
        let called = [Method::Pause, Method::Resume]
            .map(|method| world.host(0).calls_of(method, id.parse().unwrap()));
        assert_eq!(called, [1, 1], "repeats are one operation");

        // A destroy wins in either order: a pause that came first is overtaken.
        let answers = at_once(id, &["pause", "destroy"]);
        assert!(matches!(answers[..], [202 | 409, 202]), "{answers:?}");
        world.api.until(id, "stopped");
        assert_eq!(world.state(id), None);
    }
    world.end(&[]);
}

#[test]
fn what_an_agent_refuses_changes_nothing_on_the_host() {
    let world = World::new(1);
    let api = &world.api;
    let id = &world.capsule("running");
    world.fault(0, says(Method::Pause, ConnectCode::Internal));
    api.begin(id, "pause", "pausing");
    api.until_because(id, "running", "operation_failed");
    assert_eq!(world.state(id), Some(SimState::Running));
    world.fault(0, Faults::default());
    api.begin(id, "pause", "pausing");
    api.until(id, "paused");

    for code in [ConnectCode::Internal, ConnectCode::FailedPrecondition] {
        world.fault(0, says(Method::Resume, code));
        api.begin(id, "resume", "resuming");
        api.until_because(id, "paused", "operation_failed");
    }
    world.fault(0, Faults::default());
    api.begin(id, "resume", "resuming");
    api.until(id, "running");
    let system: Vec<_> = world.audit(id).into_iter().filter(|e| e.0 == "system").collect();
    let error = ("system".to_owned(), "error".to_owned(), "error".to_owned());
    assert_eq!(system, vec![error; 3], "each failure once");

    // Gone from the host while we look away for a moment.
    api.begin(id, "pause", "pausing");
    api.until(id, "paused");
    assert!(world.host(0).lose(id.parse().unwrap()));
    api.begin(id, "resume", "resuming");
    api.until_because(id, "stopped", "snapshot_gone");
    assert_eq!(world.host(0).calls_of(Method::Resume, id.parse().unwrap()), 5, "asked twice");

    world.fault(0, says(Method::Create, ConnectCode::ResourceExhausted));
    let failed = &world.capsule("starting");
    api.until_because(failed, "error", "operation_failed");
    let detail = &api.capsule(failed)["status_detail"];
    assert!(detail.as_str().unwrap().contains("as simulated"), "the agent's words: {detail}");
    refused_for(&world, failed, &["pause", "resume", "ping"], "error");
    world.end(&[]);
}

/// Where a kind of operation begins and ends, with what is really there then.
struct Kind {
    method: Method,
    before: &'static str,
    verb: &'static str,
    during: &'static str,
    after: &'static str,
    state: Option<SimState>,
}

const KINDS: [Kind; 4] = [
    Kind {
        method: Method::Create,
        before: "",
        verb: "",
        during: "starting",
        after: "running",
        state: Some(SimState::Running),
    },
    Kind {
        method: Method::Pause,
        before: "running",
        verb: "pause",
        during: "pausing",
        after: "paused",
        state: Some(SimState::Paused),
    },
    Kind {
        method: Method::Resume,
        before: "paused",
        verb: "resume",
        during: "resuming",
        after: "running",
        state: Some(SimState::Running),
    },
    Kind {
        method: Method::Destroy,
        before: "running",
        verb: "destroy",
        during: "stopping",
        after: "stopped",
        state: None,
    },
];

impl Kind {
    /// Brings a capsule to where this begins, on a host that is well; none for a create.
    fn prepare(&self, world: &World) -> Option<String> {
        (!self.before.is_empty()).then(|| world.capsule(self.before))
    }

    /// Begins it on a prepared capsule.
    fn begin(&self, world: &World, prepared: Option<String>) -> String {
        let Some(id) = prepared else { return world.capsule(self.during) };
        world.api.begin(&id, self.verb, self.during);
        id
    }

    /// Everything that comes after shows that nothing is left half done.
    fn and_on(&self, world: &World, id: &str) {
        let rest: &[(&str, &str, &str)] = match self.after {
            "running" => &[("pause", "pausing", "paused"), ("destroy", "stopping", "stopped")],
            "paused" => &[("resume", "resuming", "running"), ("destroy", "stopping", "stopped")],
            _ => &[],
        };
        for (verb, during, after) in rest {
            world.api.begin(id, verb, during);
            world.api.until(id, after);
        }
    }
}

#[test]
fn an_answer_that_is_lost_is_found_by_looking() {
    for fault in [AnswerFault::Dropped, AnswerFault::Malformed] {
        let world = World::new(1);
        for kind in &KINDS {
            let prepared = kind.prepare(&world);
            world.fault(0, Faults::answering_to(kind.method, fault));
            let id = kind.begin(&world, prepared);
            if kind.method == Method::Destroy {
                // Asked for until an answer arrives.
                world.wait_called(0, kind.method, &id, 2);
                world.fault(0, Faults::default());
            }
            world.api.until(&id, kind.after);
            assert_eq!(world.state(&id), kind.state, "{} {fault:?}", kind.method);
            let calls = world.host(0).calls_of(kind.method, id.parse().unwrap());
            // A destroy may be asked for again; nothing else may.
            assert!(calls == 1 || kind.method == Method::Destroy, "{} {calls}", kind.method);
            world.fault(0, Faults::default());
            kind.and_on(&world, &id);
        }
        world.end(&[]);
    }
}

#[test]
fn an_answer_that_hangs_keeps_nobody_from_going_on() {
    let world = World::new(1);
    // What the host lists is believed before the agent says so, and holds up nothing later.
    for kind in KINDS.iter().filter(|kind| kind.after == "running") {
        let prepared = kind.prepare(&world);
        world.fault(0, Faults::answering_to(kind.method, AnswerFault::Held));
        let id = kind.begin(&world, prepared);
        world.wait_called(0, kind.method, &id, 1);
        let running = world.api.until(&id, "running");
        assert_eq!(running["status_reason"], "listed_running");
        assert!(running["host_ip"].is_string() && running["metadata"].is_object(), "{running}");
        assert!(running["started_at"].is_string(), "{running}");
        world.api.begin(&id, "pause", "pausing");
        world.fault(0, Faults::default());
        world.api.until(&id, "paused");
        world.api.begin(&id, "destroy", "stopping");
        world.api.until(&id, "stopped");
    }
    // The others wait for the answer, and end by it.
    for kind in KINDS.iter().filter(|kind| kind.after != "running") {
        let prepared = kind.prepare(&world);
        world.fault(0, Faults::answering_to(kind.method, AnswerFault::Held));
        let id = kind.begin(&world, prepared);
        world.wait_state(&id, kind.state);
        assert_eq!(world.api.capsule(&id)["status"], kind.during);
        world.fault(0, Faults::default());
        world.api.until(&id, kind.after);
        kind.and_on(&world, &id);
    }
    world.end(&[]);
}

#[test]
fn an_agent_that_cannot_be_reached_is_asked_when_it_can() {
    let world = World::new(1);
    for kind in KINDS.iter().filter(|kind| kind.method != Method::Create) {
        let prepared = kind.prepare(&world);
        world.fault(0, Faults { closed: true, ..Faults::default() });
        let id = kind.begin(&world, prepared);
        // The failing probes show that nobody listens.
        eventually("a failed probe", || {
            let path = format!("/v1/hosts/{}", world.host_id(0));
            let (_, host) = world.api.ask("GET", &path, &Value::Null);
            (host["last_probe"]["outcome"] == "unreachable").then_some(())
        });
        assert_eq!(world.api.capsule(&id)["status"], kind.during);
        world.fault(0, Faults::default());
        world.api.until(&id, kind.after);
        assert_eq!(world.state(&id), kind.state);
        assert_eq!(world.host(0).calls_of(kind.method, id.parse().unwrap()), 1);
        // A host whose probes fail is degraded: it gets no new capsules for a while.
        eventually("a host in order", || {
            let path = format!("/v1/hosts/{}", world.host_id(0));
            let (_, host) = world.api.ask("GET", &path, &Value::Null);
            (host["degraded"] == false).then_some(())
        });
        kind.and_on(&world, &id);
    }
    world.end(&[]);
}

/// What was certainly not carried out is placed elsewhere at once, or fails in seconds.
#[test]
fn a_create_that_a_host_does_not_take_goes_to_another_or_fails() {
    for faults in [
        Faults { closed: true, ..Faults::default() },
        says(Method::Create, ConnectCode::Unavailable),
        says(Method::Create, ConnectCode::ResourceExhausted),
    ] {
        let world = World::new(2);
        world.fault(0, faults);
        for _ in 0..4 {
            let id = world.capsule("starting");
            let capsule = world.api.until(&id, "running");
            assert_eq!(capsule["host_id"], world.host_id(1), "{faults:?}");
            assert_eq!(world.host(0).state(id.parse().unwrap()), None);
            let steps = world.path(&id);
            assert!(steps.len() <= 3, "moved at most once: {steps:?}");
        }
        let tried = world.host(0).calls(Method::Create);
        assert!(tried <= 1, "a host that refused is avoided: {tried}");

        world.fault(1, faults);
        let began = std::time::Instant::now();
        let id = world.capsule("starting");
        let failed = world.api.until(&id, "error");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert_eq!(failed["status_reason"], "operation_failed");
        assert!(failed["status_detail"].as_str().is_some_and(|why| !why.is_empty()), "{failed}");
        let entries = world.audit(&id);
        assert!(entries.iter().any(|e| e.1 == "error"), "{entries:?}");
        world.fault(0, Faults::default());
        world.fault(1, Faults::default());
        world.api.begin(&id, "destroy", "stopping");
        world.api.until(&id, "stopped");
        world.end(&[]);
    }
}

#[test]
fn a_sandbox_runs_again_only_where_there_is_room() {
    let world = World::new(1);
    let api = &world.api;
    let make = |memory_mb: u64| {
        let (code, capsule) = api.create(&json!({"memory_mb": memory_mb}));
        assert_eq!(code, 202, "{capsule}");
        let id = capsule["id"].as_str().unwrap().to_owned();
        api.until(&id, "running");
        id
    };
    let first = make(40_000);
    api.begin(&first, "pause", "pausing");
    api.until(&first, "paused");
    // A paused sandbox uses nothing.
    let second = make(40_000);
    let (code, message) = refusal(api.wish(&first, "resume"), 503);
    assert_eq!(code, "no_room");
    assert!(message.contains("25536 MiB of memory"), "{message}");
    assert_eq!(api.capsule(&first)["status"], "paused");
    api.begin(&second, "destroy", "stopping");
    api.until(&second, "stopped");
    api.begin(&first, "resume", "resuming");
    api.until(&first, "running");
    world.end(&[]);

    let world = World::with(1, Habits::default(), &["--memory-overcommit", "2"]);
    for _ in 0..2 {
        let (code, _) = world.api.create(&json!({"memory_mb": 60_000}));
        assert_eq!(code, 202, "promised twice");
    }
    assert_eq!(world.api.create(&json!({"memory_mb": 60_000})).0, 503);
}

/// A user's request is accepted wherever it can still matter.
#[test]
fn a_destroy_of_what_has_ended_is_recorded() {
    let world = World::with(1, Habits::default(), &["--transient-grace", "1s"]);
    let (api, host) = (&world.api, world.host(0));
    let id = world.capsule("running");
    let sandbox: SandboxId = id.parse().unwrap();
    let observed = || {
        let before = host.calls(Method::List);
        assert!(host.wait_calls(Method::List, before + 2, PATIENCE));
    };
    observed();
    assert!(host.lose(sandbox));
    // Contact is steady, so it has vanished.
    api.until_because(&id, "stopped", "vanished");
    host.put(sandbox, SimState::Running, Duration::from_secs(600));
    api.until_because(&id, "running", "adopted");
    observed();
    assert!(host.lose(sandbox));
    api.until(&id, "stopped");
    assert_eq!(api.wish(&id, "destroy").0, 204);
    assert_eq!(api.capsule(&id)["status_reason"], "requested");
    assert_eq!(api.wish(&id, "destroy").0, 204, "even twice");
    let destroys = world.audit(&id).iter().filter(|e| e.1 == "destroy").count();
    assert_eq!(destroys, 1, "recorded once");
    world.wait_called(0, Method::Destroy, &id, 1);
    // Listed again it is a zombie, and stays stopped.
    host.put(sandbox, SimState::Running, Duration::from_secs(600));
    observed();
    observed();
    assert_eq!(api.capsule(&id)["status"], "stopped");
    world.end(&[sandbox]);
}

#[test]
fn a_destroy_is_never_given_up() {
    let world = World::new(1);
    let id = &world.capsule("running");
    let faults = [
        says(Method::Destroy, ConnectCode::Internal),
        Faults::answering_to(Method::Destroy, AnswerFault::Severed),
        Faults::answering_to(Method::Destroy, AnswerFault::Refused(ConnectCode::Unavailable)),
    ];
    world.fault(0, faults[0]);
    world.api.begin(id, "destroy", "stopping");
    for (calls, fault) in (1..).zip(faults) {
        world.fault(0, fault);
        world.wait_called(0, Method::Destroy, id, calls);
        assert_eq!(world.api.capsule(id)["status"], "stopping");
        assert_eq!(world.state(id), Some(SimState::Running));
    }
    world.fault(0, Faults::default());
    world.api.until(id, "stopped");
    world.end(&[]);
}

#[test]
fn only_confirmed_zombies_are_destroyed() {
    let flags = ["--zombies", "destroy", "--transient-grace", "1s"];
    let world = World::with(2, Habits::default(), &flags);
    let running = world.capsule("running");
    let [unknown, paused] = [1, 2].map(SandboxId::from_u128);
    let old = Duration::from_secs(600);
    world.host(0).put(unknown, SimState::Running, old);
    // Not listed, so not known of.
    world.host(0).put(paused, SimState::Paused, old);
    assert!(world.host(0).wait_state(unknown, None, PATIENCE));

    // What a user had destroyed, and runs all the same.
    let destroyed = world.capsule("running");
    let on =
        (0..2).find(|&n| world.api.capsule(&destroyed)["host_id"] == world.host_id(n)).unwrap();
    world.api.begin(&destroyed, "destroy", "stopping");
    world.api.until(&destroyed, "stopped");
    world.host(on).put(destroyed.parse().unwrap(), SimState::Running, old);
    assert!(world.host(on).wait_state(destroyed.parse().unwrap(), None, PATIENCE));
    assert_eq!(world.api.capsule(&destroyed)["status"], "stopped");

    // What ended in any other way comes back.
    world.fault(0, says(Method::Create, ConnectCode::Internal));
    world.fault(1, says(Method::Create, ConnectCode::Internal));
    let failed = world.capsule("starting");
    world.api.until(&failed, "error");
    world.fault(0, Faults::default());
    world.fault(1, Faults::default());
    let on = (0..2).find(|&n| world.api.capsule(&failed)["host_id"] == world.host_id(n)).unwrap();
    world.host(on).put(failed.parse().unwrap(), SimState::Running, old);
    world.api.until_because(&failed, "running", "adopted");

    // A sandbox of another host is no zombie, wherever it runs.
    let home = (0..2).find(|&n| world.api.capsule(&running)["host_id"] == world.host_id(n));
    let other = 1 - home.unwrap();
    world.host(other).put(running.parse().unwrap(), SimState::Running, old);
    let before = world.host(other).calls(Method::List);
    assert!(world.host(other).wait_calls(Method::List, before + 4, PATIENCE));
    assert!(world.host(other).state(running.parse().unwrap()).is_some());
    assert!(world.host(other).lose(running.parse().unwrap()));
    assert_eq!(world.api.capsule(&running)["status"], "running");
    world.end(&[paused]);
}

/// Where the server is killed in the middle of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instant {
    /// The agent works on it and goes on.
    Working,
    /// The agent has done it and its answer is on its way.
    Done,
}

/// Ends the server in the middle of an operation and starts it again. The agent finishes what
/// it has begun, though its caller has left.
fn interrupted(instant: Instant, end: fn(&mut World)) {
    let finishes = Faults { finishes_orphans: true, ..Faults::default() };
    for kind in &KINDS {
        let mut world = World::new(1);
        let prepared = kind.prepare(&world);
        match instant {
            Instant::Working => {
                world.host(0).set_habits(slow(kind.method));
                world.fault(0, finishes);
            }
            Instant::Done => {
                world.fault(0, Faults::answering_to(kind.method, AnswerFault::Held));
            }
        }
        if instant == Instant::Working && kind.method == Method::Destroy {
            // Agents destroy in no time: let the call hang before it does anything.
            world.fault(0, Faults { delay: FOREVER, only: Some(kind.method), ..finishes });
        }
        let id = kind.begin(&world, prepared);
        world.wait_called(0, kind.method, &id, 1);
        if instant == Instant::Done {
            world.wait_state(&id, kind.state);
        }
        end(&mut world);
        world.start();
        world.host(0).set_habits(Habits::default());
        world.fault(0, finishes);
        world.api.until(&id, kind.after);
        assert_eq!(world.state(&id), kind.state, "{} {instant:?}", kind.method);
        // Sent again at most once, when two observations agree that it was not carried out.
        let calls = world.host(0).calls_of(kind.method, id.parse().unwrap());
        assert!(calls <= 2 || kind.method == Method::Destroy, "{} {calls}", kind.method);
        kind.and_on(&world, &id);
        world.end(&[]);
    }
}

#[test]
fn a_server_killed_while_the_agent_works_goes_on_when_it_is_started() {
    interrupted(Instant::Working, World::kill);
}

#[test]
fn a_server_killed_before_the_answer_arrives_finds_what_was_done() {
    interrupted(Instant::Done, World::kill);
}

/// An agent breaks a call off when its caller disconnects, so a stop waits for what is in
/// flight, begins nothing new, and goes on answering heartbeats.
#[test]
fn a_server_that_is_stopped_waits_for_calls_in_flight() {
    for kind in &KINDS {
        let mut world = World::new(1);
        let prepared = kind.prepare(&world);
        if kind.method == Method::Destroy {
            world.fault(0, Faults { only: Some(kind.method), ..Faults::slow(FOREVER) });
        } else {
            world.host(0).set_habits(slow(kind.method));
        }
        let id = kind.begin(&world, prepared);
        world.wait_called(0, kind.method, &id, 1);
        world.terminate();
        eventually("new work to be refused", || {
            (world.api.create(&json!({})).0 == 503).then_some(())
        });
        assert_eq!(world.beat(0), 204, "heartbeats are answered until the end");
        assert_eq!(world.api.capsule(&id)["status"], kind.during);
        world.host(0).set_habits(Habits::default());
        world.fault(0, Faults::default());
        world.wait_end();
        assert_eq!(world.state(&id), kind.state, "{}", kind.method);
        assert_eq!(world.rows()[&id.parse().unwrap()]["status"], kind.after);
        assert_eq!(world.host(0).calls_of(kind.method, id.parse().unwrap()), 1);
        world.start();
        kind.and_on(&world, &id);
        world.end(&[]);
    }
}

#[test]
fn a_second_signal_cuts_off_what_is_in_flight() {
    let mut world = World::new(1);
    let prepared = world.capsule("running");
    world.host(0).set_habits(slow(Method::Pause));
    world.api.begin(&prepared, "pause", "pausing");
    world.wait_called(0, Method::Pause, &prepared, 1);
    world.terminate();
    eventually("new work to be refused", || (world.api.create(&json!({})).0 == 503).then_some(()));
    world.terminate();
    world.wait_end();
    world.host(0).set_habits(Habits::default());
    let began = std::time::Instant::now();
    world.start();
    world.api.until(&prepared, "paused");
    assert!(began.elapsed() < Duration::from_secs(45), "two observations, not a deadline");
    world.end(&[]);
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let takes = Duration::from_millis(3);
    let habits = Habits {
        create_takes: takes,
        pause_takes: takes,
        resume_takes: takes,
        destroy_takes: takes,
        ..Habits::default()
    };
    let mut world = World::with(2, habits, &[]);
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 1..=6 {
        let api = world.api.clone();
        let before: Vec<String> = acknowledged.clone();
        let asking = std::thread::spawn(move || {
            let mut made = Vec::new();
            for n in 0.. {
                let Ok((status, capsule)) = api.try_ask("POST", "/v1/capsules", "{}") else {
                    break;
                };
                assert_eq!(status, 202, "{capsule}");
                made.push(capsule["id"].as_str().unwrap().to_owned());
                let some = before.iter().chain(&made).nth(n % (before.len() + made.len())).unwrap();
                let paths = ["/pause", "/resume", ""];
                let (method, verb) =
                    if n % 3 == 2 { ("DELETE", "") } else { ("POST", paths[n % 3]) };
                let path = format!("/v1/capsules/{some}{verb}");
                let Ok((status, answer)) = api.try_ask(method, &path, "") else { break };
                assert!([202, 204, 409].contains(&status), "{method} {path}: {answer}");
            }
            made
        });
        // Not a moment of our choosing: whatever is under way when so much was done.
        let calls = world.host(0).calls(Method::Create) + round * 2;
        assert!(world.host(0).wait_calls(Method::Create, calls, PATIENCE));
        world.kill();
        acknowledged.extend(asking.join().unwrap());
        let rows = world.rows();
        for id in &acknowledged {
            assert!(rows.contains_key(&id.parse().unwrap()), "{id} is lost");
        }
        world.start();
    }
    // Whoever was asked at the moment of a kill may have to wait for a deadline; nobody else.
    let waits = eventually("what was not interrupted to end", || {
        let (_, all) = world.api.ask("GET", "/v1/capsules?all=true", &Value::Null);
        let transient = ["starting", "pausing", "resuming", "stopping"];
        let open = |row: &&Value| transient.contains(&row["status"].as_str().unwrap());
        let open = all.as_array().unwrap().iter().filter(open).count();
        (open <= INTERRUPTED_MAX).then_some(open)
    });
    println!("{} capsules, {waits} wait for a deadline", acknowledged.len());
    world.kill();
    world.rows();
}

/// A create that hangs, is overtaken by a destroy, survives the server that sent it, and comes
/// true when the destroy has found nothing.
#[test]
fn a_create_that_comes_true_after_its_destroy_is_destroyed() {
    let mut world = World::new(1);
    let hangs = Faults { only: Some(Method::Create), ..Faults::slow(FOREVER) };
    world.fault(0, Faults { finishes_orphans: true, ..hangs });
    let id = world.capsule("starting");
    world.wait_called(0, Method::Create, &id, 1);
    world.api.begin(&id, "destroy", "stopping");
    world.kill();
    world.start();
    world.wait_called(0, Method::Destroy, &id, 1);
    world.fault(0, Faults { finishes_orphans: true, ..Faults::default() });
    world.wait_state(&id, None);
    world.api.until(&id, "stopped");
    world.end(&[]);
}

#[test]
#[ignore = "takes more than three minutes: nothing but the deadlines of operations ends them"]
fn what_cannot_be_known_ends_at_its_deadline() {
    let deadline = Duration::from_secs(400);
    // The call never arrived whole, or hangs, and no observation can tell so.
    let severed = |method| Faults::answering_to(method, AnswerFault::Severed);
    let hangs = Faults { only: Some(Method::Create), ..Faults::slow(FOREVER) };
    std::thread::scope(|scope| {
        for (method, faults, status, after) in [
            (Method::Create, severed(Method::Create), "", "error"),
            (Method::Create, hangs, "", "error"),
            (Method::Resume, severed(Method::Resume), "paused", "paused"),
        ] {
            scope.spawn(move || {
                let world = World::new(1);
                // A start is a contact gap until the first observation.
                assert!(world.host(0).wait_calls(Method::List, 3, PATIENCE));
                let prepared = (!status.is_empty()).then(|| world.capsule(status));
                world.fault(0, faults);
                let id = prepared.unwrap_or_else(|| world.capsule("starting"));
                if !status.is_empty() {
                    world.api.begin(&id, "resume", "resuming");
                }
                world.wait_called(0, method, &id, 1);
                if faults != hangs {
                    world.fault(0, Faults::default());
                }
                world.api.until_within(&id, after, deadline);
                assert_eq!(world.host(0).calls_of(method, id.parse().unwrap()), 1);
                world.fault(0, Faults::default());
                world.api.begin(&id, "destroy", "stopping");
                world.api.until(&id, "stopped");
                world.end(&[]);
            });
        }
    });
}
