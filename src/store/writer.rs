//! Owns the only write connection: takes commands, puts what is queued into one
//! transaction with a savepoint for each that writes, commits, then answers.
//!
//! Never: answers before the commit, does a command's work twice, waits for anybody
//! but the disk. One closed enum says everything that can be written.

mod figures;
mod thread;

use super::StoreError;
use super::acceptance::{Acceptance, Accepted, LostToken};
use super::apply::{Applied, Probed};
use super::bounds::Bounds;
use super::deletion::Deletion;
use super::idempotency::{Created, Once, OnceKey};
use super::identity::{NewHost, Registered, Registration, TokenHash};
use super::journal::{Actor, Journal, Random};
use super::keys::{ApiKey, KeyUse, Keys, NewKey};
use super::lifecycle::{self, Begun, Ended, Looking, NewSandbox, Placed, Said, Wish, Work};
use super::notify::{Lookout, Maintenance, Noticed};
use super::owed::Owed;
use super::place::Place;
use super::presence::Presence;
use super::reports::AgentReport;
use super::served::Served;
use super::shares::Shares;
use super::snapshots::{NewSnapshot, SnapshotBegun};
use super::strangers::{Adopted, Adoption};
use super::tally::Tally;
use super::templates::{Added, Erasure, NewTemplate, Removal, Removed};
pub use super::ticket::{Ticket, Waits};
use super::usage::Usage;
use crate::figures::Stopwatch;
use crate::logging::seldom;
use crate::model::host::{Host, Intent, Liveness};
use crate::model::id::{HostId, KeyId, OpId, SandboxId};
use crate::model::operation::OperationKind;
use crate::model::policy::Policy;
use crate::model::time::{Mono, Now};
use crate::plan::observation::HostMemory;
use crate::plan::operation;
use crossbeam_channel::{RecvTimeoutError, SendTimeoutError, Sender};
pub use figures::WriterFigures;
use rusqlite::Connection;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Commands in one transaction. Larger and the first of them waits for the last; smaller
/// and a busy fleet pays for more commits.
const BATCH_MAX: usize = 256;

/// Commands that may wait. Larger and a slow disk hides for longer; smaller and bursts
/// of a healthy fleet block their senders.
pub const QUEUE_MAX: usize = 256;

/// How long the writer waits for another process that has kept it from a batch already.
/// Larger: each batch that is queued waits so long after the one before; smaller: more
/// attempts while it lasts.
const BUSY_AGAIN: Duration = Duration::from_millis(250);

