//! Measures what many rows cost: creates, probes, lists, filters, verification and backup, each
//! beside the same with few rows or beside `cp`, both in one run. One JSON object a figure.
//!
//! Never: fails because something was slow; wrong results are what ends it with 1.
//!
//! `cargo bench --bench load` runs everything, `-- --quick` few rows through the same cases,
//! `-- --case NAME` only what has NAME in it.

#[path = "further/figure.rs"]
mod figure;
#[path = "further/server.rs"]
#[allow(dead_code, reason = "every bench uses its part")]
mod server;
#[path = "stage/mod.rs"]
#[allow(dead_code, reason = "every bench uses its part")]
mod stage;

use figure::{Asked, Sink};
use flate2::read::GzDecoder;
use roost::model::id::{HostId, PLATFORM_TEAM, SandboxId, TeamId};
use roost::model::policy::Policy;
use roost::model::probe::{Details, Listed, ListedState, Listing, Probe};
use roost::model::time::{Mono, Now, Wall};
use roost::store::apply::Probed;
use roost::store::fixture;
use roost::store::journal::Actor;
use roost::store::lifecycle::NewSandbox;
use roost::store::open::open_writer;
use roost::store::presence::Presence;
use roost::store::writer::{Command, Envelope, Reply, Writer};
use rusqlite::Connection;
use serde_json::{Value, json};
use server::{DB, Server};
use stage::{ROOST, Result, quiet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Rows of the database that grows, and of a smoke run's.
const ROWS: usize = 50_000;
const ROWS_QUICK: usize = 2_000;

/// Rows of one host that have ended, and of a smoke run's.
const ENDED: usize = 300_000;
const ENDED_QUICK: usize = 3_000;

/// Sandboxes of a host that live.
const ALIVE: usize = 50;

/// Creates that are measured, and how many a transaction takes together: as many as clients
/// that wait.
const CREATES: usize = 480;
const CLIENTS: usize = 16;

/// Times that anything short is repeated.
const REPEAT: usize = 15;

struct Bench {
    quick: bool,
    sink: Sink,
}

type Run = fn(&mut Bench) -> Result<()>;

const CASES: [(&str, Run); 5] =
    [("list", list), ("filter", filter), ("whole", whole), ("create", create), ("probe", probe)];

fn main() -> ExitCode {
    figure::exit("load", run())
}

fn run() -> Result<bool> {
    let asked = Asked::read(std::env::args().skip(1))?;
    let quick = asked.quick;
    let mut bench = Bench { quick, sink: Sink::new(quick) };
    for (name, run) in CASES {
        if asked.wants(name) {
            bench.sink.begin(name);
            run(&mut bench).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(bench.sink.all_right())
}

impl Bench {
    fn rows(&self) -> usize {
        if self.quick { ROWS_QUICK } else { ROWS }
    }
}

const NOW: Now = Now { mono: Mono(1_000_000_000), wall: Wall(1_790_000_000_000) };

fn host(n: usize) -> HostId {
    HostId::from_u128(scattered(n))
}

fn sandbox(n: usize) -> SandboxId {
    SandboxId::from_u128(scattered(n))
}

/// Ids in no order, as real ones are.
fn scattered(n: usize) -> u128 {
    (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn median(mut spans: Vec<f64>) -> f64 {
    spans.sort_by(f64::total_cmp);
    spans[spans.len() / 2]
}

/// A database of so many running sandboxes, by turns on so many hosts, each made a second
/// after the one before, with its event and every second one with an audit entry. `ended`: so
/// many more of the first host that are over.
fn database(dir: &Path, hosts: usize, rows: usize, ended: usize, status: &str) -> Result<()> {
    let hosts: Vec<Value> = (0..hosts)
        .map(|n| {
            json!({"id": host(n), "status": status, "heartbeat_age_s": 5,
                "address": "127.0.0.1:9", "cpu_cores": 1_000_000, "memory_mb": 2_000_000_000})
        })
        .collect();
    let mut conn = open_writer(&dir.join(DB), true, NOW.wall)?;
    let fleet = fixture::parse(&json!({"hosts": hosts}).to_string(), NOW.wall)?;
    fixture::load(&mut conn, &fleet)?;
    conn.execute_batch("PRAGMA cache_size = -131072; PRAGMA synchronous = OFF")?;
    let tx = conn.transaction()?;
    for n in 0..rows + ended {
        let status = if n < rows { "running" } else { "stopped" };
        let of = if n < rows { n % hosts.len() } else { 0 };
        insert(&tx, n as i64 + 1, &host(of).to_string(), &sandbox(n).to_string(), status)?;
    }
    tx.execute("UPDATE state SET revision = ?1", [(rows + ended) as i64])?;
    // The next that opens it for writing counts them.
    tx.execute_batch("DELETE FROM host_usage; DELETE FROM team_usage")?;
    tx.commit()?;
    drop(writer(conn)?);
    Ok(())
}

fn insert(tx: &Connection, n: i64, host: &str, id: &str, status: &str) -> Result<()> {
    let (team, at) = (PLATFORM_TEAM.to_string(), NOW.wall.0 - 400_000_000 + n * 1000);
    tx.prepare_cached(
        "INSERT INTO sandboxes (host_id, id, team_id, status, status_reason, status_changed_at, \
         revision, template, vcpus, memory_mb, timeout_sec, disk_size_mb, host_ip, metadata, \
         created_at, started_at, last_active_at, ended) VALUES (?1, ?2, ?3, ?4, \
         'operation_succeeded', ?5, ?6, 'minimal', 1, 512, 300, 2048, '10.11.0.7', \
         '{\"kernel_version\":\"6.1.102\",\"agent_version\":\"0.4.1\"}', ?5, ?5, ?5, ?7)",
    )?
    .execute(rusqlite::params![host, id, team, status, at, n, status == "stopped"])?;
    tx.prepare_cached(
        "INSERT INTO events VALUES (?1, ?2, 'sandbox.' || ?3, ?4, ?5, ?6, 'starting', ?3, \
         'operation_succeeded', 'api_key', NULL)",
    )?
    .execute(rusqlite::params![n, at, status, host, id, team])?;
    if n % 2 == 0 {
        tx.prepare_cached(
            "INSERT INTO audit_logs VALUES (NULL, ?1, ?2, 'api_key', 'key', 'ci', 'sandbox', ?3, \
             'create', 'team', 'success', json_object('from', 'none', 'to', 'starting', \
             'reason', 'requested', 'host_id', ?4, 'revision', ?5), ?6)",
        )?
        .execute(rusqlite::params![format!("log-{n:025}"), team, id, host, n, at])?;
    }
    Ok(())
}

fn writer(conn: Connection) -> Result<Writer> {
    let hosts = roost::store::read::hosts(&conn)?;
    let presence = Arc::new(Presence::load(&hosts, [], None, false, NOW));
    Ok(Writer::new(conn, Policy::default(), presence)?)
}

/// What the writer makes of these commands in one transaction.
fn together<T: Send + 'static>(
    writer: &mut Writer,
    count: usize,
    command: impl Fn(usize, Reply<T>) -> Command,
) -> Result<Vec<T>> {
    let (tell, told) = channel();
    let envelope = |n| {
        let tell = tell.clone();
        let reply: Reply<T> = Box::new(move |result| drop(tell.send(result)));
        Envelope { now: NOW, command: command(n, reply) }
    };
    writer.execute((0..count).map(envelope).collect());
    drop(tell);
    Ok(told.into_iter().collect::<std::result::Result<_, _>>()?)
}

/// Creates in the writer, with the commit of each transaction.
fn create(bench: &mut Bench) -> Result<()> {
    let (mut took, hosts) = (Vec::new(), if bench.quick { 40 } else { 1000 });
    for rows in [0, bench.rows()] {
        let dir = tempfile::tempdir()?;
        database(dir.path(), hosts, rows, 0, "online")?;
        let mut writer = writer(open_writer(&dir.path().join(DB), false, NOW.wall)?)?;
        let new = |_, reply| Command::CreateSandbox(Box::new(wanted()), reply);
        together(&mut writer, CLIENTS, new)?;
        let mut spans = Vec::new();
        for _ in 0..CREATES / CLIENTS {
            let began = Instant::now();
            let created = together(&mut writer, CLIENTS, new)?;
            spans.push(millis(began.elapsed()) / CLIENTS as f64);
            bench.sink.expects(created.iter().all(|made| made.is_ok()), "a create was refused");
        }
        let ms = median(spans);
        bench.sink.judges(&format!("a create with {rows} rows"), ms, "ms", 1.0)?;
        bench.sink.says(&format!("creates a second with {rows} rows"), 1000.0 / ms, "/s")?;
        took.push(ms);
    }
    bench.sink.judges("a create with many rows, to one with none", took[1] / took[0], "x", 1.5)
}

fn wanted() -> NewSandbox {
    NewSandbox {
        team: PLATFORM_TEAM,
        template: "minimal".to_owned(),
        vcpus: Some(1),
        memory_mb: Some(256),
        timeout_sec: 300,
        disk_size_mb: None,
        actor: Actor::SYSTEM,
    }
}

/// One probe that finds all as it is, on a host with a long past and on one without.
fn probe(bench: &mut Bench) -> Result<()> {
    let (ended, mut took) = (if bench.quick { ENDED_QUICK } else { ENDED }, Vec::new());
    for ended in [0, ended] {
        let dir = tempfile::tempdir()?;
        database(dir.path(), 1, ALIVE, ended, "online")?;
        let mut writer = writer(open_writer(&dir.path().join(DB), false, NOW.wall)?)?;
        let mut spans = Vec::new();
        for round in 0..REPEAT * 4 {
            let began = Instant::now();
            let applied = together(&mut writer, 1, |_, reply| {
                Command::Probed(Box::new(listed(ALIVE + ended)), reply)
            })?;
            spans.push(millis(began.elapsed()));
            let as_usual = applied[0].observed && applied[0].transitions.is_empty();
            bench.sink.expects(as_usual, &format!("round {round}: {:?}", applied[0].transitions));
        }
        let ms = median(spans);
        bench.sink.says(&format!("a probe with {ended} stopped rows"), ms, "ms")?;
        took.push(ms);
    }
    bench.sink.judges("a probe with stopped rows, to one without", took[1] / took[0], "x", 1.5)
}

fn listed(revision: usize) -> Probed {
    let entry = |n| Listed {
        id: sandbox(n),
        state: ListedState::Running,
        created_at_unix: 1_700_000_000,
        details: Details::default(),
    };
    let sandboxes = (0..ALIVE).map(entry).collect();
    Probed {
        host: host(0),
        revision: revision as u64,
        asked_at: NOW.mono,
        age_cap: None,
        probe: Probe::Listed(Listing { sandboxes, auto_paused: Vec::new() }),
        proven: false,
    }
}

/// A server on a database of many rows, on hosts that are set aside: nothing else happens.
fn served(bench: &Bench) -> Result<(TempDir, Server)> {
    let dir = tempfile::tempdir()?;
    database(dir.path(), 1000.min(bench.rows() / 50), bench.rows(), 0, "offline")?;
    let server = Server::start(dir.path())?.0;
    Ok((dir, server))
}

/// What one client gets: time to the first byte of the body, to the last, and the bytes.
fn fetched(server: &Server, key: &str, path: &str, packed: bool) -> Result<(f64, f64, Vec<u8>)> {
    let mut stream = TcpStream::connect(server.address())?;
    let accept = if packed { "Accept-Encoding: gzip\r\n" } else { "" };
    let began = Instant::now();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\n{accept}X-API-Key: {key}\r\n\r\n"
    )?;
    let mut bytes = vec![0; 64 * 1024];
    let mut first = 0;
    while !bytes[..first].windows(4).any(|end| end == b"\r\n\r\n") {
        let got = stream.read(&mut bytes[first..])?;
        if got == 0 {
            return Err("no answer".into());
        }
        first += got;
    }
    let first_ms = millis(began.elapsed());
    bytes.truncate(first);
    stream.read_to_end(&mut bytes)?;
    let all_ms = millis(began.elapsed());
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or_default();
    Ok((first_ms, all_ms, unchunked(&bytes[end + 4..])?))
}

fn unchunked(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|end| end == b"\r\n").ok_or("an answer was cut off")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        body.extend_from_slice(rest.get(line + 2..line + 2 + size).ok_or("cut off")?);
        rest = &rest[line + 4 + size..];
        if size == 0 {
            return Ok(body);
        }
    }
}

/// The whole list: one client, then many at once.
fn list(bench: &mut Bench) -> Result<()> {
    let (dir, server) = served(bench)?;
    let key = std::fs::read_to_string(dir.path().join("admin.key"))?.trim().to_owned();
    let path = "/v1/capsules";
    bench.sink.says("memory before the first list", server.peak_rss_mib()?, "MiB")?;
    let (mut firsts, mut alls, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let (first, all, body) = fetched(&server, &key, path, false)?;
        plain = body;
        firsts.push(first);
        alls.push(all);
    }
    let rows: Vec<Value> = serde_json::from_slice(&plain)?;
    bench.sink.expects(rows.len() == bench.rows(), &format!("{} rows", rows.len()));
    bench.sink.judges("first byte, one client", median(firsts), "ms", 50.0)?;
    bench.sink.says("whole list, one client", median(alls), "ms")?;
    bench.sink.says("bytes", plain.len() as f64, "bytes")?;
    let (_, _, packed) = fetched(&server, &key, path, true)?;
    let mut unpacked = Vec::new();
    GzDecoder::new(&packed[..]).read_to_end(&mut unpacked)?;
    bench.sink.expects(unpacked == plain, "packed and plain differ");
    bench.sink.judges("bytes, packed", packed.len() as f64, "bytes", 3e6)?;
    let many = |packed| -> Result<Vec<f64>> {
        std::thread::scope(|scope| {
            let fetch = || fetched(&server, &key, path, packed).map_err(|e| e.to_string());
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(fetch)).collect();
            let join = |client: std::thread::ScopedJoinHandle<'_, _>| {
                let got: std::result::Result<(f64, f64, Vec<u8>), String> =
                    client.join().map_err(|_| "a client panicked")?;
                Ok(got?.0)
            };
            clients.into_iter().map(join).collect()
        })
    };
    let firsts = many(false)?;
    many(true)?;
    bench.sink.says(&format!("first byte, {CLIENTS} clients"), median(firsts), "ms")?;
    bench.sink.judges(
        &format!("peak memory, {CLIENTS} clients"),
        server.peak_rss_mib()?,
        "MiB",
        24.0,
    )?;
    server.stop()
}

