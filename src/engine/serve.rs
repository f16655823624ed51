//! Owns a running control plane: what is started in which order, and stopped in which.
//!
//! Never: lets an agent knock in vain. The socket listens before the database is opened
//! and closes after everything else has ended: whoever gets an answer, even 503, does
//! not pause its sandboxes.

use super::calls::OpMail;
use super::erasures::EraseMail;
use super::https::{Https, HttpsError};
use super::monitor::Input;
use super::notify::NotifyMail;
use super::scheduler::Mail;
use super::start::{Core, Door, Gate, Parts, start_writer};
use super::systemd::Notify;
use crate::agent::authority::{Authority, CaError, CaFiles};
use crate::agent::client::ClientConfig;
use crate::agent::trust::Trust;
use crate::api::Pulse;
use crate::clock::Clock;
use crate::config::{AgentTls, Answers, Config, Paths};
use crate::http::Server;
use crate::store::StoreError;
use crate::store::open::Lock;
use crate::store::writer::{Command, Revision, WriterHandle};
use crossbeam_channel::Sender;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Why a control plane did not start.
#[derive(Debug)]
pub enum StartError {
    /// The address cannot be listened on.
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory cannot be made.
    DataDir {
        /// The directory, and what the system said.
        message: String,
    },
    /// The certificate authority for agents cannot be used.
    Ca(CaError),
    /// Certificate and key of the API cannot be used.
    Https(HttpsError),
    /// The system gives no threads or descriptors.
    System(std::io::Error),
    /// The database or a key file cannot be used.
    Store(StoreError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { address, source } => {
                write!(f, "could not listen on {address}: {source}; choose another with --listen")
            }
            StartError::DataDir { message } => {
                write!(f, "could not use the data directory: {message}")
            }
            StartError::Ca(error) => write!(f, "could not use the CA: {error}"),
            StartError::Https(error) => write!(f, "could not serve HTTPS: {error}"),
            StartError::System(source) => write!(f, "could not start a thread: {source}"),
            StartError::Store(error) => write!(f, "could not open the database: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<CaError> for StartError {
    fn from(error: CaError) -> StartError {
        StartError::Ca(error)
    }
}

impl From<HttpsError> for StartError {
    fn from(error: HttpsError) -> StartError {
        StartError::Https(error)
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> StartError {
        StartError::Store(error)
    }
}

/// A control plane that runs.
pub struct Running {
    address: SocketAddr,
    https: Option<Https>,
    http: Server,
    writer: WriterHandle,
    writer_thread: JoinHandle<()>,
    scheduler: Sender<Mail>,
    scheduler_thread: JoinHandle<bool>,
    operations: Sender<OpMail>,
    operations_thread: JoinHandle<bool>,
    erasures: Sender<EraseMail>,
    erasures_thread: JoinHandle<()>,
    notify: Sender<NotifyMail>,
    notify_thread: JoinHandle<()>,
    clock: Arc<dyn Clock>,
    pulse: Arc<Pulse>,
    answers_when_done: Arc<AtomicBool>,
    revision: Arc<Revision>,
    _lock: Lock,
}

/// Starts everything. While the disk takes no writes or somebody keeps the database locked,
/// agents are answered and it is tried again after each `wait`, which hears why, that says so.
pub fn serve(
    config: &Config,
    paths: &Paths,
    clock: Arc<dyn Clock>,
    wait: &mut dyn FnMut(&StoreError) -> bool,
) -> Result<Running, StartError> {
    make_dir(&paths.dir)?;
    let lock = Lock::take(&Lock::path_for(&paths.db))?;
    let door = Door::listen(config, paths, &clock)?;
    let (writer, mut core) = Core::open_when_possible(config, paths, &clock, wait)?;
    let (writer, writer_thread) = start_writer(writer)?;
    let (parts, mail) = Parts::new(clock, writer, &door, &core);
    parts.begin_pulse(config, &door);
    parts.answers_when_done.store(config.answers == Answers::WhenDone, Ordering::Relaxed);
    let held = core.is_held();
    let unfinished = std::mem::take(&mut core.unfinished);
    let gate = Gate::new();
    let scheduler_thread = parts.start_monitor(config, mail.scheduler, held, &gate)?;
    let operations_thread = parts.start_operations(unfinished, mail.operations, held, &gate)?;
    let erasures_thread = parts.start_erasures(mail.erasures, &gate)?;
    let (notify, desk, notify_thread) = parts.start_notifications(config, mail.bell, &gate)?;
    door.api.open(parts.plane(core, &door, desk));
    // Only now: whoever is asked first takes the processor from the start.
    gate.open();
    Ok(Running {
        address: door.address,
        https: door.https,
        http: door.http,
        writer: parts.writer,
        writer_thread,
        scheduler: parts.scheduler,
        scheduler_thread,
        operations: parts.operations,
        operations_thread,
        erasures: parts.erasures,
        erasures_thread,
        notify,
        notify_thread,
        clock: parts.clock,
        pulse: parts.pulse,
        answers_when_done: parts.answers_when_done,
        revision: parts.revision,
        _lock: lock,
    })
}

/// How agents are asked, by this configuration; with `authority` over TLS.
pub(super) fn client_config(
    config: &Config,
    authority: Option<Arc<Authority>>,
    clock: &Arc<dyn Clock>,
) -> Result<ClientConfig, CaError> {
    let probe_timeout = config.probe_timeout;
    let connect_timeout = ClientConfig::default().connect_timeout.min(probe_timeout);
    let trust = authority.map(|authority| Trust::new(authority, Arc::clone(clock))).transpose()?;
    Ok(ClientConfig { probe_timeout, connect_timeout, tls: trust.map(Arc::new) })
}

/// How agents are asked by whoever does not serve: the CA must be there already.
///
/// # Errors
/// With `agent_tls = mtls`, a CA that is not there or not usable.
pub fn client_config_of(
    config: &Config,
    paths: &Paths,
    clock: &Arc<dyn Clock>,
) -> Result<ClientConfig, CaError> {
    let authority = match config.agent_tls {
        AgentTls::Off => None,
        AgentTls::Mtls => Some(Arc::new(Authority::load(&ca_files(paths), clock.now().wall)?)),
    };
    client_config(config, authority, clock)
}

pub(super) fn ca_files(paths: &Paths) -> CaFiles {
    CaFiles { certificate: paths.ca_cert.clone(), key: paths.ca_key.clone() }
}

fn make_dir(dir: &Path) -> Result<(), StartError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(|error| StartError::DataDir {
        message: format!("{}: {error}; choose another with --data-dir", dir.display()),
    })
}

impl Running {
    /// Where the API is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the API speaks HTTPS.
    pub fn is_https(&self) -> bool {
        self.https.is_some()
    }

    /// The newest committed revision, to wait on.
    pub fn revision(&self) -> Arc<Revision> {
        Arc::clone(&self.revision)
    }

    /// Feeds the watchdog of whoever started us for as long as scheduler and writer both
    /// answer. Bad news is an answer too: a full disk or a locked database is not cured by
    /// a restart.
    pub fn feed(&self, notify: &Notify) {
        let (scheduler, writer) = (self.scheduler.clone(), self.writer.clone());
        let clock = Arc::clone(&self.clock);
        notify.feed(move || {
            let (answer, answered) = crossbeam_channel::bounded(1);
            drop(scheduler.send(Mail::Echo(answer)));
            answered.recv().is_ok()
                && writer.call(clock.now(), Command::Echo) != Err(StoreError::Stopped)
        });
    }

    /// Lets the live settings of `config` count from now on, and the certificate of the API
    /// as its files are now.
    pub fn reload(&self, config: &Config) {
        if let Some(https) = &self.https {
            https.reload();
            self.pulse.certificate_expires_s.store(https.expires_s(), Ordering::Relaxed);
        }
        self.answers_when_done.store(config.answers == Answers::WhenDone, Ordering::Relaxed);
        let (policy, flush_every) = (config.policy(), config.heartbeat_flush);
        self.writer.send(self.clock.now(), Command::Decide(policy.clone()));
        drop(self.scheduler.send(Mail::input(Input::Decide { policy, flush_every })));
        drop(self.notify.send(NotifyMail::Reload(Box::new(config.clone()))));
    }

    /// Stops everything. Calls to agents in flight may end first, within `stop_timeout`;
    /// heartbeats are answered meanwhile and nothing new begins. Then probes in flight end
    /// and are written, heartbeats are flushed, the writer ends, and the socket closes last,
    /// all that within `patience`. True when nothing was cut.
    pub fn stop(self, stop_timeout: Duration, patience: Duration) -> bool {
        self.pulse.stopping.store(true, Ordering::Relaxed);
        drop(self.operations.send(OpMail::Stop(stop_timeout)));
        let ended = self.operations_thread.join().unwrap_or(false);
        let until = self.clock.now().mono.after(patience);
        drop(self.scheduler.send(Mail::Stop));
        drop(self.erasures.send(EraseMail::Stop));
        drop(self.notify.send(NotifyMail::Stop));
        let ended = self.scheduler_thread.join().unwrap_or(false) && ended;
        let ended = self.erasures_thread.join().is_ok() && ended;
        let ended = self.notify_thread.join().is_ok() && ended;
        let flushed = self.writer.call(self.clock.now(), Command::Flush);
        if let Err(error) = &flushed {
            log::error!("could not flush heartbeats: {error}");
        }
        self.writer.send(self.clock.now(), Command::Stop);
        let written = self.writer_thread.join().is_ok();
        let answered = self.http.shutdown(until.since(self.clock.now().mono));
        ended && flushed.is_ok() && written && answered
    }
}