/// Called once, on the writer's thread, after the commit or its failure. Must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Everything that can be written.
pub enum Command {
    /// A probe ended.
    Probed(Box<Probed>, Reply<Applied>),
    /// Hosts were judged silent; with what was heard of each when it was judged.
    MarkDown(Vec<(HostId, Option<Mono>)>, Reply<Vec<Applied>>),
    /// An unreachable host was heard.
    MarkUp(HostId, Reply<bool>),
    /// Heartbeats go to disk.
    Flush(Reply<()>),
    /// An operator adds a host.
    CreateHost(NewHost, Reply<Host>),
    /// An operator wants another registration token for a host.
    NewRegistrationToken(HostId, TokenHash, Reply<Option<Host>>),
    /// An agent registers.
    Register(Box<Registration>, Reply<Registered>),
    /// An agent renews its tokens.
    Refresh {
        /// Hash of the token that was shown.
        shown: TokenHash,
        /// Hash of the token that is given out.
        fresh: TokenHash,
        /// The clock is not to be believed: an expired token counts.
        lenient: bool,
        /// What came of it.
        reply: Reply<Option<Host>>,
    },
    /// An operator adds a template that is on hosts.
    AddTemplate(Box<NewTemplate>, Reply<Added>),
    /// A template is no longer wanted.
    RemoveTemplate(Box<Removal>, Reply<Removed>),
    /// A user wants a template made of a sandbox.
    Snapshot(Box<NewSnapshot>, Reply<SnapshotBegun>),
    /// A host has deleted a template.
    Erased(Erasure, Reply<()>),
    /// A user wants a sandbox.
    CreateSandbox(Box<NewSandbox>, Reply<Created>),
    /// The same, by a client that may repeat it.
    CreateOnce(Box<NewSandbox>, OnceKey, Reply<Once>),
    /// A user wants something done with a sandbox.
    Begin(Box<Wish>, Reply<Begun>),
    /// The agent is about to be asked for an operation.
    Sent(OpId, Reply<bool>),
    /// A create that its host did not take is placed on another one.
    PlaceElsewhere {
        /// Which operation.
        op: OpId,
        /// The agent itself refused, and may have begun.
        clean: bool,
        /// What came of it.
        reply: Reply<Placed>,
    },
    /// An operator takes over a sandbox that a host has although it should not.
    Adopt(Box<Adoption>, Reply<Adopted>),
    /// An operator wants such a sandbox destroyed. `None`: no host is known to have it there.
    DestroyStranger {
        /// Which one.
        sandbox: SandboxId,
        /// On which host; `None`: on all that have it.
        host: Option<HostId>,
        /// Who.
        actor: Actor,
        /// The operations that began.
        reply: Reply<Option<Vec<Work>>>,
    },
    /// An operation's outcome must be looked for on its host.
    Look {
        /// Which operation.
        op: OpId,
        /// Observations that were asked for earlier do not tell.
        since: Mono,
        /// What the agent has said.
        answer: operation::Answer,
        /// What it says beside that.
        said: Said,
        /// When that is noted.
        reply: Reply<()>,
    },
    /// An operation is over.
    Finish(Box<Ended>, Reply<bool>),
    /// An agent reports what happened to a sandbox. True: look at its host.
    Report(Box<AgentReport>, Reply<bool>),
    /// An operator changes what is wanted of a host.
    SetIntent(HostId, Intent, Actor, Reply<Option<Host>>),
    /// What is not kept any longer goes. True: at once more of it.
    Prune(Reply<bool>),
    /// An operator deletes a host.
    DeleteHost {
        /// Which.
        host: HostId,
        /// Also with sandboxes that may exist, and without an observation.
        force: bool,
        /// Observations that were asked for earlier say nothing.
        since: Mono,
        /// Who.
        actor: Actor,
        /// What came of it.
        reply: Reply<Deletion>,
    },
    /// An operator makes an API key. `None`: there are too many.
    CreateKey(Box<NewKey>, Reply<Option<ApiKey>>),
    /// An operator revokes an API key. False: no such key.
    RevokeKey(KeyId, Actor, Reply<bool>),
    /// An operator accepts a restored database. `None`: it was not restored.
    Accept(Actor, Reply<Option<Accepted>>),
    /// An agent shows a token that was given out after the backup. True: it counts.
    TakeBack(LostToken, Reply<bool>),
    /// What is wrong is looked at, and what shall be announced is put into the outbox.
    Notice(Box<Lookout>, Reply<Noticed>),
    /// A message needs no more delivery to a target: it arrived, or was given up.
    Delivered {
        /// To which target.
        target: String,
        /// Which message.
        seq: i64,
        /// When that is noted.
        reply: Reply<()>,
    },
    /// An operator begins or ends work on a host. False: no such host.
    Maintain(Maintenance, Reply<bool>),
    /// Somebody asks whether the writer goes on. Nothing is written: the reply runs between
    /// two transactions.
    Echo(Reply<()>),
    /// Decisions are made with other numbers from now on.
    Decide(Policy),
    /// A command that is begun only if it is still waited for.
    IfWanted(Arc<Ticket>, Box<Command>),
    /// No more commands come; the writer ends.
    Stop,
}

/// A command and when it was given.
pub struct Envelope {
    /// When.
    pub now: Now,
    /// What.
    pub command: Command,
}

/// The newest committed revision, and a way to wait for a newer one.
#[derive(Debug, Default)]
pub struct Revision {
    newest: AtomicU64,
    wait: Mutex<()>,
    changed: Condvar,
    bells: Mutex<Bells>,
}

/// Called at every newer revision; must not wait.
#[derive(Default)]
struct Bells(Vec<Box<dyn Fn() + Send>>);

impl fmt::Debug for Bells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bells({})", self.0.len())
    }
}

impl Revision {
    /// The newest committed revision.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Waits until a revision newer than `seen` is committed or `patience` is over; gives
    /// the newest.
    pub fn wait_newer(&self, seen: u64, patience: Duration) -> u64 {
        let guard = self.wait.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = |(): &mut ()| self.newest() <= seen;
        drop(self.changed.wait_timeout_while(guard, patience, stale));
        self.newest()
    }

    fn publish(&self, revision: u64) {
        let guard = self.wait.lock().unwrap_or_else(PoisonError::into_inner);
        self.newest.store(revision, Ordering::Release);
        drop(guard);
        self.changed.notify_all();
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.0.iter().for_each(|ring| ring());
    }

    /// Calls this at every newer revision from now on; it must not wait.
    pub fn ring(&self, bell: impl Fn() + Send + 'static) {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner).0.push(Box::new(bell));
    }
}

