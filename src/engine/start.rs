//! Owns the steps of a start: the door, the core, the threads behind their gate, and what
//! the API is given. `serve` says in which order.
//!
//! Never: lets a thread work before everything is ready: a start that fails halfway leaves
//! nobody behind who asks or writes.

use super::calls::{self, Calls, OpMail};
use super::erasures::{self, EraseMail, Eraser};
use super::https::Https;
use super::monitor::{self, Input, Monitor};
use super::notify::{Desk, Notifier, NotifyMail, Roll, Sources};
use super::operations::{self, Operations};
use super::pool::Pool;
use super::probes::{self, Job};
use super::scheduler::{Mail, Scheduler, deliver};
use super::serve::{StartError, ca_files, client_config};
use crate::agent::authority::Authority;
use crate::agent::client::AgentClient;
use crate::api::history::History;
use crate::api::metrics::Scraped;
use crate::api::secret::{AdminKey, TokenKey};
use crate::api::{Api, Plane, Pulse, Wake};
use crate::clock::Clock;
use crate::config::{AgentTls, Config, Paths};
use crate::http::{Hearing, Server, ServerConfig};
use crate::plan::schedule::Schedule;
use crate::store::StoreError;
use crate::store::acceptance::Acceptance;
use crate::store::keys::Keys;
use crate::store::lifecycle::{self, Work};
use crate::store::open::{begin_serving, open_writer};
use crate::store::presence::Presence;
use crate::store::read::{self, Readers};
use crate::store::writer::{QUEUE_MAX, Revision, Writer, WriterFigures, WriterHandle};
use crossbeam_channel::{Receiver, Sender};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of the scheduler and the writer. SQLite's deepest calls need about a tenth.
const STACK_BYTES: usize = 1024 * 1024;

/// How long a stop waits for probes in flight: the usual deadline of one. Longer and, with
/// a longer deadline, an agent that hangs holds up every restart.
const PROBE_PATIENCE: Duration = Duration::from_secs(8);

/// Threads that wait here until all is ready.
const GATED_MAX: usize = 8;

/// Holds threads until everything is ready. When a start fails it is dropped, and they end.
pub(super) struct Gate {
    enter: Sender<()>,
    wait: Receiver<()>,
}

impl Gate {
    pub(super) fn new() -> Gate {
        let (enter, wait) = crossbeam_channel::bounded(GATED_MAX);
        Gate { enter, wait }
    }

    /// Lets everybody through.
    pub(super) fn open(self) {
        // Cannot block: each thread takes one, and there are fewer than fit.
        while self.enter.try_send(()).is_ok() {}
    }

    fn spawn<T: Default + Send + 'static>(
        &self,
        name: &str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, StartError> {
        let wait = self.wait.clone();
        spawn(name, move || if wait.recv().is_ok() { run() } else { T::default() })
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    thread.spawn(run).map_err(StartError::System)
}

/// What listens, and whom it lets in.
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) https: Option<Https>,
    pub(super) http: Server,
    pub(super) api: Arc<Api>,
    authority: Option<Arc<Authority>>,
    agent: AgentClient,
}

impl Door {
    /// From here on everybody is answered, with 503 until the API opens.
    pub(super) fn listen(
        config: &Config,
        paths: &Paths,
        clock: &Arc<dyn Clock>,
    ) -> Result<Door, StartError> {
        // Plain text where somebody asked for TLS would be worse than not starting.
        let https = config.https().map(|(cert, key)| Https::load(cert, key)).transpose()?;
        let authority = match config.agent_tls {
            AgentTls::Off => None,
            AgentTls::Mtls => {
                Some(Arc::new(Authority::load_or_create(&ca_files(paths), clock.now().wall)?))
            }
        };
        let agent = AgentClient::new(client_config(config, authority.clone(), clock)?);
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let api = Arc::new(Api::new());
        let tls = https.as_ref().map(Https::source);
        let server = ServerConfig { tls, ..ServerConfig::default() };
        let http =
            Server::start(vec![listener], api.clone(), server).map_err(StartError::System)?;
        Ok(Door { address, https, http, api, authority, agent })
    }
}

