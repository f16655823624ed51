//! What every bench sets up: simulated hosts in a process of their own, and databases that
//! match them.
//!
//! Never: measures, runs the program under measurement inside this process.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The program under measurement.
pub(crate) const ROOST: &str = env!("CARGO_BIN_EXE_roost");

/// First ports that are tried, one after another, until none of a fleet's is taken. Below
/// those that systems give to connections; room for 10 000 hosts.
const BASE_PORTS: [u16; 4] = [21_000, 10_500, 22_000, 12_000];

/// Simulated hosts, and what the database says of their sandboxes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fleet {
    pub(crate) hosts: usize,
    pub(crate) sandboxes: usize,
    /// Of every sandbox in the fixture.
    pub(crate) status: &'static str,
    /// The agents have paused everything by themselves.
    pub(crate) auto_paused: bool,
    pub(crate) delay_ms: u64,
    /// Every so many hosts hang for so long.
    pub(crate) hang: Option<(usize, Duration)>,
}

impl Fleet {
    /// A fleet whose agents answer at once and have what the database says they have.
    #[allow(dead_code, reason = "every bench has this file to itself")]
    pub(crate) fn running(hosts: usize, sandboxes: usize) -> Fleet {
        Fleet { hosts, sandboxes, status: "running", auto_paused: false, delay_ms: 0, hang: None }
    }
}

/// Simulated hosts in a process of their own, which ends with this.
pub(crate) struct Agents(Child);

impl Agents {
    /// Starts them and writes the fixture that matches them.
    pub(crate) fn start(fleet: &Fleet, fixture: &Path) -> Result<Agents> {
        for base_port in BASE_PORTS {
            if let Some(agents) = Agents::ready(&mut command(fleet, base_port, fixture))? {
                return Ok(agents);
            }
        }
        Err("no range of ports was free for the simulated hosts".into())
    }

    /// Those that this command starts; none when they do not get ready.
    pub(crate) fn ready(command: &mut Command) -> Result<Option<Agents>> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut agents = Agents(quiet(command).spawn()?);
        let mut line = String::new();
        let stdout = agents.0.stdout.take().ok_or("agent-sim has no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(line.starts_with("ready ").then_some(agents))
    }
}

fn command(fleet: &Fleet, base_port: u16, fixture: &Path) -> Command {
    let (hang_every, hang) = fleet.hang.unwrap_or_default();
    let mut command = Command::new(ROOST);
    command
        .arg("agent-sim")
        .args(["--hosts", &fleet.hosts.to_string()])
        .args(["--sandboxes", &fleet.sandboxes.to_string()])
        .args(["--base-port", &base_port.to_string()])
        .args(["--delay-ms", &fleet.delay_ms.to_string()])
        .args(["--hang-every", &hang_every.to_string()])
        .args(["--hang-ms", &hang.as_millis().to_string()])
        .args(["--fleet-status", fleet.status, "--fleet"])
        .arg(fixture);
    if fleet.auto_paused {
        command.arg("--auto-paused");
    }
    command
}

impl Drop for Agents {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a database of a fixture.
pub(crate) fn load(fixture: &Path, db: &Path) -> Result<()> {
    let mut command = Command::new(ROOST);
    command.args(["db", "load", "--db"]).arg(db).arg(fixture).stdout(Stdio::null());
    let status = quiet(&mut command).status()?;
    if status.success() { Ok(()) } else { Err(format!("db load ended with {status}").into()) }
}

/// Nothing of this machine's own settings.
pub(crate) fn quiet(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROOST_") {
            command.env_remove(name);
        }
    }
    command
}

/// To what is worth reading.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