/// What the writer remembers of one host between two probes.
#[derive(Debug, Default)]
pub(super) struct HostRecord {
    pub(super) looks: HostMemory,
    pub(super) failures: u32,
    pub(super) successes: u32,
    /// Strangers that the last observation showed.
    pub(super) strangers: usize,
    pub(super) last: Option<LastObservation>,
}

/// The last observation of a host that was applied.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastObservation {
    pub(super) asked_at: Mono,
    /// Sandboxes that it listed.
    pub(super) listed: usize,
    /// Those of them that have a row on this host.
    pub(super) own: usize,
}

/// The writer itself, without its thread: `execute` is what a simulation drives.
pub struct Writer {
    pub(super) conn: Connection,
    pub(super) policy: Policy,
    pub(super) presence: Arc<Presence>,
    pub(super) records: HashMap<HostId, HostRecord>,
    pub(super) random: Random,
    pub(super) keys: Arc<Keys>,
    pub(super) acceptance: Arc<Acceptance>,
    /// Operations whose outcome looks at their hosts decide.
    pub(super) looking: HashMap<OpId, Looking>,
    /// Sandboxes whose pause ended before the agent answered, and until when it may yet
    /// come true. A restart ends the calls, and with them what is waited for here.
    pub(super) late_pauses: HashMap<SandboxId, Mono>,
    /// Rows on unreachable hosts were looked through since the start.
    pub(super) settled: bool,
    /// Hosts that refused a create of late, and until when they are avoided.
    pub(super) avoided: HashMap<HostId, Mono>,
    /// When announcements were noted of late, by the clock that questions are asked by. What
    /// was noted before a restart is older than any question that is still open.
    pub(super) noted: HashMap<SandboxId, Mono>,
    pub(super) revision: u64,
    published: Arc<Revision>,
    figures: Arc<WriterFigures>,
    full_sync: bool,
    /// How long another process that keeps us from writing is waited for.
    patience: Duration,
    /// Another process kept the last batch from being written.
    is_busy: bool,
    /// What must be told to others once the transaction is committed, or taken back.
    pub(super) after: Vec<After>,
    /// Announcements that a failed transaction could not keep.
    owed: Owed,
    /// Events up to this revision were looked at for what to announce.
    pub(super) noticed: Option<u64>,
    /// A command of this batch found the database in trouble.
    suffered: bool,
    /// How sandboxes moved in this transaction.
    pub(super) tally: Tally,
    /// What hosts and teams have used of their allowances.
    pub(super) bounds: Bounds,
    /// Events of each author.
    pub(super) shares: Shares,
    /// What the sandboxes of each host and team come to.
    pub(super) usage: Usage,
    /// How long the last commit took.
    commit_took: Duration,
    place: Option<Place>,
    /// How long the log gets before it is copied back, by the room that there was last.
    log_pages: Option<i64>,
    served: Option<Served>,
    /// This transaction brings all before it to the disk, if it is a durable one.
    pub(super) changes_a_byte: bool,
}

/// What follows a commit; dropped or undone when it fails.
pub(super) enum After {
    Observed { host: HostId, asked_at: Mono, now: Now, record: HostRecord },
    Failed { host: HostId, record: HostRecord },
    HostChanged { host: Box<Host>, now: Now },
    HostRegistered { host: Box<Host>, now: Now },
    HostDeleted(HostId),
    MarkedUnreachable(HostId),
    Flushed(Vec<super::presence::Flushed>),
    KeysFlushed(Vec<KeyUse>),
    KeyCreated(TokenHash, Box<ApiKey>),
    KeyRevoked(KeyId),
    OperationClosed { op: OpId, kind: OperationKind, failed: bool },
    CalledAgain(OpId),
    Settled,
    AnswerLost(HostId),
    Accepted(Now),
    Noticed(u64),
}

type Answer = Box<dyn FnOnce(Option<&StoreError>) + Send>;

impl Writer {
    /// A writer over an open connection of the current schema.
    pub fn new(
        conn: Connection,
        policy: Policy,
        presence: Arc<Presence>,
    ) -> Result<Writer, StoreError> {
        Writer::with_random(conn, policy, presence, Random::new())
    }

