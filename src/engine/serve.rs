//! Owns a running control plane: what is started in which order, and stopped in which.
//!
//! Never: lets an agent knock in vain. The socket listens before the database is opened
//! and closes after everything else has ended: whoever gets an answer, even 503, does
//! not pause its sandboxes.

use super::calls::{self, Calls, OpMail};
use super::https::{Https, HttpsError};
use super::monitor::{Input, Monitor};
use super::operations::{self, Operations};
use super::probes;
use super::scheduler::{Mail, Scheduler, deliver};
use crate::agent::authority::{Authority, CaError, CaFiles};
use crate::agent::client::{AgentClient, ClientConfig};
use crate::agent::trust::Trust;
use crate::api::history::History;
use crate::api::metrics::Scraped;
use crate::api::secret::{AdminKey, TokenKey};
use crate::api::{Api, Pulse, Ready, Wake};
use crate::clock::Clock;
use crate::config::{AgentTls, Config, Paths};
use crate::http::{Server, ServerConfig};
use crate::plan::schedule::Schedule;
use crate::store::StoreError;
use crate::store::lifecycle::{self, Work};
use crate::store::open::{Lock, begin_serving, open_writer};
use crate::store::presence::Presence;
use crate::store::read::{self, Readers};
use crate::store::writer::{Command, QUEUE_MAX, Revision, Writer, WriterHandle};
use crossbeam_channel::Sender;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of the scheduler and the writer. SQLite's deepest calls need about a tenth.
const STACK_BYTES: usize = 1024 * 1024;

/// How long a stop waits for calls to agents. Longer and a slow pause holds up every
/// restart; the next start takes up what is cut.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a stop waits for probes in flight: the usual deadline of one. Longer and, with
/// a longer deadline, an agent that hangs holds up every restart.
const PROBE_PATIENCE: Duration = Duration::from_secs(8);

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
    clock: Arc<dyn Clock>,
    pulse: Arc<Pulse>,
    revision: Arc<Revision>,
    _lock: Lock,
}

/// Starts everything. While the disk takes no writes or somebody keeps the database locked,
/// agents are answered and it is tried again after each `wait` that says so.
pub fn serve(
    config: &Config,
    paths: &Paths,
    clock: Arc<dyn Clock>,
    wait: &mut dyn FnMut() -> bool,
) -> Result<Running, StartError> {
    make_dir(&paths.dir)?;
    let lock = Lock::take(&Lock::path_for(&paths.db))?;
    // Plain text where somebody asked for TLS would be worse than not starting.
    let https = config.https().map(|(cert, key)| Https::load(cert, key)).transpose()?;
    let authority = match config.agent_tls {
        AgentTls::Off => None,
        AgentTls::Mtls => {
            Some(Arc::new(Authority::load_or_create(&ca_files(paths), clock.now().wall)?))
        }
    };
    let client = client_config(config, authority.clone(), &clock)?;
    let listen = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let api = Arc::new(Api::new());
    let tls = https.as_ref().map(Https::source);
    let server = ServerConfig { tls, ..ServerConfig::default() };
    let http = Server::start(vec![listener], api.clone(), server).map_err(StartError::System)?;

    let core = loop {
        match Core::open(config, paths, Arc::clone(&clock)) {
            Err(error) if error.may_pass() => {
                log::error!("could not open the database: {error}; trying again");
                if !wait() {
                    return Err(error.into());
                }
            }
            opened => break opened?,
        }
    };
    let Core { writer, presence, readers, tokens, admin, unfinished } = core;
    let (revision, figures, keys) = (writer.published(), writer.figures(), writer.keys());
    let acceptance = writer.acceptance();
    let awaited = acceptance.awaited();
    let (queue, commands) = crossbeam_channel::bounded(QUEUE_MAX);
    let writer_thread = spawn("writer", move || writer.run(&commands))?;
    let writer = WriterHandle::new(queue);

    let pulse = Arc::new(Pulse::default());
    let (post, mail) = crossbeam_channel::unbounded();
    let policy = config.policy();
    let agent = AgentClient::new(client);
    let probes = probes::pool(
        agent.clone(),
        Arc::clone(&clock),
        Arc::clone(&revision),
        Schedule::in_flight_max(config.workers),
        deliver(writer.clone(), Arc::clone(&presence), Arc::clone(&pulse), post.clone()),
    );
    let now = clock.now();
    let seed = now.wall.0 as u64 ^ u64::from(std::process::id());
    let mut monitor = Monitor::new(
        policy,
        Arc::clone(&presence),
        config.workers,
        config.heartbeat_flush,
        seed,
        now.mono,
    );
    if let Some(restore) = awaited {
        let (as_of, at) = (restore.as_of, restore.restored_at);
        log::warn!(
            "the database was restored on {at} from a backup of {as_of} and is not accepted yet: \
             nothing is decided, and agents are told to wait; look at it, then `roost db accept`"
        );
        monitor.hold();
    }
    pulse.last_round_ms.store(now.mono.0, Ordering::Relaxed);
    pulse.interval_ms.store(monitor.interval_ms(), Ordering::Relaxed);
    pulse.last_flush_ms.store(now.mono.0, Ordering::Relaxed);
    let expires_s = https.as_ref().map_or(0, Https::expires_s);
    pulse.certificate_expires_s.store(expires_s, Ordering::Relaxed);
    let (op_post, op_mail) = crossbeam_channel::unbounded();
    let calls = Calls {
        operations: Operations::default(),
        clock: Arc::clone(&clock),
        writer: writer.clone(),
        pool: calls::pool(
            agent.clone(),
            Arc::clone(&clock),
            writer.clone(),
            Arc::clone(&presence),
            op_post.clone(),
        ),
        mail: op_mail,
        post: op_post.clone(),
        scheduler: post.clone(),
    };
    // Whoever accepts a restored database sets its operations going.
    for work in unfinished.into_iter().filter(|_| awaited.is_none()) {
        drop(op_post.send(OpMail::input(operations::Input::Work(Box::new(work)))));
    }
    let scheduler = Scheduler {
        monitor,
        clock: Arc::clone(&clock),
        writer: writer.clone(),
        probes,
        operations: op_post.clone(),
        mail,
        post: post.clone(),
        pulse: Arc::clone(&pulse),
    };
    let patience = config.probe_timeout.min(PROBE_PATIENCE);
    let scheduler_thread = spawn("scheduler", move || scheduler.run(patience))?;
    let operations_thread = spawn("operations", move || calls.run(CALL_PATIENCE))?;

    api.open(Ready {
        clock: Arc::clone(&clock),
        readers,
        writer: writer.clone(),
        revision: Arc::clone(&revision),
        figures,
        http: http.figures(),
        scraped: Scraped::default(),
        presence,
        tokens,
        admin,
        history: History::default(),
        keys,
        acceptance,
        pulse: Arc::clone(&pulse),
        agent,
        authority,
        wake: wake(post.clone(), op_post.clone()),
    });
    Ok(Running {
        address,
        https,
        http,
        writer,
        writer_thread,
        scheduler: post,
        scheduler_thread,
        operations: op_post,
        operations_thread,
        clock,
        pulse,
        revision,
        _lock: lock,
    })
}

