//! Owns the only write connection: takes commands, puts what is queued into one
//! transaction with a savepoint for each that writes, commits, then answers.
//!
//! Never: answers before the commit, does a command's work twice, waits for anybody
//! but the disk. One closed enum says everything that can be written.

use super::StoreError;
use super::apply::{Applied, Probed};
use super::identity::{NewHost, Refreshed, Registered, Registration, TokenHash};
use super::journal::{Actor, Journal, Random};
use super::lifecycle::{self, Begun, Ended, Looking, NewSandbox, Wish, Work};
use super::presence::Presence;
use super::reports::AgentReport;
use crate::model::host::{Host, Intent};
use crate::model::id::{HostId, OpId, SandboxId};
use crate::model::policy::Policy;
use crate::model::sandbox::Sandbox;
use crate::model::time::{Mono, Now};
use crate::plan::observation::HostMemory;
use crate::plan::operation;
use crate::plan::placement::NoHost;
use crossbeam_channel::{Receiver, Sender};
use rusqlite::Connection;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Commands in one transaction. Larger and the first of them waits for the last; smaller
/// and a busy fleet pays for more commits.
const BATCH_MAX: usize = 256;

/// Commands that may wait. Larger and a slow disk hides for longer; smaller and bursts
/// of a healthy fleet block their senders.
pub const QUEUE_MAX: usize = 256;

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
    Register(Box<Registration>, Reply<Option<Registered>>),
    /// An agent renews its tokens.
    Refresh {
        /// Hash of the token that was shown.
        shown: TokenHash,
        /// Hash of the token that is given out.
        fresh: TokenHash,
        /// The clock is not to be believed: an expired token counts.
        lenient: bool,
        /// What came of it.
        reply: Reply<Option<Refreshed>>,
    },
    /// A user wants a sandbox.
    CreateSandbox(Box<NewSandbox>, Reply<Result<(Sandbox, Work), NoHost>>),
    /// A user wants something done with a sandbox.
    Begin(Box<Wish>, Reply<Begun>),
    /// The agent is about to be asked for an operation.
    Sent(OpId, Reply<bool>),
    /// An operation's outcome must be looked for on its host.
    Look {
        /// Which operation.
        op: OpId,
        /// What the agent has said.
        answer: operation::Answer,
        /// When that is noted.
        reply: Reply<()>,
    },
    /// An operation is over.
    Finish(Box<Ended>, Reply<bool>),
    /// An agent reports what happened to a sandbox. True: look at its host.
    Report(Box<AgentReport>, Reply<bool>),
    /// An operator changes what is wanted of a host.
    SetIntent(HostId, Intent, Actor, Reply<Option<Host>>),
    /// The server ends in order: nothing is under way any more.
    EndServing(Reply<()>),
    /// Decisions are made with other numbers from now on.
    Decide(Policy),
    /// No more commands come; the writer ends.
    Stop,
}

impl Command {
    /// Whether power loss after the answer must not undo it (`synchronous=FULL`).
    pub fn is_durable(&self) -> bool {
        match self {
            Command::Probed(..)
            | Command::MarkDown(..)
            | Command::MarkUp(..)
            | Command::Flush(..)
            | Command::Look { .. }
            | Command::Decide(..)
            | Command::Stop => false,
            Command::CreateHost(..)
            | Command::NewRegistrationToken(..)
            | Command::Register(..)
            | Command::Refresh { .. }
            | Command::CreateSandbox(..)
            | Command::Begin(..)
            | Command::Sent(..)
            | Command::Report(..)
            | Command::SetIntent(..)
            | Command::EndServing(..)
            | Command::Finish(..) => true,
        }
    }
}

impl Command {
    /// Ids that an agent announced with this command and will not announce again.
    fn told(&self) -> &[SandboxId] {
        match self {
            Command::Probed(probed, _) => probed.probe.drained(),
            Command::MarkDown(..)
            | Command::MarkUp(..)
            | Command::Flush(..)
            | Command::CreateHost(..)
            | Command::NewRegistrationToken(..)
            | Command::Register(..)
            | Command::Refresh { .. }
            | Command::CreateSandbox(..)
            | Command::Begin(..)
            | Command::Sent(..)
            | Command::Look { .. }
            | Command::Finish(..)
            | Command::Report(..)
            | Command::SetIntent(..)
            | Command::EndServing(..)
            | Command::Decide(..)
            | Command::Stop => &[],
        }
    }
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
    }
}

