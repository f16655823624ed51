//! Owns the proof that strict policy is the recorded mapping: every case of
//! fixtures/reference through the real `roost`, with live agents on loopback.
//!
//! Never: knows the mapping itself; what is right stands in the fixtures.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use support::agents::{Agents, Says};
use support::{Home, host, sandbox, without_ages};

const STRICT: &[&str] = &["check", "--policy", "strict"];

/// One line of the recording.
struct Case(Value);

impl Case {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap()
    }

    fn heartbeat_age_s(&self) -> Value {
        match self.text("heartbeat") {
            "null" => Value::Null,
            "stale" => json!(300),
            "fresh" => json!(5),
            other => panic!("heartbeat {other}"),
        }
    }

    /// What the agent answers; none has no address. Listed is listed, so the status in the
    /// listing differs from case to case.
    fn says(&self, n: u128) -> Option<Says> {
        let id = sandbox(n);
        let listed = [(id.as_str(), ["running", "paused", "starting"][n as usize % 3])];
        match (self.text("rpc"), self.text("answer")) {
            ("no_address", _) => None,
            ("error", _) => Some(Says::Error("unavailable")),
            ("ok", "alive") => Some(Says::listing(&listed, &[])),
            ("ok", "auto_paused") => Some(Says::listing(&[], &[&id])),
            ("ok", "alive+auto_paused") => Some(Says::listing(&listed, &[&id])),
            ("ok", "absent") => Some(Says::listing(&[], &[])),
            other => panic!("rpc and answer {other:?}"),
        }
    }

    /// Whether the pass asks the agent: strict policy asks online hosts only.
    fn is_probed(&self) -> bool {
        self.text("rpc") != "no_address" && self.text("result_host_status") == "online"
    }
}

fn cases() -> Vec<Case> {
    let recorded = include_str!("../fixtures/reference/one-pass.jsonl").lines();
    let stated = include_str!("../fixtures/reference/stated.jsonl").lines();
    recorded.chain(stated).map(|line| Case(serde_json::from_str(line).unwrap())).collect()
}

/// All cases as one fleet: case `n` is host `n` with sandbox `n` and, if it has an address,
/// an agent.
struct Fleet {
    cases: Vec<Case>,
    agents: Agents,
    /// Which agent is whose.
    agent_of: BTreeMap<usize, usize>,
    home: Home,
}

impl Fleet {
    fn new(cases: Vec<Case>) -> Fleet {
        let answers = cases.iter().enumerate().map(|(n, case)| (n, case.says(n as u128)));
        let (who, says): (Vec<usize>, Vec<Says>) =
            answers.filter_map(|(n, says)| Some((n, says?))).unzip();
        let agents = Agents::start(says);
        let agent_of = who.into_iter().enumerate().map(|(agent, n)| (n, agent)).collect();
        let fixture = fixture(&cases, &agents, &agent_of);
        Fleet { cases, agents, agent_of, home: Home::with(&fixture) }
    }

    /// How often each case's agent was asked.
    fn calls(&self) -> BTreeMap<usize, usize> {
        let calls = self.agent_of.iter().map(|(n, agent)| (*n, self.agents.calls(*agent)));
        calls.filter(|(_, calls)| *calls > 0).collect()
    }

    /// Every probed case, asked so often.
    fn asked(&self, times: usize) -> BTreeMap<usize, usize> {
        let probed = (0..self.cases.len()).filter(|n| self.cases[*n].is_probed());
        probed.map(|n| (n, times)).collect()
    }

    fn check(&self, flags: &[&str]) -> Value {
        self.home.json(&[STRICT, flags].concat())
    }

    /// What is in the database, without ages, with the revision and all history.
    fn state(&self) -> (Value, u64, Value, Value) {
        let events = self.home.json(&["events", "--limit", "100000"]);
        (without_ages(self.home.dump()), self.home.revision(), self.audit(), events)
    }

    fn audit(&self) -> Value {
        self.home.json(&["audit", "--limit", "100000"])
    }
}

fn fixture(cases: &[Case], agents: &Agents, agent_of: &BTreeMap<usize, usize>) -> Value {
    let mut hosts = Vec::new();
    let mut sandboxes = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let id = host(n as u128);
        let address = agent_of.get(&n).map(|agent| agents.address(*agent));
        hosts.push(json!({"id": id, "status": case.text("host_status"), "address": address,
            "heartbeat_age_s": case.heartbeat_age_s()}));
        let status = case.text("sandbox_status");
        sandboxes.push(json!({"id": sandbox(n as u128), "host_id": id, "status": status}));
    }
    json!({"hosts": hosts, "sandboxes": sandboxes})
}

/// Status of everything by id.
fn statuses(dump: &Value) -> BTreeMap<String, String> {
    let rows = ["hosts", "sandboxes"].iter().flat_map(|list| dump[list].as_array().unwrap());
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.map(|row| (text(row, "id"), text(row, "status"))).collect()
}

/// Audit entries by the id that they are about, without what the recording does not say.
fn entries(audit: &Value) -> BTreeMap<String, Vec<Value>> {
    let mut by_id: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in audit.as_array().unwrap() {
        let mut kept = json!({});
        for key in ["action", "resource_type", "status", "scope", "actor_type"] {
            kept[key] = entry[key].clone();
        }
        by_id.entry(entry["resource_id"].as_str().unwrap().to_owned()).or_default().push(kept);
    }
    by_id
}

