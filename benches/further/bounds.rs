//! What the same work costs with nothing around it: the hosts of a pass asked over bare
//! sockets, their answers unpacked and parsed, its rows read, its rows written in one transaction.
//!
//! Never: judges. A figure here is a lower bound for one of `fleet`'s.

use crate::Bench;
use crate::server::{DB, now};
use crate::stage::{Agents, Fleet, ROOST, Result, load, quiet};
use flate2::read::GzDecoder;
use roost::agent::listing;
use roost::store::open::{copy, open_reader, open_writer};
use roost::store::read;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use rustix::time::{ClockId, clock_gettime};
use serde::de::IgnoredAny;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

/// The fleet of proof.md's table.
const FLEET: (usize, usize) = (1000, 50);
const FLEET_QUICK: (usize, usize) = (50, 10);

/// Hosts that are asked at a time, as `roost check` does by default.
const THREADS: usize = 32;

/// What is written beside a changed row: the tables that only grow.
const HISTORY: [&str; 2] = ["events", "audit_logs"];

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (hosts, sandboxes) = if bench.quick { FLEET_QUICK } else { FLEET };
    let fleet = Fleet { status: "missing", ..Fleet::running(hosts, sandboxes) };
    let dir = tempfile::tempdir()?;
    let (before, after) = (dir.path().join(DB), dir.path().join("after.db"));
    let fixture = dir.path().join("fleet.json");
    let agents = Agents::start(&fleet, &fixture)?;
    load(&fixture, &before)?;
    let bodies = unpack(bench, &ask(bench, &before)?)?;
    parse(bench, &bodies)?;
    copy(&before, &after)?;
    let mut check = Command::new(ROOST);
    check.args(["check", "--format", "json", "--db"]).arg(&after).stdout(Stdio::null());
    let status = quiet(&mut check).status()?;
    bench.sink.expects(status.success(), &format!("check ended with {status}"));
    drop(agents);
    rows(bench, &before)?;
    write(bench, &before, &after)
}

/// Wall and processor seconds of this process.
fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, f64, f64)> {
    let (began, cpu_s) = (Instant::now(), cpu_s());
    let result = run()?;
    Ok((result, began.elapsed().as_secs_f64(), self::cpu_s() - cpu_s))
}

fn cpu_s() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn say(bench: &Bench, what: &str, (wall_s, cpu_s): (f64, f64)) -> Result<()> {
    bench.sink.says(&format!("{what}: wall"), wall_s, "s")?;
    bench.sink.says(&format!("{what}: CPU"), cpu_s, "s")
}

/// Asks every host over a bare socket; gives what they sent.
fn ask(bench: &Bench, db: &Path) -> Result<Vec<Vec<u8>>> {
    let hosts = read::hosts(&open_reader(db)?)?;
    let addresses = hosts.iter().filter_map(|host| host.address.as_ref());
    let addresses: Vec<SocketAddr> =
        addresses.map(|at| at.as_str().parse()).collect::<Result<_, _>>()?;
    let (left, answers) = (Mutex::new(addresses.iter()), Mutex::new(Vec::new()));
    let work = || -> Option<()> {
        loop {
            let address = left.lock().ok()?.next()?;
            let answer = ask_one(*address).ok()?;
            answers.lock().ok()?.push(answer);
        }
    };
    let all = || {
        std::thread::scope(|scope| {
            (0..THREADS).for_each(|_| drop(scope.spawn(work)));
        });
        Ok(())
    };
    let ((), wall_s, cpu_s) = timed(all)?;
    let answers = answers.into_inner().map_err(|_| "a thread panicked")?;
    if answers.len() != hosts.len() {
        return Err(format!("{} of {} hosts answered", answers.len(), hosts.len()).into());
    }
    let bytes: usize = answers.iter().map(Vec::len).sum();
    bench.sink.says("bytes that the agents send in one pass", bytes as f64, "bytes")?;
    say(bench, "asking every host over bare sockets", (wall_s, cpu_s))?;
    let body = |answer: &Vec<u8>| {
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        head.map_or_else(Vec::new, |head| answer[head + 4..].to_vec())
    };
    Ok(answers.iter().map(body).collect())
}

