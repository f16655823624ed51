//! Owns the proof that docs/openapi.yaml and docs/api.md say what the server does: every
//! route is in the document and the other way round, every error code is in the table, the
//! golden answers conform, schemathesis finds nothing, the examples run.
//!
//! Never: knows an answer itself. Without python3 the parts in Python are skipped, loudly;
//! with `CI` set that is a failure. `ROOST_SCHEMATHESIS_EXAMPLES` asks for more than the few
//! examples of every day.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::python::Python;
use support::random::number_in;
use support::server::Serving;
use support::{Home, eventually, sim_fleet};

const DOCUMENT: &str = include_str!("../docs/openapi.yaml");
const PROSE: &str = include_str!("../docs/api.md");

/// Examples for each operation on every day.
const EXAMPLES: u64 = 8;

fn python() -> Option<Python> {
    let unchecked = "docs/openapi.yaml was NOT compared with the server";
    Python::with("tests/openapi/requirements.txt", unchecked)
}

/// Method and path of every operation. The document is indented by two.
fn documented() -> BTreeSet<(String, String)> {
    let paths = DOCUMENT.split_once("\npaths:\n").unwrap().1;
    let paths = paths.split_once("\ncomponents:\n").unwrap().0;
    let mut path = "";
    let mut found = BTreeSet::new();
    for line in paths.lines() {
        if let Some(name) = line.strip_prefix("  /") {
            path = name.strip_suffix(':').unwrap();
        }
        let method = line.strip_prefix("    ").and_then(|line| line.strip_suffix(':'));
        let methods = ["get", "post", "put", "delete", "patch"];
        if let Some(method) = method.filter(|word| methods.contains(word)) {
            found.insert((method.to_uppercase(), path.to_owned()));
        }
    }
    found
}

#[test]
fn every_route_is_in_the_document_and_the_other_way_round() {
    let routes = roost::api::routes();
    let routes: BTreeSet<_> = routes.map(|(m, p)| (m.to_owned(), p.to_owned())).collect();
    let documented = documented();
    let missing: Vec<_> = routes.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&routes).collect();
    assert!(missing.is_empty(), "not in docs/openapi.yaml: {missing:?}");
    assert!(invented.is_empty(), "not in ROUTES of src/api/routes.rs: {invented:?}");
}

/// Status and code of every error in the sources of the API and the transport.
fn errors_in_code() -> BTreeSet<(u16, String)> {
    let mut found = BTreeSet::new();
    for room in ["src/api", "src/http"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(room);
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&file).unwrap();
                collect_errors(text.split("#[cfg(test)]").next().unwrap(), &mut found);
            }
        }
    }
    found
}

/// `new(404, "not_found"` in one, or `Reject::Timeout => 408` and `=> "timeout"` apart.
fn collect_errors(code: &str, found: &mut BTreeSet<(u16, String)>) {
    let after = |text: &str, end: char| text.split(end).next().unwrap().trim().to_owned();
    for call in ["Problem::new(", "Response::error("] {
        for rest in code.split(call).skip(1) {
            let mut parts = rest.splitn(3, ',');
            let status = parts.next().and_then(|part| part.trim().parse().ok());
            let code = parts.next().and_then(|part| part.trim().strip_prefix('"'));
            if let (Some(status), Some(code)) = (status, code) {
                found.insert((status, after(code, '"')));
            }
        }
    }
    let arms = || code.split("Reject::").skip(1).filter_map(|arm| arm.split_once(" => "));
    for (name, value) in arms() {
        let Ok(status) = after(value, ',').parse() else { continue };
        let codes = arms().filter(|(other, _)| *other == name);
        let word =
            codes.filter_map(|(_, v)| v.strip_prefix('"')).find(|v| !after(v, '"').contains(' '));
        found.insert((status, after(word.unwrap(), '"')));
    }
}

