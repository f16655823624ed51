//! Measures one full pass, `roost check`, over simulated hosts in another process: wall,
//! CPU, peak memory, transactions, rows changed; and, where a case has one, the floor beside
//! each pass: a program that does the same with nothing around it. One JSON object a line.
//!
//! Never: fails because something was slow; wrong results are what ends it with 1. The
//! program measured is the one that ships: nothing runs inside this process.
//!
//! `cargo bench --bench fleet` runs proof.md's table, `-- --quick` a small fleet through the
//! same cases, `-- --large` 10 000 hosts as well, `-- --case NAME` only what has NAME in it,
//! `-- --repeat N` takes the median of so many passes.

mod floor;
mod stage;

use roost::model::id::HostId;
use roost::store::open::{copy, open_reader};
use rusqlite::Connection;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use stage::{Agents, Fleet, ROOST, Result, load, quiet, rounded};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wait4::Wait4;

/// Most memory of one pass over the table's fleets, in MiB.
const PEAK_RSS_MIB_MAX: f64 = 16.0;

/// Most CPU of a pass in which nothing changed, and of one that restores every sandbox, in
/// times of the floor's.
const STEADY_TIMES_MAX: f64 = 1.8;
const RESTORED_TIMES_MAX: f64 = 1.25;

/// Passes of one case when nobody says how many.
const REPEAT: usize = 3;

/// Fleet of `--quick`.
const QUICK: (usize, usize) = (50, 10);

/// In which every so many hosts hang, and for how long.
const HANG: (usize, Duration) = (10, Duration::from_secs(2));

/// The same in `--quick`.
const HANG_QUICK: (usize, Duration) = (10, Duration::from_millis(200));

/// What the hosts do, and what one pass over them changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Everything is as the database has it.
    Nothing,
    /// Everything is back that was missing.
    Restored,
    /// The agents have paused everything by themselves.
    AutoPaused,
}

impl Change {
    /// The status of every sandbox before and after the pass.
    fn statuses(self) -> (&'static str, &'static str) {
        match self {
            Change::Nothing => ("running", "running"),
            Change::Restored => ("missing", "running"),
            Change::AutoPaused => ("running", "paused"),
        }
    }

    /// Audit entries for each sandbox under a policy.
    fn audits(self, policy: &str) -> usize {
        match self {
            Change::Nothing => 0,
            Change::Restored => usize::from(policy == "default"),
            Change::AutoPaused => 1,
        }
    }
}

/// One line of the table.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    policy: &'static str,
    hosts: usize,
    sandboxes: usize,
    change: Change,
    delay_ms: u64,
    /// Every so many hosts hang for so long.
    hang: Option<(usize, Duration)>,
    /// Wall and CPU seconds of the reference.
    reference: Option<(f64, f64)>,
    /// Parts of the reference's wall and CPU that are to be reached.
    goal: (Option<f64>, Option<f64>),
    /// Most that the CPU may be, in times of the floor's. `None`: there is no floor.
    floor_goal: Option<f64>,
}

impl Case {
    fn fleet(&self) -> Fleet {
        let Case { hosts, sandboxes, delay_ms, hang, .. } = *self;
        let auto_paused = self.change == Change::AutoPaused;
        Fleet { hosts, sandboxes, status: self.change.statuses().0, auto_paused, delay_ms, hang }
    }
}

const fn case(name: &'static str, policy: &'static str, change: Change) -> Case {
    Case {
        name,
        policy,
        hosts: 1000,
        sandboxes: 50,
        change,
        delay_ms: 0,
        hang: None,
        reference: None,
        goal: (None, None),
        floor_goal: None,
    }
}

