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
    Beater, BeaterOptions, Faults, FleetOptions, HEARTBEAT_TIMEOUT, Habits, Heartbeats, Initially,
    ReportFault, SimFleet, SimHost,
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls in flight at the end may take this long. Larger: Ctrl-C seems not to work; smaller:
/// answers are cut that would have come.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(1);

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
    let signals = signals().map_err(|e| Failure::new("could not listen for signals").because(e))?;
    allow_files(hosts)?;
    let fleet = start(options, hosts, &ports)?;
    put_templates(options, &fleet)?;
    if let Some(path) = &options.fleet {
        write_fixture(&fleet, options.fleet_status, path)?;
    }
    let heartbeats = match &options.join {
        Some(url) => Some(join(&fleet, url, &tokens, options)?),
        None => None,
    };
    announce(&fleet)?;
    restart_until_signal(options, &fleet, &signals);
    shut_down(Duration::from_millis(options.shutdown_ms), &fleet, &signals)?;
    drop(heartbeats);
    fleet.shutdown(SHUTDOWN_DEADLINE);
    Ok(Exit::Done)
}

/// SIGINT and SIGTERM as they come.
fn signals() -> std::io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (came, comes) = crossbeam_channel::unbounded();
    let watch = move || signals.forever().all(|_| came.send(()).is_ok());
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(comes)
}

/// Restarts one agent after the other until a signal comes.
fn restart_until_signal(options: &AgentSim, fleet: &SimFleet, signals: &Receiver<()>) {
    let hosts = fleet.hosts();
    let every = Duration::from_secs(options.restart_every_s) / hosts.len().max(1) as u32;
    if every.is_zero() {
        // The thread that sends them lives as long as the process.
        let _ = signals.recv();
        return;
    }
    for host in hosts.iter().cycle() {
        match signals.recv_timeout(every) {
            Err(RecvTimeoutError::Timeout) => restart(host, options.index_ms),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The agent takes a random time to read its disk.
fn restart(host: &SimHost, index_ms: u64) {
    let random = RandomState::new().build_hasher().finish();
    let index_takes =
        Duration::from_millis(random.checked_rem(index_ms.saturating_add(1)).unwrap_or(0));
    log::debug!("{} restarts and reads its disk for {index_takes:?}", host.agent_address());
    host.set_habits(Habits { index_takes, ..host.habits() });
    host.restart();
}

/// Lets every agent shut down for so long, or until another signal comes.
fn shut_down(takes: Duration, fleet: &SimFleet, signals: &Receiver<()>) -> Result<(), Failure> {
    if takes.is_zero() {
        return Ok(());
    }
    let until = Instant::now() + takes;
    for host in fleet.hosts() {
        host.shut_down(takes)
            .map_err(|e| Failure::new("could not shut down in order").because(e))?;
    }
    let left = until.saturating_duration_since(Instant::now());
    // Both ends of the wait mean the same.
    let _ = signals.recv_timeout(left);
    Ok(())
}

/// The templates of every host, from the options and from a file.
fn put_templates(options: &AgentSim, fleet: &SimFleet) -> Result<(), Failure> {
    let mut templates = options.template.clone();
    if let Some(file) = &options.template_file {
        let failed = || Failure::new(format!("could not read templates from {}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| failed().because(e))?;
        templates.extend(text.split_whitespace().map(str::to_owned));
    }
    for template in &templates {
        let failed = |why: String| {
            Failure::new(format!("could not use template {template:?}"))
                .because(why)
                .advise("name it by its team and its id, as TEAM/ID, both UUIDs")
                .exit_with(Exit::Usage)
        };
        let (team, id) =
            template.split_once('/').ok_or_else(|| failed("it has no slash".to_owned()))?;
        for host in fleet.hosts() {
            host.put_template(team, id).map_err(failed)?;
        }
    }
    Ok(())
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

/// Registers every host and lets it send heartbeats.
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
    let beater_options = BeaterOptions { url: url.clone(), timeout: HEARTBEAT_TIMEOUT, tls };
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
        lists_paused: options.paused || options.lists_paused,
        reports: options.reports,
        keeps_after_snapshot: options.keeps_after_snapshot,
        clock_skew_ms: options.clock_skew_ms,
        create_takes: takes,
        pause_takes: takes,
        resume_takes: takes,
        destroy_takes: takes,
        snapshot_takes: takes,
        ..Habits::default()
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
        fleet.set_faults(number, faults(options, number)).map_err(failed)?;
    }
    Ok(fleet)
}

/// What is wrong with one host from the start.
fn faults(options: &AgentSim, number: usize) -> Faults {
    let late = Duration::from_millis(options.reports_late_ms);
    Faults {
        finishes_orphans: options.orphans_finish,
        reports: if late.is_zero() { ReportFault::None } else { ReportFault::Late(late) },
        ..Faults::slow(delay(options, number))
    }
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
