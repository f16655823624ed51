//! From exec to a 200 of `/readyz`, on a database of a million sandboxes: after a clean stop,
//! and after `kill -9` in the middle of writing.
//!
//! Never: drops the system's cache of the file: that needs rights that a bench has not.

use crate::Bench;
use crate::scale::{largest, largest_db};
use crate::server::{Server, eventually};
use crate::stage::{Agents, Result, load};
use std::path::PathBuf;
use std::time::Duration;

/// The most a start may take.
const READY_MS_MAX: f64 = 100.0;

/// Starts of either kind.
const REPEAT: usize = 5;

/// Transactions that a server must have written before it is killed. Nobody listens where
/// its hosts were: it writes that their probes fail.
const COMMITS_MIN: f64 = 20.0;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let dir = data_dir(bench)?;
    // Makes its keys once.
    Server::start(&dir)?.0.stop()?;
    let mut starts = Vec::new();
    for _ in 0..REPEAT {
        let (server, took) = Server::start(&dir)?;
        server.stop()?;
        starts.push(took);
    }
    judge(bench, "after a clean stop", starts)?;
    let mut starts = Vec::new();
    let mut log_bytes = 0;
    for _ in 0..=REPEAT {
        let (server, took) = Server::start(&dir)?;
        starts.push(took);
        eventually("commits", || Ok(server.metric("roost_commits_total")? >= COMMITS_MIN))?;
        server.kill()?;
        log_bytes = std::fs::metadata(dir.join("roost.db-wal"))?.len();
    }
    // The first of them followed a clean stop.
    starts.remove(0);
    bench.sink.expects(log_bytes > 0, "a killed server left no write-ahead log");
    bench.sink.says("write-ahead log that the last kill left", log_bytes as f64, "bytes")?;
    judge(bench, "after kill -9", starts)
}

fn judge(bench: &Bench, after: &str, mut starts: Vec<Duration>) -> Result<()> {
    starts.sort();
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let median = ms(starts[starts.len() / 2]);
    bench.sink.judges(&format!("{after}: exec to ready, median"), median, "ms", READY_MS_MAX)?;
    let worst = ms(starts[starts.len() - 1]);
    bench.sink.says(&format!("{after}: exec to ready, worst of {REPEAT}"), worst, "ms")
}

/// The directory of the database that the fleets' case left; makes it when that did not run.
fn data_dir(bench: &Bench) -> Result<PathBuf> {
    let db = largest_db(bench);
    let dir = bench.dir.path().join("largest");
    if !db.exists() {
        std::fs::create_dir_all(&dir)?;
        let fixture = dir.join("fleet.json");
        drop(Agents::start(&largest(bench.quick), &fixture)?);
        load(&fixture, &db)?;
    }
    Ok(dir)
}
