//! What a day of events adds up to. The past is written into the database by hand, which a
//! running server cannot do.

use crate::support::{Home, eventually, host, sandbox};
use roost::model::time::Wall;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) const MINUTE_MS: i64 = 60_000;

pub(crate) fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// One event of the past: minutes ago, kind, host, sandbox, before, after, reason.
pub(crate) type Past<'a> =
    (i64, &'a str, u128, Option<u128>, Option<&'a str>, Option<&'a str>, &'a str);

/// Writes events into a database that no server has open, oldest first.
pub(crate) fn write_past(home: &Home, past: &[Past<'_>]) {
    let mut conn = Connection::open(home.path("roost.db")).unwrap();
    let write = conn.transaction().unwrap();
    let mut revision: i64 =
        write.query_row("SELECT revision FROM state", [], |row| row.get(0)).unwrap();
    for (minutes, kind, of, about, from, to, reason) in past {
        revision += 1;
        let at = now_ms() - minutes * MINUTE_MS;
        let insert = "INSERT INTO events \
                 (revision, at, kind, host_id, sandbox_id, team_id, from_status, to_status, reason, actor) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'system')";
        let row =
            params![revision, at, kind, host(*of), about.map(sandbox), TEAM, from, to, reason];
        write.execute(insert, row).unwrap();
    }
    write.execute("UPDATE state SET revision = ?1", [revision]).unwrap();
    write.commit().unwrap();
}

const TEAM: &str = "team-0000000000000000000000000";

/// A time so many minutes ago, as the API writes it.
pub(crate) fn ago(minutes: i64) -> String {
    Wall(now_ms() - minutes * MINUTE_MS).to_string()
}

fn a_host(n: u128, status: &str) -> Value {
    json!({"id": host(n), "status": status, "heartbeat_age_s": 5, "created_at": ago(9000)})
}

fn states(day: &Value, n: u128) -> Vec<String> {
    let hosts = day["hosts"].as_array().unwrap();
    let found = hosts.iter().find(|found| found["host_id"] == json!(host(n))).unwrap();
    let spans = found["spans"].as_array().unwrap();
    spans.iter().map(|span| span["state"].as_str().unwrap().to_owned()).collect()
}

/// The counts of a status, equal neighbours as one.
fn line(day: &Value, status: &str) -> Vec<i64> {
    let counts = day["counts"][status].as_array().unwrap();
    let mut line: Vec<i64> = counts.iter().map(|n| n.as_i64().unwrap()).collect();
    line.dedup();
    line
}

#[test]
fn a_day_is_told_in_spans_and_counts() {
    let home = Home::with(&json!({
    "hosts": [a_host(1, "online"), a_host(2, "draining"), a_host(3, "online")],
    "sandboxes": [
        {"id": sandbox(1), "host_id": host(1), "status": "running"},
        {"id": sandbox(2), "host_id": host(1), "status": "paused"},
        {"id": sandbox(3), "host_id": host(1), "status": "stopped"},
    ]}));
    let (down, up) = (Some("online"), Some("unreachable"));
    write_past(
        &home,
        &[
            // Older than a day: not told, and not counted either.
            (2000, "host.down", 3, None, down, up, "host_unreachable"),
            (1990, "sandbox.running", 1, Some(3), None, Some("running"), "requested"),
            (600, "host.down", 1, None, down, up, "host_unreachable"),
            (
                600,
                "sandbox.missing",
                1,
                Some(1),
                Some("running"),
                Some("missing"),
                "host_unreachable",
            ),
            (540, "host.up", 1, None, up, down, "heartbeat_received"),
            (540, "sandbox.running", 1, Some(1), Some("missing"), Some("running"), "restored"),
            (400, "host.degraded", 2, None, None, None, "timed_out: no answer"),
            (380, "host.recovered", 2, None, None, None, "probes succeed again"),
            (300, "host.intent", 2, None, down, Some("draining"), "requested"),
            (200, "sandbox.paused", 1, Some(2), Some("running"), Some("paused"), "auto_paused"),
            (100, "sandbox.stopped", 1, Some(3), Some("running"), Some("stopped"), "vanished"),
            // Says something of a sandbox and moves nothing.
            (50, "sandbox.zombie", 1, Some(3), Some("stopped"), None, "runs on the host"),
        ],
    );
    let flags = ["--startup-grace", "1h", "--unreachable-after", "1h"];
    let serving = home.serve(&flags);
    let day = serving.get("/v1/history").json();
    assert_eq!(day["revision"], 12);
    assert_eq!(states(&day, 1), ["online", "unreachable", "online"]);
    assert_eq!(states(&day, 2), ["online", "degraded", "online", "draining"]);
    assert_eq!(states(&day, 3), ["online"]);
    assert_eq!(line(&day, "running"), [3, 2, 3, 2, 1]);
    assert_eq!(line(&day, "missing"), [0, 1, 0]);
    assert_eq!(line(&day, "paused"), [0, 1]);
    let points = day["counts"]["running"].as_array().unwrap().len();
    assert!((95..=97).contains(&points), "{points} points");

    // What comes later is added to what was read.
    serving.post(&format!("/v1/hosts/{}/drain", host(1)), &json!({}));
    let later = eventually("the drain in the history", || {
        let day = serving.get("/v1/history").json();
        (day["revision"] == 13).then_some(day)
    });
    assert_eq!(states(&later, 1), ["online", "unreachable", "online", "draining"]);
    assert_eq!(line(&later, "running"), [3, 2, 3, 2, 1]);
    serving.stop();
}

#[test]
fn a_host_that_was_deleted_leaves_the_day_of_the_others() {
    let hosts = [a_host(1, "online"), a_host(2, "online")];
    let home = Home::with(&json!({"hosts": hosts, "sandboxes": []}));
    let serving = home.serve(&["--startup-grace", "1h", "--unreachable-after", "1h"]);
    let admin = [("X-API-Key", serving.key())];
    let gone = serving.ask("DELETE", &format!("/v1/hosts/{}?force=true", host(2)), &admin, "");
    assert_eq!(gone.status, 204);
    let day = serving.get("/v1/history").json();
    assert_eq!(day["hosts"].as_array().unwrap().len(), 1, "{day}");
    assert_eq!(states(&day, 1), ["online"]);
    serving.stop();
}

#[test]
fn a_history_that_was_given_up_is_not_made_up() {
    let home = Home::with(&json!({"hosts": [a_host(1, "online")], "sandboxes": []}));
    let (down, up) = (Some("online"), Some("unreachable"));
    write_past(
        &home,
        &[
            (500, "host.down", 1, None, down, up, "host_unreachable"),
            (60, "host.up", 1, None, up, down, "heartbeat_received"),
        ],
    );
    let conn = Connection::open(home.path("roost.db")).unwrap();
    conn.execute("DELETE FROM events WHERE revision = 1", []).unwrap();
    drop(conn);
    let serving = home.serve(&["--startup-grace", "1h", "--unreachable-after", "1h"]);
    let day = serving.get("/v1/history").json();
    let from: Wall = day["from"].as_str().unwrap().parse().unwrap();
    let age_minutes = (now_ms() - from.0) / MINUTE_MS;
    assert!((60..=61).contains(&age_minutes), "{age_minutes}");
    assert_eq!(states(&day, 1), ["unreachable", "online"]);
    serving.stop();
}

#[test]
fn a_deleted_host_leaves_a_history_that_can_be_read() {
    let home = Home::with(&json!({"hosts": [a_host(1, "online")], "sandboxes": []}));
    let flags = ["--startup-grace", "1h", "--unreachable-after", "1h"];
    let serving = home.serve(&flags);
    let key = [("X-API-Key", serving.key())];
    let deleted = serving.ask("DELETE", &format!("/v1/hosts/{}?force=true", host(1)), &key, "");
    assert_eq!(deleted.status, 204, "{deleted:?}");
    let day = serving.get("/v1/history");
    assert_eq!((day.status, &day.json()["hosts"]), (200, &json!([])), "{day:?}");
    assert_eq!(serving.get("/readyz").status, 200);
    serving.stop();
}