/// What the writer remembers of one host between two probes.
#[derive(Debug, Default)]
pub(super) struct HostRecord {
    pub(super) looks: HostMemory,
    pub(super) failures: u32,
    pub(super) successes: u32,
}

/// Figures of the writer since it started.
#[derive(Debug, Default)]
pub struct WriterFigures {
    /// Transactions committed with something in them.
    pub commits: AtomicU64,
    /// Transactions that found nothing to write.
    pub idle: AtomicU64,
    /// Transactions that failed.
    pub failures: AtomicU64,
    /// Rows changed.
    pub rows: AtomicU64,
    failing: AtomicBool,
}

impl WriterFigures {
    /// Whether the last transaction that wrote, or tried to, failed.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}

/// The writer itself, without its thread: `execute` is what a simulation drives.
pub struct Writer {
    pub(super) conn: Connection,
    pub(super) policy: Policy,
    pub(super) presence: Arc<Presence>,
    pub(super) records: HashMap<HostId, HostRecord>,
    pub(super) random: Random,
    /// Operations whose outcome looks at their hosts decide.
    pub(super) looking: HashMap<OpId, Looking>,
    /// Sandboxes whose pause ended before the agent answered, and until when it may yet
    /// come true. A restart ends the calls, and with them what is waited for here.
    pub(super) late_pauses: HashMap<SandboxId, Mono>,
    pub(super) revision: u64,
    published: Arc<Revision>,
    figures: Arc<WriterFigures>,
    full_sync: bool,
    /// What must be told to others once the transaction is committed, or taken back.
    pub(super) after: Vec<After>,
    /// Announcements that a failed transaction could not keep. The agents have forgotten
    /// them, so they wait here until they can be written.
    owed: Vec<SandboxId>,
}

/// What follows a commit; dropped or undone when it fails.
pub(super) enum After {
    Observed { host: HostId, asked_at: Mono, now: Now, record: HostRecord },
    Failed { host: HostId, record: HostRecord },
    HostChanged { host: Box<Host>, now: Now },
    HostRegistered { host: Box<Host>, now: Now },
    MarkedUnreachable(HostId),
    Flushed(Vec<super::presence::Flushed>),
    OperationClosed(OpId),
    AnswerLost(HostId),
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
        Ok(Writer {
            conn,
            policy,
            presence,
            records: HashMap::new(),
            random,
            looking,
            late_pauses: HashMap::new(),
            revision,
            published,
            figures: Arc::default(),
            full_sync: false,
            after: Vec::new(),
            owed: Vec::new(),
        })
    }

    /// The newest committed revision, shared.
    pub fn published(&self) -> Arc<Revision> {
        Arc::clone(&self.published)
    }

    /// The figures, shared.
    pub fn figures(&self) -> Arc<WriterFigures> {
        Arc::clone(&self.figures)
    }