    /// The same with a source of its own for ids.
    pub fn with_random(
        conn: Connection,
        policy: Policy,
        presence: Arc<Presence>,
        random: Random,
    ) -> Result<Writer, StoreError> {
        let revision: i64 = conn.query_row("SELECT revision FROM state", [], |row| row.get(0))?;
        let revision = u64::try_from(revision)
            .map_err(|_| StoreError::BadRow(format!("state.revision is {revision}")))?;
        // What the agent may have been asked before we started is not asked again.
        let asked = lifecycle::unfinished(&conn)?.into_iter().filter(|work| work.sent);
        let looking = asked.map(|work| (work.op, Looking::since_ever())).collect();
        let published = Arc::new(Revision::default());
        published.publish(revision);
        let keys = Arc::new(Keys::load(&conn)?);
        let acceptance = Arc::new(Acceptance::load(&conn)?);
        let usage = Usage::load(&conn)?;
        let patience: u32 = conn.query_row("PRAGMA busy_timeout", [], |row| row.get(0))?;
        let patience = Duration::from_millis(patience.into());
        let place = Place::of(&conn)?;
        Ok(Writer {
            conn,
            keys,
            acceptance,
            policy,
            presence,
            records: HashMap::new(),
            random,
            looking,
            late_pauses: HashMap::new(),
            avoided: HashMap::new(),
            settled: false,
            noted: HashMap::new(),
            revision,
            published,
            figures: Arc::default(),
            full_sync: false,
            patience,
            is_busy: false,
            after: Vec::new(),
            owed: Owed::default(),
            noticed: None,
            suffered: false,
            tally: Tally::default(),
            bounds: Bounds::default(),
            shares: Shares::default(),
            usage,
            commit_took: Duration::ZERO,
            log_pages: place.as_ref().map(Place::checkpoint_pages),
            place,
            served: None,
            changes_a_byte: false,
        })
    }

    /// Counts rows that a test has written.
    #[cfg(test)]
    pub(super) fn count_anew(&mut self) {
        self.conn.execute_batch(super::usage::COUNT).expect("rows can be counted");
        self.usage = Usage::load(&self.conn).expect("sums can be read");
    }

    /// Lets a mark follow what is on the disk for certain.
    pub fn mark(&mut self, served: Served) {
        self.served = Some(served);
    }

    /// The newest committed revision, shared.
    pub fn published(&self) -> Arc<Revision> {
        Arc::clone(&self.published)
    }

    /// The API keys that count, shared.
    pub fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    /// Whether the database was restored, and accepted since, shared.
    pub fn acceptance(&self) -> Arc<Acceptance> {
        Arc::clone(&self.acceptance)
    }

    /// The figures, shared.
    pub fn figures(&self) -> Arc<WriterFigures> {
        Arc::clone(&self.figures)
    }

    /// Carries out a batch in one transaction and answers every command.
    pub fn execute(&mut self, batch: Vec<Envelope>) {
        let Some(began) = batch.first().map(|envelope| envelope.now) else { return };
        self.figures.set_at_work(Some(Stopwatch::start()));
        let flushes = batch.iter().any(|envelope| matches!(envelope.command, Command::Flush(_)));
        let tasks: Vec<Task> = batch.into_iter().map(Task::of).collect();
        let marks = flushes && self.is_mark_behind();
        if flushes {
            self.fit_log_to_disk();
        }
        let durable = marks || tasks.iter().any(|task| task.durable);
        self.figures.commands.add(tasks.len() as u64);
        let told: Vec<Told> = tasks.iter().filter_map(|task| task.told.clone()).collect();
        let before = self.revision;
        let rows_before = self.rows_written();
        let mut answers: Vec<Answer> = Vec::with_capacity(tasks.len());
        let mut tasks = tasks.into_iter();
        let mut unwanted = Vec::new();
        let owed = std::mem::take(&mut self.owed);
        let result = self.begin(durable).and_then(|()| {
            // Announcements that an earlier transaction could not keep.
            for (host, ids) in owed.ids() {
                self.note_drained(host, &ids, began)?;
            }
            for task in tasks.by_ref() {
                match task.is_wanted() {
                    true => answers.push((task.run)(Ok(self))),
                    false => unwanted.push(task),
                }
            }
            self.commit(before)
        });
        let failed = result.err();
        if failed.is_some() {
            self.owed = owed;
            told.into_iter().for_each(|told| self.owe(told));
        } else {
            let told = unwanted.iter_mut().filter_map(|task| task.told.take());
            told.for_each(|told| self.owe(told));
        }
        let rows = self.rows_written() - rows_before;
        self.settle(before, failed.as_ref(), rows);
        // A transaction that changed no byte brought nothing to the disk.
        let is_certain = std::mem::take(&mut self.changes_a_byte) || self.revision != before;
        if durable && failed.is_none() && is_certain {
            let revision = self.revision;
            self.served.iter_mut().for_each(|served| served.advance(revision));
        }
        self.figures.set_at_work(None);
        for answer in answers {
            answer(failed.as_ref());
        }
        unwanted.into_iter().for_each(|task| task.refuse(&StoreError::GivenUp));
        // Not begun: every command that was not carried out is told why.
        let failed = failed.unwrap_or(StoreError::Stopped);
        tasks.for_each(|task| task.refuse(&failed));
    }