/// The table of proof.md.
fn table() -> Vec<Case> {
    let quarter = (Some(1.0 / 4.0), Some(1.0 / 4.0));
    let fraction = (Some(1.0 / 8.0), Some(1.0 / 6.0));
    let wall = (Some(1.0 / 25.0), None);
    let mut cases = Vec::new();
    for (policy, floor_goal) in [("default", Some(STEADY_TIMES_MAX)), ("strict", None)] {
        let steady = case("steady", policy, Change::Nothing);
        cases.push(Case { reference: Some((2.1, 1.9)), goal: quarter, floor_goal, ..steady });
    }
    let late = case("steady, answers after 20 ms", "default", Change::Nothing);
    cases.push(Case { delay_ms: 20, reference: Some((23.5, 3.0)), goal: wall, ..late });
    let hung = case("steady, every tenth hangs", "default", Change::Nothing);
    cases.push(Case { hang: Some(HANG), reference: Some((203.0, 2.9)), goal: wall, ..hung });
    let hung = case("restored, every tenth hangs", "default", Change::Restored);
    cases.push(Case { hang: Some(HANG), ..hung });
    for (policy, floor_goal) in [("default", Some(RESTORED_TIMES_MAX)), ("strict", None)] {
        let restored = case("restored", policy, Change::Restored);
        cases.push(Case { reference: Some((7.1, 4.4)), goal: fraction, floor_goal, ..restored });
    }
    for policy in ["default", "strict"] {
        let paused = case("auto-paused", policy, Change::AutoPaused);
        let paused = Case { hosts: 100, sandboxes: 500, ..paused };
        cases.push(Case { reference: Some((12.6, 7.5)), goal: fraction, ..paused });
    }
    cases
}

/// Passes must stay linear in rows.
fn large() -> Vec<Case> {
    let big = |change| Case { hosts: 10_000, sandboxes: 100, ..case("large", "default", change) };
    vec![
        Case { name: "large, steady", ..big(Change::Nothing) },
        Case { name: "large, restored", ..big(Change::Restored) },
    ]
}

/// The same with a small fleet, which has no reference.
fn small(case: Case) -> Case {
    let (hosts, sandboxes) = QUICK;
    let hang = case.hang.map(|_| HANG_QUICK);
    let floor_goal = case.floor_goal.map(|_| f64::INFINITY);
    Case { hosts, sandboxes, hang, reference: None, goal: (None, None), floor_goal, ..case }
}

struct Options {
    quick: bool,
    large: bool,
    only: Option<String>,
    repeat: usize,
}

impl Options {
    fn from_args() -> Result<Options> {
        let mut options = Options { quick: false, large: false, only: None, repeat: REPEAT };
        let mut bench = false;
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => bench = true,
                "--quick" => options.quick = true,
                "--large" => options.large = true,
                "--case" => options.only = Some(args.next().ok_or("--case needs a name")?),
                "--repeat" => {
                    options.repeat = args.next().ok_or("--repeat needs a number")?.parse()?;
                }
                other => return Err(format!("unknown option {other:?}").into()),
            }
        }
        if !bench || options.quick {
            // `cargo test` runs benches without being asked to measure.
            options.quick = true;
            options.repeat = 1;
        }
        options.repeat = options.repeat.max(1);
        Ok(options)
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = table();
        if self.quick {
            cases = cases.into_iter().map(small).collect();
        }
        if self.large {
            cases.extend(large());
        }
        let wanted = |case: &Case| self.only.as_ref().is_none_or(|part| case.name.contains(part));
        cases.into_iter().filter(wanted).collect()
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "fleet: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(floor::ARG) {
        return floor::main(args).map(|()| true);
    }
    let options = Options::from_args()?;
    let mut all_right = true;
    for case in options.cases() {
        let line = measure(&case, options.repeat)?;
        all_right &= line.ok;
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &line)?;
        writeln!(out)?;
    }
    Ok(all_right)
}

/// What is printed for one case.
#[derive(Serialize)]
struct Line {
    case: &'static str,
    policy: &'static str,
    hosts: usize,
    sandboxes: usize,
    wall_s: f64,
    cpu_s: f64,
    peak_rss_mib: f64,
    transactions: usize,
    rows_changed: usize,
    /// Until the last sandbox of a host that does not hang was written; where any is.
    healthy_done_s: Option<f64>,
    reference_wall_s: Option<f64>,
    reference_cpu_s: Option<f64>,
    wall_ratio: Option<f64>,
    cpu_ratio: Option<f64>,
    /// The floor's, in the median of the pairs by the ratio of their CPU.
    floor_wall_s: Option<f64>,
    floor_cpu_s: Option<f64>,
    /// CPU of each pass in times of that of the floor beside it, in order.
    floor_pairs: Vec<f64>,
    floor_ratio: Option<f64>,
    /// Which figures are not what proof.md asks for, where it asks.
    missed: Vec<&'static str>,
    /// Whether the pass did exactly what it should.
    ok: bool,
}