    /// Takes commands until [`Command::Stop`] or until every sender is gone.
    pub fn run(mut self, commands: &Receiver<Envelope>) {
        let mut stop = false;
        while !stop {
            let Ok(first) = commands.recv() else { break };
            let more = commands.try_iter().take(BATCH_MAX - 1);
            let mut batch: Vec<Envelope> = std::iter::once(first).chain(more).collect();
            let last = batch.iter().position(|e| matches!(e.command, Command::Stop));
            if let Some(at) = last {
                batch.truncate(at);
                stop = true;
            }
            self.execute(batch);
        }
        // Leaves one file behind where readers allow it; the next start does without.
        if let Err(error) = self.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            log::debug!("could not fold the write-ahead log in: {error}");
        }
    }

    /// Carries out a batch in one transaction and answers every command.
    pub fn execute(&mut self, batch: Vec<Envelope>) {
        if batch.is_empty() {
            return;
        }
        let durable = batch.iter().any(|e| e.command.is_durable());
        let told: Vec<SandboxId> = batch.iter().flat_map(|e| e.command.told()).copied().collect();
        let before = self.revision;
        let rows_before = self.rows_written();
        let mut batch = batch.into_iter();
        let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
        let owed = std::mem::take(&mut self.owed);
        let result = self.begin(durable).and_then(|()| {
            self.pay(&owed, batch.as_slice())?;
            for envelope in batch.by_ref() {
                answers.push(self.carry_out(envelope));
            }
            self.commit(before)
        });
        let failed = result.err();
        if failed.is_some() {
            self.owed.extend(owed);
            self.owed.extend(told);
        }
        let rows = self.rows_written() - rows_before;
        self.settle(before, failed.as_ref(), rows);
        for answer in answers {
            answer(failed.as_ref());
        }
        // Not begun: every command that was not carried out is told why.
        let failed = failed.unwrap_or(StoreError::Stopped);
        batch.for_each(|envelope| refuse(envelope.command, &failed));
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
        Ok(self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop)?)
    }

    /// Writes the announcements that an earlier transaction could not.
    fn pay(&mut self, owed: &[SandboxId], batch: &[Envelope]) -> Result<(), StoreError> {
        batch.first().map_or(Ok(()), |first| self.note_drained(owed, first.now))
    }

    fn commit(&mut self, before: u64) -> Result<(), StoreError> {
        if self.revision != before {
            let mut update = self.conn.prepare_cached("UPDATE state SET revision = ?1")?;
            update.execute([self.revision as i64])?;
        }
        Ok(self.conn.prepare_cached("COMMIT")?.execute([]).map(drop)?)
    }

    /// Tells everybody what is true now, or takes back what was not written.
    fn settle(&mut self, before: u64, failed: Option<&StoreError>, rows: u64) {
        let after = std::mem::take(&mut self.after);
        if let Some(error) = failed {
            self.figures.failing.store(true, Ordering::Relaxed);
            log::error!("could not write: {error}");
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
            self.revision = before;
            if !self.conn.is_autocommit()
                && let Err(error) = self.conn.execute_batch("ROLLBACK")
            {
                log::error!("could not roll back: {error}");
            }
            after.into_iter().for_each(|after| self.take_back(after));
            return;
        }
        // With nothing to write a transaction succeeds on a full disk too.
        if rows > 0 {
            self.figures.failing.store(false, Ordering::Relaxed);
        }
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
                self.presence.set_liveness(host, crate::model::host::Liveness::Alive);
            }
            After::Flushed(hosts) => self.presence.unflushed(&hosts),
            After::Observed { .. }
            | After::Failed { .. }
            | After::HostChanged { .. }
            | After::HostRegistered { .. }
            | After::OperationClosed(_)
            | After::AnswerLost(_) => {}
        }
    }

    fn make_known(&mut self, after: After) {
        match after {
            After::Observed { host, asked_at, now, record } => {
                self.records.insert(host, record);
                self.presence.observed(host, asked_at, now.mono);
            }
            After::Failed { host, record } => {
                self.records.insert(host, record);
            }
            After::HostChanged { host, now } => self.presence.update(&host, now),
            After::HostRegistered { host, now } => self.presence.registered(&host, now),
            After::AnswerLost(host) => self.presence.answer_lost(host),
            After::OperationClosed(op) => {
                self.looking.remove(&op);
            }
            After::MarkedUnreachable(host) => {
                // A run of failures with live heartbeats ends where these end.
                self.records.entry(host).or_default().failures = 0;
            }
            After::Flushed(_) => {}
        }
    }

    fn carry_out(&mut self, envelope: Envelope) -> Answer {
        let now = envelope.now;
        match envelope.command {
            Command::Probed(probed, reply) => {
                let told = probed.probe.drained().to_vec();
                let result = self.probed(*probed, now);
                if result.is_err() {
                    self.owed.extend(told);
                }
                answer(result, reply)
            }
            Command::MarkDown(hosts, reply) => {
                let result = hosts
                    .into_iter()
                    .filter_map(|(host, heard)| self.mark_down(host, heard, now).transpose())
                    .collect();
                answer(result, reply)
            }
            Command::MarkUp(host, reply) => {
                let result = self.mark_up(host, now);
                answer(result, reply)
            }
            Command::Flush(reply) => {
                let result = self.flush(now);
                answer(result, reply)
            }
            Command::CreateHost(new, reply) => {
                let result = self.create_host(new, now);
                answer(result, reply)
            }
            Command::NewRegistrationToken(host, token, reply) => {
                let result = self.new_registration_token(host, token, now);
                answer(result, reply)
            }
            Command::Register(registration, reply) => {
                let result = self.register(*registration, now);
                answer(result, reply)
            }
            Command::Refresh { shown, fresh, lenient, reply } => {
                let result = self.refresh(shown, fresh, lenient, now);
                answer(result, reply)
            }
            Command::CreateSandbox(new, reply) => {
                let result = self.create_sandbox(*new, now);
                answer(result, reply)
            }
            Command::Begin(wish, reply) => {
                let result = self.begin_wished(*wish, now);
                answer(result, reply)
            }
            Command::Sent(op, reply) => {
                let result = self.sent(op, now);
                answer(result, reply)
            }
            Command::Look { op, answer: said, reply } => {
                let result = self.look(op, said, now);
                answer(result, reply)
            }
            Command::Finish(ended, reply) => {
                let result = self.finish(&ended, now);
                answer(result, reply)
            }
            Command::Report(report, reply) => {
                let result = self.report(*report, now);
                answer(result, reply)
            }
            Command::SetIntent(host, intent, actor, reply) => {
                let result = self.set_intent(host, intent, &actor, now);
                answer(result, reply)
            }
            Command::EndServing(reply) => {
                let result = self.conn.execute("UPDATE state SET serving = 0", []);
                answer(result.map(drop).map_err(StoreError::from), reply)
            }
            Command::Decide(policy) => {
                self.policy = policy;
                Box::new(|_| {})
            }
            Command::Stop => Box::new(|_| {}),
        }
    }

    /// Runs `write` inside a savepoint: what it wrote stays or goes as one.
    pub(super) fn in_savepoint<T>(
        &mut self,
        write: impl FnOnce(&mut Writer) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let revision = self.revision;
        let after = self.after.len();
        self.conn.prepare_cached("SAVEPOINT command")?.execute([])?;
        let result = write(self);
        if result.is_err() {
            self.conn.prepare_cached("ROLLBACK TO command")?.execute([])?;
            self.revision = revision;
            for undone in self.after.split_off(after) {
                self.take_back(undone);
            }
        }
        self.conn.prepare_cached("RELEASE command")?.execute([])?;
        result
    }

    /// The journal for one command, with the rest of the writer out of reach.
    pub(super) fn journal<'a>(&'a mut self, now: Now, actor: &'a Actor) -> Journal<'a> {
        Journal {
            conn: &self.conn,
            revision: &mut self.revision,
            random: &mut self.random,
            now: now.wall,
            actor,
        }
    }
}