    /// A disk that fills up must not be filled by the log alone: it could not be copied back.
    fn fit_log_to_disk(&mut self) {
        let pages = self.place.as_ref().map(Place::checkpoint_pages);
        let Some(pages) = pages.filter(|_| pages != self.log_pages) else { return };
        self.log_pages = Some(pages);
        if let Err(error) = self.conn.pragma_update(None, "wal_autocheckpoint", pages) {
            log::debug!("could not set how long the log gets: {error}");
        }
    }

    /// Whether there is a mark that does not say yet how far the database is.
    pub(super) fn is_mark_behind(&self) -> bool {
        self.served.as_ref().is_some_and(|served| served.is_behind(self.revision))
    }

    /// For a transaction that shall bring all before it to the disk: the clock may stand.
    pub(super) fn change_a_byte(&mut self) -> Result<(), StoreError> {
        let sql = "UPDATE state SET listened_until = listened_until + 1";
        self.conn.prepare_cached(sql)?.execute([])?;
        self.changes_a_byte = true;
        Ok(())
    }

    fn rows_written(&self) -> u64 {
        self.conn.total_changes()
    }

    fn begin(&mut self, durable: bool) -> Result<(), StoreError> {
        if self.full_sync != durable {
            self.conn.pragma_update(
                None,
                "synchronous",
                if durable { "FULL" } else { "NORMAL" },
            )?;
            self.full_sync = durable;
        }
        self.lock()?;
        self.place.as_ref().map_or(Ok(()), Place::check)
    }

    /// Keeps every other process from writing. One that has kept us from it once is waited for
    /// less: what is queued must hear so in time.
    fn lock(&mut self) -> Result<(), StoreError> {
        let locked = self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([]);
        let locked = locked.map(drop).map_err(StoreError::from);
        let is_busy = locked == Err(StoreError::Busy);
        if is_busy != self.is_busy {
            let patience = if is_busy { self.patience.min(BUSY_AGAIN) } else { self.patience };
            self.conn.busy_timeout(patience)?;
            self.is_busy = is_busy;
        }
        locked
    }

    /// Keeps auto-pause notices that cannot be written now. An observation or a report that
    /// could not be stored is a contact gap, whatever it said.
    fn owe(&mut self, Told { host, announced }: Told) {
        self.presence.answer_lost(host);
        if !self.owed.keep(host, announced) {
            seldom!(Warn, "announcements that were dropped", host =>
                "{host} announces more than can be kept until it can be written");
        }
    }

    pub(super) fn count_foreign(&self, count: usize) {
        self.figures.foreign.add(count as u64);
    }

    /// A command that fails of the database makes the rest of its batch no proof that all
    /// is well.
    fn look_for_trouble<T>(&mut self, result: &Result<T, StoreError>) {
        if let Err(error) = result
            && error.is_trouble()
        {
            self.suffered = true;
            self.figures.suffer(error);
        }
    }

    fn commit(&mut self, before: u64) -> Result<(), StoreError> {
        if self.revision != before {
            let mut update = self.conn.prepare_cached("UPDATE state SET revision = ?1")?;
            update.execute([self.revision as i64])?;
        }
        self.usage.store(&self.conn)?;
        let watch = Stopwatch::start();
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.commit_took = watch.elapsed();
        Ok(())
    }

    /// Tells everybody what is true now, or takes back what was not written.
    fn settle(&mut self, before: u64, failed: Option<&StoreError>, rows: u64) {
        let after = std::mem::take(&mut self.after);
        let suffered = std::mem::take(&mut self.suffered);
        let tally = std::mem::take(&mut self.tally);
        self.usage.settle(failed.is_none());
        if let Some(error) = failed {
            self.shares.count_anew();
            self.figures.suffer(error);
            seldom!(Error, "failures of the database", "the database" => "could not write: {error}");
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
            self.revision = before;
            if !self.conn.is_autocommit()
                && let Err(error) = self.conn.execute_batch("ROLLBACK")
            {
                seldom!(Error, "failed rollbacks", "the database" =>
                    "could not roll back: {error}");
            }
            after.into_iter().for_each(|after| self.take_back(after));
            return;
        }
        // With nothing to write a transaction succeeds on a full disk too.
        if rows > 0 && !suffered {
            self.figures.set_trouble(None);
        }
        if rows > 0 {
            self.figures.commit_took.note(self.commit_took);
        }
        self.figures.tallied.add(&tally);
        self.figures.events.add(self.revision - before);
        let counter = if rows > 0 { &self.figures.commits } else { &self.figures.idle };
        counter.fetch_add(1, Ordering::Relaxed);
        self.figures.rows.fetch_add(rows, Ordering::Relaxed);
        after.into_iter().for_each(|after| self.make_known(after));
        if self.revision != before {
            self.published.publish(self.revision);
        }
    }