/// One pass.
struct Pass {
    wall: Duration,
    cpu: Duration,
    peak_rss_bytes: u64,
    transactions: usize,
    rows_changed: usize,
    healthy_done: Option<Duration>,
    /// Wall and CPU of the floor, where there is one.
    floor: Option<(Duration, Duration)>,
    faults: Vec<String>,
}

impl Pass {
    /// CPU in times of the floor's.
    fn floor_ratio(&self) -> Option<f64> {
        self.floor.map(|(_, cpu)| self.cpu.as_secs_f64() / cpu.as_secs_f64())
    }
}

/// Which floor goes with a pass.
#[derive(Clone, Copy)]
struct Beside {
    transactions: usize,
    /// Before the pass or after it: who comes second finds a warmer machine.
    first: bool,
}

fn measure(case: &Case, repeat: usize) -> Result<Line> {
    // The first pass warms the machine up and counts transactions, which slows it down.
    let counted = pass(case, true, None)?;
    let transactions = counted.transactions;
    let with_floor = |at: usize| Beside { transactions, first: at % 2 == 1 };
    let beside = |at| case.floor_goal.map(|_| with_floor(at));
    let passes = (0..repeat).map(|at| pass(case, false, beside(at)));
    let mut passes = passes.collect::<Result<Vec<_>>>()?;
    let faults: Vec<_> = passes.iter().chain([&counted]).flat_map(|p| &p.faults).collect();
    for fault in &faults {
        let _ = writeln!(std::io::stderr(), "fleet: {} ({}): {fault}", case.name, case.policy);
    }
    let ok = faults.is_empty();
    let peak_rss_bytes = passes.iter().map(|pass| pass.peak_rss_bytes).max().unwrap_or(0);
    let mut pairs = passes.iter().filter_map(Pass::floor_ratio).collect::<Vec<_>>();
    let floor = median_floor(&passes);
    passes.sort_by_key(|pass| pass.wall);
    let median = passes.swap_remove(passes.len() / 2);
    let figures = Pass { peak_rss_bytes, transactions, floor, ..median };
    pairs.iter_mut().for_each(|ratio| *ratio = rounded(*ratio));
    Ok(line(case, &figures, pairs, ok))
}

/// The floor of the pair that is in the middle.
fn median_floor(passes: &[Pass]) -> Option<(Duration, Duration)> {
    let mut pairs: Vec<&Pass> = passes.iter().filter(|pass| pass.floor.is_some()).collect();
    let ratio = |pass: &Pass| pass.floor_ratio().unwrap_or_default();
    pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    pairs.get(pairs.len() / 2)?.floor
}

fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn line(case: &Case, figures: &Pass, floor_pairs: Vec<f64>, ok: bool) -> Line {
    let (wall_s, cpu_s) = (figures.wall.as_secs_f64(), figures.cpu.as_secs_f64());
    let peak_rss_mib = figures.peak_rss_bytes as f64 / 1_048_576.0;
    let wall_ratio = case.reference.map(|(wall, _)| wall_s / wall);
    let cpu_ratio = case.reference.map(|(_, cpu)| cpu_s / cpu);
    let floor_ratio = median(&floor_pairs);
    let limits = [
        ("floor", floor_ratio, case.floor_goal),
        ("wall", wall_ratio, case.goal.0),
        ("cpu", cpu_ratio, case.goal.1),
        ("peak_rss", Some(peak_rss_mib), case.reference.map(|_| PEAK_RSS_MIB_MAX)),
    ];
    let missed = limits
        .into_iter()
        .filter(|(_, found, limit)| found.zip(*limit).is_some_and(|(found, limit)| found > limit));
    Line {
        case: case.name,
        policy: case.policy,
        hosts: case.hosts,
        sandboxes: case.sandboxes,
        wall_s: rounded(wall_s),
        cpu_s: rounded(cpu_s),
        peak_rss_mib: rounded(peak_rss_mib),
        transactions: figures.transactions,
        rows_changed: figures.rows_changed,
        healthy_done_s: figures.healthy_done.map(|span| rounded(span.as_secs_f64())),
        reference_wall_s: case.reference.map(|(wall, _)| wall),
        reference_cpu_s: case.reference.map(|(_, cpu)| cpu),
        wall_ratio: wall_ratio.map(rounded),
        cpu_ratio: cpu_ratio.map(rounded),
        floor_wall_s: figures.floor.map(|(wall, _)| rounded(wall.as_secs_f64())),
        floor_cpu_s: figures.floor.map(|(_, cpu)| rounded(cpu.as_secs_f64())),
        floor_pairs,
        floor_ratio,
        missed: missed.map(|(what, _, _)| what).collect(),
        ok,
    }
}

fn pass(case: &Case, count: bool, beside: Option<Beside>) -> Result<Pass> {
    let dir = tempfile::tempdir()?;
    let (fleet, db) = (dir.path().join("fleet.json"), dir.path().join("roost.db"));
    let _agents = Agents::start(&case.fleet(), &fleet)?;
    load(&fleet, &db)?;
    let floor_db = dir.path().join("floor.db");
    if beside.is_some() {
        copy(&db, &floor_db)?;
    }
    let floor = |beside: Beside| floor::pass(&floor_db, beside.transactions);
    let before = beside.filter(|beside| beside.first).map(floor).transpose()?;
    // With a reader in the way the log of writes is kept, and every commit in it.
    let reader = count.then(|| hold_open(&db)).transpose()?;
    let report = dir.path().join("report.json");
    let began = SystemTime::now();
    let (wall, used) = check(case, &db, &report)?;
    let transactions = reader.map_or(Ok(0), |reader| commits(&db, reader))?;
    let after = beside.filter(|beside| !beside.first).map(floor).transpose()?;
    let done = Report::read(&report)?;
    let mut faults = done.faults(case);
    faults.extend(database_faults(case, &open_reader(&db)?)?);
    if beside.is_some() {
        let faults_of_floor = database_faults(case, &open_reader(&floor_db)?)?;
        faults.extend(faults_of_floor.into_iter().map(|fault| format!("the floor: {fault}")));
    }
    if !used.status.success() {
        faults.push(format!("check ended with {}", used.status));
    }
    Ok(Pass {
        wall,
        cpu: used.rusage.utime + used.rusage.stime,
        peak_rss_bytes: used.rusage.maxrss,
        transactions,
        rows_changed: done.transitions.0 + done.host_transitions.0,
        healthy_done: healthy_done(case, &open_reader(&db)?, began)?,
        floor: before.or(after),
        faults,
    })
}

fn check(case: &Case, db: &Path, report: &Path) -> Result<(Duration, wait4::ResUse)> {
    let mut command = Command::new(ROOST);
    command.args(["check", "--format", "json", "--policy", case.policy, "--db"]).arg(db);
    command.stdin(Stdio::null()).stdout(File::create(report)?);
    let began = Instant::now();
    let used = quiet(&mut command).spawn()?.wait4()?;
    Ok((began.elapsed(), used))
}

/// What a report says, without the memory to hold it: a process starts out with its
/// parent's peak.
#[derive(Deserialize)]
struct Report {
    hosts_checked: usize,
    observations: usize,
    failed_probes: Count,
    host_transitions: Count,
    transitions: Count,
    held: Count,
    zombies: Count,
}