fn ask_one(address: SocketAddr) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "POST /hostagent.v1.HostAgentService/ListSandboxes HTTP/1.1\r\nHost: {address}\r\n\
         Content-Type: application/json\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Agents pack their answers for whoever takes them so, as we do.
fn unpack(bench: &Bench, packed: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let one = |packed: &Vec<u8>| {
        let mut body = Vec::new();
        GzDecoder::new(packed.as_slice()).read_to_end(&mut body)?;
        Ok(body)
    };
    let (bodies, wall_s, cpu_s) = timed(|| packed.iter().map(one).collect::<Result<Vec<_>>>())?;
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    bench.sink.says("bytes of JSON in them", bytes as f64, "bytes")?;
    say(bench, "unpacking them", (wall_s, cpu_s))?;
    Ok(bodies)
}

fn parse(bench: &mut Bench, bodies: &[Vec<u8>]) -> Result<()> {
    let bare = || {
        for body in bodies {
            serde_json::from_slice::<IgnoredAny>(body)?;
        }
        Ok(())
    };
    let ((), wall_s, cpu_s) = timed(bare)?;
    say(bench, "going through their JSON, keeping nothing", (wall_s, cpu_s))?;
    let ours = || {
        let read = |body: &Vec<u8>| listing::read(body).map(|found| found.sandboxes.len());
        let found = bodies.iter().map(read).sum::<Result<usize, _>>();
        Ok(found.map_err(|unreadable| unreadable.detail)?)
    };
    let (found, wall_s, cpu_s) = timed(ours)?;
    bench.sink.expects(found > 0, "the listings are empty");
    say(bench, "reading it as listings, as a pass does", (wall_s, cpu_s))
}

fn rows(bench: &Bench, db: &Path) -> Result<()> {
    let db = open_reader(db)?;
    let all = || {
        let mut select = db.prepare("SELECT * FROM sandboxes")?;
        let columns = select.column_count();
        let (mut rows, mut count) = (select.query([])?, 0);
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                row.get_ref(column)?;
            }
            count += 1;
        }
        Ok(count)
    };
    let (count, wall_s, cpu_s) = timed(all)?;
    bench.sink.says("rows read in one pass", f64::from(count), "")?;
    say(bench, "reading them in one statement", (wall_s, cpu_s))
}

/// Writes what a pass wrote, which is the difference of two databases, into the older one:
/// one prepared statement for each table, one transaction.
fn write(bench: &Bench, before: &Path, after: &Path) -> Result<()> {
    let new = open_reader(after)?;
    let moved = "SELECT status, status_reason, status_changed_at, revision, host_id, id \
                 FROM sandboxes ORDER BY revision";
    let update = "UPDATE sandboxes INDEXED BY sqlite_autoindex_sandboxes_1 SET status = ?1, \
                  status_reason = ?2, status_changed_at = ?3, revision = ?4 \
                  WHERE host_id = ?5 AND id = ?6";
    let mut work = vec![("sandboxes", update.to_owned(), all_rows(&new, moved)?)];
    for table in HISTORY {
        let rows = all_rows(&new, &format!("SELECT * FROM {table} ORDER BY 1"))?;
        let marks = vec!["?"; rows.first().map_or(1, Vec::len)].join(", ");
        work.push((table, format!("INSERT INTO {table} VALUES ({marks})"), rows));
    }
    let mut old = open_writer(before, false, now()?)?;
    for (table, _, rows) in &work {
        bench.sink.says(&format!("rows written to {table}"), rows.len() as f64, "")?;
    }
    let all = || {
        let tx = old.transaction()?;
        for (_, sql, rows) in &work {
            let mut statement = tx.prepare(sql)?;
            for row in rows {
                statement.execute(params_from_iter(row))?;
            }
        }
        Ok(tx.commit()?)
    };
    let ((), wall_s, cpu_s) = timed(all)?;
    say(bench, "writing them in one transaction", (wall_s, cpu_s))
}

fn all_rows(db: &Connection, sql: &str) -> Result<Vec<Vec<Value>>> {
    let mut select = db.prepare(sql)?;
    let columns = select.column_count();
    let rows = select.query_map([], |row| (0..columns).map(|at| row.get(at)).collect())?;
    Ok(rows.collect::<Result<_, _>>()?)
}