/// What the database and the key files tell before threads start.
pub(super) struct Core {
    presence: Arc<Presence>,
    readers: Readers,
    vital_readers: Readers,
    revision: Arc<Revision>,
    figures: Arc<WriterFigures>,
    keys: Arc<Keys>,
    acceptance: Arc<Acceptance>,
    tokens: TokenKey,
    admin: AdminKey,
    /// Operations that the server before left open.
    pub(super) unfinished: Vec<Work>,
}

impl Core {
    /// Opens the database. What may pass is waited for: `wait` hears of it, and says whether
    /// to try again.
    pub(super) fn open_when_possible(
        config: &Config,
        paths: &Paths,
        clock: &Arc<dyn Clock>,
        wait: &mut dyn FnMut(&StoreError) -> bool,
    ) -> Result<(Writer, Core), StartError> {
        loop {
            match Core::open(config, paths, &**clock) {
                Err(error) if error.may_pass() => {
                    log::error!("could not open the database: {error}; trying again");
                    if !wait(&error) {
                        return Err(error.into());
                    }
                }
                opened => return Ok(opened?),
            }
        }
    }

    fn open(
        config: &Config,
        paths: &Paths,
        clock: &dyn Clock,
    ) -> Result<(Writer, Core), StoreError> {
        let now = clock.now();
        let conn = open_writer(&paths.db, true, now.wall)?;
        let served = begin_serving(&conn, boot_id().as_deref())?;
        let presence = Arc::new(Presence::load(
            &read::hosts(&conn)?,
            read::tombstones(&conn)?,
            read::listened_until(&conn)?,
            served,
            now,
        ));
        presence.unknown.remember(&conn)?;
        let unfinished = lifecycle::unfinished(&conn)?;
        let writer = Writer::new(conn, config.policy(), Arc::clone(&presence))?;
        let core = Core {
            presence,
            readers: Readers::open(&paths.db)?,
            vital_readers: Readers::few(&paths.db)?,
            revision: writer.published(),
            figures: writer.figures(),
            keys: writer.keys(),
            acceptance: writer.acceptance(),
            tokens: TokenKey::load_or_create(&paths.host_token_key)?,
            admin: AdminKey::load_or_create(&paths.admin_key)?,
            unfinished,
        };
        Ok((writer, core))
    }

    /// Whether the database was restored and is not accepted yet; says so.
    pub(super) fn is_held(&self) -> bool {
        let Some(restore) = self.acceptance.awaited() else { return false };
        let (as_of, at) = (restore.as_of, restore.restored_at);
        log::warn!(
            "the database was restored on {at} from a backup of {as_of} and is not accepted yet: \
             nothing is decided, and agents are told to wait; look at it, then `roost db accept`"
        );
        true
    }
}

/// What tells one run of the machine from another; `None` where the system does not say.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Starts the thread that writes. It ends when every handle is gone.
pub(super) fn start_writer(writer: Writer) -> Result<(WriterHandle, JoinHandle<()>), StartError> {
    let (queue, commands) = crossbeam_channel::bounded(QUEUE_MAX);
    let thread = spawn("writer", move || writer.run(&commands))?;
    Ok((WriterHandle::new(queue), thread))
}

/// What threads and API share.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) writer: WriterHandle,
    pub(super) revision: Arc<Revision>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) scheduler: Sender<Mail>,
    pub(super) operations: Sender<OpMail>,
    pub(super) erasures: Sender<EraseMail>,
    pub(super) answers_when_done: Arc<AtomicBool>,
    presence: Arc<Presence>,
    acceptance: Arc<Acceptance>,
    readers: Readers,
    agent: AgentClient,
    hearing: Hearing,
    /// Wakes who announces.
    bell: Sender<()>,
}

/// Where the threads hear.
pub(super) struct Mailboxes {
    pub(super) scheduler: Receiver<Mail>,
    pub(super) operations: Receiver<OpMail>,
    pub(super) erasures: Receiver<EraseMail>,
    pub(super) bell: Receiver<()>,
}

