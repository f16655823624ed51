//! What a simulated agent answers to every call in every state of a sandbox: the codes and
//! the words of real agents, older and newer ones.

use crate::world::{FOREVER, TEAM, TEMPLATE, World, new_id, newer, world_with};
use expect_test::expect_file;
use roost::agent::wire::Method;
use roost::sim::{Habits, Initially, SimState};
use std::fmt::Write;
use std::time::Duration;

/// How a sandbox can be when it is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Absent,
    In(SimState),
    /// Runs again after a pause.
    Resumed,
    /// Is on the disk of an agent that has just started.
    Unread,
    /// The same, and the agent has read its disk.
    Read,
}

const BEFORE: [Before; 10] = [
    Before::Absent,
    Before::In(SimState::Creating),
    Before::In(SimState::Running),
    Before::Resumed,
    Before::In(SimState::Pausing),
    Before::In(SimState::Paused),
    Before::In(SimState::Resuming),
    Before::In(SimState::Error),
    Before::Unread,
    Before::Read,
];

const METHODS: [Method; 7] = [
    Method::List,
    Method::Create,
    Method::Pause,
    Method::Resume,
    Method::Ping,
    Method::Destroy,
    Method::CreateSnapshot,
];

/// A host with one sandbox that is so, or none.
fn prepared(habits: Habits, before: Before) -> World {
    let index_takes = if before == Before::Unread { FOREVER } else { Duration::ZERO };
    let world = world_with(1, 0, Initially::Running, Habits { index_takes, ..habits });
    let (host, id) = (world.host(0), new_id());
    let put = |state| host.put(id, state, Duration::from_secs(60));
    match before {
        Before::Absent => {}
        Before::In(state) => put(state),
        Before::Resumed => {
            put(SimState::Paused);
            world.resume(0, id).unwrap();
        }
        Before::Unread | Before::Read => {
            put(SimState::Paused);
            host.restart();
        }
    }
    world
}

fn row(habits: Habits, method: Method, before: Before) -> String {
    let (world, id) = (prepared(habits, before), new_id());
    let named = format!(r#"{{"sandboxId":"{id}","teamId":"{TEAM}","templateId":"{TEMPLATE}"}}"#);
    let body = match method {
        Method::List => "{}".to_owned(),
        Method::Create => format!(r#"{{"sandboxId":"{id}"}}"#),
        Method::Pause
        | Method::Resume
        | Method::Destroy
        | Method::Ping
        | Method::CreateSnapshot
        | Method::DeleteSnapshot
        | Method::TemplateSize
        | Method::Terminate => named,
    };
    let (status, answer) = world.post(method.as_str(), &body);
    let after = world.host(0).state(id).map_or("none".to_owned(), |state| format!("{state:?}"));
    let before = format!("{before:?}");
    format!("{before:12} {status} {} -> {after}", shortened(&answer.replace(&id.to_string(), "ID")))
}

/// Without what is the same in every answer, so that the table can be read.
fn shortened(answer: &str) -> String {
    let older = r#"{"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}"#;
    let newer = r#"{"agent_version":"0.3.0","envd_version":"0.3.0","kernel_version":"6.1.102","vmm_version":"52.0.0"}"#;
    let zeros = r#","teamId":"00000000-0000-0000-0000-000000000000","templateId":"00000000-0000-0000-0000-000000000000""#;
    answer.replace(older, "OLDER").replace(newer, "NEWER").replace(zeros, "")
}

#[test]
fn every_call_in_every_state() {
    let mut table = String::new();
    for (version, habits) in [("older", Habits::default()), ("newer", newer())] {
        for method in METHODS {
            writeln!(table, "# {version}: {method}").unwrap();
            for before in BEFORE {
                writeln!(table, "{}", row(habits, method, before)).unwrap();
            }
            writeln!(table).unwrap();
        }
    }
    expect_file!["refusals.txt"].assert_eq(&table);
}

/// A request that makes no sense is refused before anything is looked for.
#[test]
fn requests_that_make_no_sense() {
    let world = prepared(newer(), Before::In(SimState::Running));
    for (method, body, expected) in [
        ("PauseSandbox", "{", "unmarshal message: "),
        ("PauseSandbox", "[]", "unmarshal message: "),
        ("PauseSandbox", r#"{"sandboxId":"cl-1"}"#, "sandbox id "),
        (
            "CreateSandbox",
            r#"{"templateId":"python"}"#,
            r#"invalid UUID \"python\": invalid UUID length: 6"#,
        ),
        (
            "CreateSandbox",
            r#"{"teamId":"python"}"#,
            r#"invalid UUID \"python\": invalid UUID length: 6"#,
        ),
        (
            "CreateSnapshot",
            r#"{"templateId":"x"}"#,
            r#"invalid UUID \"x\": invalid UUID length: 1"#,
        ),
        ("DeleteSnapshot", r#"{"teamId":"x"}"#, r#"invalid UUID \"x\": invalid UUID length: 1"#),
        ("GetTemplateSize", r#"{"teamId":"x"}"#, r#"invalid UUID \"x\": invalid UUID length: 1"#),
    ] {
        let (status, answer) = world.post(method, body);
        assert_eq!(status, 400, "{method} {body}: {answer}");
        let start = format!(r#"{{"code":"invalid_argument","message":"{expected}"#);
        assert!(answer.starts_with(&start), "{method} {body}: {answer}");
    }
    assert_eq!(world.host(0).sandboxes(), [(new_id(), SimState::Running)]);
}

/// No two hosts ever list the same id, whatever is made where.
#[test]
fn no_id_is_listed_by_two_hosts() {
    let world = world_with(4, 8, Initially::Running, Habits::default());
    let mut ids: Vec<_> = (0..4).flat_map(|number| world.running(number)).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4 * 8);
    let (id, other) = (world.first(0), world.host(1));
    assert!(other.state(id).is_none());
    other.put(id, SimState::Running, Duration::ZERO);
    assert!(world.running(0).contains(&id) && world.running(1).contains(&id), "put on purpose");
}
