//! Owns what a demo runs on: a directory of its own, simulated hosts, a control plane.
//!
//! Never: reads or writes the data directory of the configuration. Called by `demo`.

use crate::cli::act::{ServerClient, reachable};
use crate::cli::args::Demo;
use crate::cli::clock;
use crate::cli::output::Failure;
use crate::config::{Config, Inputs, Key, Paths};
use crate::engine::{self, Running};
use crate::model::id::HostId;
use crate::sim::{Beater, BeaterOptions, FleetOptions, Habits, Heartbeats, Initially, SimFleet};
use crate::store::writer::Revision;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Settings that let things happen while somebody watches; flags of the user win.
const QUICK: &[(Key, &str)] = &[
    (Key::Listen, "127.0.0.1:0"),
    (Key::UnreachableAfter, "3s"),
    (Key::StartupGrace, "2s"),
    (Key::ProbeInterval, "1s"),
    (Key::TransientGrace, "5s"),
    (Key::ConfirmDelay, "300ms"),
    (Key::HeartbeatFlush, "1s"),
];

/// Longest time between two heartbeats. Larger: one that is late looks like silence;
/// smaller: the machine has more to do for nothing.
const BEAT_EVERY_MAX: Duration = Duration::from_millis(500);

/// Heartbeats within `unreachable_after`. Larger and smaller: as above.
const BEATS_MIN: u32 = 6;

/// How long an agent waits for the control plane. Larger: one that hangs holds up the beats
/// of all; smaller: a busy machine looks like a lost network.
const BEAT_PATIENCE: Duration = Duration::from_secs(5);

/// What a simulated host takes for a create, a pause or a resume. Larger: repairs take
/// longer; smaller: transient statuses are never seen.
fn habits() -> Habits {
    Habits {
        create_takes: Duration::from_millis(150),
        pause_takes: Duration::from_millis(100),
        resume_takes: Duration::from_millis(150),
        ..Habits::default()
    }
}

/// How long each part may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that runs.
pub(super) struct Stage {
    dir: TempDir,
    config: Config,
    fleet: SimFleet,
    heartbeats: Heartbeats,
    running: Running,
}

impl Stage {
    /// Starts the hosts and the control plane; neither knows of the other yet.
    pub(super) fn build(inputs: &Inputs, options: &Demo) -> Result<Stage, Failure> {
        let failed = |what: &str| Failure::new(format!("could not {what}"));
        let dir = tempfile::Builder::new().prefix("roost-demo-").tempdir();
        let dir = dir.map_err(|e| failed("make a temporary directory").because(e))?;
        let mut config = config(inputs, dir.path())?;
        let fleet = SimFleet::start(&FleetOptions {
            hosts: options.hosts as usize,
            sandboxes: 0,
            base_port: 0,
            initially: Initially::Running,
            habits: habits(),
            seed: 0,
            clock: clock(),
        });
        let fleet = fleet.map_err(|e| failed("start the simulated hosts").because(e))?;
        let every = BEAT_EVERY_MAX.min(config.unreachable_after / BEATS_MIN);
        let heartbeats = Heartbeats::start(every);
        let heartbeats = heartbeats.map_err(|e| failed("start the heartbeats").because(e))?;
        let running = engine::serve(&config, &config.paths(), clock(), &mut |_| false)
            .map_err(|e| failed("start the control plane").because(e))?;
        config.listen = running.address();
        Ok(Stage { dir, config, fleet, heartbeats, running })
    }

    /// Where people and agents reach the control plane.
    pub(super) fn url(&self) -> String {
        format!("http://{}", reachable(&self.config))
    }

    /// The data directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its files.
    pub(super) fn paths(&self) -> Paths {
        self.config.paths()
    }

    /// The hosts as they really are.
    pub(super) fn fleet(&self) -> &SimFleet {
        &self.fleet
    }

    /// How long anything may take that depends on silences and probes, with room for a
    /// machine that has other things to do.
    pub(super) fn patience(&self) -> Duration {
        let Config { unreachable_after, probe_interval, probe_timeout, .. } = self.config;
        let grace = self.config.startup_grace + self.config.transient_grace;
        Duration::from_secs(60)
            + grace
            + unreachable_after * 3
            + (probe_interval + probe_timeout) * 10
    }

    /// The newest revision, to wait on.
    pub(super) fn revision(&self) -> Arc<Revision> {
        self.running.revision()
    }

    /// Lets other commands find the server by the data directory alone.
    pub(super) fn leave_address(&self) -> Result<(), Failure> {
        let path = self.paths().config_file;
        std::fs::write(&path, format!("listen = \"{}\"\n", self.config.listen))
            .map_err(|e| Failure::new(format!("could not write {}", path.display())).because(e))
    }

    /// Adds every host as an operator would, and lets its agent register and beat.
    pub(super) fn enrol(&self, server: &ServerClient) -> Result<Vec<HostId>, Failure> {
        let options = BeaterOptions { url: self.url(), timeout: BEAT_PATIENCE, tls: None };
        let mut ids = Vec::with_capacity(self.fleet.hosts().len());
        for host in self.fleet.hosts() {
            let answer = server.post("add a host", "/v1/hosts", &json!({"provider": "demo"}))?;
            let token = answer["registration_token"].as_str().unwrap_or_default();
            let beater = Beater::register(&options, host, token)
                .map_err(|e| Failure::new("could not register a host").because(e))?;
            ids.push(beater.credentials().host_id);
            self.heartbeats.enrol(Arc::clone(host), beater);
        }
        Ok(ids)
    }

    /// Ends everything and removes the directory.
    pub(super) fn close(self) {
        let Stage { dir, config: _, fleet, heartbeats, running } = self;
        drop(heartbeats);
        // Calls that hang end with the hosts, so that nothing has to wait for them.
        let hosts = fleet.shutdown(END_PATIENCE);
        if !(running.stop(END_PATIENCE, END_PATIENCE) && hosts) {
            log::info!("not everything ended by itself");
        }
        if let Err(error) = dir.close() {
            log::error!("could not remove the temporary directory: {error}");
        }
    }
}

fn config(inputs: &Inputs, dir: &Path) -> Result<Config, Failure> {
    let dir = dir.to_str().ok_or_else(|| {
        Failure::new("could not use the temporary directory").because("its name is no text")
    })?;
    let mut flags: Vec<(Key, String)> =
        QUICK.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
    flags.extend(inputs.flags.iter().cloned());
    // These are the demo's own, whatever is set.
    flags.push((Key::DataDir, dir.to_owned()));
    flags.push((Key::AgentTls, "off".to_owned()));
    flags.push((Key::TlsCert, String::new()));
    flags.push((Key::TlsKey, String::new()));
    flags.push((Key::Policy, "default".to_owned()));
    Ok(Config::load(&Inputs { flags, ..inputs.clone() })?)
}