impl Parts {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        writer: WriterHandle,
        door: &Door,
        core: &Core,
    ) -> (Parts, Mailboxes) {
        let (scheduler, scheduler_mail) = crossbeam_channel::unbounded();
        let (operations, operations_mail) = crossbeam_channel::unbounded();
        let (erasures, erasures_mail) = crossbeam_channel::unbounded();
        let (bell, rung) = crossbeam_channel::bounded(1);
        core.revision.ring(bell.clone());
        let parts = Parts {
            clock,
            writer,
            revision: Arc::clone(&core.revision),
            pulse: Arc::default(),
            scheduler,
            operations,
            erasures,
            answers_when_done: Arc::default(),
            presence: Arc::clone(&core.presence),
            acceptance: Arc::clone(&core.acceptance),
            readers: core.readers.clone(),
            agent: door.agent.clone(),
            hearing: door.http.hearing(),
            bell,
        };
        let mail = Mailboxes {
            scheduler: scheduler_mail,
            operations: operations_mail,
            erasures: erasures_mail,
            bell: rung,
        };
        (parts, mail)
    }

    /// What is shown until the scheduler has made its first round.
    pub(super) fn begin_pulse(&self, config: &Config, door: &Door) {
        let (now_ms, pulse) = (self.clock.now().mono.0, &self.pulse);
        let expires_s = door.https.as_ref().map_or(0, Https::expires_s);
        pulse.last_round_ms.store(now_ms, Ordering::Relaxed);
        pulse.last_flush_ms.store(now_ms, Ordering::Relaxed);
        pulse.interval_ms.store(monitor::interval_ms(&config.policy()), Ordering::Relaxed);
        pulse.certificate_expires_s.store(expires_s, Ordering::Relaxed);
        pulse.held.store(Pulse::NOT_JUDGED, Ordering::Relaxed);
    }

    /// Starts the thread that probes and judges; `held`: not before the database is accepted.
    pub(super) fn start_monitor(
        &self,
        config: &Config,
        mail: Receiver<Mail>,
        held: bool,
        gate: &Gate,
    ) -> Result<JoinHandle<bool>, StartError> {
        let (parts, policy) = (self.clone(), config.policy());
        let (workers, flush_every) = (config.workers, config.heartbeat_flush);
        let patience = config.probe_timeout.min(PROBE_PATIENCE);
        gate.spawn("scheduler", move || {
            let now = parts.clock.now();
            let seed = now.wall.0 as u64 ^ u64::from(std::process::id());
            let presence = Arc::clone(&parts.presence);
            let mut monitor = Monitor::new(policy, presence, workers, flush_every, seed, now.mono);
            if held {
                monitor.hold();
            }
            parts.into_scheduler(monitor, mail, workers).run(patience)
        })
    }

    fn into_scheduler(self, monitor: Monitor, mail: Receiver<Mail>, workers: usize) -> Scheduler {
        Scheduler {
            monitor,
            probes: self.probe_pool(workers),
            hearing: self.hearing,
            mail,
            clock: self.clock,
            writer: self.writer,
            operations: self.operations,
            post: self.scheduler,
            pulse: self.pulse,
            bell: self.bell,
        }
    }

    fn probe_pool(&self, workers: usize) -> Pool<Job> {
        probes::pool(
            self.agent.clone(),
            Arc::clone(&self.clock),
            Arc::clone(&self.revision),
            Schedule::in_flight_max(workers),
            deliver(
                self.writer.clone(),
                Arc::clone(&self.presence),
                Arc::clone(&self.pulse),
                self.scheduler.clone(),
            ),
        )
    }

    /// Starts the thread that carries out operations, first those that were left open. When
    /// `held`, whoever accepts the database sets these going.
    pub(super) fn start_operations(
        &self,
        unfinished: Vec<Work>,
        mail: Receiver<OpMail>,
        held: bool,
        gate: &Gate,
    ) -> Result<JoinHandle<bool>, StartError> {
        for work in unfinished.into_iter().filter(|_| !held) {
            drop(self.operations.send(OpMail::input(operations::Input::Work(Box::new(work)))));
        }
        let calls = Calls {
            operations: Operations::default(),
            clock: Arc::clone(&self.clock),
            writer: self.writer.clone(),
            pool: calls::pool(
                self.agent.clone(),
                Arc::clone(&self.clock),
                self.writer.clone(),
                Arc::clone(&self.presence),
                self.operations.clone(),
            ),
            mail,
            post: self.operations.clone(),
            scheduler: self.scheduler.clone(),
        };
        gate.spawn("operations", move || calls.run())
    }

    /// Starts the thread that has hosts delete templates.
    pub(super) fn start_erasures(
        &self,
        mail: Receiver<EraseMail>,
        gate: &Gate,
    ) -> Result<JoinHandle<()>, StartError> {
        let eraser = Eraser {
            clock: Arc::clone(&self.clock),
            readers: self.readers.clone(),
            writer: self.writer.clone(),
            presence: Arc::clone(&self.presence),
            acceptance: Arc::clone(&self.acceptance),
            pool: erasures::pool(self.agent.clone(), self.erasures.clone()),
            mail,
        };
        gate.spawn("erasures", move || eraser.run())
    }

    /// Starts the thread that announces.
    pub(super) fn start_notifications(
        &self,
        config: &Config,
        rung: Receiver<()>,
        gate: &Gate,
    ) -> Result<(Sender<NotifyMail>, Desk, JoinHandle<()>), StartError> {
        let sources = Sources {
            clock: Arc::clone(&self.clock),
            writer: self.writer.clone(),
            readers: self.readers.clone(),
            pulse: Arc::clone(&self.pulse),
        };
        let roll = Arc::new(Roll::default());
        let (post, mail) = crossbeam_channel::unbounded();
        let notifier = Notifier::new(sources.clone(), Arc::clone(&roll), config);
        let thread = gate.spawn("notify", move || notifier.run(&rung, &mail))?;
        Ok((post, Desk { roll, sources, bell: self.bell.clone() }, thread))
    }

    /// What the API opens with.
    pub(super) fn plane(&self, core: Core, door: &Door, desk: Desk) -> Plane {
        Plane {
            clock: Arc::clone(&self.clock),
            readers: core.readers,
            vital_readers: core.vital_readers,
            writer: self.writer.clone(),
            revision: core.revision,
            figures: core.figures,
            http: door.http.figures(),
            scraped: Scraped::default(),
            presence: core.presence,
            tokens: core.tokens,
            admin: core.admin,
            history: History::default(),
            keys: core.keys,
            answers_when_done: Arc::clone(&self.answers_when_done),
            acceptance: core.acceptance,
            pulse: Arc::clone(&self.pulse),
            agent: self.agent.clone(),
            authority: door.authority.clone(),
            notify: Box::new(desk),
            wake: wake(self.scheduler.clone(), self.operations.clone(), self.erasures.clone()),
        }
    }
}

