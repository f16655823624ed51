//! Owns how lists are answered over HTTP: whole, by pages, packed, while rows come and go.
//!
//! Never: what a row looks like, or who may see it.

use crate::keys::team;
use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually, host, sandbox};
use flate2::read::GzDecoder;
use roost::model::id::TemplateId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Sandboxes in the list: more than are read at once, and not a multiple of anything.
const ALIVE: u128 = 703;

/// Those of them that are of one age with others.
const OF_ONE_AGE: u128 = 400;

const STATUSES: [&str; 4] = ["running", "paused", "missing", "hibernated"];

/// Three hosts by turns; team 1 has every fifth sandbox; the last 40 have ended.
fn fleet() -> Home {
    let hosts = [1, 2, 3].map(|n| {
        json!({"id": host(n), "status": "unreachable", "heartbeat_age_s": 500,
            "address": "127.0.0.1:9"})
    });
    let row = |n: u128| {
        let status = match n {
            n if n < ALIVE => STATUSES[(n % 4) as usize],
            n => ["stopped", "error"][(n % 2) as usize],
        };
        // What runs cannot be on a host that is silent.
        let status = if status == "running" { "missing" } else { status };
        let age = if n < OF_ONE_AGE { 0 } else { n % 90 };
        let created_at = format!("2026-01-01T00:{:02}:{:02}Z", age / 60, age % 60);
        json!({"id": sandbox(n), "host_id": host(n % 3 + 1), "status": status,
            "team_id": team(u128::from(n.is_multiple_of(5))), "created_at": created_at})
    };
    let sandboxes: Vec<Value> = (0..ALIVE + 40).map(row).collect();
    Home::with(&json!({"hosts": hosts, "sandboxes": sandboxes}))
}

fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let rows = answer.json();
    rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// Where the next page is, as a client that knows the path finds it.
fn next(path: &str, answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let query = link.strip_prefix("<?").and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
    Some(format!(
        "{}?{}",
        path.split('?').next().unwrap(),
        query.unwrap_or_else(|| panic!("{link}"))
    ))
}

/// All rows of a list that is asked for page by page; `between` happens between two of them.
fn paged(
    serving: &Serving,
    key: &str,
    path: &str,
    mut between: impl FnMut(usize, &[String]),
) -> Vec<String> {
    let (mut all, mut path, mut pages) = (Vec::new(), path.to_owned(), 0);
    loop {
        let page = serving.get_as(key, &path);
        all.extend(ids(&page));
        pages += 1;
        let Some(following) = next(&path, &page) else { return all };
        between(pages, &all);
        path = following;
    }
}

