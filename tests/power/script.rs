//! Owns a writer at work: commands of every kind from a seed, in batches, on a clock of its
//! own.
//!
//! Never: a thread, a socket; checks what the commands do.

#![allow(unreachable_pub, reason = "a part of one test")]

use crate::support::random::Random;
use crossbeam_channel::{Receiver, Sender, unbounded};
use roost::model::endpoint::Resolved;
use roost::model::event::ActorType;
use roost::model::host::{Host, Intent};
use roost::model::id::{HostId, OpId, PLATFORM_TEAM, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::policy::Policy;
use roost::model::probe::{Details, Listed, ListedState, Listing, Probe};
use roost::model::sandbox::{Reason, SandboxStatus};
use roost::model::time::{Mono, Now, Wall};
use roost::plan::report::ReportKind;
use roost::store::StoreError;
use roost::store::apply::Probed;
use roost::store::identity::{NewHost, Registered, Registration};
use roost::store::journal::Actor;
use roost::store::lifecycle::{Begun, Ended, NewSandbox, Wish};
use roost::store::open::open_writer;
use roost::store::presence::Presence;
use roost::store::reports::AgentReport;
use roost::store::served::Served;
use roost::store::writer::{Command, Envelope, Reply, Writer};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Hosts that are added. More and every one of them sees little.
const HOSTS_MAX: usize = 8;

/// Commands in a batch at most. Larger: fewer commits.
const BATCH_MAX: usize = 4;

/// Pages of the log before it is copied back, in place of the real 4000: larger and it is
/// copied back too seldom to be cut off in the middle; smaller and hardly any log is found.
const CHECKPOINT_PAGES: i64 = 400;

/// When the script begins.
pub const START: Now = Now { mono: Mono(1_000_000), wall: Wall(1_700_000_000_000) };

/// What the writer said to one command.
enum Told {
    Host(HostId, [u8; 32]),
    Registered(HostId, [u8; 32]),
    Refreshed(HostId, [u8; 32]),
    Began(SandboxId, HostId, OpId, OperationKind),
    Done,
    Failed(StoreError),
}

/// What became of one batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// A power cut from now on must not undo it.
    pub durable: bool,
    /// Commands that were done, and those that the disk or the database refused.
    pub done: usize,
    pub failed: Vec<StoreError>,
    /// Rows that must be there from now on: of a table, with this id.
    pub made: Vec<(&'static str, String)>,
    /// What the mark beside the keys says then.
    pub marked: u64,
}

/// See the head of this file.
pub struct Script {
    writer: Writer,
    /// Where the mark is: not on the disk whose power fails.
    keys: TempDir,
    presence: Arc<Presence>,
    random: Random,
    now: Now,
    tell: Sender<Told>,
    told: Receiver<Told>,
    /// Hosts that wait with this token.
    pending: Vec<(HostId, [u8; 32])>,
    /// Hosts with their newest refresh token.
    hosts: Vec<(HostId, [u8; 32])>,
    sandboxes: Vec<(SandboxId, HostId)>,
    operations: Vec<(OpId, OperationKind)>,
}

fn actor() -> Actor {
    Actor { kind: ActorType::ApiKey, id: None, name: None }
}

impl Script {
    pub fn new(db: &Path, random: Random) -> Script {
        let now = START;
        let mut conn = open_writer(db, true, now.wall).unwrap();
        let keys = tempfile::tempdir().unwrap();
        let mark = Served::recognise(&mut conn, &keys.path().join("served"), now.wall).unwrap();
        conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).unwrap();
        let presence = Arc::new(Presence::load(&[], [], None, false, now));
        let mut writer = Writer::new(conn, Policy::default(), Arc::clone(&presence)).unwrap();
        writer.mark(mark);
        let (tell, told) = unbounded();
        let (pending, hosts) = (Vec::new(), Vec::new());
        let (sandboxes, operations) = (Vec::new(), Vec::new());
        Script {
            writer,
            keys,
            presence,
            random,
            now,
            tell,
            told,
            pending,
            hosts,
            sandboxes,
            operations,
        }
    }

    /// Carries out a batch.
    pub fn batch(&mut self) -> Outcome {
        self.now.mono.0 += 1000;
        self.now.wall.0 += 1000;
        let count = 1 + self.random.below(BATCH_MAX);
        let batch: Vec<Envelope> =
            (0..count).map(|_| Envelope { now: self.now, command: self.command() }).collect();
        let mut outcome = Outcome {
            durable: batch.iter().any(|envelope| must_last(&envelope.command)),
            ..Outcome::default()
        };
        self.writer.execute(batch);
        for told in self.told.clone().try_iter() {
            self.take_in(told, &mut outcome);
        }
        let mark = std::fs::read_to_string(self.keys.path().join("served")).unwrap_or_default();
        outcome.marked = mark.split_whitespace().nth(3).map_or(0, |n| n.parse().unwrap());
        outcome
    }

    fn take_in(&mut self, told: Told, outcome: &mut Outcome) {
        outcome.done += 1;
        match told {
            Told::Done => {}
            Told::Host(id, token) => {
                outcome.made.push(("hosts", id.to_string()));
                self.pending.push((id, token));
            }
            Told::Registered(id, token) => {
                self.pending.retain(|(other, _)| *other != id);
                self.hosts.push((id, token));
            }
            Told::Refreshed(id, token) => {
                let host = self.hosts.iter_mut().find(|(other, _)| *other == id);
                host.unwrap().1 = token;
            }
            Told::Began(id, host, op, kind) => {
                outcome.made.push(("sandboxes", id.to_string()));
                outcome.made.push(("operations", op.to_string()));
                if kind == OperationKind::Create {
                    self.sandboxes.push((id, host));
                }
                self.operations.push((op, kind));
            }
            Told::Failed(error) => {
                outcome.done -= 1;
                outcome.failed.push(error);
            }
        }
    }

    fn reply<T>(&self, say: impl FnOnce(T) -> Told + Send + 'static) -> Reply<T> {
        let tell = self.tell.clone();
        Box::new(move |result| tell.send(result.map_or_else(Told::Failed, say)).unwrap())
    }

    fn done<T>(&self) -> Reply<T> {
        self.reply(|_| Told::Done)
    }

    fn token(&mut self) -> [u8; 32] {
        let mut token = [0; 32];
        token[..8].copy_from_slice(&self.random.next().to_be_bytes());
        token
    }

    fn command(&mut self) -> Command {
        if self.hosts.is_empty() || self.hosts.len() < HOSTS_MAX && self.random.one_in(8) {
            return match self.pending.first() {
                Some(&(host, token)) => self.register(host, token),
                None => self.create_host(),
            };
        }
        let (host, refresh) = *self.random.clone().pick(&self.hosts).unwrap();
        match self.random.below(12) {
            0 => self.refresh(host, refresh),
            1 | 2 => self.create_sandbox(),
            3 | 4 => self.wish(),
            5 => self.finish(),
            6 => self.report(),
            7 => {
                let intent = if self.random.one_in(3) { Intent::Draining } else { Intent::Active };
                Command::SetIntent(host, intent, actor(), self.done())
            }
            8 => Command::MarkDown(vec![(host, None)], self.done()),
            9 => Command::MarkUp(host, self.done()),
            10 => {
                self.presence.heartbeat(host, self.now);
                Command::Flush(self.done())
            }
            _ => self.probed(host),
        }
    }

    fn create_host(&mut self) -> Command {
        let token = self.token();
        let new = NewHost {
            team: PLATFORM_TEAM,
            kind: "regular".to_owned(),
            provider: None,
            availability_zone: None,
            token,
            actor: actor(),
        };
        Command::CreateHost(new, self.reply(move |host: Host| Told::Host(host.id, token)))
    }

    fn register(&mut self, host: HostId, token: [u8; 32]) -> Command {
        let refresh = self.token();
        let registration = Registration {
            token,
            refresh,
            // One of its own: another live host's is refused.
            address: format!("127.0.0.1:{}", u16::from_be_bytes([refresh[0], refresh[1]]).max(1))
                .parse()
                .unwrap(),
            resolved: Resolved::new(),
            arch: None,
            cpu_cores: Some(100_000),
            memory_mb: Some(1 << 30),
            disk_gb: None,
        };
        // Twice in one batch it is refused the second time.
        let say = move |registered| match registered {
            Registered::Done(_) => Told::Registered(host, refresh),
            Registered::BadToken | Registered::AddressInUse(_) => Told::Done,
        };
        Command::Register(Box::new(registration), self.reply(say))
    }

    fn refresh(&mut self, host: HostId, shown: [u8; 32]) -> Command {
        let fresh = self.token();
        let say = move |refreshed: Option<_>| match refreshed {
            Some(_) => Told::Refreshed(host, fresh),
            None => Told::Done,
        };
        Command::Refresh { shown, fresh, lenient: false, reply: self.reply(say) }
    }

    fn create_sandbox(&mut self) -> Command {
        let new = NewSandbox {
            team: PLATFORM_TEAM,
            template: "minimal".to_owned(),
            vcpus: Some(1),
            memory_mb: Some(128),
            timeout_sec: 0,
            disk_size_mb: Some(1),
            actor: actor(),
        };
        let reply = self.reply(|made: Result<_, _>| match made {
            Ok((_, work)) => began(&work),
            Err(_) => Told::Done,
        });
        Command::CreateSandbox(Box::new(new), reply)
    }

    fn wish(&mut self) -> Command {
        let kinds = [OperationKind::Pause, OperationKind::Resume, OperationKind::Destroy];
        let kind = kinds[self.random.below(3)];
        let Some(&(sandbox, _)) = self.random.clone().pick(&self.sandboxes) else {
            return self.create_sandbox();
        };
        let wish = Wish { sandbox, kind, team: None, actor: actor() };
        let reply = self.reply(|begun| match begun {
            Begun::Started(_, work) => began(&work),
            Begun::Already(_)
            | Begun::AlreadyTerminal(_)
            | Begun::NoRoom(_)
            | Begun::InvalidState(_)
            | Begun::HostAway(_)
            | Begun::OverQuota(_)
            | Begun::NotFound => Told::Done,
        });
        Command::Begin(Box::new(wish), reply)
    }

    fn finish(&mut self) -> Command {
        if self.operations.is_empty() {
            return self.create_sandbox();
        }
        let at = self.random.below(self.operations.len());
        if self.random.one_in(2) {
            return Command::Sent(self.operations[at].0, self.done());
        }
        let (op, kind) = self.operations.swap_remove(at);
        let status = match kind {
            OperationKind::Create | OperationKind::Resume => SandboxStatus::Running,
            OperationKind::Pause | OperationKind::Snapshot => SandboxStatus::Paused,
            OperationKind::Destroy => SandboxStatus::Stopped,
        };
        let reason = Reason::OperationSucceeded;
        // The writer knows the host by the operation.
        let host = HostId::from_u128(0);
        let known_at = self.now.mono;
        let ended = Ended { op, host, status, reason, details: None, error: None, known_at };
        Command::Finish(Box::new(ended), self.done())
    }

    fn report(&mut self) -> Command {
        let Some(&(sandbox, host)) = self.random.clone().pick(&self.sandboxes) else {
            return self.create_sandbox();
        };
        let kinds = [ReportKind::AutoPaused, ReportKind::Stopped, ReportKind::Started];
        let kind = kinds[self.random.below(3)];
        let report = AgentReport { host, sandbox, kind, host_ip: None, error: None };
        Command::Report(Box::new(report), self.done())
    }

    /// A listing of some of the host's sandboxes that announces another.
    fn probed(&mut self, host: HostId) -> Command {
        let mut listing = Listing::default();
        for &(id, of) in &self.sandboxes {
            match self.random.below(6) {
                _ if of != host => {}
                0 => listing.auto_paused.push(id),
                1 => {}
                _ => listing.sandboxes.push(Listed {
                    id,
                    state: ListedState::Running,
                    created_at_unix: 1,
                    details: Details::default(),
                }),
            }
        }
        let probed = Probed {
            host,
            revision: self.writer.published().newest(),
            asked_at: Mono(self.now.mono.0 - 10),
            age_cap: None,
            probe: Probe::Listed(listing),
            proven: false,
        };
        Command::Probed(Box::new(probed), self.done())
    }
}

/// Observations are made again and heartbeats come again; nothing else does.
fn must_last(command: &Command) -> bool {
    !matches!(
        command,
        Command::Probed(..) | Command::MarkDown(..) | Command::MarkUp(..) | Command::Flush(..)
    )
}

fn began(work: &roost::store::lifecycle::Work) -> Told {
    Told::Began(work.sandbox, work.host, work.op, work.kind)
}
