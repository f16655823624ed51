//! Owns the proof that docs/running.md tells the truth: every line that begins with `roost`
//! is run, and what it says of the service file and of the program holds.
//!
//! Never: runs a command of the machine's own (`systemctl`, `docker`, `install`).

use crate::support::Home;
use std::process::{Command, Stdio};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/running.md");
    std::fs::read_to_string(path).unwrap()
}

/// The lines in its blocks of shell.
fn lines() -> Vec<String> {
    let page = page();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

/// What only a machine with them can run.
const OF_THE_MACHINE: &[&str] = &["install", "systemctl", "docker", "journalctl"];

#[test]
fn every_command_is_run() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let url = format!("http://{}", serving.address());
    let mut run = 0;
    for line in lines() {
        let line = line.split(" > ").next().unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] != "roost" {
            assert!(OF_THE_MACHINE.contains(&words[0]), "{line}");
            continue;
        }
        // The directory and the port of this test stand in for those of the page.
        let dir = home.dir().to_str().unwrap();
        let stands_for = |word: &str| match word {
            "/var/lib/roost" => dir.to_owned(),
            "http://127.0.0.1:8000" => url.clone(),
            other => other.to_owned(),
        };
        let args: Vec<String> = words[1..].iter().map(|word| stands_for(word)).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.args(&args).env_clear().env("ROOST_DATA_DIR", dir).env("ROOST_URL", &url);
        let out = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        // A pass while the server holds the database is the one that only looks.
        assert!(out.status.success() && said.is_empty(), "{line}: {said}");
        assert!(!out.stdout.is_empty(), "{line}");
        run += 1;
    }
    assert!(run > 10, "only {run} commands were found");
    serving.stop();
}

#[test]
fn files_and_settings_it_names_are_there() {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = page();
    for link in page.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        assert!(top.join("docs").join(link).exists(), "{link}");
    }
    let key = |name: &&str| roost::config::KEYS.iter().any(|key| key.key.as_str() == *name);
    for name in ["tls_cert", "tls_key", "agent_tls", "unreachable_after", "startup_grace"] {
        assert!(key(&name) && page.contains(name), "{name}");
    }
    // Exit codes are those of the program.
    let help = Home::new().roost(&["--help"]).ok();
    for line in page.lines().filter(|line| line.starts_with("| ") && line.contains(" | ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells[0].parse::<u8>().is_ok() {
            let what = cells[1].split(';').next().unwrap().replace('`', "");
            assert!(help.contains(&format!("{}  {what}", cells[0])), "{line}: {help}");
        }
    }
}
