//! Owns the parts of the docs that are made from the code: the picture of the rooms, and the
//! tables of decisions. `UPDATE_EXPECT=1 cargo test --test docs` renews them.
//!
//! Never: words that a person wrote; those stand outside the marks.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by layer, the highest first. A room that stands in no layer is a failure.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["engine"],
    &["api"],
    &["store", "agent", "http"],
    &["plan"],
    &["model"],
    &["clock", "config", "figures", "files", "logging", "sim"],
];

/// Beside the layers; their use is not drawn.
const SIDE: &[&str] = &["clock", "config", "figures", "files", "logging"];

fn top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(top(path)).unwrap()
}

/// Holds what stands between `<!-- name -->` and `<!-- end -->` to `made`.
fn check_part(path: &str, name: &str, made: &str) {
    let text = read(path);
    let begin = format!("<!-- {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let whole = format!("{before}{begin}\n{made}\n<!-- end -->{after}");
    expect_test::expect_file![top(path)].assert_eq(&whole);
}

/// The text of every file of a room, by the room's name.
fn rooms() -> BTreeMap<String, Vec<String>> {
    let mut rooms: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut paths = vec![top("src")];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let inner = path.strip_prefix(top("src")).unwrap().with_extension("");
            let room = inner.iter().next().unwrap().to_str().unwrap().to_owned();
            rooms.entry(room).or_default().push(fs::read_to_string(&path).unwrap());
        }
    }
    for outside in ["lib", "main", "build"] {
        rooms.remove(outside).unwrap();
    }
    rooms
}

/// Which rooms the code of a room names.
fn uses(room: &str, files: &[String], rooms: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let named = |other: &&String| {
        let path = format!("crate::{other}::");
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        files.iter().any(|text| text.lines().filter(is_code).any(|line| line.contains(&path)))
    };
    rooms.keys().filter(|other| *other != room).filter(named).cloned().collect()
}

/// What a room is for, by the head of its first file.
fn owns(room: &str) -> String {
    let file = ["mod.rs", "."].map(|end| match end {
        "." => format!("src/{room}.rs"),
        end => format!("src/{room}/{end}"),
    });
    let text = file.iter().find_map(|path| fs::read_to_string(top(path)).ok()).unwrap();
    let head: Vec<&str> = text
        .lines()
        .take_while(|line| line.starts_with("//! "))
        .map(|line| line.trim_start_matches("//! "))
        .collect();
    head.join(" ").strip_prefix("Owns ").unwrap().to_owned()
}

#[test]
fn the_picture_of_the_rooms_is_the_codes() {
    let rooms = rooms();
    let mut drawn: Vec<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
    drawn.sort_unstable();
    assert_eq!(drawn, rooms.keys().map(String::as_str).collect::<Vec<_>>());

    let mut made = String::from("```mermaid\nflowchart TD\n");
    for room in LAYERS.iter().flat_map(|layer| layer.iter()).filter(|room| !SIDE.contains(room)) {
        for used in uses(room, &rooms[*room], &rooms) {
            if !SIDE.contains(&used.as_str()) && used != "model" {
                writeln!(made, "    {room} --> {used}").unwrap();
            }
        }
    }
    made.push_str("    plan --> model\n```\n\n| room | owns |\n|---|---|\n");
    for room in LAYERS.iter().flat_map(|layer| layer.iter()) {
        writeln!(made, "| `{room}` | {} |", owns(room)).unwrap();
    }
    assert!(!made.contains("plan --> store") && !made.contains("store --> api"), "{made}");
    check_part("docs/architecture.md", "rooms", &made);
}

/// `-` for nothing, the rest with spaces where the golden file has none.
fn cell(text: &str) -> String {
    match text.trim() {
        "-" => "–".to_owned(),
        text => text.replace('(', " (").replace("again:", "ask again: "),
    }
}

#[test]
fn the_tables_of_decisions_are_the_codes() {
    let titles = [
        ("default-after-grace", "After the grace, or where there is none"),
        ("default-within-grace", "Within `transient_grace` of the last change of status"),
        ("default-live-operation", "While an operation of a user is under way"),
        ("strict", "With `policy = \"strict\"`"),
    ];
    let mut made = String::new();
    for (file, title) in titles {
        writeln!(made, "### {title}\n").unwrap();
        made.push_str("| the database says | the host lists it running | lists it paused | lists it failed | says it paused it | does not have it |\n|---|---|---|---|---|---|\n");
        let table = read(&format!("src/plan/golden/{file}.txt"));
        for line in table.lines() {
            let cells: Vec<String> = line.split('|').map(cell).collect();
            assert_eq!(cells.len(), 6, "{line}");
            writeln!(made, "| {} |", cells.join(" | ")).unwrap();
        }
        made.push('\n');
    }
    check_part("docs/decisions.md", "tables", made.trim_end());

    let mut audit = String::from("| change | audit entry | in strict policy |\n|---|---|---|\n");
    for line in read("src/plan/golden/audit.txt").lines() {
        let (change, entries) = line.split_once(": ").unwrap();
        let (entry, strict) = entries.split_once("; strict: ").unwrap();
        writeln!(audit, "| {change} | {} | {} |", cell(entry), cell(strict)).unwrap();
    }
    check_part("docs/decisions.md", "audit", audit.trim_end());
}
