//! Owns how the past is given up by a running server: what configuration asks for, what a
//! stream is told that comes too late.
//!
//! Never: which rows exactly, which the store shows with a clock of its own.

use crate::reports::Stream;
use crate::support::server::Serving;
use crate::support::{Home, eventually, host, sandbox};
use rustix::process::Signal;
use serde_json::{Value, json};

const DAY_S: u64 = 24 * 3600;

/// Revisions of the events that are kept, oldest first.
fn kept(home: &Home) -> Vec<u64> {
    let events = home.json(&["events", "--after", "0", "--limit", "1000"]);
    events.as_array().unwrap().iter().map(|event| event["revision"].as_u64().unwrap()).collect()
}

/// Drains and undrains host 1: two events and two audit entries each time.
fn history(serving: &Serving, times: usize) {
    for what in ["drain", "undrain"].repeat(times) {
        let path = format!("/v1/hosts/{}/{what}", host(1));
        assert_eq!(serving.post(&path, &json!({})).status, 200);
    }
}

/// The status and the newest revision that a cursor is refused with.
fn refused(serving: &Serving, after: u64) -> (u16, Value) {
    // A stream has no end: what is not refused must not be read to it.
    let mut first = Stream::open(serving, &format!("?after={after}"), None);
    assert_eq!(first.line(), "HTTP/1.1 410 Gone");
    let by_query = serving.get(&format!("/v1/events?after={after}"));
    let headers = [("X-API-Key", serving.key()), ("Last-Event-ID", &after.to_string())];
    let by_header = serving.ask("GET", "/v1/events", &headers, "");
    assert_eq!(by_query.body, by_header.body);
    (by_query.status, by_query.json()["error"]["newest_revision"].clone())
}

#[test]
fn a_cursor_is_good_as_long_as_nothing_after_it_is_gone() {
    let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "online"}]}));
    let serving = home.serve(&[]);
    history(&serving, 5);
    assert_eq!(kept(&home), (1..=10).collect::<Vec<u64>>());
    serving.stop();

    let serving = home.serve(&["--events-keep-count", "4"]);
    eventually("the past is gone", || (kept(&home).len() == 4).then_some(()));
    assert_eq!(kept(&home), [7, 8, 9, 10]);
    home.verify();
    assert_eq!(refused(&serving, 5), (410, json!(10)));
    assert_eq!(refused(&serving, 0), (410, json!(10)));
    let mut complete = Stream::open(&serving, "?after=6", None);
    let ids: Vec<String> = (0..4).map(|_| complete.event().0).collect();
    assert_eq!(ids, ["7", "8", "9", "10"]);
    let audit = home.json(&["audit", "--limit", "1000"]);
    assert_eq!(audit.as_array().unwrap().len(), 10, "kept until somebody says otherwise");
    serving.stop();

    let serving = home.serve(&["--events-keep-count", "1"]);
    eventually("all but the newest are gone", || (kept(&home) == [10]).then_some(()));
    history(&serving, 1);
    let mut whole = Stream::open(&serving, "?after=9", None);
    assert_eq!([whole.event().0, whole.event().0, whole.event().0], ["10", "11", "12"]);
    serving.stop();
    home.verify();
}

/// Old rows go at the start; a new limit counts as soon as it is there, without one.
#[test]
fn what_is_over_for_long_goes_and_a_reload_says_how_long_that_is() {
    let row = |n: u128, status: &str, days: u64| {
        json!({"id": sandbox(n), "host_id": host(1), "status": status,
            "status_age_s": days * DAY_S})
    };
    let home = Home::with(&json!({
        "hosts": [{"id": host(1), "status": "online", "heartbeat_age_s": 5}],
        "sandboxes": [row(1, "stopped", 31), row(2, "error", 31), row(3, "stopped", 9),
            row(4, "paused", 31), row(5, "error", 2)],
    }));
    let serving = home.serve(&[]);
    let left = || {
        let list = serving.get("/v1/capsules?all=true").json();
        list.as_array().unwrap().iter().map(|row| row["id"].clone()).collect::<Vec<Value>>()
    };
    let ids = |ns: &[u128]| ns.iter().map(|n| json!(sandbox(*n))).collect::<Vec<Value>>();
    // The newest first.
    eventually("a month's worth", || (left() == ids(&[5, 3, 4])).then_some(()));
    home.write("roost.toml", "stopped_keep_age = \"7d\"\n");
    serving.signal(Signal::HUP);
    eventually("a week's worth", || (left() == ids(&[5, 4])).then_some(()));
    serving.stop();
    home.verify();
}
