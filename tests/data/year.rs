//! Owns the size of a small fleet's database after a year, played through the real writer
//! and its retention with a clock of its own. After a month only the audit log grows, by the
//! same every day: 45 days are played and the rest is reckoned, which was held against a
//! whole year once (`ROOST_TEST_DAYS=365`, which takes some minutes).
//!
//! Never: heartbeats every ten seconds: they rewrite the same rows, and an hour between two
//! flushes makes the file no smaller.

use crate::support::host;
use crossbeam_channel::{Sender, unbounded};
use roost::model::id::{OpId, PLATFORM_TEAM, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::policy::Policy;
use roost::model::sandbox::{Reason, SandboxStatus};
use roost::model::time::{Mono, Now, Wall};
use roost::store::fixture;
use roost::store::journal::Actor;
use roost::store::lifecycle::{Begun, Ended, NewSandbox, Wish, Work};
use roost::store::open::{open_reader, open_writer};
use roost::store::presence::Presence;
use roost::store::read;
use roost::store::verify::verify;
use roost::store::writer::{Command, Envelope, Reply, Writer};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const HOSTS: u128 = 10;

/// Sandboxes that are made, paused, resumed, paused, resumed and destroyed every day.
const SANDBOXES: usize = 50;

/// Days that are played: a month until as much is given up as comes, and some to see what
/// goes on growing.
const DAYS: u64 = 45;

/// Until then, whatever is given up after a month has reached its size.
const SETTLED: u64 = 35;

const YEAR: u64 = 365;

const SIZE_MAX: u64 = 200_000_000;

const BEGIN: Wall = Wall(1_779_000_000_000);

struct Year {
    dir: TempDir,
    writer: Writer,
    presence: Arc<Presence>,
    now: Now,
}

impl Year {
    fn new() -> Year {
        let dir = tempfile::tempdir().unwrap();
        let now = Now { mono: Mono(1_000_000_000), wall: BEGIN };
        let mut conn = open_writer(&dir.path().join("roost.db"), true, now.wall).unwrap();
        let row = |n| {
            json!({"id": host(n), "status": "online", "heartbeat_age_s": 1,
            "address": format!("10.0.0.{n}:50051"), "cpu_cores": 64, "memory_mb": 262_144})
        };
        let fleet = json!({"hosts": (1..=HOSTS).map(row).collect::<Vec<_>>(), "sandboxes": []});
        let fleet = fixture::parse(&fleet.to_string(), now.wall).unwrap();
        fixture::load(&mut conn, &fleet).unwrap();
        let hosts = read::hosts(&conn).unwrap();
        let presence = Arc::new(Presence::load(&hosts, [], None, false, now));
        let writer = Writer::new(conn, Policy::default(), Arc::clone(&presence)).unwrap();
        Year { dir, writer, presence, now }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("roost.db")
    }

    fn pass(&mut self, span: Duration) {
        self.now = Now { mono: self.now.mono.after(span), wall: self.now.wall.after(span) };
    }

    /// Gives commands in one batch; what each came to.
    fn all<T: Send + 'static>(
        &mut self,
        commands: impl Iterator<Item = Box<dyn FnOnce(Reply<T>) -> Command>>,
    ) -> Vec<T> {
        let (tell, told) = unbounded();
        let reply = |tell: Sender<T>| -> Reply<T> {
            Box::new(move |result| tell.send(result.unwrap()).unwrap())
        };
        let now = self.now;
        let envelope = |command: Box<dyn FnOnce(Reply<T>) -> Command>| Envelope {
            now,
            command: command(reply(tell.clone())),
        };
        let batch = commands.map(envelope).collect();
        self.writer.execute(batch);
        drop(tell);
        told.iter().collect()
    }

    /// The agents are asked, and did it.
    fn carry_out(&mut self, work: &[Work], status: SandboxStatus) {
        let ops: Vec<OpId> = work.iter().map(|work| work.op).collect();
        let sent = self.all(ops.into_iter().map(|op| -> Box<dyn FnOnce(Reply<bool>) -> Command> {
            Box::new(move |reply| Command::Sent(op, reply))
        }));
        assert_eq!(sent, vec![true; work.len()]);
        self.pass(Duration::from_secs(2));
        let ended: Vec<Ended> = work
            .iter()
            .map(|work| Ended {
                op: work.op,
                host: work.host,
                status,
                reason: Reason::OperationSucceeded,
                details: None,
                error: None,
                known_at: Mono(0),
            })
            .collect();
        let done =
            self.all(ended.into_iter().map(|ended| -> Box<dyn FnOnce(Reply<bool>) -> Command> {
                Box::new(move |reply| Command::Finish(Box::new(ended), reply))
            }));
        assert_eq!(done, vec![true; work.len()]);
    }

    fn create(&mut self) -> Vec<SandboxId> {
        let new = || NewSandbox {
            team: PLATFORM_TEAM,
            template: "minimal".to_owned(),
            vcpus: Some(2),
            memory_mb: Some(512),
            timeout_sec: 3600,
            disk_size_mb: Some(5120),
            actor: Actor::SYSTEM,
        };
        let made = self.all((0..SANDBOXES).map(|_| -> Box<dyn FnOnce(Reply<_>) -> Command> {
            Box::new(move |reply| Command::CreateSandbox(Box::new(new()), reply))
        }));
        let work: Vec<Work> = made.into_iter().map(|made| made.unwrap().1).collect();
        self.carry_out(&work, SandboxStatus::Running);
        work.iter().map(|work| work.sandbox).collect()
    }

    fn operate(&mut self, ids: &[SandboxId], kind: OperationKind, status: SandboxStatus) {
        let begun = self.all(ids.iter().copied().map(
            |sandbox| -> Box<dyn FnOnce(Reply<Begun>) -> Command> {
                let wish = Wish { sandbox, kind, team: None, actor: Actor::SYSTEM };
                Box::new(move |reply| Command::Begin(Box::new(wish), reply))
            },
        ));
        let started = |begun: Begun| {
            let Begun::Started(_, work) = begun else { panic!("{begun:?}") };
            *work
        };
        let work: Vec<Work> = begun.into_iter().map(started).collect();
        self.carry_out(&work, status);
    }

    /// Hours in which nothing happens but heartbeats; at the end what is old is given up.
    fn hours(&mut self, hours: u64) {
        for _ in 0..hours {
            self.pass(Duration::from_secs(3600));
            for host in self.presence.ids() {
                self.presence.heartbeat(host, self.now);
            }
            self.all(std::iter::once::<Box<dyn FnOnce(Reply<()>) -> Command>>(Box::new(
                Command::Flush,
            )));
        }
        let prune = |reply| Command::Prune(reply);
        while self.all(std::iter::once::<Box<dyn FnOnce(Reply<bool>) -> Command>>(Box::new(prune)))
            == [true]
        {}
    }

    fn day(&mut self) {
        use OperationKind::{Destroy, Pause, Resume};
        let ids = self.create();
        self.hours(3);
        for _ in 0..2 {
            self.operate(&ids, Pause, SandboxStatus::Paused);
            self.hours(6);
            self.operate(&ids, Resume, SandboxStatus::Running);
            self.hours(4);
        }
        self.operate(&ids, Destroy, SandboxStatus::Stopped);
        self.hours(1);
    }
}

