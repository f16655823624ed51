//! Owns the simulation: thousands of hours of hosts, faults, users and restarts from one
//! seed, with the real monitor, operations, plan, writer and database in the middle, and
//! what must hold checked at every change.
//!
//! Never: a thread inside a world, a sleep, a socket, the machine's clock.
//!
//! `ROOST_SIM_SEEDS=N` plays N seeds; `ROOST_SIM_SEED=S [ROOST_SIM_PACE=P]
//! [ROOST_SIM_TRACE=1]` with the test `replay` plays one again. What is not simulated: HTTP
//! in either direction (the API's answers to heartbeats and to a deletion are played as
//! `api::agents` and `api::hosts` give them), TLS (with it, a host that has another's
//! address cannot be reached), the agents' wire JSON, a call that arrives twice (over one
//! connection none does, and Roost asks for nothing again before it has looked). SQLite's
//! files live in this process; `kill -9` keeps what the kernel has, a loss of power cuts
//! the write-ahead log anywhere behind its last sync.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "simulation/agent.rs"]
mod agent;
#[path = "simulation/bounds.rs"]
mod bounds;
#[path = "simulation/calm.rs"]
mod calm;
#[path = "simulation/chance.rs"]
mod chance;
#[path = "simulation/defect.rs"]
mod defect;
#[path = "simulation/disk.rs"]
mod disk;
#[path = "simulation/fleet.rs"]
mod fleet;
#[path = "simulation/history.rs"]
mod history;
#[path = "simulation/judge.rs"]
mod judge;
#[path = "simulation/leaving.rs"]
mod leaving;
#[path = "simulation/machine.rs"]
mod machine;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/people.rs"]
mod people;
#[path = "simulation/plane.rs"]
mod plane;
#[path = "simulation/registering.rs"]
mod registering;
#[path = "simulation/restoring.rs"]
mod restoring;
#[path = "simulation/storm.rs"]
mod storm;
#[path = "simulation/tally.rs"]
mod tally;
#[path = "simulation/world.rs"]
mod world;

use defect::Defect;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use tally::{Fault, STATUSES, WISHES};
use world::{Course, pace_of, play};

/// Seeds that `cargo test` plays.
const SEEDS: u64 = 24;

/// Seeds that hold without a defect, and that every deliberate defect is played with until
/// one catches it. What shows seldom shows with other seeds after every change of the code.
const DEFECT_SEEDS: std::ops::Range<u64> = 1..200;

/// The pace of a world in which something happens all the time.
const RESTLESS: u64 = 1;

/// What this process has used.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// What is wrong with a course, and how to see it again.
fn report(seed: u64, pace: u64, course: &Course) -> String {
    let again = format!(
        "ROOST_SIM_SEED={seed} ROOST_SIM_PACE={pace} ROOST_SIM_TRACE=1 \
         cargo test --test simulation replay -- --nocapture"
    );
    format!("seed {seed}:\n  {}\n  {again}\n", course.violations.join("\n  "))
}

/// Says which seed a panic belongs to.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed write to stderr can be told to no one.
            let _ = writeln!(std::io::stderr(), "while seed {} was played", self.0);
        }
    }
}

/// Plays seeds side by side, each world in one thread; gives what `play` gave, in order.
fn play_all<T: Send>(seeds: &[u64], play: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let take = || seeds.get(next.fetch_add(1, Ordering::Relaxed));
        let one = |seed: &u64| {
            let _named = Named(*seed);
            (*seed, play(*seed))
        };
        std::iter::from_fn(take).map(one).collect::<Vec<_>>()
    };
    let mut played: Vec<(u64, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    played.sort_by_key(|(seed, _)| *seed);
    played.into_iter().map(|(_, one)| one).collect()
}

/// What came of the seeds without a defect, and what they cost: played once for all tests.
fn courses() -> &'static (Vec<u64>, Vec<Course>, f64) {
    static PLAYED: OnceLock<(Vec<u64>, Vec<Course>, f64)> = OnceLock::new();
    PLAYED.get_or_init(|| {
        let began = cpu_seconds();
        let seeds: Vec<u64> = (1..=number("ROOST_SIM_SEEDS").unwrap_or(SEEDS)).collect();
        let courses = play_all(&seeds, |seed| play(seed, pace_of(seed), None, false));
        (seeds, courses, cpu_seconds() - began)
    })
}

