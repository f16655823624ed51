//! Owns the audit log over HTTP: pages, filters, what is refused.
//!
//! Never: which entries are written, which belongs to those who write them.

use crate::keys::team;
use crate::support::server::Serving;
use crate::support::token::now_s;
use crate::support::{Home, host, sandbox};
use roost::model::id::{KeyId, LogId};
use roost::model::time::Wall;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// When entry 0 was written: yesterday, so that nothing is too old to be kept.
static BEGIN_MS: LazyLock<i64> = LazyLock::new(|| (now_s() - 24 * 3600) * 1000);

/// When entry `seq` was written: a second after the one before.
fn written(seq: u64) -> Wall {
    Wall(*BEGIN_MS + seq as i64 * 1000)
}

fn at(seq: u64) -> String {
    written(seq).to_string()
}

fn log_id(seq: u64) -> String {
    LogId::from_u128(seq.into()).to_string()
}

/// Who does what in entry `seq`: actor type, its id, resource type, action, status.
fn says(seq: u64) -> [&'static str; 5] {
    match seq % 5 {
        0 => ["api_key", "key-of-1", "sandbox", "pause", "success"],
        1 => ["system", "", "sandbox", "vanish", "warning"],
        2 => ["system", "", "host", "marked_down", "error"],
        3 => ["user", "somebody", "host", "drain", "success"],
        _ => ["api_key", "key-of-2", "api_key", "create", "success"],
    }
}

/// About whom entry `seq` is.
fn about(seq: u64) -> String {
    match says(seq)[2] {
        "host" => host(u128::from(seq % 4)),
        "sandbox" => sandbox(u128::from(seq % 7)),
        _ => KeyId::from_u128(seq.into()).to_string(),
    }
}

/// A database whose audit log has so many entries, by turns of teams 0, 1 and 2.
fn logged(count: u64) -> Home {
    let home = Home::with(&json!({"hosts": []}));
    let mut conn = Connection::open(home.path("roost.db")).unwrap();
    let tx = conn.transaction().unwrap();
    for seq in 1..=count {
        let [actor, by, kind, action, status] = says(seq);
        tx.prepare_cached(
            "INSERT INTO audit_logs VALUES (?1, ?2, ?3, ?4, ?5, NULL, ?6, ?7, ?8, 'team', ?9, \
             ?10, ?11)",
        )
        .unwrap()
        .execute(params![
            seq as i64,
            log_id(seq),
            team(u128::from(seq % 3)),
            actor,
            (!by.is_empty()).then_some(by),
            kind,
            about(seq),
            action,
            status,
            json!({"host_id": host(u128::from(seq % 4))}).to_string(),
            written(seq).0
        ])
        .unwrap();
    }
    tx.commit().unwrap();
    home
}

fn page(serving: &Serving, key: &str, query: &str) -> (Vec<String>, Option<String>) {
    let answer = serving.get_as(key, &format!("/v1/audit{query}"));
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    let page = answer.json();
    let id = |entry: &Value| entry["id"].as_str().unwrap().to_owned();
    let ids = page["items"].as_array().unwrap().iter().map(id).collect();
    let next = page.get("next_cursor").map(|next| next.as_str().unwrap().to_owned());
    (ids, next)
}

/// Everything that a walk over the pages gives, and how many pages that took; `between`
/// is called after each page.
fn walk(
    serving: &Serving,
    key: &str,
    query: &str,
    mut between: impl FnMut(),
) -> (Vec<String>, usize) {
    let (mut all, mut next) = page(serving, key, &format!("?{query}"));
    let mut pages = 1;
    while let Some(cursor) = next {
        between();
        let (more, after) = page(serving, key, &format!("?{query}&cursor={cursor}"));
        all.extend(more);
        next = after;
        pages += 1;
    }
    (all, pages)
}

fn matching(count: u64, matches: impl Fn(u64) -> bool) -> Vec<String> {
    (1..=count).rev().filter(|seq| matches(*seq)).map(log_id).collect()
}