/// Pairs what a command found with the fate of its transaction.
fn answer<T: Send + 'static>(result: Result<T, StoreError>, reply: Reply<T>) -> Answer {
    Box::new(move |failed| {
        reply(match failed {
            None => result,
            Some(error) => Err(error.clone()),
        });
    })
}

fn refuse(command: Command, error: &StoreError) {
    let error = error.clone();
    match command {
        Command::Probed(_, reply) => reply(Err(error)),
        Command::MarkDown(_, reply) => reply(Err(error)),
        Command::MarkUp(_, reply) => reply(Err(error)),
        Command::Flush(reply) => reply(Err(error)),
        Command::CreateHost(_, reply) => reply(Err(error)),
        Command::NewRegistrationToken(_, _, reply) => reply(Err(error)),
        Command::Register(_, reply) => reply(Err(error)),
        Command::Refresh { reply, .. } => reply(Err(error)),
        Command::CreateSandbox(_, reply) => reply(Err(error)),
        Command::Begin(_, reply) => reply(Err(error)),
        Command::Sent(_, reply) => reply(Err(error)),
        Command::Look { reply, .. } => reply(Err(error)),
        Command::Finish(_, reply) => reply(Err(error)),
        Command::Report(_, reply) => reply(Err(error)),
        Command::SetIntent(_, _, _, reply) => reply(Err(error)),
        Command::EndServing(reply) => reply(Err(error)),
        Command::Decide(_) | Command::Stop => {}
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
            refuse(unsent.into_inner().command, &StoreError::Stopped);
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