#[test]
fn everything_holds_whatever_happens() {
    let (seeds, courses, seconds) = courses();
    let hours: f64 = courses.iter().map(|course| course.host_hours).sum();
    let changes: u64 = courses.iter().map(|course| course.revisions).sum();
    println!(
        "{} seeds, {hours:.0} host-hours, {changes} changes in {seconds:.1} s of CPU: \
         {:.0} host-hours a second",
        seeds.len(),
        hours / seconds
    );
    let failed = seeds.iter().zip(courses).filter(|(_, course)| !course.violations.is_empty());
    let reports: Vec<String> =
        failed.map(|(seed, course)| report(*seed, pace_of(*seed), course)).collect();
    let shown = reports.iter().take(20).cloned().collect::<String>();
    assert!(reports.is_empty(), "{} of {} seeds fail\n{shown}", reports.len(), seeds.len());
}

/// A fault that strikes nowhere proves nothing, nor does a wish that nobody has.
#[test]
fn every_fault_strikes_and_every_wish_is_made() {
    let (_, courses, _) = courses();
    let mut missing = Vec::new();
    let mut count = |times: u64, what: String| {
        println!("{times:>7}  {what}");
        if times == 0 {
            missing.push(what);
        }
    };
    for (fault, what) in Fault::ALL {
        let times = courses.iter().map(|course| course.tally.of(*fault)).sum();
        count(times, format!("{what} ({fault:?})"));
    }
    for (kind, status) in WISHES.iter().flat_map(|k| STATUSES.iter().map(move |s| (*k, *s))) {
        let times = courses.iter().map(|course| course.tally.of_wish(kind, status)).sum();
        count(times, format!("somebody wishes a {kind} of what is {status}"));
    }
    assert!(missing.is_empty(), "not once: {missing:#?}");
}

#[test]
fn replay() {
    let Some(seed) = number("ROOST_SIM_SEED") else { return };
    let defect = std::env::var("ROOST_SIM_DEFECT").ok();
    let defect = Defect::ALL.iter().find(|(d, ..)| Some(format!("{d:?}")) == defect);
    let usual = if defect.is_some() { RESTLESS } else { pace_of(seed) };
    let pace = number("ROOST_SIM_PACE").unwrap_or(usual);
    let course = play(seed, pace, defect.map(|(d, ..)| *d), number("ROOST_SIM_TRACE") == Some(1));
    course.trace.iter().for_each(|line| println!("{line}"));
    assert!(course.violations.is_empty(), "{}", report(seed, pace, &course));
}

#[test]
fn a_seed_takes_the_same_course_twice() {
    let [first, second] = [play(5, 4, None, true), play(5, 4, None, true)];
    assert!(first.trace.len() > 1000);
    assert_eq!(first.trace, second.trace);
}

/// The first seed that catches a defect and holds without one. `holds` remembers which do.
fn catching(defect: Defect, hint: u64, holds: &Mutex<BTreeMap<u64, bool>>) -> Option<u64> {
    let fails = |seed, defect| !play(seed, RESTLESS, defect, false).violations.is_empty();
    let held = |seed| {
        let known = holds.lock().unwrap().get(&seed).copied();
        known.unwrap_or_else(|| {
            let held = !fails(seed, None);
            holds.lock().unwrap().insert(seed, held);
            held
        })
    };
    let mut seeds = std::iter::once(hint).chain(DEFECT_SEEDS);
    seeds.find(|seed| fails(*seed, Some(defect)) && held(*seed))
}

/// Without a defect the same seed holds, so that what is caught is the defect.
#[test]
fn every_deliberate_defect_is_caught() {
    let holds = Mutex::default();
    let all: Vec<u64> = (0..Defect::ALL.len() as u64).collect();
    let caught = play_all(&all, |at| {
        let (defect, hint, _) = Defect::ALL[at as usize];
        catching(defect, hint, &holds)
    });
    let mut missed = Vec::new();
    for ((defect, _, what), seed) in Defect::ALL.iter().zip(caught) {
        match seed {
            Some(seed) => println!("seed {seed:>3}  {defect:?}: {what}"),
            None => missed.push(defect),
        }
    }
    let failed = holds.into_inner().unwrap().into_iter().filter(|(_, held)| !held);
    let failed: Vec<u64> = failed.map(|(seed, _)| seed).collect();
    assert!(failed.is_empty(), "without a defect fail seeds {failed:?} at pace {RESTLESS}");
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