    fn take_back(&mut self, after: After) {
        match after {
            After::MarkedUnreachable(host) => {
                self.presence.set_liveness(host, Liveness::Alive);
            }
            After::Flushed(hosts) => self.presence.unflushed(&hosts),
            After::KeysFlushed(used) => self.keys.unflushed(&used),
            After::Observed { .. }
            | After::Failed { .. }
            | After::HostChanged { .. }
            | After::HostRegistered { .. }
            | After::HostDeleted(_)
            | After::KeyCreated(..)
            | After::KeyRevoked(_)
            | After::OperationClosed { .. }
            | After::CalledAgain(_)
            | After::Settled
            | After::Accepted(_)
            | After::Noticed(_)
            | After::AnswerLost(_) => {}
        }
    }

    fn make_known(&mut self, after: After) {
        match after {
            After::Observed { host, asked_at, now, record } => {
                let waits = record.looks.waits_behind_gap();
                self.records.insert(host, record);
                self.presence.observed(host, asked_at, now.mono, waits);
            }
            After::Failed { host, record } => {
                self.records.insert(host, record);
            }
            After::HostChanged { host, now } => self.presence.update(&host, now),
            After::HostRegistered { host, now } => self.presence.registered(&host, now),
            After::HostDeleted(host) => {
                self.records.remove(&host);
                self.presence.delete(host);
            }
            After::AnswerLost(host) => self.presence.answer_lost(host),
            After::Accepted(now) => self.make_accepted(now),
            After::Noticed(cursor) => self.noticed = Some(cursor),
            After::OperationClosed { op, kind, failed } => {
                let counters = if failed { &self.figures.failed } else { &self.figures.succeeded };
                counters.count(kind as usize);
                self.looking.remove(&op);
            }
            After::CalledAgain(op) => drop(self.looking.remove(&op)),
            After::Settled => self.settled = true,
            After::MarkedUnreachable(host) => {
                // What else changed of the host in this transaction was made known before, as
                // it was then.
                self.presence.set_liveness(host, Liveness::Unreachable);
                // A run of failures with live heartbeats ends where these end.
                self.records.entry(host).or_default().failures = 0;
            }
            After::KeyCreated(hash, key) => self.keys.add(hash, *key),
            After::KeyRevoked(key) => self.keys.remove(key),
            After::Flushed(_) | After::KeysFlushed(_) => {}
        }
    }

    /// Runs `write` inside a savepoint: what it wrote stays or goes as one.
    pub(super) fn in_savepoint<T>(
        &mut self,
        write: impl FnOnce(&mut Writer) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let revision = self.revision;
        let (after, tally) = (self.after.len(), self.tally);
        self.conn.prepare_cached("SAVEPOINT command")?.execute([])?;
        self.usage.begin();
        let result = write(self);
        if result.is_ok() {
            self.usage.keep();
        } else {
            self.usage.undo();
            self.conn.prepare_cached("ROLLBACK TO command")?.execute([])?;
            (self.revision, self.tally) = (revision, tally);
            for undone in self.after.split_off(after) {
                self.take_back(undone);
            }
        }
        self.conn.prepare_cached("RELEASE command")?.execute([])?;
        result
    }

    /// The journal for one command, with the rest of the writer out of reach.
    pub(super) fn journal<'a>(
        &'a mut self,
        now: Now,
        actor: &'a Actor,
    ) -> Result<Journal<'a>, StoreError> {
        Journal::new(&self.conn, (&mut self.revision, &mut self.random), now.wall, actor)
    }
}

/// What a command comes down to. The one place that says for every command whether it is
/// durable and what is done; refusing it is the same for all.
struct Task {
    /// Power loss after the answer must not undo it (`synchronous=FULL`).
    durable: bool,
    /// What an agent said with it and will not say again.
    told: Option<Told>,
    /// Whether it is still waited for; `None`: it is done in any case.
    ticket: Option<Arc<Ticket>>,
    /// Does it, or hears why it cannot be done.
    run: Run,
}

/// What an answer or a report tells whether it can be written or not: it is not said again.
#[derive(Clone)]
struct Told {
    host: HostId,
    announced: Vec<SandboxId>,
}

type Run = Box<dyn FnOnce(Result<&mut Writer, &StoreError>) -> Answer>;