#[test]
fn pages_are_complete_and_without_repeats_while_entries_are_added() {
    let home = logged(120);
    let serving = home.serve(&[]);
    let mut added = 0;
    let (all, pages) = walk(&serving, serving.key(), "limit=7", || {
        assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
        added += 1;
    });
    assert_eq!(all, matching(120, |_| true), "what was there at the first page");
    assert_eq!((pages, added), (18, 17));
    let (newest, next) = page(&serving, serving.key(), "?limit=500");
    assert_eq!((newest.len(), next), (120 + 17, None));
    assert_eq!(newest[17..], all);
    assert_eq!(page(&serving, serving.key(), "").0.len(), 50, "when nobody says");
    let exactly = page(&serving, serving.key(), "?limit=137");
    assert_eq!((exactly.0.len(), exactly.1), (137, None), "the last page says that it is");
}

#[test]
fn every_filter_gives_exactly_what_matches() {
    const COUNT: u64 = 210;
    let home = logged(COUNT);
    let serving = home.serve(&[]);
    let check = |query: &str, matches: &dyn Fn(u64) -> bool| {
        for limit in [3, 500] {
            let query = format!("{query}&limit={limit}");
            let (found, _) = walk(&serving, serving.key(), &query, || {});
            assert_eq!(found, matching(COUNT, matches), "{query}");
        }
    };
    check("", &|_| true);
    check("unknown=1&action=&cursor=", &|_| true);
    check("resource_type=host", &|seq| says(seq)[2] == "host");
    check("resource_type=api_key", &|seq| says(seq)[2] == "api_key");
    check(&format!("resource_id={}", sandbox(3)), &|seq| about(seq) == sandbox(3));
    check("resource_id=nobody", &|_| false);
    check(&format!("host_id={}", host(2)), &|seq| seq % 4 == 2);
    check("action=vanish", &|seq| seq % 5 == 1);
    check("action=revoke", &|_| false);
    check("actor_type=user", &|seq| seq % 5 == 3);
    check("actor_type=system", &|seq| matches!(seq % 5, 1 | 2));
    check("actor_id=key-of-2", &|seq| seq % 5 == 4);
    check("status=error", &|seq| seq % 5 == 2);
    check(&format!("after={}", at(150)), &|seq| seq > 150);
    check(&format!("before={}", at(60).replace(':', "%3A")), &|seq| seq < 60);
    check(&format!("after={}&before={}", at(10), at(14)), &|seq| (11..14).contains(&seq));
    check("status=success&resource_type=host&actor_id=somebody", &|seq| seq % 5 == 3);
    check("action=vanish&action=drain", &|seq| seq % 5 == 3);
}

#[test]
fn a_key_reads_its_teams_entries_whatever_it_asks_for() {
    const COUNT: u64 = 90;
    let home = logged(COUNT);
    let serving = home.serve(&[]);
    let key = serving.make_key("auditor", &team(2));
    let own = |matches: &dyn Fn(u64) -> bool| matching(COUNT, |s| s % 3 == 2 && matches(s));
    let check = |query: &str, matches: &dyn Fn(u64) -> bool| {
        let query = format!("{query}&before={}&limit=4", at(COUNT + 1));
        assert_eq!(walk(&serving, &key.text, &query, || {}).0, own(matches), "{query}");
    };
    check("", &|_| true);
    check("action=vanish", &|seq| seq % 5 == 1);
    check(&format!("resource_id={}", sandbox(3)), &|seq| about(seq) == sandbox(3));
    check(&format!("host_id={}", host(1)), &|seq| seq % 4 == 1);
    // A cursor is a place and opens nothing.
    let (_, cursor) = page(&serving, serving.key(), "?limit=30");
    let (found, _) = page(&serving, &key.text, &format!("?cursor={}", cursor.unwrap()));
    assert!(found.iter().all(|id| own(&|_| true).contains(id)) && !found.is_empty());
    let (newest, _) = page(&serving, &key.text, "?limit=1");
    assert_eq!(page(&serving, serving.key(), "?limit=1").0, newest, "the key's own creation");
}