/// The body as it came over the wire, without chunks.
fn raw(serving: &Serving, path: &str, accept: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect_timeout(&serving.address(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let key = serving.key();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: roost\r\nX-API-Key: {key}\r\nAccept-Encoding: {accept}\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap().to_lowercase();
    let mut body = bytes[at + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        let (mut rest, mut whole) = (&body[..], Vec::new());
        loop {
            let line = rest.windows(2).position(|two| two == b"\r\n").expect("a whole answer");
            let size = std::str::from_utf8(&rest[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            whole.extend_from_slice(&rest[line + 2..line + 2 + size]);
            rest = &rest[line + 4 + size..];
            if size == 0 {
                break;
            }
        }
        body = whole;
    }
    (head, body)
}

#[test]
fn a_whole_list_is_all_its_pages_packed_or_not() {
    let home = fleet();
    let serving = home.serve(&[]);
    let key = serving.make_key("ci", &team(1)).text;
    for (path, count) in [
        ("/v1/capsules", ALIVE),
        ("/v1/capsules?all=true", ALIVE + 40),
        ("/v1/capsules?status=paused", 176),
        ("/v1/capsules?status=stopped", 20),
        ("/v1/capsules?status=pausing", 0),
        ("/v1/capsules?status=missing&all=true", 352),
        (&format!("/v1/capsules?host_id={}", host(2)), 234),
        (&format!("/v1/capsules?host_id={}&all=1&status=error", host(2)), 7),
        ("/v1/hosts", 3),
    ] {
        let whole = serving.get(path);
        let rows = whole.json();
        let newest = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            (std::cmp::Reverse(text("created_at")), text("id"))
        };
        let list = ids(&whole);
        assert_eq!(list.len() as u128, count, "{path}");
        if path.starts_with("/v1/capsules") {
            assert!(rows.as_array().unwrap().is_sorted_by_key(newest), "{path}");
        }
        let sep = if path.contains('?') { '&' } else { '?' };
        for limit in [1000, 250, 101, 7] {
            let page =
                paged(&serving, serving.key(), &format!("{path}{sep}limit={limit}"), |_, _| {});
            assert_eq!(page, list, "{path} by {limit}");
        }
        let (head, body) = raw(&serving, path, "br, gzip;q=0.5");
        let packed = head.contains("content-encoding: gzip");
        assert_eq!(packed, whole.body.len() >= 1024, "{path}: {head}");
        assert!(head.contains("vary: accept-encoding"), "a cache must not mix them up: {head}");
        let mut text = String::new();
        match packed {
            true => GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap(),
            false => (&body[..]).read_to_string(&mut text).unwrap(),
        };
        assert_eq!(text, whole.body, "{path}");
        assert!(!raw(&serving, path, "gzip;q=0").0.contains("content-encoding"), "{path}");

        let own = list.iter().filter(|id| is_of_team_1(id)).cloned().collect::<Vec<_>>();
        assert_eq!(ids(&serving.get_as(&key, path)), own, "{path}");
        assert_eq!(paged(&serving, &key, &format!("{path}{sep}limit=9"), |_, _| {}), own, "{path}");
    }
    let none = serving.make_key("none", &team(2)).text;
    assert_eq!(serving.get_as(&none, "/v1/capsules?all=true").body, "[]");
    home.verify();
}

fn is_of_team_1(id: &str) -> bool {
    (0..ALIVE + 40).step_by(5).any(|n| id == sandbox(n))
}

/// Sandboxes end, and a host goes with all of its rows, that of the cursor among them.
#[test]
fn what_stays_is_listed_once_while_others_go() {
    let home = fleet();
    let serving = home.serve(&[]);
    let goes = host(2);
    let owner = |id: &str| (0..ALIVE).find(|n| sandbox(*n) == id).map(|n| n % 3 + 1).unwrap();
    let mut cursor_gone = false;
    let listed =
        paged(&serving, serving.key(), "/v1/capsules?limit=50", |pages, all| match pages {
            1..=3 => {
                // Some that are listed already and some that are not change.
                for n in (pages as u128 * 7..ALIVE).step_by(97) {
                    let path = format!("/v1/capsules/{}", sandbox(n));
                    let answer = serving.ask_as(serving.key(), "DELETE", &path, &Value::Null);
                    assert!([202, 204].contains(&answer.status), "{answer:?}");
                }
            }
            4.. if !cursor_gone && owner(all.last().unwrap()) == 2 => {
                let path = format!("/v1/hosts/{goes}?force=true");
                let answer = serving.ask_as(serving.key(), "DELETE", &path, &Value::Null);
                assert_eq!(answer.status, 204, "{answer:?}");
                cursor_gone = true;
            }
            _ => {}
        });
    assert!(cursor_gone, "or this shows nothing of a cursor whose row is gone");
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    listed.iter().for_each(|id| *times.entry(id).or_default() += 1);
    assert!(times.values().all(|times| *times == 1), "none twice");
    for n in (0..ALIVE).filter(|n| n % 3 + 1 != 2) {
        assert!(times.contains_key(sandbox(n).as_str()), "{n}");
    }
}

#[test]
fn places_and_limits_that_mean_nothing_are_refused() {
    let home = fleet();
    let serving = home.serve(&[]);
    let good = serving.get("/v1/capsules?limit=3");
    let place = next("/v1/capsules", &good).unwrap();
    let place = place.split("after=").nth(1).unwrap();
    let of = |text: &str| format!("/v1/capsules?after={text}");
    assert_eq!(serving.get(&of(place)).status, 200);
    for (path, field) in [
        (of("x"), "after"),
        (of(&sandbox(1)), "after"),
        (of(&place.to_uppercase()), "after"),
        (of(&format!("0{place}")), "after"),
        (of(&format!("{place}%20")), "after"),
        (of(&format!("{place}'--")), "after"),
        ("/v1/capsules?limit=0".to_owned(), "limit"),
        ("/v1/capsules?limit=1001".to_owned(), "limit"),
        ("/v1/capsules?limit=-1".to_owned(), "limit"),
        ("/v1/capsules?limit=a".to_owned(), "limit"),
        ("/v1/hosts?after=x".to_owned(), "after"),
        ("/v1/snapshots?after=x".to_owned(), "after"),
        ("/v1/strangers?after=x".to_owned(), "after"),
    ] {
        let answer = serving.get(&path);
        assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()), "{path}");
        assert!(answer.message().starts_with(field), "{path}: {}", answer.message());
    }
    // A place says nothing of what is there: another team goes on from it with its own.
    let key = serving.make_key("ci", &team(1)).text;
    let rest = ids(&serving.get_as(&key, &of(place)));
    let own = ids(&serving.get_as(&key, "/v1/capsules"));
    assert!(own.ends_with(&rest) && rest.len() + 3 >= own.len(), "{rest:?}");
    assert_eq!(
        serving.get_as(&key, &of("99999999999999.cl-0000000000000000000000000")).body,
        serving.get_as(&key, "/v1/capsules").body
    );
    assert_eq!(serving.get_as(&key, &of("-5.cl-0000000000000000000000000")).body, "[]");
}

#[test]
fn templates_are_paged_by_name() {
    let home = fleet();
    let serving = home.serve(&[]);
    for (at, name) in ["b", "a", "c", "a-b"].into_iter().enumerate() {
        let body = json!({"id": TemplateId::from_u128(at as u128 + 1), "name": name});
        let added = serving.post("/v1/templates", &body);
        assert_eq!(added.status, 201, "{added:?}");
    }
    for path in ["/v1/templates", "/v1/snapshots"] {
        let whole = ids(&serving.get(path));
        assert!(whole.len() == 5, "{whole:?}");
        for limit in 1..=5 {
            let pages = paged(&serving, serving.key(), &format!("{path}?limit={limit}"), |_, _| {});
            assert_eq!(pages, whole, "{path} by {limit}");
        }
    }
}

/// A client that does not read on holds neither memory nor the write-ahead log.
#[test]
fn who_reads_slowly_holds_little() {
    const ROWS: u128 = 600;
    let words = |n: u128| {
        let noise = (0..800u64)
            .map(|k| format!("{:016x}", (n as u64 + k).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        json!({"noise": noise.collect::<String>()})
    };
    let row =
        |n| json!({"id": sandbox(n), "host_id": host(1), "status": "paused", "metadata": words(n)});
    let home = Home::with(&json!({
        "hosts": [{"id": host(1), "status": "offline", "heartbeat_age_s": 5}],
        "sandboxes": (0..ROWS).map(row).collect::<Vec<_>>(),
    }));
    let serving = home.serve(&[]);
    assert_eq!(
        ids(&serving.get("/v1/capsules?limit=30")).len(),
        21,
        "a page of large rows is short"
    );
    let memory = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", serving.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    let before = memory();
    let mut slow: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect_timeout(&serving.address(), PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let key = serving.key();
            write!(stream, "GET /v1/capsules HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\n\r\n")
                .unwrap();
            stream.read_exact(&mut [0; 1000]).unwrap();
            stream
        })
        .collect();
    serving.make_key("written meanwhile", &team(1));
    let other = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    eventually("the log is folded in", || {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: bool = other.query_row(sql, [], |row| row.get(0)).unwrap();
        (!busy).then_some(())
    });
    let grown = memory() - before;
    assert!(grown < 8 * 2 * 1024, "{grown} KiB for eight of 8 MB");
    let mut rest = Vec::new();
    let last = slow.last_mut().unwrap();
    while !rest.ends_with(b"]\r\n0\r\n\r\n") {
        let mut bytes = [0; 65536];
        let got = last.read(&mut bytes).unwrap();
        assert!(got > 0, "cut off after {}", rest.len());
        rest.extend_from_slice(&bytes[..got]);
    }
    let rows = rest.windows(5).filter(|five| five == b"\"cl-0").count();
    assert!(rows + 1 >= ROWS as usize, "{rows}");
    drop(slow);
    serving.stop();
}
