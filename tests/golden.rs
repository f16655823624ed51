//! Owns the API request by request: every file in `tests/golden` is a conversation with a
//! real server, held whole: statuses, headers, field names, and what is left out.
//!
//! Never: decides what is right; a changed answer is a changed behaviour, seen as a diff.
//! `UPDATE_EXPECT=1 cargo test --test golden` writes what the server says now.
//!
//! A file has requests (`> METHOD PATH`, `> Header: value`, an empty `>` line, the body),
//! answers (`< …`), comments (`#`), and waits (`~ until PATH FIELD VALUE`, which asks as the
//! operator, or `~ events N PATH`, which takes N events of a stream). What differs from
//! one run to the next has a name, which later requests may use: `<host-1>`, `<jwt-1>`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "golden/names.rs"]
mod names;
mod support;

use names::Names;
use roost::sim::SimFleet;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use support::client::Answer;
use support::server::Serving;
use support::{Home, PATIENCE, eventually, sim_fleet};

/// Headers that say nothing about the answer, or differ every time.
const HEADERS_LEFT_OUT: [&str; 3] = ["content-length", "connection", "date"];

/// Probes are asked for, or happen once after a registration; the clock brings no other.
const FLAGS: [&str; 4] = ["--probe-interval", "1h", "--confirm-delay", "100ms"];

#[test]
fn agents_are_answered_as_ever() {
    check("agents.txt", &[]);
}

#[test]
fn agents_get_certificates_with_mtls() {
    check("agents-mtls.txt", &["--agent-tls", "mtls"]);
}

#[test]
fn keys_and_history_are_answered_as_ever() {
    check("keys.txt", &[]);
}

#[test]
fn a_restored_database_is_answered_for_as_ever() {
    let stage = Stage::restored();
    play("restored.txt", stage);
}

#[test]
fn hosts_are_answered_as_ever() {
    check("hosts.txt", &[]);
}

#[test]
fn capsules_are_answered_as_ever() {
    check("capsules.txt", &[]);
}

#[test]
fn templates_are_answered_as_ever() {
    let stage = Stage::new(&[]);
    // What an operator has put on the host's disk.
    let id = "ee000000-0000-0000-0000-000000000001";
    stage.fleet.hosts()[0].put_template("", id).unwrap();
    play("templates.txt", stage);
}

#[test]
fn what_is_wrong_is_refused_as_ever() {
    check("refusals.txt", &[]);
}

/// Plays a file against a server of its own and holds it to what it says.
fn check(file: &str, flags: &[&str]) {
    play(file, Stage::new(flags));
}

fn play(file: &str, stage: Stage) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let script = std::fs::read_to_string(&path).unwrap();
    let mut names = stage.names();
    let mut out = String::new();
    for part in parts(&script) {
        match part {
            Part::Comment(text) => writeln!(out, "{text}").unwrap(),
            Part::Ask(lines) => stage.ask(&lines, &mut names, &mut out),
            Part::Wait(words) => stage.wait(&words, &mut names, &mut out),
        }
    }
    stage.end();
    expect_test::expect_file![path].assert_eq(&out);
}

enum Part {
    /// A comment or an empty line, as it is.
    Comment(String),
    /// The lines of one request.
    Ask(Vec<String>),
    /// Something to wait for.
    Wait(String),
}

fn parts(script: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    for line in script.lines() {
        if let Some(words) = line.strip_prefix("~ ") {
            parts.push(Part::Wait(words.to_owned()));
        } else if let Some(rest) = line.strip_prefix('>') {
            let rest = rest.strip_prefix(' ').unwrap_or(rest).to_owned();
            match parts.last_mut() {
                Some(Part::Ask(lines)) => lines.push(rest),
                _ => parts.push(Part::Ask(vec![rest])),
            }
        } else if !line.starts_with('<') {
            parts.push(Part::Comment(line.to_owned()));
        }
    }
    parts
}

/// A server without hosts, and an agent that is ready to be one.
struct Stage {
    home: Home,
    fleet: SimFleet,
    serving: Serving,
}

impl Stage {
    fn new(flags: &[&str]) -> Stage {
        let fleet = sim_fleet(1, 0);
        let home = Home::new();
        let serving = home.serve(&[&FLAGS, flags].concat());
        Stage { home, fleet, serving }
    }

