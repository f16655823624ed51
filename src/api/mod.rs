//! Owns what clients and agents may ask and what they are answered: routes,
//! authentication, one file per resource.
//!
//! Never: answers an agent with a status that kills when a harmless one is true
//! (`agents` says which), holds SQL, knows an engine thread. Called by the HTTP transport,
//! from many threads at once.

mod access;
mod agents;
mod audit;
mod body;
mod capsules;
mod database;
pub mod history;
mod hosts;
mod keys;
mod lanes;
mod listing;
pub mod metrics;
mod missing;
pub mod notify;
pub mod page;
mod query;
mod removal;
mod routes;
pub mod secret;
mod strangers;
pub mod stream;
mod tail;
mod templates;
pub mod token;
pub mod view;
mod waiting;
mod when_done;

use crate::agent::authority::Authority;
use crate::agent::client::AgentClient;
use crate::clock::Clock;
use crate::figures::{Counter, Counters, Histogram};
use crate::http::{
    Caller as Client, Claim, Handler, Holder, HttpFigures, Method, Request, Response, Slot,
};
use crate::logging::seldom;
use crate::model::id::HostId;
use crate::model::probe::FailureKind;
use crate::model::time::Now;
use crate::store::StoreError;
use crate::store::acceptance::Acceptance;
use crate::store::keys::Keys;
use crate::store::lifecycle::Work;
use crate::store::presence::Presence;
use crate::store::read::{Reader, Readers};
use crate::store::writer::{Command, Reply, Revision, Waits, WriterFigures, WriterHandle};
pub use agents::Intake;
use lanes::{Lane, Lanes};
pub use routes::routes;
use secret::{AdminKey, TokenKey};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What the scheduler must look at because of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A host that was silent was heard.
    Heard(HostId),
    /// A host was added or changed.
    Changed(HostId),
    /// A host registered: calls to its old agent ended with it.
    Registered(HostId),
    /// A host is to be asked at once.
    ProbeNow(HostId),
    /// An operation began.
    Work(Box<Work>),
    /// A restored database was accepted.
    Accepted,
    /// Hosts may have a template to delete.
    Erase,
}

/// What the engine shows of itself; read by `/readyz` and `/metrics`.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Monotonic milliseconds of the scheduler's last round.
    pub last_round_ms: AtomicU64,
    /// Milliseconds of a probe interval by the newest configuration: the scheduler makes a
    /// round at least so often.
    pub interval_ms: AtomicU64,
    /// Monotonic milliseconds since when verdicts on silent hosts are held; 0: they are not.
    pub holding_since_ms: AtomicU64,
    /// Hosts on which the mass guard holds the verdict; [`Pulse::NOT_JUDGED`] until it can.
    pub held: AtomicU64,
    /// Probes in flight.
    pub in_flight: AtomicU64,
    /// Those of them in the slow lane.
    pub slow_in_flight: AtomicU64,
    /// Probes that brought a listing.
    pub probes_listed: Counter,
    /// Probes that failed, in the order of [`FailureKind::ALL`].
    pub probes_failed: Counters<{ FailureKind::ALL.len() }>,
    /// How long agents took to answer, or to fail.
    pub probes_took: Histogram,
    /// Flushes of heartbeats that were written, and that failed.
    pub flushes: Counters<2>,
    /// Monotonic milliseconds of the last flush that was written.
    pub last_flush_ms: AtomicU64,
    /// Unix seconds when the certificate of the API expires; 0: it has none.
    pub certificate_expires_s: AtomicU64,
    /// The server is shutting down.
    pub stopping: AtomicBool,
}

impl Pulse {
    /// Stands in `held` for: not judged since the start.
    pub const NOT_JUDGED: u64 = u64::MAX;
}

