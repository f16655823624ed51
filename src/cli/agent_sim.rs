//! Owns `roost agent-sim`: simulated hosts until a signal, on their own or joined to a
//! control plane.
//!
//! Never: decides what an agent does with an answer (`sim` does); prints a token. Called by
//! `cli`.

use super::args::AgentSim;
use super::output::{Exit, Failure, Out};
use crate::clock::SystemClock;
use crate::http::trust_in;
use crate::model::sandbox::SandboxStatus;
use crate::sim::{
    Beater, BeaterOptions, Faults, FleetOptions, Habits, Heartbeats, Initially, SimFleet,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Calls under way at the end may take this long. Larger: Ctrl-C seems not to work; smaller:
/// answers are cut that would have come.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(1);

/// For one heartbeat or registration, as in real agents.
const BEAT_PATIENCE: Duration = Duration::from_secs(15);

/// File descriptors beside the listeners: connections and what every process has. Larger:
/// fleets are refused that would work; smaller: they fail while they run.
const SPARE_FDS: u64 = 512;

/// Runs simulated hosts until SIGINT or SIGTERM.
///
/// # Errors
/// When the ports do not fit or are taken, or the fixture cannot be written.
pub fn run(options: &AgentSim) -> Result<Exit, Failure> {
    let tokens = tokens(options)?;
    let hosts = if tokens.is_empty() { options.hosts as usize } else { tokens.len() };
    let ports = options.ports(hosts).ok_or_else(|| {
        Failure::new(format!("could not give {hosts} hosts a port each"))
            .because("the ports end at 65535")
            .advise("choose a lower --base-port or fewer --hosts")
            .exit_with(Exit::Usage)
    })?;
    // Before anything can be seen of us: a signal from then on is a clean end.
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|e| Failure::new("could not listen for signals").because(e))?;
    allow_files(hosts)?;
    let fleet = start(options, hosts, &ports)?;
    if let Some(path) = &options.fleet {
        write_fixture(&fleet, options.fleet_status, path)?;
    }
    let heartbeats = match &options.join {
        Some(url) => Some(join(&fleet, url, &tokens, options)?),
        None => None,
    };
    announce(&fleet)?;
    signals.forever().next();
    drop(heartbeats);
    fleet.shutdown(SHUTDOWN_DEADLINE);
    Ok(Exit::Done)
}

/// The registration tokens, one for each host; none without `--join`.
fn tokens(options: &AgentSim) -> Result<Vec<String>, Failure> {
    let Some(file) = &options.token_file else { return Ok(options.token.clone()) };
    let failed = || Failure::new(format!("could not read tokens from {}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| failed().because(e))?;
    let tokens: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    match tokens.is_empty() {
        true => Err(failed()
            .because("there is none")
            .advise("write one a line, as `roost hosts add` prints them")),
        false => Ok(tokens),
    }
}

/// Registers every host and lets it beat.
fn join(
    fleet: &SimFleet,
    url: &str,
    tokens: &[String],
    options: &AgentSim,
) -> Result<Heartbeats, Failure> {
    let url = url.trim_end_matches('/').to_owned();
    let failed = |why: String| Failure::new(format!("could not join {url}")).because(why);
    let tls = options.ca.as_deref().map(trust_in).transpose().map_err(failed)?;
    if tls.is_none() && url.starts_with("https://") {
        return Err(failed("no certificate is known to trust".to_owned())
            .advise("name the control plane's, or its CA's, with --ca"));
    }
    let beater_options = BeaterOptions { url: url.clone(), timeout: BEAT_PATIENCE, tls };
    let heartbeats = Heartbeats::start(Duration::from_millis(options.heartbeat_ms))
        .map_err(|e| failed(e.to_string()))?;
    for (host, token) in fleet.hosts().iter().zip(tokens) {
        let beater = Beater::register(&beater_options, host, token)
            .map_err(|e| failed(format!("{}: {e}", host.agent_address())))?;
        heartbeats.enrol(Arc::clone(host), beater);
    }
    Ok(heartbeats)
}

fn start(
    options: &AgentSim,
    hosts: usize,
    ports: &RangeInclusive<u16>,
) -> Result<SimFleet, Failure> {
    let takes = Duration::from_millis(options.calls_ms);
    let habits = Habits {
        lists_paused: options.paused,
        create_takes: takes,
        pause_takes: takes,
        resume_takes: takes,
        destroy_takes: takes,
    };
    let initially = match (options.paused, options.auto_paused) {
        (false, false) => Initially::Running,
        (true, _) => Initially::Paused,
        (false, true) => Initially::AutoPaused,
    };
    let fleet_options = FleetOptions {
        hosts,
        sandboxes: options.sandboxes as usize,
        base_port: *ports.start(),
        initially,
        habits,
        seed: 0,
        clock: Arc::new(SystemClock),
    };
    let failed = |e| {
        let (first, last) = (ports.start(), ports.end());
        Failure::new(format!("could not listen on ports {first} to {last}")).because(e)
    };
    let fleet = SimFleet::start(&fleet_options)
        .map_err(|e| failed(e).advise("choose another --base-port"))?;
    for number in 0..fleet.hosts().len() {
        fleet.set_faults(number, Faults::slow(delay(options, number))).map_err(failed)?;
    }
    Ok(fleet)
}

/// How late the answers of one host come.
fn delay(options: &AgentSim, number: usize) -> Duration {
    let hangs = options.hang_every > 0 && (number + 1).is_multiple_of(options.hang_every as usize);
    Duration::from_millis(if hangs { options.hang_ms } else { options.delay_ms })
}

/// Every host takes a listening socket.
fn allow_files(hosts: usize) -> Result<(), Failure> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = hosts as u64 + SPARE_FDS;
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let failed = || Failure::new(format!("could not open {needed} files at a time"));
    if maximum.is_some_and(|maximum| maximum < needed) {
        let advice = "raise the limit (ulimit -n) or choose fewer --hosts";
        return Err(failed().because("the limit of this process is lower").advise(advice));
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|e| failed().because(e))
}

fn write_fixture(fleet: &SimFleet, status: SandboxStatus, path: &Path) -> Result<(), Failure> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        fleet.write_fixture(status, &mut file)?;
        file.flush()
    };
    write().map_err(|e| Failure::new(format!("could not write {}", path.display())).because(e))
}

/// The one line that says that every host answers, and the fixture is there.
fn announce(fleet: &SimFleet) -> Result<(), Failure> {
    let ports = fleet.hosts().iter().map(|host| host.address().port());
    let (first, last) = (ports.clone().min().unwrap_or(0), ports.max().unwrap_or(0));
    let mut out = Out::stdout();
    out.line(&format!("ready {} hosts 127.0.0.1:{first}-{last}", fleet.hosts().len()))?;
    out.finish()
}