#[test]
fn an_entry_looks_as_documented() {
    let home = logged(3);
    let serving = home.serve(&[]);
    let expected = json!({"items": [
        {"id": log_id(3), "team_id": team(0), "actor_type": "user", "actor_id": "somebody",
         "resource_type": "host", "resource_id": host(3), "action": "drain", "scope": "team",
         "status": "success", "metadata": {"host_id": host(3)}, "created_at": at(3)},
        {"id": log_id(2), "team_id": team(2), "actor_type": "system", "resource_type": "host",
         "resource_id": host(2), "action": "marked_down", "scope": "team", "status": "error",
         "metadata": {"host_id": host(2)}, "created_at": at(2)},
        {"id": log_id(1), "team_id": team(1), "actor_type": "system",
         "resource_type": "sandbox", "resource_id": sandbox(1), "action": "vanish",
         "scope": "team", "status": "warning", "metadata": {"host_id": host(1)},
         "created_at": at(1)},
    ]});
    assert_eq!(serving.get("/v1/audit").json(), expected);
    let empty = Home::new();
    assert_eq!(empty.serve(&[]).get("/v1/audit").json(), json!({"items": []}));
}

#[test]
fn what_is_wrong_with_a_query_is_told_by_parameter() {
    let home = logged(5);
    let serving = home.serve(&[]);
    for (name, value) in [
        ("limit", "0"),
        ("limit", "501"),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "99999999999999999999"),
        ("cursor", "x"),
        ("cursor", "1"),
        ("cursor", "AAAAAAAAAAA="),
        ("cursor", "AAAAAAAAAAAAAA"),
        ("cursor", "%25%25"),
        ("action", "explode"),
        ("action", "Pause"),
        ("resource_type", "capsule"),
        ("actor_type", "robot"),
        ("status", "ok"),
        ("host_id", "host-1"),
        ("host_id", "cl-0000000000000000000000001"),
        ("after", "yesterday"),
        ("after", "%zz"),
        ("before", "2026-13-01T00:00:00Z"),
        ("before", "%ff"),
    ] {
        let answer = serving.get(&format!("/v1/audit?{name}={value}"));
        assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()), "{name}={value}");
        assert!(answer.message().starts_with(name), "{name}={value}: {answer:?}");
    }
    let refused = serving.ask("GET", "/v1/audit", &[], "");
    assert_eq!(refused.refusal(), (401, "unauthorized".to_owned()));
    let post = serving.post("/v1/audit", &json!({}));
    assert_eq!(post.refusal(), (405, "method_not_allowed".to_owned()));
}

/// What is rare in a long log is found in many pages, each of which is quick: other readers
/// do not wait for it.
#[test]
fn a_page_looks_at_a_bounded_part_of_a_long_log() {
    const COUNT: u64 = 50_000;
    let home = logged(COUNT);
    let serving = home.serve(&[]);
    let (found, next) = page(&serving, serving.key(), &format!("?before={}", at(3)));
    assert!(found.is_empty() && next.is_some(), "the first looks do not reach so far");
    let oldest = format!("before={}", at(3));
    let (found, pages) = walk(&serving, serving.key(), &oldest, || {});
    assert_eq!((found, pages), (matching(2, |_| true), 3));
    // There is no index by resource either: nothing is missed, a look at a time.
    let oldest = format!("resource_id={}", about(4));
    let (found, next) = page(&serving, serving.key(), &format!("?{oldest}"));
    assert!(found.is_empty() && next.is_some(), "the first looks do not reach so far");
    let (found, pages) = walk(&serving, serving.key(), &oldest, || {});
    assert_eq!((found, pages), (vec![log_id(4)], 3));
}