/// Everything that requests can need once the database is open.
pub struct Plane {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Read-only connections.
    pub readers: Readers,
    /// The same for agents only.
    pub vital_readers: Readers,
    /// The way to the writer.
    pub writer: WriterHandle,
    /// The newest committed revision.
    pub revision: Arc<Revision>,
    /// Figures of the writer.
    pub figures: Arc<WriterFigures>,
    /// Figures of the transport.
    pub http: HttpFigures,
    /// What the API itself counts.
    pub scraped: metrics::Scraped,
    /// How fast hosts send what is written at once.
    pub intake: Intake,
    /// Who was heard when.
    pub presence: Arc<Presence>,
    /// Signs and checks host tokens.
    pub tokens: TokenKey,
    /// The operator's key.
    pub admin: AdminKey,
    /// The last day.
    pub history: history::History,
    /// Everybody else's keys.
    pub keys: Arc<Keys>,
    /// Those who listen to what happens.
    pub streams: stream::Streams,
    /// Whether lifecycle requests that say nothing of it are answered when they are done.
    pub answers_when_done: Arc<AtomicBool>,
    /// Whether the database was restored, and accepted since.
    pub acceptance: Arc<Acceptance>,
    /// The engine's pulse.
    pub pulse: Arc<Pulse>,
    /// For what a request asks of an agent while it waits.
    pub agent: AgentClient,
    /// Issues certificates to hosts; `None`: agents are spoken to plainly.
    pub authority: Option<Arc<Authority>>,
    /// Whether agents may register with an address that begins with `http://`.
    pub plain_agents: bool,
    /// Who is told of trouble.
    pub notify: Box<dyn notify::Notify>,
    /// Tells the engine.
    pub wake: Box<dyn Fn(Wake) + Send + Sync>,
}

impl Plane {
    fn now(&self) -> Now {
        self.clock.now()
    }
}

/// What one request works with: everything, in its lane, for the client that waits.
struct Ready {
    plane: Arc<Plane>,
    lanes: Arc<Lanes>,
    lane: Lane,
    /// `None`: it is answered at once.
    claim: Option<Arc<Claim>>,
}

impl Deref for Ready {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.plane
    }
}

impl Ready {
    fn read(&self) -> Result<Reader, Problem> {
        let readers = match self.lane {
            Lane::Vital => &self.vital_readers,
            Lane::Write | Lane::Read | Lane::Conversation | Lane::Opening => &self.readers,
        };
        readers.get().map_err(Problem::from)
    }

    /// Has the writer do this, and waits for what comes of it: within the patience of the
    /// lane it is begun, or it never is.
    fn write<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Problem> {
        let written = match &self.claim {
            Some(claim) => {
                let waits = Arc::new(Waiting(Arc::clone(claim)));
                self.writer.call_for(waits, self.lane.patience(), self.now(), command)
            }
            None => self.writer.call(self.now(), command),
        };
        written.map_err(Problem::from)
    }

    /// A place in a lane; 503 when there is none for this holder.
    fn place(&self, lane: Lane, holder: Holder) -> Result<Slot, Problem> {
        self.lanes.take(lane, holder).ok_or_else(|| {
            Problem::unavailable("too many requests wait for an answer already; try again")
        })
    }

    /// The answer that `work` makes on a thread of this lane, in which there is a place.
    fn in_lane(
        &self,
        lane: Lane,
        slot: Slot,
        work: impl FnOnce(&Arc<Ready>, &mut Client) -> Result<Response, Problem> + Send + 'static,
    ) -> Response {
        let (plane, lanes) = (Arc::clone(&self.plane), Arc::clone(&self.lanes));
        Response::in_lane(slot, move |client| {
            let ready = Arc::new(Ready { plane, lanes, lane, claim: Some(client.claim()) });
            routes::settled(&ready, work(&ready, client))
        })
    }
}

/// A client that waits for the writer.
struct Waiting(Arc<Claim>);

impl Waits for Waiting {
    fn begin(&self) -> bool {
        self.0.begin()
    }
}

/// The API. Listens before the database is open: everybody hears 503 until then.
#[derive(Default)]
pub struct Api {
    ready: OnceLock<Arc<Ready>>,
    /// Why the database could not be opened so far.
    waits_for: Mutex<Option<String>>,
}

impl Api {
    /// An API that waits for [`Api::open`].
    pub fn new() -> Api {
        Api::default()
    }