/// Filters that nothing, or little, passes.
fn filter(bench: &mut Bench) -> Result<()> {
    let (dir, server) = served(bench)?;
    let admin = std::fs::read_to_string(dir.path().join("admin.key"))?.trim().to_owned();
    let team = TeamId::from_u128(7);
    let made =
        server.ask("POST", "/v1/api-keys", &json!({"name": "b", "team_id": team}).to_string())?;
    let made: Value = serde_json::from_str(&made.1)?;
    let key = made["key"].as_str().ok_or("no key")?.to_owned();
    for (what, key, path, rows) in [
        ("a status that none has", &admin, "/v1/capsules?status=error".to_owned(), 0),
        ("a team that has none", &key, "/v1/capsules".to_owned(), 0),
        ("all of a team that has none", &key, "/v1/capsules?all=true".to_owned(), 0),
        ("one host", &admin, format!("/v1/capsules?host_id={}", host(1)), ALIVE),
        ("one page", &admin, "/v1/capsules?limit=50".to_owned(), 50),
    ] {
        let mut spans = Vec::new();
        for _ in 0..REPEAT {
            let began = Instant::now();
            let body = asked(&server, key, &path)?;
            spans.push(millis(began.elapsed()));
            let found: Vec<Value> = serde_json::from_str(&body)?;
            bench.sink.expects(found.len() == rows, &format!("{path}: {} rows", found.len()));
        }
        bench.sink.judges(what, median(spans), "ms", 10.0)?;
    }
    server.stop()
}

