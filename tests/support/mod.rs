//! Owns what tests from outside share: a data directory, the real `roost` on it, stub
//! agents on loopback, an HTTP client that sees every byte, waiting with a deadline.
//!
//! Never: fixed ports, a decision about what is right, a process or file left behind.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stderr, reason = "a failed test shows the log of its server")]

pub mod agents;
pub mod client;
pub mod docs;
pub mod python;
pub mod random;
pub mod server;
pub mod token;
pub mod truth;

use roost::clock::SystemClock;
use roost::model::id::{HostId, SandboxId};
use roost::sim::{FleetOptions, Habits, Initially, SimFleet};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up. Generous: machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something; fails with `what` when it never does.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The id of host number `n`.
pub fn host(n: u128) -> String {
    HostId::from_u128(n).to_string()
}

/// The id of sandbox number `n`.
pub fn sandbox(n: u128) -> String {
    SandboxId::from_u128(n).to_string()
}

/// Simulated hosts with the usual habits on free ports, with so many running sandboxes each.
pub fn sim_fleet(hosts: usize, sandboxes: usize) -> SimFleet {
    let options = FleetOptions {
        hosts,
        sandboxes,
        base_port: 0,
        initially: Initially::Running,
        habits: Habits::default(),
        seed: 1,
        clock: Arc::new(SystemClock),
    };
    SimFleet::start(&options).unwrap()
}

/// A data directory of its own, made by the first command that needs it, gone with the
/// test.
pub struct Home {
    outer: TempDir,
    dir: PathBuf,
}

/// How a command ended and what it said.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn of(output: Output) -> Done {
        Done {
            // A signal has no code; no test expects -1.
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What was printed, of a command that must succeed.
    pub fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout
    }

    /// The JSON that was printed, whatever the exit code.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Home {
    /// No directory yet.
    pub fn new() -> Home {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        Home { outer, dir }
    }

    /// A directory of somebody else's choosing, not made yet.
    pub fn at(dir: PathBuf) -> Home {
        Home { outer: tempfile::tempdir().unwrap(), dir }
    }

    /// A directory with a database made from this fixture.
    pub fn with(fleet: &Value) -> Home {
        let home = Home::new();
        home.load(fleet);
        home
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file in the directory; nobody sees a part of it.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(&self.dir).unwrap();
        let part = self.outer.path().join("part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, self.path(name)).unwrap();
    }

    /// `roost` with nothing from the environment of the test.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.args(args).arg("--data-dir").arg(&self.dir);
        command.env_clear().env("TMPDIR", self.outer.path()).current_dir(self.outer.path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn roost(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// The JSON that a command prints that must succeed.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.roost(&[args, &["--format", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap()
    }

    /// Makes the database from a fixture.
    pub fn load(&self, fleet: &Value) {
        self.load_text(&fleet.to_string()).ok();
    }

    /// Tries to make the database from the text of a fixture.
    pub fn load_text(&self, text: &str) -> Done {
        let mut command = self.command(&["db", "load", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that refuses early does not read to the end.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        Done::of(child.wait_with_output().unwrap())
    }

    /// The database as a fixture.
    pub fn dump(&self) -> Value {
        serde_json::from_str(&self.roost(&["db", "dump"]).ok()).unwrap()
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.json(&["status"])["revision"].as_u64().unwrap()
    }

    /// Fails unless the database is whole.
    pub fn verify(&self) {
        let found = self.json(&["db", "verify"]);
        assert_eq!(found, serde_json::json!({"ok": true, "problems": []}));
    }
}

/// A fixture without what differs from one moment to the next: ages.
pub fn without_ages(mut fleet: Value) -> Value {
    let strip = |row: &mut Value| {
        if let Some(row) = row.as_object_mut() {
            row.retain(|key, _| !key.ends_with("_age_s"));
        }
    };
    for list in ["hosts", "sandboxes"] {
        fleet[list].as_array_mut().unwrap().iter_mut().for_each(strip);
    }
    strip(&mut fleet);
    fleet
}
