//! Owns the tests of `store::notify`: what is written is what is found again, in a database
//! of our own, over kills.
//!
//! Never: a thread, a target.

use super::*;
use crate::model::policy::Policy;
use crate::model::time::Mono;
use crate::store::fixture;
use crate::store::open::open_writer;
use crate::store::presence::Presence;
use crate::store::verify::verify;
use crate::store::writer::{Command, Envelope};
use std::sync::Arc;
use tempfile::TempDir;

const NOW: Now = Now { mono: Mono(1_000_000), wall: Wall(1_790_000_000_000) };

struct World {
    writer: Writer,
    dir: TempDir,
}

fn host(n: u128) -> HostId {
    HostId::from_u128(n)
}

fn at(ms: i64) -> Now {
    Now { mono: Mono(NOW.mono.0 + ms as u64), wall: Wall(NOW.wall.0 + ms) }
}

impl World {
    /// Two hosts; the first is unreachable and misses two sandboxes.
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut conn = open_writer(&dir.path().join("roost.db"), true, NOW.wall).unwrap();
        let row = |n: u128, status: &str| {
            json!({"id": host(n), "status": status,
            "heartbeat_age_s": 5, "address": "127.0.0.1:1"})
        };
        let lost = |n: u128| {
            json!({"id": crate::model::id::SandboxId::from_u128(n),
            "host_id": host(1), "status": "missing"})
        };
        let fleet = json!({"hosts": [row(1, "unreachable"), row(2, "online")],
            "sandboxes": [lost(1), lost(2)]});
        fixture::load(&mut conn, &fixture::parse(&fleet.to_string(), NOW.wall).unwrap()).unwrap();
        World::over(conn, dir)
    }

    fn over(conn: Connection, dir: TempDir) -> World {
        let hosts = crate::store::read::hosts(&conn).unwrap();
        let presence = Arc::new(Presence::load(&hosts, [], None, false, NOW));
        World { writer: Writer::new(conn, Policy::default(), presence).unwrap(), dir }
    }

    /// The same after the process was killed.
    fn killed(self) -> World {
        let World { writer, dir } = self;
        drop(writer);
        let conn = open_writer(&dir.path().join("roost.db"), false, NOW.wall).unwrap();
        World::over(conn, dir)
    }

    fn run<T: Send + 'static>(
        &mut self,
        now: Now,
        command: impl FnOnce(crate::store::writer::Reply<T>) -> Command,
    ) -> T {
        let (tell, told) = crossbeam_channel::bounded(1);
        let command = command(Box::new(move |result| drop(tell.send(result))));
        self.writer.execute(vec![Envelope { now, command }]);
        told.recv().unwrap().unwrap()
    }

    fn look(&mut self, ms: i64, names: &[&str]) -> Noticed {
        let kinds: BTreeSet<NotifyKind> = NotifyKind::ALL.iter().copied().collect();
        let listener = |name: &&str| Listener { name: (*name).to_owned(), kinds: kinds.clone() };
        let look = Lookout {
            rules: Rules {
                delay: Duration::from_secs(60),
                reminder: Duration::from_secs(60),
                mute: false,
            },
            listeners: names.iter().map(listener).collect(),
            guard: Guard::Free,
            is_due: true,
        };
        self.run(at(ms), |reply| Command::Notice(Box::new(look), reply))
    }

    fn next(&self, name: &str) -> Option<Delivery> {
        next_delivery(&self.writer.conn, name).unwrap()
    }

    fn waiting(&self, name: &str) -> u64 {
        waiting(&self.writer.conn).unwrap().get(name).copied().unwrap_or(0)
    }

    /// An event as a failed operation writes it.
    fn fails(&mut self, ms: i64, n: u128) {
        let sql = format!(
            "INSERT INTO events \
                 (revision, at, kind, host_id, sandbox_id, team_id, from_status, to_status, reason, actor) \
                 VALUES ((SELECT revision + 1 FROM state), {}, 'sandbox.error', \
             '{}', '{}', 't', 'starting', 'error', 'operation_failed', 'system'); \
             UPDATE state SET revision = revision + 1",
            at(ms).wall.0,
            host(n),
            crate::model::id::SandboxId::from_u128(7)
        );
        self.writer.conn.execute_batch(&sql).unwrap();
        self.writer.revision += 1;
    }
}

