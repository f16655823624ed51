//! A server with ten hosts that have joined as real ones do, and nothing to do: memory,
//! processor time, transactions. Heartbeats and probes are at their defaults.
//!
//! Never: measures the beginning: the hosts have been looked at before.

use crate::Bench;
use crate::server::{Server, eventually};
use crate::stage::{Agents, ROOST, Result};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// Hosts, and sandboxes that run on each.
const HOSTS: usize = 10;
const SANDBOXES: usize = 5;

/// How long it is watched.
const SPAN: Duration = Duration::from_secs(120);
const SPAN_QUICK: Duration = Duration::from_secs(20);

/// What it may use: MB, percent of a core, transactions a minute.
const RSS_MB_MAX: f64 = 12.0;
const CPU_PERCENT_MAX: f64 = 0.2;
const COMMITS_PER_MINUTE_MAX: f64 = 10.0;
const WRITTEN_MB_PER_DAY_MAX: f64 = 30.0;

/// Transactions over which it is counted what is written.
const COMMITS: u32 = 3;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (server, _) = Server::start(dir.path())?;
    let mut tokens = String::new();
    for _ in 0..HOSTS {
        let host: Value = serde_json::from_str(&server.ask("POST", "/v1/hosts", "{}")?.1)?;
        tokens.push_str(host["registration_token"].as_str().ok_or("no token")?);
        tokens.push('\n');
    }
    let file = dir.path().join("tokens");
    std::fs::write(&file, tokens)?;
    let mut command = Command::new(ROOST);
    command.args(["agent-sim", "--base-port", "0", "--token-file"]).arg(&file);
    command.args(["--join", &format!("http://{}", server.address())]);
    let _agents = Agents::ready(&mut command)?.ok_or("the simulated hosts did not join")?;
    for _ in 0..HOSTS * SANDBOXES {
        let (status, body) = server.ask("POST", "/v1/capsules", "{}")?;
        bench.sink.expects(status == 202, &format!("a sandbox was answered {status}: {body}"));
    }
    let all = format!("roost_sandboxes{{status=\"running\"}} {}", HOSTS * SANDBOXES);
    eventually("running sandboxes", || Ok(server.get("/metrics")?.1.contains(&all)))?;
    watch(bench, &server)?;
    if !bench.quick {
        written(bench, &server)?;
    }
    let hosts = format!("roost_hosts{{status=\"online\"}} {HOSTS}");
    bench.sink.expects(server.get("/metrics")?.1.contains(&hosts), "not every host is online");
    server.stop()
}

fn watch(bench: &Bench, server: &Server) -> Result<()> {
    let span = if bench.quick { SPAN_QUICK } else { SPAN };
    let commits = server.metric("roost_commits_total")?;
    let (cpu_s, began) = (server.cpu_s()?, Instant::now());
    std::thread::sleep(span);
    let seconds = began.elapsed().as_secs_f64();
    let percent = (server.cpu_s()? - cpu_s) / seconds * 100.0;
    let rss_mb = server.rss_mib()? * 1.048_576;
    let per_minute = (server.metric("roost_commits_total")? - commits) / seconds * 60.0;
    bench.sink.judges("resident memory", rss_mb, "MB", RSS_MB_MAX)?;
    bench.sink.says("peak memory", server.peak_rss_mib()? * 1.048_576, "MB")?;
    bench.sink.judges("processor", percent, "% of a core", CPU_PERCENT_MAX)?;
    let what = "disk transactions";
    bench.sink.judges(what, per_minute, "a minute", COMMITS_PER_MINUTE_MAX)?;
    bench.sink.says("watched for", seconds, "s")
}

/// What is written, from one transaction to a later one: between them nothing is.
fn written(bench: &Bench, server: &Server) -> Result<()> {
    let next = |commits: f64| {
        eventually("a transaction", || Ok(server.metric("roost_commits_total")? > commits))?;
        Ok::<_, Box<dyn std::error::Error>>(Instant::now())
    };
    let began = next(server.metric("roost_commits_total")?)?;
    let before = server.written_bytes()?;
    let mut ended = began;
    for _ in 0..COMMITS {
        ended = next(server.metric("roost_commits_total")?)?;
    }
    let bytes = server.written_bytes()? - before;
    let per_day = bytes / ended.duration_since(began).as_secs_f64() * 86_400.0 / 1e6;
    bench.sink.judges("written", per_day, "MB a day", WRITTEN_MB_PER_DAY_MAX)
}