/// The body of an answer that is sent as a whole.
fn asked(server: &Server, key: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(server.address())?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\nX-API-Key: {key}\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split_once("\r\n\r\n").ok_or("no answer")?.1.to_owned())
}

/// What reads the whole database, beside what copies its file and waits for the disk.
fn whole(bench: &mut Bench) -> Result<()> {
    let dir = tempfile::tempdir()?;
    database(dir.path(), 1000.min(bench.rows() / 50), bench.rows(), 0, "online")?;
    let (db, copy) = (dir.path().join(DB), dir.path().join("copy.db"));
    // What was written lately is in the log: it belongs to the file from here on.
    Connection::open(&db)?.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    let (mut copied, mut verified, mut backed_up) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if bench.quick { 1 } else { 7 } {
        let mut cp = std::process::Command::new("sh");
        cp.args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""]).arg(&db).arg(&copy);
        copied.push(ran(&mut cp)?);
        std::fs::remove_file(&copy)?;
        let mut verify = std::process::Command::new(ROOST);
        verified.push(ran(verify.args(["db", "verify", "--db"]).arg(&db))?);
        let mut backup = std::process::Command::new(ROOST);
        backed_up.push(ran(backup.args(["db", "backup", "--db"]).arg(&db).arg(&copy))?);
        std::fs::remove_file(&copy)?;
    }
    let (cp, verify, backup) = (median(copied), median(verified), median(backed_up));
    bench.sink.says("size of the file", std::fs::metadata(&db)?.len() as f64, "bytes")?;
    bench.sink.says("cp and sync", cp, "ms")?;
    bench.sink.says("db verify", verify, "ms")?;
    bench.sink.says("db backup", backup, "ms")?;
    bench.sink.judges("db verify, to cp and sync", verify / cp, "x", 3.0)?;
    bench.sink.judges("db backup, to cp and sync", backup / cp, "x", 3.0)
}

fn ran(command: &mut std::process::Command) -> Result<f64> {
    let began = Instant::now();
    let status = quiet(command).stdout(Stdio::null()).status()?;
    let took = millis(began.elapsed());
    if status.success() { Ok(took) } else { Err(format!("{command:?} ended with {status}").into()) }
}