#[test]
fn the_delay_and_what_was_announced_outlive_a_kill() {
    let mut world = World::new();
    let first = world.look(0, &["a"]);
    assert_eq!((first.open, first.queued, first.next_at), (1, false, Some(at(60_000).wall)));
    let mut world = world.killed();
    assert!(!world.look(59_999, &["a"]).queued);
    assert!(world.look(60_000, &["a"]).queued);
    let mut world = world.killed();
    assert!(!world.look(60_001, &["a"]).queued, "once");
    let delivery = world.next("a").unwrap();
    assert_eq!((&delivery.body["sandboxes"], &delivery.body["state"]), (&json!(2), &json!("open")));
    let (target, seq) = ("a".to_owned(), delivery.seq);
    world.run(at(60_002), |reply| Command::Delivered { target, seq, reply });
    let world = world.killed();
    assert_eq!(world.next("a"), None);
    assert_eq!(problems(&world.writer.conn).unwrap().len(), 1, "it is still wrong");
    assert_eq!(verify(&world.writer.conn).unwrap(), Vec::<String>::new());
}

#[test]
fn each_target_has_its_own_place_in_the_outbox() {
    let mut world = World::new();
    world.look(0, &["a", "b"]);
    world.look(60_000, &["a", "b"]);
    let seq = world.next("a").unwrap().seq;
    world.run(at(60_001), |reply| Command::Delivered { target: "a".to_owned(), seq, reply });
    assert_eq!((world.waiting("a"), world.waiting("b")), (0, 1));
    let kept: i64 = world
        .writer
        .conn
        .query_row("SELECT count(*) FROM notify_messages", [], |r| r.get(0))
        .unwrap();
    assert_eq!(kept, 1, "somebody has not got it yet");
    world.run(at(60_002), |reply| Command::Delivered { target: "b".to_owned(), seq, reply });
    let kept: i64 = world
        .writer
        .conn
        .query_row("SELECT count(*) FROM notify_messages", [], |r| r.get(0))
        .unwrap();
    assert_eq!(kept, 0);
}

#[test]
fn the_outbox_is_bounded_reminders_give_way_first_and_what_is_old_goes() {
    let mut world = World::new();
    world.look(0, &["a"]);
    let mut dropped = 0;
    for minute in 1..=(OUTBOX_MAX as i64 + 20) {
        dropped += world.look(minute * 60_000, &["a"]).dropped;
    }
    assert_eq!((world.waiting("a"), dropped), (OUTBOX_MAX as u64, 20));
    assert_eq!(world.next("a").unwrap().body["state"], json!("open"), "not the announcement");
    let later = world.look(26 * 3_600_000 + 21 * 60_000 * OUTBOX_MAX as i64, &["a"]);
    assert!(later.dropped >= OUTBOX_MAX as u64 - 1, "{later:?}");
    assert_eq!(world.waiting("a"), 1, "what was said just now");
}

#[test]
fn a_failed_operation_is_counted_once_over_kills() {
    let mut world = World::new();
    world.look(0, &["a"]);
    world.fails(10, 2);
    world.fails(20, 2);
    world.look(30, &["a"]);
    let mut world = world.killed();
    world.look(40, &["a"]);
    world.fails(50, 2);
    world.look(60, &["a"]);
    world.look(60_000, &["a"]);
    world.look(60_030, &["a"]);
    let mut titles = Vec::new();
    while let Some(delivery) = world.next("a") {
        titles.push(delivery.body["title"].as_str().unwrap().to_owned());
        let seq = delivery.seq;
        world.run(at(60_040), |reply| Command::Delivered { target: "a".to_owned(), seq, reply });
    }
    let failed = format!("3 operations failed on {} (127.0.0.1:1)", host(2));
    assert_eq!(titles, [format!("{} (127.0.0.1:1) unreachable", host(1)), failed]);
}

#[test]
fn zombies_and_held_stops_are_known_after_a_look_and_unknown_after_a_kill() {
    let mut world = World::new();
    let zombies = Problem {
        kind: NotifyKind::Zombies,
        host: Some(host(2)),
        opened_at: NOW.wall,
        sandboxes: 2,
        announced: Some("n".to_owned()),
        told_at: Some(NOW.wall),
        gone_at: None,
        unwatched: false,
    };
    world.writer.keep_problems(&[], std::slice::from_ref(&zombies)).unwrap();
    assert!(!world.look(1, &["a"]).queued, "nobody has looked yet");
    world.writer.records.entry(host(2)).or_default().successes = 1;
    assert!(world.look(2, &["a"]).queued);
    assert_eq!(world.next("a").unwrap().body["state"], json!("resolved"));
}

#[test]
fn maintenance_is_kept_ends_by_itself_and_goes_with_its_host() {
    let mut world = World::new();
    let wanted = |n, until| Maintenance { host: host(n), until, reason: None };
    assert!(!world.run(NOW, |reply| Command::Maintain(wanted(9, None), reply)));
    let until = Some(at(1000).wall);
    assert!(world.run(NOW, |reply| Command::Maintain(wanted(1, until), reply)));
    let world = world.killed();
    let kept = |ms| maintenance(&world.writer.conn, at(ms).wall).unwrap().len();
    assert_eq!((kept(999), kept(1000)), (1, 0));
}
