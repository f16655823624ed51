//! Owns the proof of docs/operate.md: its commands run, its anchors lead somewhere, and it
//! names every error that the log can have.
//!
//! Never: a command that nobody has run.

use crate::scrape::{Joined, add_host, create};
use crate::support::server::Serving;
use crate::support::{Done, Home, eventually};
use crate::{file, read};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

const PAGE: &str = "docs/operate.md";

/// One block of commands.
#[derive(Debug)]
struct Block {
    heading: String,
    commands: String,
    /// The server must not run.
    stopped: bool,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let (mut blocks, mut heading, mut stopped) = (Vec::new(), String::new(), false);
    let mut open: Option<Block> = None;
    for line in markdown.lines() {
        match (open.as_mut(), line) {
            (Some(_), "```") => blocks.extend(open.take()),
            (Some(block), line) => block.commands.push_str(&format!("{line}\n")),
            (None, "```sh") => {
                let (heading, commands) = (heading.clone(), String::new());
                open = Some(Block { heading, commands, stopped });
                stopped = false;
            }
            (None, "<!-- stopped -->") => stopped = true,
            (None, line) if line.starts_with("## ") => heading = line[3..].to_owned(),
            (None, _) => {}
        }
    }
    assert!(open.is_none(), "a block that does not end");
    blocks
}

/// A server with two hosts whose agents are there, and a sandbox that was paused.
struct World {
    home: Home,
    serving: Serving,
    _agents: Joined,
    host: String,
    sandbox: String,
}

impl World {
    fn new() -> World {
        let home = Home::new();
        let serving = home.serve(&["--probe-interval", "1s"]);
        let hosts = [add_host(&serving), add_host(&serving)];
        let tokens: Vec<String> = hosts.iter().map(|(_, token)| token.clone()).collect();
        let agents = Joined::start(&home, &serving, &tokens);
        let sandbox = create(&serving);
        let path = format!("/v1/capsules/{sandbox}");
        assert_eq!(serving.post(&format!("{path}/pause"), &json!({})).status, 202);
        let capsule = eventually("a pause", || {
            Some(serving.get(&path).json()).filter(|capsule| capsule["status"] == "paused")
        });
        let host = capsule["host_id"].as_str().unwrap().to_owned();
        World { home, serving, _agents: agents, host, sandbox }
    }

    /// Runs a block as an operator would, each line after the other until one fails.
    fn run(self, block: &Block) -> Done {
        let url = format!("http://{}", self.serving.address);
        let still_running = match block.stopped {
            true => {
                self.serving.stop();
                None
            }
            false => Some(self.serving),
        };
        let place = self.home.dir().parent().unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_roost")).parent().unwrap();
        let commands = block.commands.replace("HOST", &self.host).replace("SANDBOX", &self.sandbox);
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &commands]).current_dir(place);
        bash.env_clear().env("PATH", format!("{}:/usr/bin:/bin", binary.display()));
        bash.env("ROOST_DATA_DIR", self.home.dir()).env("ROOST_URL", url);
        let done = Done::of(bash.stdin(Stdio::null()).output().unwrap());
        still_running.into_iter().for_each(|serving| drop(serving.stop()));
        done
    }
}

#[test]
fn every_command_of_the_page_runs() {
    let blocks = blocks(&read(PAGE));
    assert!(blocks.len() > 12, "{blocks:?}");
    // Three at a time: each has a server and agents of its own.
    for some in blocks.chunks(3) {
        std::thread::scope(|scope| {
            let run = |block| scope.spawn(move || (block, World::new().run(block)));
            let running: Vec<_> = some.iter().map(run).collect();
            for (block, done) in running.into_iter().map(|run| run.join().unwrap()) {
                let Block { heading, commands, .. } = block;
                assert_eq!(done.code, 0, "under {heading}:\n{commands}{done:?}");
                assert!(!done.stdout.is_empty(), "under {heading}: nothing is said");
            }
        });
    }
}

/// Messages of the log that are errors, with `…` for what is filled in. Simulated hosts and
/// the demo are nobody's to operate.
fn errors(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("sim") || path.ends_with("cli/demo") || path.ends_with("cli/demo.rs") {
            continue;
        } else if path.is_dir() {
            errors(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let seldom = text.split("seldom!(Error,").skip(1);
        let seldom = seldom.map(|part| part.split_once("=>").unwrap().1);
        for part in text.split("log::error!(").skip(1).chain(seldom) {
            let part = part.trim_start();
            // A target of its own stands before the message.
            let part = part
                .strip_prefix("target:")
                .map_or(part, |rest| rest.split_once(',').unwrap().1.trim_start());
            let literal = part.strip_prefix('"').and_then(|l| l.split_once('"'));
            let (literal, _) = literal.unwrap_or_else(|| panic!("{}: {part:.60}", path.display()));
            found.insert(filled(literal));
        }
    }
}

/// A format with `…` in the place of what is filled in.
fn filled(format: &str) -> String {
    let mut out = String::new();
    for part in format.split('{') {
        out.push_str(part.split_once('}').map_or(part, |(_, rest)| rest));
        out.push('…');
    }
    out.pop();
    out
}

#[test]
fn every_error_of_the_log_is_on_the_page() {
    let page = read(PAGE);
    let mut found = BTreeSet::new();
    errors(&file("src"), &mut found);
    assert!(found.len() > 25, "{found:?}");
    let missing: Vec<&String> =
        found.iter().filter(|error| !page.contains(&format!("| `{error}` |"))).collect();
    assert!(missing.is_empty(), "not in {PAGE}: {missing:#?}");
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let listed = listed.map(|(error, _)| error).filter(|error| error.contains("could not"));
    for error in listed {
        assert!(found.contains(error), "the page has an error that nobody says: {error}");
    }
}

#[test]
fn every_link_of_the_page_leads_somewhere() {
    let page = read(PAGE);
    let anchors = crate::rules::anchors(&page);
    let links = page.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    for (link, _) in links {
        match link.strip_prefix('#') {
            Some(anchor) => assert!(anchors.contains(anchor), "no section {anchor}"),
            None => assert!(file("docs").join(link).exists(), "no file {link}"),
        }
    }
}