/// The length of a list.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Count, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut items: A,
            ) -> std::result::Result<Count, A::Error> {
                let mut count = 0;
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

impl Report {
    fn read(path: &Path) -> Result<Report> {
        Ok(serde_json::from_reader(BufReader::new(File::open(path)?))?)
    }

    /// What the report should say and does not.
    fn faults(&self, case: &Case) -> Vec<String> {
        let changed = match case.change {
            Change::Nothing => 0,
            Change::Restored | Change::AutoPaused => case.hosts * case.sandboxes,
        };
        let expected = [
            ("hosts checked", self.hosts_checked, case.hosts),
            ("observations", self.observations, case.hosts),
            ("failed probes", self.failed_probes.0, 0),
            ("host transitions", self.host_transitions.0, 0),
            ("transitions", self.transitions.0, changed),
            ("held", self.held.0, 0),
            ("zombies", self.zombies.0, 0),
        ];
        let wrong = expected.into_iter().filter(|(_, found, expected)| found != expected);
        wrong.map(|(what, found, expected)| differs(what, found, expected)).collect()
    }
}

fn differs(what: &str, found: usize, expected: usize) -> String {
    format!("{what}: {found} instead of {expected}")
}

/// What the database should hold after the pass and does not.
fn database_faults(case: &Case, db: &Connection) -> Result<Vec<String>> {
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, u32>(0).map(|n| n as usize));
    let (_, after) = case.change.statuses();
    let rows = case.hosts * case.sandboxes;
    let statuses = count(&format!("SELECT count(*) FROM sandboxes WHERE status = '{after}'"))?;
    let expected = [
        (after, statuses, rows),
        (
            "audit entries",
            count("SELECT count(*) FROM audit_logs")?,
            rows * case.change.audits(case.policy),
        ),
        ("announcements left", count("SELECT count(*) FROM auto_pause_inbox")?, 0),
    ];
    let wrong = expected.into_iter().filter(|(_, found, expected)| found != expected);
    Ok(wrong.map(|(what, found, expected)| differs(what, found, expected)).collect())
}

/// From the start of the pass to the last write about a host that does not hang.
fn healthy_done(case: &Case, db: &Connection, began: SystemTime) -> Result<Option<Duration>> {
    let Some((hang_every, _)) = case.hang else { return Ok(None) };
    let began_ms = i64::try_from(began.duration_since(UNIX_EPOCH)?.as_millis())?;
    let mut last_ms = None;
    let mut hosts = db.prepare("SELECT host_id, max(at) FROM events GROUP BY host_id")?;
    let mut rows = hosts.query([])?;
    while let Some(row) = rows.next()? {
        let number = row.get::<_, String>(0)?.parse::<HostId>()?.as_u128();
        if !number.is_multiple_of(hang_every as u128) {
            last_ms = last_ms.max(Some(row.get::<_, i64>(1)?));
        }
    }
    let span = last_ms.map(|at| u64::try_from(at - began_ms));
    Ok(span.transpose()?.map(Duration::from_millis))
}

/// A reader that sees the database as it is now, for as long as it lives.
fn hold_open(db: &Path) -> Result<Connection> {
    let reader = open_reader(db)?;
    reader.execute_batch("BEGIN")?;
    reader.query_row("SELECT count(*) FROM hosts", [], |_| Ok(()))?;
    Ok(reader)
}

/// Commits in the write-ahead log: of each frame the second word of its head is zero but in
/// the last one of a transaction.
fn commits(db: &Path, reader: Connection) -> Result<usize> {
    const LOG_HEAD_BYTES: usize = 32;
    const FRAME_HEAD_BYTES: usize = 24;
    let mut log = File::open(PathBuf::from(format!("{}-wal", db.display())))?;
    let mut head = [0; LOG_HEAD_BYTES];
    if log.metadata()?.len() < LOG_HEAD_BYTES as u64 {
        return Ok(0);
    }
    log.read_exact(&mut head)?;
    let page_bytes = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
    let mut frame = vec![0; FRAME_HEAD_BYTES + page_bytes];
    let mut log = BufReader::new(log);
    let mut commits = 0;
    while log.read_exact(&mut frame).is_ok() {
        let salted_alike = frame[8..16] == head[16..24];
        commits += usize::from(salted_alike && frame[4..8] != [0; 4]);
    }
    drop(reader);
    Ok(commits)
}
