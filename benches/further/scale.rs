//! Passes over ever more hosts in one database: their time must stay in proportion to the
//! rows.
//!
//! Never: holds a report.

use crate::Bench;
use crate::server::DB;
use crate::stage::{Agents, Fleet, ROOST, Result, load, quiet};
use roost::store::open::open_reader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wait4::Wait4;

/// Hosts of the fleets, and sandboxes on each host.
const HOSTS: [usize; 3] = [1000, 3000, 10_000];
const SANDBOXES: usize = 100;

/// The same in `--quick`.
const HOSTS_QUICK: [usize; 3] = [20, 60, 200];
const SANDBOXES_QUICK: usize = 10;

/// A quarter of the default `probe_interval`, in seconds.
const STEADY_S_MAX: f64 = 15.0 / 4.0;

/// How much more a row may cost in the largest fleet than in the smallest: what keeps a
/// database in memory is smaller than this one, so a row may take a look at the disk's cache.
const PER_ROW_MAX: f64 = 1.25;

/// Steady passes over one fleet, of which the median counts.
const REPEAT: usize = 3;

/// The fleet of a million sandboxes.
pub(crate) fn largest(quick: bool) -> Fleet {
    match quick {
        true => Fleet::running(HOSTS_QUICK[2], SANDBOXES_QUICK),
        false => Fleet::running(HOSTS[2], SANDBOXES),
    }
}

/// Where [`run`] leaves the database of the largest fleet.
pub(crate) fn largest_db(bench: &Bench) -> PathBuf {
    bench.dir.path().join("largest").join(DB)
}

struct Pass {
    wall: Duration,
    cpu: Duration,
    peak_rss_bytes: u64,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (hosts, sandboxes) = match bench.quick {
        true => (HOSTS_QUICK, SANDBOXES_QUICK),
        false => (HOSTS, SANDBOXES),
    };
    for status in ["running", "missing"] {
        let mut per_row = Vec::new();
        for hosts in hosts {
            let fleet = Fleet { status, ..Fleet::running(hosts, sandboxes) };
            per_row.push(measure(bench, &fleet)?);
        }
        let name = name(status);
        for (what, of) in [("wall", 0), ("CPU", 1)] {
            let ratio = per_row[hosts.len() - 1][of] / per_row[0][of];
            let what = format!("{name}, {what} for a row: largest fleet against smallest");
            bench.sink.judges(&what, ratio, "times", PER_ROW_MAX)?;
        }
    }
    Ok(())
}

fn name(status: &str) -> &'static str {
    if status == "running" { "nothing changed" } else { "every sandbox restored" }
}

/// Wall and CPU seconds for a row.
fn measure(bench: &mut Bench, fleet: &Fleet) -> Result<[f64; 2]> {
    let dir = tempfile::tempdir_in(bench.dir.path())?;
    let (fixture, db) = (dir.path().join("fleet.json"), dir.path().join(DB));
    let _agents = Agents::start(fleet, &fixture)?;
    let began = Instant::now();
    load(&fixture, &db)?;
    let loading_s = began.elapsed().as_secs_f64();
    let steady = fleet.status == "running";
    // What a pass changed is not there for the next one to change.
    let repeat = if steady && !bench.quick { REPEAT } else { 1 };
    let mut passes = (0..repeat).map(|_| pass(&db)).collect::<Result<Vec<_>>>()?;
    passes.sort_by_key(|pass| pass.wall);
    let pass = passes.swap_remove(passes.len() / 2);
    let rows = fleet.hosts * fleet.sandboxes;
    let running: u32 = open_reader(&db)?.query_row(
        "SELECT count(*) FROM sandboxes WHERE status = 'running'",
        [],
        |row| row.get(0),
    )?;
    bench.sink.expects(running as usize == rows, &format!("{running} of {rows} sandboxes run"));
    let (wall, cpu) = (pass.wall.as_secs_f64(), pass.cpu.as_secs_f64());
    let name = format!("{}, {} × {}", name(fleet.status), fleet.hosts, fleet.sandboxes);
    let largest = fleet.hosts == largest(bench.quick).hosts;
    match largest && steady {
        true => bench.sink.judges(&format!("{name}: wall"), wall, "s", STEADY_S_MAX)?,
        false => bench.sink.says(&format!("{name}: wall"), wall, "s")?,
    }
    bench.sink.says(&format!("{name}: CPU"), cpu, "s")?;
    let peak_mib = pass.peak_rss_bytes as f64 / 1_048_576.0;
    bench.sink.says(&format!("{name}: peak memory"), peak_mib, "MiB")?;
    let us = 1e6 / rows as f64;
    bench.sink.says(&format!("{name}: wall for a row"), wall * us, "µs")?;
    bench.sink.says(&format!("{name}: CPU for a row"), cpu * us, "µs")?;
    if largest && steady {
        bench.sink.says(&format!("{name}: loading the fixture"), loading_s, "s")?;
        std::fs::create_dir_all(bench.dir.path().join("largest"))?;
        std::fs::rename(&db, largest_db(bench))?;
    }
    Ok([wall / rows as f64, cpu / rows as f64])
}

fn pass(db: &Path) -> Result<Pass> {
    let mut command = Command::new(ROOST);
    command.args(["check", "--format", "json", "--db"]).arg(db);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let used = quiet(&mut command).spawn()?.wait4()?;
    let wall = began.elapsed();
    if !used.status.success() {
        return Err(format!("check ended with {}", used.status).into());
    }
    let cpu = used.rusage.utime + used.rusage.stime;
    Ok(Pass { wall, cpu, peak_rss_bytes: used.rusage.maxrss })
}
