//! Agents that beat over connections they keep: many beats while a pass runs, and many
//! connections that are silent in between.
//!
//! Never: waits for one beat before the next (`beats` says how).

use crate::Bench;
use crate::beats::{Heard, beat};
use crate::server::{DB, Server, hosts, write_tokens};
use crate::stage::{Agents, Fleet, Result, load};
use roost::store::open::open_reader;
use tempfile::TempDir;

/// Beats a second, and for how long.
const PER_SECOND: f64 = 5000.0;
const SECONDS: f64 = 20.0;

/// The same in `--quick`.
const PER_SECOND_QUICK: f64 = 500.0;
const SECONDS_QUICK: f64 = 2.0;

/// 99 % of the beats are acknowledged within this.
const P99_MS_MAX: f64 = 20.0;

/// The fleet that is restored meanwhile: large enough that its pass takes seconds.
const FLEET: (usize, usize) = (1000, 200);

/// Agents that keep their connections, and sandboxes of each.
const KEEPERS: (usize, usize) = (2000, 25);

/// Seconds between two beats of each, and how often each beats.
const EVERY_S: f64 = 30.0;
const BEATS: f64 = 2.1;

/// The same in `--quick`.
const EVERY_S_QUICK: f64 = 1.0;

/// Most memory with them, in MiB.
const PEAK_RSS_MIB_MAX: f64 = 16.0;

/// Either fleet in `--quick`.
const FLEET_QUICK: (usize, usize) = (50, 10);

struct Stage {
    dir: TempDir,
    server: Server,
    _agents: Agents,
}

impl Stage {
    fn set(fleet: &Fleet) -> Result<Stage> {
        let dir = tempfile::tempdir()?;
        let fixture = dir.path().join("fleet.json");
        let agents = Agents::start(fleet, &fixture)?;
        load(&fixture, &dir.path().join(DB))?;
        let hosts = hosts(dir.path())?;
        write_tokens(dir.path(), &hosts, &dir.path().join("tokens"))?;
        let (server, _) = Server::start(dir.path())?;
        Ok(Stage { dir, server, _agents: agents })
    }

    fn beat(&self, per_second: f64, seconds: f64) -> Result<Heard> {
        beat(self.server.address(), &self.dir.path().join("tokens"), per_second, seconds)
    }
}

/// Everything that was sent was acknowledged, over the connection it was sent on.
fn judge(bench: &mut Bench, heard: &Heard) -> Result<()> {
    let lost = heard.sent - heard.acknowledged;
    bench.sink.expects(lost == 0, &format!("not every beat was acknowledged: {heard:?}"));
    bench.sink.judges("beats that were not acknowledged", lost as f64, "", 0.0)?;
    let refused = heard.refused + heard.closed;
    bench.sink.expects(refused == 0, &format!("{refused} connections were refused or closed"));
    bench.sink.judges("connections refused or closed", refused as f64, "", 0.0)
}

pub(crate) fn heartbeats(bench: &mut Bench) -> Result<()> {
    let ((hosts, sandboxes), per_second, seconds) = match bench.quick {
        true => (FLEET_QUICK, PER_SECOND_QUICK, SECONDS_QUICK),
        false => (FLEET, PER_SECOND, SECONDS),
    };
    let fleet = Fleet { status: "missing", ..Fleet::running(hosts, sandboxes) };
    let stage = Stage::set(&fleet)?;
    let revision = stage.server.metric("roost_revision")?;
    let heard = stage.beat(per_second, seconds)?;
    let sink = &bench.sink;
    sink.says("acknowledged", heard.acknowledged as f64 / heard.seconds, "a second")?;
    sink.says("time to the answer, median", heard.median_ms, "ms")?;
    sink.judges("time to the answer, p99", heard.p99_ms, "ms", P99_MS_MAX)?;
    let worst = heard.worst_second_p99_ms;
    sink.judges("time to the answer, p99 of the worst second", worst, "ms", P99_MS_MAX)?;
    sink.says("time to the answer, longest", heard.worst_ms, "ms")?;
    let changes = stage.server.metric("roost_revision")? - revision;
    sink.says("rows that the pass restored meanwhile", changes, "")?;
    sink.says("peak memory", stage.server.peak_rss_mib()?, "MiB")?;
    judge(bench, &heard)?;
    let Stage { dir, server, .. } = stage;
    server.stop()?;
    let left: u32 = open_reader(&dir.path().join(DB))?.query_row(
        "SELECT count(*) FROM sandboxes WHERE status <> 'running'",
        [],
        |row| row.get(0),
    )?;
    bench.sink.expects(left == 0, &format!("{left} sandboxes were not restored"));
    Ok(())
}

pub(crate) fn connections(bench: &mut Bench) -> Result<()> {
    let ((hosts, sandboxes), every_s) = match bench.quick {
        true => (FLEET_QUICK, EVERY_S_QUICK),
        false => (KEEPERS, EVERY_S),
    };
    let stage = Stage::set(&Fleet::running(hosts, sandboxes))?;
    let heard = stage.beat(hosts as f64 / every_s, every_s * BEATS)?;
    bench.sink.says("connections kept", (hosts - heard.refused - heard.closed) as f64, "")?;
    let peak_mib = stage.server.peak_rss_mib()?;
    bench.sink.judges("peak memory, probes included", peak_mib, "MiB", PEAK_RSS_MIB_MAX)?;
    bench.sink.says("time to the answer, p99", heard.p99_ms, "ms")?;
    judge(bench, &heard)?;
    stage.server.stop()
}