fn rows(db: &Path, table: &str) -> u64 {
    let conn = open_reader(db).unwrap();
    let count: i64 =
        conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
    count.unsigned_abs()
}

/// Pages of the database, those in its log included.
fn pages(db: &Path) -> u64 {
    let conn = open_reader(db).unwrap();
    let pages: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    pages.unsigned_abs()
}

#[test]
fn a_year_of_a_small_fleet_stays_small() {
    let days = std::env::var("ROOST_TEST_DAYS").map_or(DAYS, |days| days.parse().unwrap());
    let mut year = Year::new();
    let db = year.db();
    (0..SETTLED).for_each(|_| year.day());
    let settled = pages(&db);
    (SETTLED..days).for_each(|_| year.day());
    let passed = year.now.wall.since(BEGIN);
    assert!(passed > Duration::from_secs(days * 24 * 3600), "{passed:?}");
    drop(year.writer);
    let a_day = (pages(&db) - settled).div_ceil(days - SETTLED);
    assert!(a_day > 0, "the audit log grows");
    let size = 4096 * (settled + a_day * (YEAR - SETTLED));
    let [events, audit, sandboxes] = ["events", "audit_logs", "sandboxes"].map(|t| rows(&db, t));
    println!(
        "{size} bytes after a year; now {events} events, {audit} audit entries, {sandboxes} sandboxes"
    );
    assert!(size < SIZE_MAX, "{size} bytes");
    // Every audit entry is kept; of events and of sandboxes that are over, a month.
    let day = SANDBOXES as u64;
    assert_eq!(audit, days * day * 6);
    assert!((29 * day..=31 * day).contains(&sandboxes), "{sandboxes}");
    assert!((29 * day * 12..=31 * day * 12).contains(&events), "{events}");
    assert_eq!(verify(&open_reader(&db).unwrap()).unwrap(), [] as [&str; 0]);
}
