//! Owns the proof that a power cut at any moment loses nothing that must last, and that a
//! disk that fails for a while does not either: the writer over SQLite's real files, with a
//! shim in between that knows what was synced.
//!
//! Never: a real power cut. `ROOST_POWER_CUTS` sets how many moments are tried,
//! `ROOST_POWER_SEED` tries the same ones again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "what the cuts came to")]

#[path = "power/disk.rs"]
mod disk;
#[path = "power/script.rs"]
mod script;
mod support;
#[path = "power/vfs.rs"]
mod vfs;

use disk::Disk;
use roost::store::StoreError;
use roost::store::open::{open_reader, open_writer};
use roost::store::verify::verify;
use rusqlite::Connection;
use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_IOERR_WRITE, SQLITE_READONLY};
use rusqlite::types::Value;
use script::{START, Script};
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::Path;
use support::random::{Random, number_in, seed_from};
use tempfile::TempDir;
use vfs::{Op, Tape, Trouble};

/// Moments at which the power fails when nobody says how many.
const CUTS_DEFAULT: u64 = 400;

/// Batches of commands: the log is copied back into the database a few times.
const BATCHES: usize = 300;

/// Everything that is in a database, as text.
fn content(conn: &Connection) -> String {
    let mut all = String::new();
    let mut names =
        conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
    let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
    for name in names.map(Result::unwrap) {
        let mut select = conn.prepare(&format!("SELECT * FROM {name}")).unwrap();
        let columns = select.column_count();
        let mut rows = select.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|at| row.get::<_, Value>(at).unwrap());
            writeln!(all, "{name} {:?}", values.collect::<Vec<_>>()).unwrap();
        }
    }
    all
}

fn revision(conn: &Connection) -> u64 {
    roost::store::read::revision(conn).unwrap()
}

fn state(conn: &Connection) -> u64 {
    let mut hasher = DefaultHasher::new();
    content(conn).hash(&mut hasher);
    hasher.finish()
}

/// What was written, and what the database held after each batch.
struct Recorded {
    ops: Vec<Op>,
    /// Of the fresh database, then after each batch; and whether that batch must last.
    states: Vec<(u64, bool)>,
    /// What the mark beside the keys said then.
    marks: Vec<u64>,
}

fn record(random: &Random) -> Recorded {
    let dir = tempfile::tempdir().unwrap();
    let tape = Tape::watch(dir.path());
    let db = dir.path().join("roost.db");
    let mut script = Script::new(&db, random.clone());
    let reader = open_reader(&db).unwrap();
    // Nobody was told anything yet.
    let mut states = vec![(state(&reader), false)];
    let mut marks = vec![0];
    tape.mark(0);
    for batch in 1..=BATCHES {
        let outcome = script.batch();
        assert!(outcome.failed.is_empty(), "{outcome:?}");
        tape.mark(batch);
        let after = state(&reader);
        // What changes nothing makes nothing last that was there before.
        let lasts = outcome.durable && Some(after) != states.last().map(|(state, _)| *state);
        states.push((after, lasts));
        marks.push(outcome.marked);
    }
    let ops = tape.finish();
    let newest = revision(&reader);
    assert!(marks.last().is_some_and(|mark| *mark > 0 && *mark <= newest), "{newest}: {marks:?}");
    Recorded { ops, states, marks }
}

impl Recorded {
    /// The power fails after this operation. States that may be found then: what must last
    /// is there, and what was under way may be.
    fn check(&self, disk: &Disk, marked: Option<usize>, random: &mut Random) -> usize {
        let dir = tempfile::tempdir().unwrap();
        disk.cut(random, dir.path());
        // A database that was not there yet is made anew, and is the same.
        let conn = open_writer(&dir.path().join("roost.db"), true, START.wall).unwrap();
        assert_eq!(verify(&conn).unwrap(), Vec::<String>::new());
        let Some(marked) = marked else { return 0 };
        assert!(self.marks[marked] <= revision(&conn), "the mark is ahead of the disk");
        let lasting = (0..=marked).rev().find(|&at| self.states[at].1).unwrap_or(0);
        let last = (marked + 1).min(self.states.len() - 1);
        let found = state(&conn);
        let at = (lasting..=last).rev().find(|&at| self.states[at].0 == found);
        let at = at.unwrap_or_else(|| {
            let at = self.states.iter().position(|(state, _)| *state == found);
            panic!("found state {at:?}, not one of {lasting} to {last}")
        });
        last - at
    }
}

