//! Plays every case directory of `fixtures/` and compares how it ends with what its
//! `expected.json` says. `fixtures/README.md` describes the format; `UPDATE_EXPECT=1`
//! writes down what happened instead, to be read before it is believed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "cases/agents.rs"]
mod agents;
#[path = "cases/directory.rs"]
mod directory;
#[path = "cases/invariants.rs"]
mod invariants;
#[path = "cases/outcome.rs"]
mod outcome;
#[path = "cases/script.rs"]
mod script;
#[path = "cases/world.rs"]
mod world;

use directory::Case;
use outcome::{Outcome, difference};
use std::fmt::Write as _;
use world::Course;

/// Fewer directories than this were lost, not removed.
const CASES_MIN: usize = 20;

/// Cases played side by side: they mostly wait for the disk.
const THREADS: usize = 4;

/// What decides the jitter of the schedule: no case may depend on it.
const SEEDS: [u64; 4] = [7, 7919, 15838, 110866];

/// What is wrong with the course that a case took; nothing when all is well.
fn wrong(course: &Course, expected: &Outcome) -> String {
    let mut wrong = course.violations.join("\n");
    let actual = course.outcome.clone().limited_to(expected);
    if actual != *expected {
        wrong.push_str(&difference(&expected.text(), &actual.text()));
    }
    wrong
}

/// Plays a case with every seed; the error is for people.
fn check(case: &Case) -> Result<(), String> {
    for seed in SEEDS {
        let course = world::play(&case.fleet, &case.script, seed)?;
        if std::env::var("UPDATE_EXPECT").is_ok_and(|value| value == "1") {
            case.expect_from_now_on(&course.outcome.limited_to(&case.expected));
            return Ok(());
        }
        let wrong = wrong(&course, &case.expected);
        if !wrong.is_empty() {
            let (shows, trace) = (&case.script.shows, course.trace.join("\n"));
            return Err(format!("{shows}\n{wrong}\n{trace}\n(seed {seed})"));
        }
    }
    Ok(())
}

fn case(name: &str) -> Case {
    let mut all = directory::all();
    let at = all.iter().position(|(found, _)| found == name).expect("the case is there");
    all.swap_remove(at).1.expect("the case can be read")
}

#[test]
fn every_case_ends_as_expected() {
    let cases = directory::all();
    assert!(cases.len() >= CASES_MIN, "only {} case directories", cases.len());
    let reports: Vec<String> = std::thread::scope(|scope| {
        let parts = cases.chunks(cases.len().div_ceil(THREADS));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| report(part))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(reports.iter().all(String::is_empty), "{}", reports.concat());
}

/// What is wrong with some of the cases.
fn report(cases: &[(String, Result<Case, String>)]) -> String {
    let mut report = String::new();
    for (name, case) in cases {
        if let Err(wrong) = case.as_ref().map_err(String::clone).and_then(check) {
            let _ = writeln!(report, "\n==== {name}: {wrong}");
        }
    }
    report
}

/// For people who write a case: `CASE=name cargo test --test cases course -- --nocapture`.
#[test]
fn course_of_one_case() {
    let Ok(name) = std::env::var("CASE") else { return };
    let case = case(&name);
    let course = world::play(&case.fleet, &case.script, SEEDS[0]).expect("the case can be played");
    println!("{}\n{}\n{}", case.script.shows, course.trace.join("\n"), course.outcome.text());
}

/// Every expectation that differs from `expected` in one place.
fn flipped(expected: &Outcome) -> Vec<Outcome> {
    let mut all = Vec::new();
    let mut flip = |change: &dyn Fn(&mut Outcome)| {
        let mut other = expected.clone();
        change(&mut other);
        all.push(other);
    };
    for host in expected.hosts.keys() {
        flip(&|other| other.hosts.get_mut(host).unwrap().push('!'));
    }
    for sandbox in expected.sandboxes.keys() {
        flip(&|other| other.sandboxes.get_mut(sandbox).unwrap().0.push('!'));
        flip(&|other| other.sandboxes.get_mut(sandbox).unwrap().1 = Some("no reason".to_owned()));
    }
    for at in 0..expected.audit.len() {
        flip(&|other| drop(other.audit.remove(at)));
    }
    flip(&|other| other.events = Some(vec!["host.down".to_owned()]));
    flip(&|other| other.verdicts_held = !expected.verdicts_held);
    flip(&|other| other.held.extend(["cl-".to_owned()]));
    flip(&|other| other.strangers.push("cl-".to_owned()));
    flip(&|other| other.again.extend([("cl-".to_owned(), "pause".to_owned())]));
    all
}

#[test]
fn one_wrong_word_in_an_expectation_is_found() {
    let case = case("returning-host");
    let course = world::play(&case.fleet, &case.script, SEEDS[0]).unwrap();
    assert_eq!(wrong(&course, &case.expected), "");
    for expected in flipped(&case.expected) {
        assert_ne!(wrong(&course, &expected), "", "not found: {}", expected.text());
    }
}

#[test]
fn a_database_that_was_tampered_with_is_found() {
    let fleet = case("returning-host").fleet;
    let fleet = roost::store::fixture::parse(&fleet, world::BEGIN).unwrap();
    for sql in [
        "UPDATE sandboxes SET status = 'running' WHERE status = 'missing'",
        "UPDATE hosts SET liveness = 'alive'",
        "INSERT INTO audit_logs VALUES (1, 'log-0000000000000000000000001', \
         'team-0000000000000000000000000', 'system', NULL, NULL, 'host', 'h', 'marked_up', 'team', \
         'success', '{}', 0)",
        "UPDATE state SET revision = 1",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roost.db");
        let mut conn = roost::store::open::open_writer(&path, true, world::BEGIN).unwrap();
        roost::store::fixture::load(&mut conn, &fleet).unwrap();
        assert_eq!(invariants::violations(&conn, &fleet), Vec::<String>::new());
        conn.execute_batch(sql).unwrap();
        assert_ne!(invariants::violations(&conn, &fleet), Vec::<String>::new(), "{sql}");
    }
}

#[test]
fn words_that_mean_nothing_are_refused() {
    let refused = |steps: &str, rest: &str| {
        let text = format!(r#"{{"shows": "A case.", "for_s": 9, "steps": [{steps}]{rest}}}"#);
        script::Script::read(&text).err()
    };
    assert_eq!(refused("", ""), None);
    for (steps, rest) in [
        ("", r#", "polcy": "strict""#),
        ("", r#", "policy": "lax""#),
        (r#"{"at_s": 1, "sleeps": 5}"#, ""),
        (r#"{"at_s": 1, "suspend_s": 5, "beats": "all"}"#, ""),
        (r#"{"at_s": 1, "beats": "some"}"#, ""),
        (r#"{"at_s": 2, "suspend_s": 5}, {"at_s": 1, "suspend_s": 5}"#, ""),
        (r#"{"at_s": 9, "beats": "all"}"#, ""),
        (r#"{"at_s": 1, "agents": {"host-0000000000000000000000oak": [{"fails": "badly"}]}}"#, ""),
        (r#"{"at_s": 1, "agents": {"host-0000000000000000000000oak": [{}]}}"#, ""),
    ] {
        assert!(refused(steps, rest).is_some(), "accepted: {steps} {rest}");
    }
}