    /// The database could not be opened, and is tried again: until then every answer says why.
    pub fn wait(&self, why: &StoreError) {
        let mut waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        *waits_for = Some(why.to_string());
    }

    /// Begins to answer. Only the first call counts.
    pub fn open(&self, plane: Plane) {
        let (plane, lanes) = (Arc::new(plane), Arc::new(Lanes::new()));
        let ready = Ready { plane, lanes, lane: Lane::Vital, claim: None };
        if self.ready.set(Arc::new(ready)).is_err() {
            log::error!("the API was opened twice; keeping the first");
        }
    }
}

impl Handler for Api {
    fn handle(&self, request: Request) -> Response {
        match self.ready.get() {
            Some(ready) => routes::answer(ready, request),
            None => {
                let why = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
                routes::answer_while_opening(&request, why.as_deref())
            }
        }
    }

    fn body_bytes_max(&self, method: Method, path: &str) -> usize {
        routes::body_bytes_max(method, path)
    }
}

/// Why a request is refused: status, a word for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: u16,
    code: &'static str,
    message: String,
    /// One more field, for programs.
    more: Option<(&'static str, serde_json::Value)>,
    /// The methods that the path takes, for who tried another.
    allow: Option<Box<str>>,
    /// What the database was found to suffer from.
    damage: Option<Box<StoreError>>,
    /// Seconds after which to try again, of a caller who has to wait; 0: of none.
    retry_after_s: u32,
}

impl Problem {
    fn with(self, name: &'static str, value: impl Into<serde_json::Value>) -> Problem {
        Problem { more: Some((name, value.into())), ..self }
    }

    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Problem {
        let (message, retry_after_s) = (message.into(), 0);
        Problem { status, code, message, more: None, allow: None, damage: None, retry_after_s }
    }

    /// The caller does more than its share; it may go on after `wait`.
    fn until(self, wait: Duration) -> Problem {
        let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        Problem { retry_after_s: seconds.max(1), ..self }
    }

    fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(400, "invalid_request", message)
    }

    fn unauthorized(message: impl Into<String>) -> Problem {
        Problem::new(401, "unauthorized", message)
    }

    fn forbidden(message: impl Into<String>) -> Problem {
        Problem::new(403, "forbidden", message)
    }

    fn not_found(what: &str) -> Problem {
        Problem::new(404, "not_found", format!("no such {what}"))
    }

    fn unavailable(message: impl Into<String>) -> Problem {
        Problem::new(503, "unavailable", message)
    }
}

/// Whatever ails the database, the client did nothing wrong and may try again.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        if error == StoreError::GivenUp {
            return Problem::unavailable(
                "not begun: the disk, or another process that has the database, keeps it \
                 waiting; nothing was changed; try again",
            );
        }
        seldom!(Error, "failures of the database", "the database" =>
            "could not answer from the database: {error}");
        let problem = Problem::unavailable("the database cannot be used right now; try again");
        let is_damage = matches!(error, StoreError::Damaged(_));
        Problem { damage: is_damage.then(|| Box::new(error)), ..problem }
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Response {
        let mut response = Response::error(problem.status, problem.code, &problem.message);
        if let Some((name, value)) = problem.more {
            let error = serde_json::json!({"error": {"code": problem.code,
                "message": problem.message, name: value}});
            response = Response::json(problem.status, error.to_string().into_bytes());
        }
        if let Some(methods) = problem.allow {
            response = response.with_header("allow", String::from(methods));
        }
        if problem.retry_after_s > 0 {
            response = response.with_header("retry-after", problem.retry_after_s.to_string());
        }
        if problem.status == 503 {
            response = response.with_header("retry-after", "5");
        }
        response
    }
}

fn json(status: u16, value: &impl serde::Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value);
    body.map(|body| Response::json(status, body)).map_err(|error| {
        log::error!("could not write an answer: {error}");
        Problem::new(
            500,
            "internal_error",
            "the answer could not be written; this is a bug in roost",
        )
    })
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