    /// A server of a database that was restored a moment ago and that nobody has accepted.
    fn restored() -> Stage {
        let (fleet, home) = (sim_fleet(1, 0), Home::new());
        home.roost(&["db", "init"]).ok();
        let copy = home.path("copy");
        let copy = copy.to_str().unwrap();
        home.roost(&["db", "backup", copy]).ok();
        home.roost(&["db", "restore", copy]).ok();
        let serving = home.serve_restored(&FLAGS);
        Stage { home, fleet, serving }
    }

    fn names(&self) -> Names {
        let agent = self.fleet.hosts()[0].address().to_string();
        Names::new(&[("admin", self.serving.key()), ("agent", &agent)])
    }

    fn ask(&self, lines: &[String], names: &mut Names, out: &mut String) {
        for line in lines {
            writeln!(out, "{}", format!("> {line}").trim_end()).unwrap();
        }
        let (head, body) = match lines.iter().position(String::is_empty) {
            Some(at) => (&lines[..at], lines[at + 1..].join("\n")),
            None => (lines, String::new()),
        };
        let (method, path) = head[0].split_once(' ').unwrap();
        let headers: Vec<(String, String)> = head[1..]
            .iter()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_owned(), names.real(value)))
            .collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = self.serving.ask(method, &names.real(path), &headers, &names.real(&body));
        show(&answer, names, out);
    }

    fn wait(&self, words: &str, names: &mut Names, out: &mut String) {
        writeln!(out, "~ {words}").unwrap();
        match words.split(' ').collect::<Vec<_>>().as_slice() {
            ["until", path, field, value] => {
                let (path, pointer) = (names.real(path), format!("/{}", field.replace('.', "/")));
                eventually(words, || {
                    let found = self.serving.get(&path).json();
                    let found = found.pointer(&pointer)?;
                    let text = found.as_str().map_or(found.to_string(), str::to_owned);
                    (text == *value).then_some(())
                });
            }
            ["events", count, path] => {
                let events = self.events(count.parse().unwrap(), &names.real(path));
                events.iter().for_each(|line| writeln!(out, "< {}", names.named(line)).unwrap());
            }
            _ => panic!("no such wait: {words}"),
        }
    }

    /// The lines of the first events of a stream; comments left out.
    fn events(&self, count: usize, path: &str) -> Vec<String> {
        let mut stream = TcpStream::connect(self.serving.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = self.serving.key();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: roost\r\nX-API-Key: {key}\r\n\r\n").unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let mut data = 0;
        let events = lines.skip_while(|line| !line.starts_with("id:")).take_while(|line| {
            let more = data < count;
            data += usize::from(line.starts_with("data:"));
            more
        });
        let is_event =
            |line: &String| ["id:", "event:", "data:"].iter().any(|field| line.starts_with(field));
        events.filter(is_event).collect()
    }

    /// Whatever was asked, the database is whole.
    fn end(self) {
        self.serving.stop();
        self.home.verify();
        self.fleet.shutdown(Duration::from_secs(1));
    }
}

fn show(answer: &Answer, names: &mut Names, out: &mut String) {
    writeln!(out, "< {}", answer.status).unwrap();
    // What all have is left out, once it is there.
    let all_have: &[(&str, &str)] = &[
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("vary", "X-API-Key, Authorization"),
        ("x-content-type-options", "nosniff"),
    ];
    let is_json = answer.header(all_have[0].0) == Some(all_have[0].1);
    for (name, value) in all_have.iter().filter(|_| is_json) {
        assert_eq!(answer.header(name), Some(*value), "{answer:?}");
    }
    for (name, value) in &answer.headers {
        let plain = is_json && all_have.contains(&(name.as_str(), value.as_str()));
        if !plain && !HEADERS_LEFT_OUT.contains(&name.as_str()) {
            writeln!(out, "< {name}: {}", names.named(value)).unwrap();
        }
    }
    let body = match serde_json::from_str::<Value>(&answer.body) {
        Ok(mut json) => {
            names::hide_fleeting(&mut json);
            serde_json::to_string_pretty(&json).unwrap()
        }
        Err(_) => answer.body.clone(),
    };
    for line in body.lines() {
        out.push_str(format!("< {}", names.named(line)).trim_end());
        out.push('\n');
    }
}