impl Task {
    fn of(envelope: Envelope) -> Task {
        let now = envelope.now;
        match envelope.command {
            Command::Probed(probed, reply) => {
                let told = Told { host: probed.host, announced: probed.probe.drained().to_vec() };
                let kept = told.clone();
                let task = Task::quick(reply, move |w| {
                    let result = w.probed(*probed, now);
                    if result.is_err() {
                        w.owe(kept);
                    }
                    result
                });
                Task { told: Some(told), ..task }
            }
            Command::MarkDown(hosts, reply) => Task::quick(reply, move |w| {
                let down = |(host, heard)| w.mark_down(host, heard, now).transpose();
                hosts.into_iter().filter_map(down).collect()
            }),
            Command::MarkUp(host, reply) => Task::quick(reply, move |w| w.mark_up(host, now)),
            Command::Flush(reply) => Task::quick(reply, move |w| w.flush(now)),
            Command::CreateHost(new, reply) => {
                Task::durable(reply, move |w| w.create_host(new, now))
            }
            Command::NewRegistrationToken(host, token, reply) => {
                Task::durable(reply, move |w| w.new_registration_token(host, token, now))
            }
            Command::Register(registration, reply) => {
                Task::durable(reply, move |w| w.register(*registration, now))
            }
            Command::Refresh { shown, fresh, lenient, reply } => {
                Task::durable(reply, move |w| w.refresh(shown, fresh, lenient, now))
            }
            Command::CreateSandbox(new, reply) => {
                Task::durable(reply, move |w| w.create_sandbox(*new, now))
            }
            Command::AddTemplate(new, reply) => {
                Task::durable(reply, move |w| w.add_template(*new, now))
            }
            Command::RemoveTemplate(removal, reply) => {
                Task::durable(reply, move |w| w.remove_template(&removal, now))
            }
            Command::Snapshot(new, reply) => {
                Task::durable(reply, move |w| w.begin_snapshot(*new, now))
            }
            // After power loss the host is asked again, and has nothing to delete.
            Command::Erased(erasure, reply) => Task::quick(reply, move |w| w.erased(erasure)),
            Command::CreateOnce(new, once, reply) => {
                Task::durable(reply, move |w| w.create_once(*new, &once, now))
            }
            Command::Begin(wish, reply) => {
                Task::durable(reply, move |w| w.begin_wished(*wish, now))
            }
            Command::Sent(op, reply) => Task::durable(reply, move |w| w.sent(op, now)),
            Command::PlaceElsewhere { op, clean, reply } => {
                Task::durable(reply, move |w| w.place_elsewhere(op, clean, now))
            }
            Command::Adopt(wanted, reply) => Task::durable(reply, move |w| w.adopt(*wanted, now)),
            Command::DestroyStranger { sandbox, host, actor, reply } => {
                Task::durable(reply, move |w| w.destroy_stranger(sandbox, host, &actor, now))
            }
            Command::Look { op, since, answer, said, reply } => {
                Task::quick(reply, move |w| w.look(op, since, answer, said))
            }
            Command::Finish(ended, reply) => Task::durable(reply, move |w| w.finish(&ended, now)),
            Command::Report(report, reply) => Task::of_report(*report, reply, now),
            Command::SetIntent(host, intent, actor, reply) => {
                Task::durable(reply, move |w| w.set_intent(host, intent, &actor, now))
            }
            Command::Prune(reply) => Task::quick(reply, move |w| w.prune(now)),
            Command::DeleteHost { host, force, since, actor, reply } => {
                Task::durable(reply, move |w| w.delete_host(host, force, since, &actor, now))
            }
            Command::CreateKey(new, reply) => {
                Task::durable(reply, move |w| w.create_key(*new, now))
            }
            Command::RevokeKey(key, actor, reply) => {
                Task::durable(reply, move |w| w.revoke_key(key, &actor, now))
            }
            Command::Accept(actor, reply) => Task::durable(reply, move |w| w.accept(&actor, now)),
            Command::TakeBack(lost, reply) => {
                Task::durable(reply, move |w| w.take_back_token(lost, now))
            }
            Command::Notice(look, reply) => {
                // What is announced now must not be announced again after power loss.
                let durable = look.is_due;
                let task = Task::quick(reply, move |w| w.notice(&look, now));
                Task { durable, ..task }
            }
            Command::Delivered { target, seq, reply } => {
                Task::quick(reply, move |w| w.delivered(&target, seq))
            }
            Command::Maintain(wanted, reply) => {
                Task::durable(reply, move |w| w.maintain(&wanted, now))
            }
            Command::Echo(reply) => Task::quick(reply, |_| Ok(())),
            Command::Decide(policy) => Task::quick(Box::new(drop), move |w| {
                w.policy = policy;
                Ok(())
            }),
            Command::IfWanted(ticket, command) => {
                let task = Task::of(Envelope { now, command: *command });
                Task { ticket: Some(ticket), ..task }
            }
            Command::Stop => Task::quick(Box::new(drop), |_| Ok(())),
        }
    }