#[test]
fn every_error_is_in_the_table_and_the_other_way_round() {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let status = cells.next()?.parse().ok()?;
        Some((status, cells.next()?.trim_matches('`').to_owned()))
    };
    let table: BTreeSet<(u16, String)> = PROSE.lines().filter_map(row).collect();
    let errors = errors_in_code();
    assert!(errors.len() > 20, "the sources are written otherwise now: {errors:?}");
    assert_eq!(table, errors, "left: docs/api.md, right: src/api and src/http");
    let codes: BTreeSet<&str> = errors.iter().map(|(_, code)| code.as_str()).collect();
    let list = DOCUMENT.split_once("    ErrorCode:\n").unwrap().1;
    let list = list.lines().skip(2).map_while(|line| line.strip_prefix("        - "));
    assert_eq!(list.collect::<BTreeSet<_>>(), codes, "left: docs/openapi.yaml");
}

#[test]
fn the_golden_answers_conform() {
    let Some(python) = python() else { return };
    python.run("tests/openapi/conform.py", &[], &[]);
}

#[test]
fn the_stream_conforms() {
    let Some(python) = python() else { return };
    let fleet = sim_fleet(1, 0);
    let home = Home::new();
    let serving = home.serve(&["--probe-interval", "1h", "--unreachable-after", "1d"]);
    serving.register(&fleet.hosts()[0].address().to_string());
    running_capsule(&serving);
    // A host that registered, and a capsule that was pending, starting, running.
    let events = serving.metric("roost_revision").to_string();
    let address = serving.address().to_string();
    let env =
        [("ROOST_KEY", serving.key()), ("ROOST_ADDRESS", &address), ("ROOST_EVENTS", &events)];
    python.run("tests/openapi/stream.py", &[], &env);
    serving.stop();
    fleet.shutdown(Duration::from_secs(1));
}

#[test]
fn schemathesis_finds_nothing() {
    let Some(python) = python() else { return };
    let fleet = sim_fleet(1, 0);
    let home = Home::new();
    // Nobody beats but who is asked to.
    let serving = home.serve(&["--probe-interval", "1h", "--unreachable-after", "1d"]);
    let agent = serving.register(&fleet.hosts()[0].address().to_string());
    let capsules = [running_capsule(&serving), running_capsule(&serving)].join(" ");
    let count = number_in("ROOST_SCHEMATHESIS_EXAMPLES").unwrap_or(EXAMPLES).to_string();
    let here: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    let url = format!("http://{}", serving.address());
    let config = here.join("schemathesis.toml");
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.yaml");
    let args = ["--config-file", config.to_str().unwrap(), "run", document, "-u", &url];
    let more = ["-n", &count, "--seed", "1", "--request-timeout", "30", "--continue-on-failure"];
    let env = [
        ("SCHEMATHESIS_HOOKS", "hooks"),
        ("ROOST_URL", &url),
        ("ROOST_KEY", serving.key()),
        ("ROOST_AGENT", &agent.to_string()),
        ("ROOST_CAPSULES", &capsules),
    ];
    python.start("st", &[&args[..], &more[..]].concat(), &env);
    serving.stop();
    home.verify();
    fleet.shutdown(Duration::from_secs(1));
}

/// Starts a small capsule and waits until it runs; its id.
fn running_capsule(serving: &Serving) -> String {
    let made = serving.post("/v1/capsules", &json!({"memory_mb": 1})).json();
    let id = made["id"].as_str().unwrap().to_owned();
    eventually("a capsule that runs", || {
        let now = serving.get(&format!("/v1/capsules/{id}")).json();
        (now["status"] == "running").then_some(())
    });
    id
}

#[test]
fn the_examples_run() {
    let fleet = sim_fleet(1, 0);
    let home = Home::new();
    let serving = home.serve(&[]);
    let agent = serving.register(&fleet.hosts()[0].address().to_string());
    let host = agent["host"]["id"].as_str().unwrap();
    eventually("the first probe", || {
        serving.get(&format!("/v1/hosts/{host}")).json().get("last_probe").map(|_| ())
    });
    let url = format!("http://{}", serving.address());
    let mut shell = support::docs::Shell::new();
    shell.set("ROOST", &url);
    shell.set("KEY", serving.key());
    shell.follow("docs/api.md");
    serving.stop();
    fleet.shutdown(Duration::from_secs(1));
}