#[test]
fn a_power_cut_loses_only_what_need_not_last() {
    let random = Random::new(seed_from("ROOST_POWER_SEED"));
    let cuts = number_in("ROOST_POWER_CUTS").unwrap_or(CUTS_DEFAULT);
    let recorded = record(&random.fork(1));
    let mut random = random.fork(2);
    let mut moments: Vec<usize> = (0..cuts).map(|_| random.below(recorded.ops.len() + 1)).collect();
    moments.sort_unstable();
    let (mut disk, mut marked, mut done, mut lost) = (Disk::default(), None, 0, 0);
    for moment in moments {
        for op in &recorded.ops[done..moment] {
            disk.apply(op);
            if let Op::Mark(batch) = op {
                marked = Some(*batch);
            }
        }
        done = moment;
        lost += usize::from(recorded.check(&disk, marked, &mut random) > 1);
    }
    let synced = recorded.ops.iter().filter(|op| matches!(op, Op::Synced(_))).count();
    let checkpoints = recorded.ops.iter();
    let copied = |op: &&Op| matches!(op, Op::Synced(name) if name == "roost.db");
    let checkpoints = checkpoints.filter(copied).count();
    println!(
        "{cuts} cuts in {} operations, {synced} syncs, {checkpoints} of the database itself; \
         {lost} lost something that need not last",
        recorded.ops.len()
    );
    assert!(checkpoints > 1, "the log was never copied back");
    assert!(lost > 0 || cuts < CUTS_DEFAULT, "no cut lost anything: nothing was tried");
}

/// A disk that refuses for a while, at every kind of moment: whoever was refused finds
/// nothing changed, whoever was not finds what was made, and then it goes on.
#[test]
fn a_disk_that_fails_for_a_while_spoils_nothing() {
    let mut random = Random::new(seed_from("ROOST_POWER_SEED"));
    let dir = tempfile::tempdir().unwrap();
    let tape = Tape::watch(dir.path());
    let db = dir.path().join("roost.db");
    let mut script = Script::new(&db, random.fork(1));
    let (mut refused, mut made) = (0, Vec::new());
    let codes = [SQLITE_FULL, SQLITE_IOERR_WRITE, SQLITE_IOERR_FSYNC, SQLITE_READONLY];
    for round in 0..BATCHES {
        let before = state(&open_reader(&db).unwrap());
        let after = random.below(40);
        let code = codes[random.below(codes.len())];
        tape.trouble(Some(Trouble { after, times: 1 + random.below(3), code }));
        let outcome = script.batch();
        tape.trouble(None);
        let conn = open_reader(&db).unwrap();
        if outcome.done == 0 {
            assert_eq!(state(&conn), before, "round {round}: refused and done all the same");
        }
        let disk = |error: &StoreError| matches!(error, StoreError::Disk(_));
        assert!(outcome.failed.iter().all(disk), "{:?}", outcome.failed);
        refused += outcome.failed.len();
        made.extend(outcome.made);
        if round % 10 == 0 {
            assert_eq!(verify(&conn).unwrap(), Vec::<String>::new(), "round {round}");
        }
    }
    assert!(refused > BATCHES / 10, "only {refused} commands were refused");
    let outcome = script.batch();
    assert!(outcome.failed.is_empty(), "a disk that works again is used again: {outcome:?}");
    drop(script);
    // A machine that lost its power right then holds at least as much.
    let mut disk = Disk::default();
    tape.finish().iter().for_each(|op| disk.apply(op));
    let after = tempfile::tempdir().unwrap();
    disk.cut(&mut random, after.path());
    for db in [db, after.path().join("roost.db")] {
        let conn = open_writer(&db, false, START.wall).unwrap();
        assert_eq!(verify(&conn).unwrap(), Vec::<String>::new());
        for (table, id) in &made {
            let sql = format!("SELECT 1 FROM {table} WHERE id = ?1");
            assert!(conn.prepare(&sql).unwrap().exists([id]).unwrap(), "{id} of {table} is gone");
        }
    }
}

/// The model of the disk loses what it may and nothing else.
#[test]
fn only_what_was_not_synced_is_lost() {
    let wrote = |at, byte, count| Op::Wrote("roost.db-wal".into(), at, vec![byte; count]);
    let mut disk = Disk::default();
    let ops = [
        Op::Created("roost.db-wal".into()),
        wrote(0, 1, 2048),
        Op::Synced("roost.db-wal".into()),
        wrote(1024, 2, 2048),
    ];
    ops.iter().for_each(|op| disk.apply(op));
    let mut random = Random::new(3);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let dir: TempDir = tempfile::tempdir().unwrap();
        disk.cut(&mut random, dir.path());
        let bytes = std::fs::read(Path::new(dir.path()).join("roost.db-wal")).unwrap();
        assert!(bytes[..1024].iter().all(|byte| *byte == 1), "what was synced stays");
        assert!(bytes[1024..2048].iter().all(|byte| *byte == 1 || *byte == 2));
        seen.insert((bytes.len(), bytes.iter().filter(|byte| **byte == 2).count()));
    }
    assert!(seen.contains(&(2048, 0)) && seen.contains(&(3072, 2048)) && seen.len() > 10);
}