    fn is_wanted(&self) -> bool {
        self.ticket.as_ref().is_none_or(|ticket| ticket.begin())
    }

    /// An agent whose report is refused may give up: what we could not take is a contact gap.
    fn of_report(report: AgentReport, reply: Reply<bool>, now: Now) -> Task {
        let announced = Vec::from_iter(report.auto_paused());
        let told = Told { host: report.host, announced };
        let kept = told.clone();
        let task = Task::durable(reply, move |w| {
            let result = w.report(report, now);
            if result.is_err() {
                w.owe(kept);
            }
            result
        });
        Task { told: Some(told), ..task }
    }

    /// What power loss right after the answer may undo.
    fn quick<T: Send + 'static>(
        reply: Reply<T>,
        work: impl FnOnce(&mut Writer) -> Result<T, StoreError> + 'static,
    ) -> Task {
        let run: Run = Box::new(move |writer| {
            let result = writer.map_err(StoreError::clone).and_then(|writer| {
                let result = work(writer);
                writer.look_for_trouble(&result);
                result
            });
            // What a command found counts only when its transaction is committed.
            Box::new(move |failed| reply(failed.map_or(result, |error| Err(error.clone()))))
        });
        Task { durable: false, told: None, ticket: None, run }
    }

    /// What must survive power loss once it is answered.
    fn durable<T: Send + 'static>(
        reply: Reply<T>,
        work: impl FnOnce(&mut Writer) -> Result<T, StoreError> + 'static,
    ) -> Task {
        Task { durable: true, ..Task::quick(reply, work) }
    }

    fn refuse(self, error: &StoreError) {
        (self.run)(Err(error))(Some(error));
    }
}

/// The way to the writer for everybody else.
#[derive(Clone)]
pub struct WriterHandle {
    commands: Sender<Envelope>,
}

impl WriterHandle {
    /// A handle on the queue that [`Writer::run`] reads.
    pub fn new(commands: Sender<Envelope>) -> WriterHandle {
        WriterHandle { commands }
    }

    /// Queues a command; waits while the queue is full. When the writer is gone, the
    /// command's reply hears [`StoreError::Stopped`].
    pub fn send(&self, now: Now, command: Command) {
        if let Err(unsent) = self.commands.send(Envelope { now, command }) {
            Task::of(unsent.into_inner()).refuse(&StoreError::Stopped);
        }
    }

    /// Queues a command unless the queue is full; false when it was not queued, and nobody
    /// hears of it.
    pub fn try_send(&self, now: Now, command: Command) -> bool {
        self.commands.try_send(Envelope { now, command }).is_ok()
    }

    /// Commands that wait.
    pub fn queued(&self) -> usize {
        self.commands.len()
    }

    /// Queues a command for this client and waits for its commit: for `patience` to get into
    /// the queue, for `patience` to be begun, and then until it is over.
    /// [`StoreError::GivenUp`]: it was not begun, and will not be.
    pub fn call_for<T: Send + 'static>(
        &self,
        waits: Arc<dyn Waits>,
        patience: Duration,
        now: Now,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, StoreError> {
        let (tx, rx) = crossbeam_channel::bounded(1);
        let reply: Reply<T> = Box::new(move |result| {
            // The caller has given it up.
            let _ = tx.send(result);
        });
        let ticket = Arc::new(Ticket::new(waits));
        let command = Command::IfWanted(Arc::clone(&ticket), Box::new(command(reply)));
        match self.commands.send_timeout(Envelope { now, command }, patience) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(_)) => return Err(StoreError::GivenUp),
            Err(SendTimeoutError::Disconnected(_)) => return Err(StoreError::Stopped),
        }
        let stopped = Err(StoreError::Stopped);
        match rx.recv_timeout(patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) if ticket.give_up() => Err(StoreError::GivenUp),
            Err(RecvTimeoutError::Timeout) => rx.recv().unwrap_or(stopped),
            Err(RecvTimeoutError::Disconnected) => stopped,
        }
    }

    /// Queues a command and waits for its commit.
    pub fn call<T: Send + 'static>(
        &self,
        now: Now,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, StoreError> {
        let (tx, rx) = crossbeam_channel::bounded(1);
        let reply: Reply<T> = Box::new(move |result| {
            // Nobody waits any more: the result is in the database all the same.
            let _ = tx.send(result);
        });
        self.send(now, command(reply));
        rx.recv().unwrap_or(Err(StoreError::Stopped))
    }
}