/// What the recording says of each id that has an entry.
fn expected_entries(cases: &[Case]) -> BTreeMap<String, Vec<Value>> {
    let mut by_id: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (n, case) in cases.iter().enumerate() {
        for entry in case.0["audit"].as_array().unwrap() {
            let id = match entry["resource_type"].as_str().unwrap() {
                "host" => host(n as u128),
                _ => sandbox(n as u128),
            };
            by_id.entry(id).or_default().push(entry.clone());
        }
    }
    by_id
}

/// What a report says changed, in any order.
fn changes(report: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (list, id) in [("host_transitions", "host_id"), ("transitions", "sandbox_id")] {
        for t in report[list].as_array().unwrap() {
            all.insert(format!("{} {} → {} {}", t[id], t["from"], t["to"], t["reason"]));
        }
    }
    all
}

/// The ids that the recording says change, each with both statuses.
fn expected_changes(cases: &[Case]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (n, case) in cases.iter().enumerate() {
        let (host, sandbox) = (host(n as u128), sandbox(n as u128));
        for (id, from, to) in [
            (host, "host_status", "result_host_status"),
            (sandbox, "sandbox_status", "result_sandbox_status"),
        ] {
            let (from, to) = (case.text(from), case.text(to));
            if from != to {
                all.insert(format!("{id:?} {from:?} → {to:?}"));
            }
        }
    }
    all
}

fn without_reasons(changes: &BTreeSet<String>) -> BTreeSet<String> {
    changes.iter().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// Fails with the line of the recording that is not kept.
fn assert_kept(fleet: &Fleet) {
    let statuses = statuses(&fleet.home.dump());
    for (n, case) in fleet.cases.iter().enumerate() {
        let of = |id: String| statuses[&id].as_str();
        let found = (of(sandbox(n as u128)), of(host(n as u128)));
        let expected = (case.text("result_sandbox_status"), case.text("result_host_status"));
        assert_eq!(found, expected, "case {n}: {}", case.0);
    }
    assert_eq!(entries(&fleet.audit()), expected_entries(&fleet.cases));
    // Some cases begin with a sandbox that runs on an unreachable host, and strict leaves it.
    let problems = fleet.home.roost(&["db", "verify", "--format", "json"]).json();
    for problem in problems["problems"].as_array().unwrap() {
        let text = problem.as_str().unwrap();
        assert!(text.starts_with("a sandbox runs on a host that is unreachable"), "{text}");
    }
}

#[test]
fn a_strict_pass_is_the_recorded_mapping() {
    let fleet = Fleet::new(cases());
    assert!(fleet.cases.len() >= 533, "the recording is not whole");
    let report = fleet.check(&[]);
    assert_kept(&fleet);

    assert_eq!(without_reasons(&changes(&report)), expected_changes(&fleet.cases));
    assert_eq!(fleet.calls(), fleet.asked(1), "who is asked, and once");
    let count = |key: &str| report[key].as_array().unwrap().len();
    let probed = fleet.cases.iter().filter(|case| case.is_probed());
    let refused = probed.clone().filter(|case| case.text("rpc") == "error").count();
    assert!(refused > 0 && count("failed_probes") == refused);
    assert_eq!(report["observations"], json!(probed.count() - refused));
    assert_eq!((count("held"), count("zombies")), (0, 0), "strict holds nothing");
    assert_eq!((&report["dry_run"], &report["policy"]), (&json!(false), &json!("strict")));
}

#[test]
fn a_second_pass_changes_nothing() {
    let fleet = Fleet::new(cases());
    let first = fleet.home.roost(&[STRICT, &["--exit-code"]].concat());
    assert_eq!(first.code, 3, "{first:?}");
    let before = fleet.state();
    let second = fleet.home.roost(&[STRICT, &["--exit-code", "--format", "json"]].concat());
    assert_eq!((second.code, changes(&second.json()).len()), (0, 0), "{second:?}");
    assert_eq!(fleet.state(), before);
    assert_eq!(fleet.calls(), fleet.asked(2));
}

#[test]
fn a_dry_run_says_it_all_and_changes_nothing() {
    let fleet = Fleet::new(cases());
    let (mut dump, revision, audit, events) = fleet.state();
    let dry = fleet.check(&["--dry-run"]);
    assert_eq!(dry["dry_run"], json!(true));
    assert_eq!(fleet.calls(), fleet.asked(1));

    // Agents say only once what they paused by themselves, so that is kept.
    for (n, case) in fleet.cases.iter().enumerate() {
        if case.is_probed() && case.text("answer").ends_with("auto_paused") {
            dump["sandboxes"][n]["announced"] = json!(true);
        }
    }
    assert_eq!(fleet.state(), (dump, revision, audit, events));

    let real = fleet.check(&[]);
    assert!(!changes(&dry).is_empty());
    assert_eq!(changes(&dry), changes(&real));
    assert_kept(&fleet);
}

#[test]
fn exit_codes_of_a_dry_run_tell_of_changes() {
    let fleet = Fleet::new(cases().into_iter().take(20).collect());
    let code = |flags: &[&str]| fleet.home.roost(&[STRICT, flags].concat()).code;
    assert_eq!(code(&["--dry-run"]), 0, "only when asked");
    assert_eq!(code(&["--dry-run", "--exit-code"]), 3);
    assert_eq!(code(&[]), 0, "only when asked");
    assert_eq!(code(&["--dry-run", "--exit-code"]), 0);
}