fn wake(
    post: Sender<Mail>,
    calls: Sender<OpMail>,
    erasures: Sender<EraseMail>,
) -> Box<dyn Fn(Wake) + Send + Sync> {
    Box::new(move |wake| {
        let input = match wake {
            Wake::Work(work) => {
                let input = operations::Input::Work(work);
                return drop(calls.send(OpMail::input(input)));
            }
            Wake::Registered(host) => {
                let input = operations::Input::Registered(host);
                drop(calls.send(OpMail::input(input)));
                Input::Changed(host)
            }
            Wake::ProbeNow(host) => Input::ProbeNow(host),
            Wake::Heard(host) => Input::Heard(host),
            Wake::Changed(host) => Input::Changed(host),
            Wake::Accepted => Input::Accepted,
            Wake::Erase => return drop(erasures.send(EraseMail::Look)),
        };
        // After the scheduler has ended nobody needs to be woken.
        drop(post.send(Mail::input(input)));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_works_before_the_gate_opens_and_a_failed_start_leaves_nobody() {
        let (tell, told) = crossbeam_channel::unbounded();
        let work = |name: &'static str| {
            let tell = tell.clone();
            move || tell.send(name).is_ok()
        };
        let (opened, failed) = (Gate::new(), Gate::new());
        let left = failed.spawn("test", work("left")).unwrap();
        let threads = [(); 3].map(|()| opened.spawn("test", work("works")).unwrap());
        assert!(told.is_empty());
        drop(failed);
        assert!(!left.join().unwrap());
        opened.open();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["works"; 3]);
    }
}
