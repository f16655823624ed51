//! Owns `roost serve`: signals in, a running control plane out.
//!
//! Never: outlives a second signal.

use super::args::Serve;
use super::output::{Exit, Failure, Out};
use super::{clock, paths, warnings_of_agents};
use crate::config::{Config, Inputs};
use crate::engine::systemd::Notify;
use crate::engine::{self, Running};
use crate::logging;
use crate::store::StoreError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::time::{Duration, Instant};

/// How long a stop may take, once no call is in flight, before what is left is cut.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait before a database that could not be opened is tried again. Larger: it
/// comes back later than the disk; smaller: the log says the same more often.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How often to look for a signal meanwhile.
const LOOK_FOR_SIGNALS_EVERY: Duration = Duration::from_millis(50);

pub(super) fn run(inputs: &Inputs, config: &Config, options: &Serve) -> Result<Exit, Failure> {
    let fail = |what: &str| Failure::new(what.to_owned());
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| fail("could not watch for signals").because(e))?;
    allow_files();
    let paths = paths(config, &options.database);
    let warnings = config.warnings_here(&paths, clock().now().wall);
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let notify = Notify::from_process();
    let starting = notify.starting("opening the database");
    let mut wait = |error: &StoreError| {
        notify.status(&format!("waiting for the database: {error}"));
        stays(&mut signals)
    };
    let running = engine::serve(config, &paths, clock(), &mut wait)
        .map_err(|e| fail("could not start").because(e))?;
    let scheme = if running.is_https() { "https" } else { "http" };
    let url = format!("{scheme}://{}", running.address());
    log::info!("listening on {url}, data in {}", paths.dir.display());
    let mut out = Out::stdout();
    out.line(&format!("listening on {url}"))?;
    out.flush()?;
    let status = format!("listening on {url}");
    running.feed(&notify);
    notify.ready(&status);
    drop(starting);
    // Reads every host: nobody waits for that any more.
    warnings_of_agents(config, &paths).iter().for_each(|warning| log::warn!("{warning}"));
    let mut current = config.clone();
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        notify.reloading();
        current = reload(inputs, current, &running);
        notify.ready(&status);
    }
    let stopping = notify.stopping();
    log::info!("stopping");
    force_on_second_signal(signals);
    match running.stop(current.stop_timeout, STOP_PATIENCE) {
        true => log::info!("stopped"),
        false => log::warn!("stopped; not everything ended by itself"),
    }
    drop(stopping);
    Ok(Exit::Done)
}

/// Every connection takes a file descriptor, and shells give a thousand or so by default;
/// the system allows more to who asks.
fn allow_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log::warn!("could not raise the limit of open files: {error}; raise it with ulimit -n");
    }
}

/// Waits for a moment before the database is opened once more; false when told to stop.
fn stays(signals: &mut Signals) -> bool {
    let until = Instant::now() + OPEN_AGAIN_AFTER;
    while Instant::now() < until {
        if signals.pending().any(|signal| signal != SIGHUP) {
            return false;
        }
        std::thread::sleep(LOOK_FOR_SIGNALS_EVERY);
    }
    true
}

/// Takes over what may change while running; a bad file changes nothing.
fn reload(inputs: &Inputs, current: Config, running: &Running) -> Config {
    let newer = match Config::load(inputs) {
        Ok(newer) => newer,
        Err(error) => {
            log::error!("could not reload the configuration: {error}; keeping the old one");
            return current;
        }
    };
    for key in current.changed(&newer) {
        let when = if key.live { "changed" } else { "changes with the next start" };
        log::info!("{}: {when}", key.key.as_str());
    }
    logging::restart(&newer.log, newer.log_format);
    running.reload(&newer);
    newer
}

/// Whoever asks twice does not want to wait.
fn force_on_second_signal(mut signals: Signals) {
    let watch = move || {
        if signals.forever().any(|signal| signal != SIGHUP) {
            log::warn!("second signal; cutting off what is in flight");
            std::process::exit(Exit::Failed as i32);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("signals".to_owned()).spawn(watch) {
        log::error!("could not watch for a second signal: {error}");
    }
}
