//! Owns the tests of which rows a probe reads.
//!
//! Never: what a plan decides of them (`plan` tests that).

use super::*;
use crate::model::policy::Policy;
use crate::model::probe::{Details, Listed, ListedState};
use crate::store::fixture;
use crate::store::presence::Presence;
use crate::store::writer::{Command, Envelope};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;
use std::sync::mpsc::channel;
use tempfile::TempDir;

const NOW: Now = Now { mono: Mono(1_000_000_000), wall: Wall(1_790_000_000_000) };

fn host() -> HostId {
    HostId::from_u128(1)
}

fn sandbox(n: u128) -> SandboxId {
    SandboxId::from_u128(n)
}

/// A sandbox of the host: status, operation, announced, what the answer says of it.
type Case = (usize, Option<usize>, bool, Option<ListedState>, bool);

fn world(cases: &[Case], more_ended: u128) -> (Writer, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = open_writer(&dir.path().join("roost.db"), true, NOW.wall).unwrap();
    let row = |(n, (status, operation, announced, ..)): (usize, &Case)| {
        let mut row = json!({"id": sandbox(n as u128), "host_id": host(),
            "status": SandboxStatus::ALL[*status], "announced": announced});
        if let Some(kind) = operation {
            row["operation"] = json!({"kind": OperationKind::ALL[*kind]});
        }
        row
    };
    let ended =
        |n: u128| json!({"id": sandbox(1_000_000 + n), "host_id": host(), "status": "stopped"});
    let rows: Vec<_> =
        cases.iter().enumerate().map(row).chain((0..more_ended).map(ended)).collect();
    let online = json!({"id": host(), "status": "online", "heartbeat_age_s": 5,
        "address": "127.0.0.1:1"});
    let fleet = json!({"hosts": [online], "sandboxes": rows}).to_string();
    fixture::load(&mut conn, &fixture::parse(&fleet, NOW.wall).unwrap()).unwrap();
    let hosts = crate::store::read::hosts(&conn).unwrap();
    let presence = Arc::new(Presence::load(&hosts, [], None, false, NOW));
    (Writer::new(conn, Policy::default(), presence).unwrap(), dir)
}

fn answer(cases: &[Case]) -> Probed {
    let listed = |(n, case): (usize, &Case)| {
        let (_, _, _, state, _) = case;
        let (id, details) = (sandbox(n as u128), Details::default());
        state.map(|state| Listed { id, state, created_at_unix: 0, details })
    };
    let mut sandboxes: Vec<Listed> = cases.iter().enumerate().filter_map(listed).collect();
    sandboxes.reverse();
    let announced = cases.iter().enumerate().filter(|(_, case)| case.4);
    let auto_paused = announced.map(|(n, _)| sandbox(n as u128)).collect();
    Probed {
        host: host(),
        revision: 0,
        asked_at: NOW.mono,
        age_cap: None,
        probe: Probe::Listed(Listing { sandboxes, auto_paused }),
        proven: false,
    }
}

fn case() -> impl Strategy<Value = Case> {
    let state = prop_oneof![
        Just(ListedState::Running),
        Just(ListedState::Paused),
        Just(ListedState::Error)
    ];
    (
        0..SandboxStatus::ALL.len(),
        prop::option::weighted(0.3, 0..OperationKind::ALL.len()),
        prop::bool::weighted(0.3),
        prop::option::weighted(0.5, state),
        prop::bool::weighted(0.2),
    )
}

fn probe(writer: &mut Writer, cases: &[Case]) -> Applied {
    let (tell, told) = channel();
    let reply = Box::new(move |result| tell.send(result).unwrap());
    // The question is newer than what the answers before it changed.
    let asked = Probed { revision: writer.revision, ..answer(cases) };
    let command = Command::Probed(Box::new(asked), reply);
    writer.execute(vec![Envelope { now: NOW, command }]);
    told.recv().unwrap().unwrap()
}

/// What was written of the sandboxes that both databases have.
fn written(writer: &Writer) -> Vec<String> {
    let sql = "SELECT id || ' ' || status || ' ' || coalesce(status_reason, '') || ' ' || \
        (SELECT count(*) FROM operations o WHERE o.sandbox_id = s.id AND o.finished_at IS NULL) \
        || ' ' || (SELECT count(*) FROM auto_pause_inbox i WHERE i.sandbox_id = s.id) \
        FROM sandboxes s WHERE id < ?1 ORDER BY id";
    let mut select = writer.conn.prepare(sql).unwrap();
    let rows = select.query_map([sandbox(1_000_000).to_string()], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// A long past changes nothing of what a probe does.
    #[test]
    fn what_ended_and_is_not_named_decides_nothing(cases in prop::collection::vec(case(), 0..24)) {
        let (mut short, _dir) = world(&cases, 0);
        let (mut long, _dir) = world(&cases, ENDED_READ_MAX as u128 + 30);
        for _ in 0..3 {
            let (few, many) = (probe(&mut short, &cases), probe(&mut long, &cases));
            prop_assert_eq!(few.transitions.len(), many.transitions.len());
            for (few, many) in few.transitions.iter().zip(&many.transitions) {
                prop_assert_eq!((few.sandbox, few.to, &few.reason), (many.sandbox, many.to, &many.reason));
            }
            prop_assert_eq!(&few.strangers, &many.strangers);
            prop_assert_eq!(few.work.len(), many.work.len());
            prop_assert_eq!((&few.held, few.ask_again), (&many.held, many.ask_again));
            prop_assert_eq!(written(&short), written(&long));
        }
    }
}

#[test]
fn of_a_long_past_a_probe_reads_what_is_named() {
    let mut cases: Vec<Case> =
        (0..20).map(|_| (2, None, false, Some(ListedState::Running), false)).collect();
    let stopped = 7;
    assert_eq!(SandboxStatus::ALL[stopped], SandboxStatus::Stopped);
    cases.push((stopped, None, false, Some(ListedState::Running), false));
    cases.push((stopped, None, false, None, true));
    cases.push((stopped, None, true, None, false));
    cases.push((stopped, Some(3), false, None, false));
    cases.push((stopped, None, false, None, false));
    let (writer, _dir) = world(&cases, 2_000);
    let probed = answer(&cases);
    let Probe::Listed(listing) = &probed.probe else { panic!("it lists") };
    let ids = writer.rows_of(&probed, listing, NOW).unwrap().into_iter().map(|row| row.id);
    assert_eq!(ids.collect::<Vec<_>>(), (0..24).map(sandbox).collect::<Vec<_>>());
}