/// What is opened before threads start.
struct Core {
    writer: Writer,
    presence: Arc<Presence>,
    readers: Readers,
    tokens: TokenKey,
    admin: AdminKey,
    unfinished: Vec<Work>,
}

impl Core {
    fn open(config: &Config, paths: &Paths, clock: Arc<dyn Clock>) -> Result<Core, StoreError> {
        let now = clock.now();
        let conn = open_writer(&paths.db, true, now.wall)?;
        let interrupted = begin_serving(&conn, boot_id().as_deref())?;
        let presence = Arc::new(Presence::load(
            &read::hosts(&conn)?,
            read::tombstones(&conn)?,
            read::listened_until(&conn)?,
            interrupted,
            now,
        ));
        let unfinished = lifecycle::unfinished(&conn)?;
        Ok(Core {
            unfinished,
            writer: Writer::new(conn, config.policy(), Arc::clone(&presence))?,
            presence,
            readers: Readers::open(&paths.db)?,
            tokens: TokenKey::load_or_create(&paths.host_token_key)?,
            admin: AdminKey::load_or_create(&paths.admin_key)?,
        })
    }
}

/// What tells one run of the machine from another; `None` where the system does not say.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
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

fn ca_files(paths: &Paths) -> CaFiles {
    CaFiles { certificate: paths.ca_cert.clone(), key: paths.ca_key.clone() }
}

fn wake(post: Sender<Mail>, calls: Sender<OpMail>) -> Box<dyn Fn(Wake) + Send + Sync> {
    Box::new(move |wake| {
        let input = match wake {
            Wake::Work(work) => {
                let input = operations::Input::Work(work);
                return drop(calls.send(OpMail::input(input)));
            }
            Wake::ProbeNow(host) => Input::ProbeNow(host),
            Wake::Heard(host) => Input::Heard(host),
            Wake::Changed(host) => Input::Changed(host),
            Wake::Accepted => Input::Accepted,
        };
        // After the scheduler has ended nobody needs to be woken.
        drop(post.send(Mail::input(input)));
    })
}

fn make_dir(dir: &Path) -> Result<(), StartError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(|error| StartError::DataDir {
        message: format!("{}: {error}; choose another with --data-dir", dir.display()),
    })
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    thread.spawn(run).map_err(StartError::System)
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

    /// Lets the live settings of `config` count from now on, and the certificate of the API
    /// as its files are now.
    pub fn reload(&self, config: &Config) {
        if let Some(https) = &self.https {
            https.reload();
            self.pulse.certificate_expires_s.store(https.expires_s(), Ordering::Relaxed);
        }
        let (policy, flush_every) = (config.policy(), config.heartbeat_flush);
        self.writer.send(self.clock.now(), Command::Decide(policy.clone()));
        drop(self.scheduler.send(Mail::input(Input::Decide { policy, flush_every })));
    }

    /// Stops everything: no new probes; those in flight end and are written; heartbeats
    /// are flushed; the writer ends; the socket closes last. True when nothing was cut.
    pub fn stop(self, patience: Duration) -> bool {
        let until = self.clock.now().mono.after(patience);
        self.pulse.stopping.store(true, Ordering::Relaxed);
        drop(self.operations.send(OpMail::Stop));
        drop(self.scheduler.send(Mail::Stop));
        let ended = [self.operations_thread.join(), self.scheduler_thread.join()];
        let ended = ended.into_iter().all(|drained| drained.unwrap_or(false));
        let flushed = self.writer.call(self.clock.now(), Command::Flush);
        if let Err(error) = &flushed {
            log::error!("could not flush heartbeats: {error}");
        }
        if ended && let Err(error) = self.writer.call(self.clock.now(), Command::EndServing) {
            log::error!("could not note the end: {error}");
        }
        self.writer.send(self.clock.now(), Command::Stop);
        let written = self.writer_thread.join().is_ok();
        let answered = self.http.shutdown(until.since(self.clock.now().mono));
        ended && flushed.is_ok() && written && answered
    }
}
