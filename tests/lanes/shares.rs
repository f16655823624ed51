//! Owns what one key, or one kind of work, leaves to others.
//!
//! Never: a disk that fails.

use crate::beats::Beats;
use crate::support::agents::{Agents, HungAgent, Says};
use crate::support::client::try_ask;
use crate::support::server::{Serving, listening};
use crate::support::token::forged;
use crate::support::{Home, eventually, host, sandbox};
use crate::{Stop, alone};
use roost::model::id::{PLATFORM_TEAM, TeamId};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rows that a long list has.
pub(crate) const LISTED: u128 = 20_000;

/// Hosts that beat and have no address, with so many running sandboxes together.
pub(crate) fn rows(hosts: u128, sandboxes: u128) -> Value {
    let row = |n: u128| json!({"id": host(n), "status": "online", "heartbeat_age_s": 0});
    let sandbox = |n: u128| {
        json!({"id": sandbox(n), "host_id": host(1 + n % hosts), "status": "running",
            "metadata": {"vmm": "1.2", "note": "x".repeat(50)}})
    };
    json!({
        "hosts": (1..=hosts).map(row).collect::<Vec<_>>(),
        "sandboxes": (0..sandboxes).map(sandbox).collect::<Vec<_>>(),
    })
}

/// Lists everything until it is stopped. On a disk that hangs the answer may be a refusal.
pub(crate) fn list_until(serving: &Serving, key: &str, stop: &Stop) {
    while !stop.is_raised() {
        let headers = [("X-API-Key", key)];
        let answer = serving.ask("GET", "/v1/capsules", &headers, "");
        assert!(matches!(answer.status, 200 | 503), "{}", answer.status);
    }
}

/// A key for a team of its own.
fn team_key(serving: &Serving) -> String {
    let team = TeamId::from_u128(PLATFORM_TEAM.as_u128() + 1).to_string();
    let made = serving.post("/v1/api-keys", &json!({"name": "a team's", "team_id": team}));
    made.json()["key"].as_str().unwrap().to_owned()
}

#[test]
fn long_lists_hold_up_no_heartbeat_and_no_change() {
    const LISTERS: usize = 40;
    let _alone = alone();
    let home = Home::with(&rows(4, LISTED));
    let serving = home.serve(&["--startup-grace", "10m", "--unreachable-after", "10m"]);
    let team = team_key(&serving);
    let beats = Beats::start(&serving, &home, 4);
    let stop = Stop::new();
    let (from, to) = std::thread::scope(|scope| {
        let end = stop.at_the_end();
        for _ in 0..LISTERS {
            scope.spawn(|| list_until(&serving, serving.key(), &stop));
        }
        let from = Instant::now();
        for _ in 0..5 {
            let begun = Instant::now();
            assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(5), "a change took {took:?}");
            // Another key has its turn between the lists of this one.
            let answer = serving.ask("GET", "/v1/capsules", &[("X-API-Key", &team)], "");
            assert_eq!((answer.status, answer.body.as_str()), (200, "[]"));
        }
        eventually("windows enough", || (from.elapsed() >= Duration::from_secs(8)).then_some(()));
        drop(end);
        (from, Instant::now())
    });
    beats.stop().must_be_quick("forty lists", from, to);
    serving.stop();
    home.verify();
}

/// One team's pings of a host that hangs, as many as it likes.
#[test]
fn pings_of_a_hung_host_leave_room_for_others() {
    const PINGS: usize = 80;
    let _alone = alone();
    let hung = HungAgent::start();
    let agents = Agents::start(vec![Says::lists(&[])]);
    let team = TeamId::from_u128(PLATFORM_TEAM.as_u128() + 1).to_string();
    let row = |n: u128, address: String| json!({"id": host(n), "status": "online", "heartbeat_age_s": 0, "address": address});
    let home = Home::with(&json!({
        "hosts": [row(1, hung.address()), row(2, agents.address(0)), row(3, agents.address(0))],
        "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "running",
            "team_id": team}],
    }));
    let serving = home.serve(&["--startup-grace", "10m", "--unreachable-after", "10m"]);
    let key = team_key(&serving);
    let path = format!("/v1/capsules/{}/ping", sandbox(1));
    let (stop, is_refused) = (Stop::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let end = stop.at_the_end();
        let ping = || {
            while !stop.is_raised() {
                let answer = serving.ask("POST", &path, &[("X-API-Key", &key)], "");
                assert!(matches!(answer.status, 502 | 503), "{answer:?}");
                is_refused.fetch_or(answer.status == 503, Ordering::SeqCst);
            }
        };
        (0..PINGS).for_each(|_| drop(scope.spawn(ping)));
        eventually("its share is used up", || is_refused.load(Ordering::SeqCst).then_some(()));
        for _ in 0..10 {
            let answer = serving.post(&format!("/v1/hosts/{}/probe", host(2)), &Value::Null);
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let path = format!("/v1/hosts/{}", host(3));
        let answer = serving.ask("DELETE", &path, &[("X-API-Key", serving.key())], "");
        assert_eq!(answer.status, 204, "{answer:?}");
        drop(end);
    });
    serving.stop();
    home.verify();
}

/// Made-up tokens are refused by a look, which no writer is needed for.
#[test]
fn registrations_with_made_up_tokens_never_get_to_the_writer() {
    let _alone = alone();
    let home = Home::with(&rows(1, 1));
    let serving = home.serve(&["--startup-grace", "10m", "--unreachable-after", "10m"]);
    let other = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    eventually("the lock", || other.execute_batch("BEGIN EXCLUSIVE").ok());
    for n in 0..200 {
        let token = format!("roost_made_up_{n}");
        let body = json!({"token": token, "address": "127.0.0.1:9"}).to_string();
        assert_eq!(serving.ask("POST", "/v1/hosts/register", &[], &body).status, 401);
        let body = json!({"refresh_token": token}).to_string();
        assert_eq!(serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body).status, 401);
    }
    let headers = [("X-Host-Token", forged(&host(1)))];
    let headers = headers.each_ref().map(|(name, token)| (*name, token.as_str()));
    let report = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(0), "host_id": host(1)});
    let answer = serving.ask("POST", "/v1/hosts/sandbox-events", &headers, &report.to_string());
    assert!(matches!(answer.status, 401 | 503), "{answer:?}");
    other.execute_batch("ROLLBACK").unwrap();
    serving.stop();
}

/// A limit of threads is one of memory for stacks here: root is exempt from the other one.
#[test]
fn without_a_thread_the_answer_says_so_and_heartbeats_go_on() {
    let _alone = alone();
    let home = Home::with(&rows(1, 1));
    let serving = home.serve(&["--startup-grace", "10m", "--unreachable-after", "10m"]);
    assert_eq!(listening(serving.pid()), Some(serving.address()));
    let pid = Pid::from_raw(i32::try_from(serving.pid()).unwrap());
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let maximum = getrlimit(Resource::As).maximum;
    let scarce = Rlimit { current: Some((kib + 200) * 1024), maximum };
    prlimit(pid, Resource::As, scarce).unwrap();
    let key = [("X-API-Key", serving.key())];
    let path = format!("/v1/capsules/{}/ping", sandbox(0));
    let answer = try_ask(serving.address(), "POST", &path, &key, "").unwrap();
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(answer.message().contains("no thread"), "{answer:?}");
    assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204);
    prlimit(pid, Resource::As, Rlimit { current: maximum, maximum }).unwrap();
    let answer = serving.ask("POST", &path, &key, "");
    assert_eq!(answer.refusal().0, 502, "its host has no address");
    serving.stop();
}
