//! Owns what a disk that does not answer, or a database that another process keeps, does to
//! those who need neither, and to those who wait.
//!
//! Never: leaves a disk frozen, mounted or attached.

use crate::beats::Beats;
use crate::shares::{LISTED, list_until, rows};
use crate::support::agents::{Agents, Says};
use crate::support::server::Serving;
use crate::support::{Home, eventually, host, sandbox, sim_fleet};
use crate::{Stop, alone};
use roost::model::sandbox::SandboxStatus;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the disk does not answer: longer than any client is to wait for it.
const FROZEN_FOR: Duration = Duration::from_secs(12);

/// What a client waits for a refusal that is due after 5 s, on a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(9);

const FLAGS: &[&str] = &[
    "--probe-interval",
    "1s",
    "--probe-timeout",
    "1s",
    "--startup-grace",
    "1s",
    "--unreachable-after",
    "4s",
    "--heartbeat-flush",
    "1s",
];

/// An ext4 file system in a file.
struct LoopDisk {
    outer: TempDir,
    mounted: PathBuf,
}

impl LoopDisk {
    /// `None` where that is not permitted, which it says.
    fn mount() -> Option<LoopDisk> {
        let outer = tempfile::tempdir().unwrap();
        let (image, mounted) = (outer.path().join("image"), outer.path().join("disk"));
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        let made = run("mkfs.ext4", &["-q".as_ref(), &image]);
        if made && run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &mounted]) {
            return Some(LoopDisk { outer, mounted });
        }
        assert!(std::env::var_os("CI").is_none(), "could not mount a disk; CI must be root");
        // Past the capture of tests that pass.
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        let text = format!("\nSKIPPED {name}: could not mount a loop device; run it as root\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        None
    }

    fn home(&self) -> Home {
        Home::at(self.mounted.join("data"))
    }

    /// Nothing is written to it until the guard is dropped.
    fn freeze(&self) -> Frozen<'_> {
        assert!(run("fsfreeze", &["--freeze".as_ref(), &self.mounted]));
        Frozen(self)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        run("umount", &["--lazy".as_ref(), &self.mounted]);
        // The image goes with the directory; the device with the last user.
        let _ = &self.outer;
    }
}

struct Frozen<'a>(&'a LoopDisk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze".as_ref(), &self.0.mounted]);
    }
}

fn run(program: &str, args: &[&Path]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Requests that change something, from several clients until they are stopped; how many were
/// accepted, and the longest wait for a refusal.
fn change_until(serving: &Serving, stop: &Stop, path: &str, accepted: &AtomicUsize) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.is_raised() {
        let begun = Instant::now();
        let answer = serving.post(path, &json!({}));
        match answer.status {
            201 | 202 => drop(accepted.fetch_add(1, Ordering::SeqCst)),
            _ => {
                assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
                assert!(answer.header("retry-after").is_some());
                longest = longest.max(begun.elapsed());
            }
        }
        // At a moderate rate: what is measured is the wait.
        std::thread::sleep(Duration::from_millis(20));
    }
    longest
}

/// Clients that send a request and hang up without an answer.
fn send_and_hang_up(serving: &Serving, path: &str) {
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    let key = serving.key();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).unwrap();
}

fn wait(span: Duration) {
    std::thread::sleep(span);
}

/// No host was judged, and no sandbox of one.
fn no_host_was_judged(serving: &Serving) {
    for shown in serving.get("/v1/hosts").json().as_array().unwrap() {
        assert_ne!(shown["status"], "unreachable", "{shown}");
    }
    for shown in serving.get("/v1/capsules?all=true").json().as_array().unwrap() {
        assert_ne!(shown["status"], "missing", "{shown}");
    }
}

#[test]
fn a_frozen_disk_holds_up_no_heartbeat_and_what_was_refused_is_not_done() {
    const CLIENTS: usize = 12;
    let _alone = alone();
    let Some(disk) = LoopDisk::mount() else { return };
    let fleet = sim_fleet(4, 1);
    let home = disk.home();
    let mut fixture = Vec::new();
    fleet.write_fixture(SandboxStatus::Running, &mut fixture).unwrap();
    home.load(&serde_json::from_slice(&fixture).unwrap());
    let serving = home.serve(FLAGS);
    let beats = Beats::start(&serving, &home, 4);
    let before = serving.get("/v1/capsules?all=true").json().as_array().unwrap().len();
    let (stop, accepted) = (Stop::new(), AtomicUsize::new(0));
    let (from, to) = std::thread::scope(|scope| {
        let end = stop.at_the_end();
        let client = || change_until(&serving, &stop, "/v1/capsules", &accepted);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        eventually("changes", || (accepted.load(Ordering::SeqCst) >= CLIENTS).then_some(()));
        let frozen = disk.freeze();
        let from = Instant::now();
        wait(FROZEN_FOR / 4);
        (0..3).for_each(|_| send_and_hang_up(&serving, "/v1/capsules"));
        assert_eq!(serving.get("/healthz").status, 200);
        // It cannot be renewed now, so no agent is sent to renew it.
        let expired = home.expired_token(&host(1));
        assert_eq!(serving.beat(&host(1), &expired).status, 503);
        wait(FROZEN_FOR - FROZEN_FOR / 4);
        drop(end);
        let to = Instant::now();
        drop(frozen);
        for client in clients {
            let longest = client.join().unwrap();
            assert!(longest < REFUSED_WITHIN, "a refusal took {longest:?}");
        }
        (from, to)
    });
    beats.stop().must_be_quick("a frozen disk", from, to);
    eventually("readiness", || (serving.get("/readyz").status == 200).then_some(()));
    no_host_was_judged(&serving);
    let there = serving.get("/v1/capsules?all=true").json().as_array().unwrap().len();
    assert_eq!(there - before, accepted.load(Ordering::SeqCst), "made and accepted");
    serving.stop();
    home.verify();
}

/// What an agent that renews its token, or registers, hears.
fn agents_are_answered_in_time(serving: &Serving, registered: &Value, pending: &Value) {
    const AGENT_PATIENCE: Duration = Duration::from_secs(15);
    let renew = json!({"refresh_token": registered["refresh_token"]}).to_string();
    let register = json!({"token": pending["registration_token"], "address": "127.0.0.1:2"});
    let ask = |path: &str, body: &str| {
        let begun = Instant::now();
        assert_eq!(serving.ask("POST", path, &[], body).status, 503);
        assert!(begun.elapsed() < AGENT_PATIENCE, "{path}: {:?}", begun.elapsed());
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask("/v1/hosts/auth/refresh", &renew));
            scope.spawn(|| ask("/v1/hosts/register", &register.to_string()));
        }
    });
}

#[test]
fn a_locked_database_holds_up_no_heartbeat_and_clients_are_told_in_time() {
    const CLIENTS: usize = 40;
    let _alone = alone();
    let home = Home::with(&rows(4, 1));
    let serving = home.serve(FLAGS);
    let registered = serving.register("127.0.0.1:1");
    let pending = serving.post("/v1/hosts", &json!({})).json();
    let beats = Beats::start(&serving, &home, 4);
    let before = serving.get("/v1/hosts").json().as_array().unwrap().len();
    let other = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    let (stop, accepted) = (Stop::new(), AtomicUsize::new(0));
    let (from, to) = std::thread::scope(|scope| {
        let end = stop.at_the_end();
        eventually("the lock", || other.execute_batch("BEGIN EXCLUSIVE").ok());
        let from = Instant::now();
        let client = || change_until(&serving, &stop, "/v1/hosts", &accepted);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        wait(FROZEN_FOR / 6);
        agents_are_answered_in_time(&serving, &registered, &pending);
        wait((from + FROZEN_FOR).saturating_duration_since(Instant::now()));
        drop(end);
        let to = Instant::now();
        for client in clients {
            let longest = client.join().unwrap();
            assert!(longest < REFUSED_WITHIN, "a refusal took {longest:?}");
        }
        (from, to)
    });
    assert_eq!(accepted.load(Ordering::SeqCst), 0, "nothing can have been written");
    other.execute_batch("ROLLBACK").unwrap();
    beats.stop().must_be_quick("a locked database", from, to);
    eventually("readiness", || (serving.get("/readyz").status == 200).then_some(()));
    assert_eq!(serving.get("/v1/hosts").json().as_array().unwrap().len(), before);
    serving.stop();
    home.verify();
}

/// Reports that mean nothing, as fast as they are answered.
fn flood_until(serving: &Serving, token: &str, id: &str, stop: &Stop) {
    let body = json!({"event": "\u{1}".repeat(500), "sandbox_id": "nonsense", "host_id": id});
    let known = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(1), "host_id": id});
    let bodies = [body.to_string(), known.to_string()];
    for body in bodies.iter().cycle() {
        if stop.is_raised() {
            return;
        }
        let headers = [("X-Host-Token", token)];
        let answer = serving.ask("POST", "/v1/hosts/sandbox-events", &headers, body);
        assert!(matches!(answer.status, 204 | 403 | 503), "{answer:?}");
    }
}

/// The criterion of the whole: the disk is frozen, forty clients list all rows, a hostile host
/// lists thousands of strangers and reports nonsense, all at once.
#[test]
fn heartbeats_are_answered_whatever_else_happens_at_once() {
    const STRANGERS: u128 = 4000;
    const LISTERS: usize = 40;
    const FLOODS: usize = 8;
    let _alone = alone();
    let Some(disk) = LoopDisk::mount() else { return };
    let ids: Vec<String> = (0..STRANGERS).map(|n| sandbox(1_000_000 + n)).collect();
    let listed: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "running")).collect();
    let agents = Agents::start(vec![Says::lists(&listed)]);
    let home = disk.home();
    let mut fleet = rows(5, LISTED);
    fleet["hosts"][4]["address"] = json!(agents.address(0));
    home.load(&fleet);
    let serving = home.serve(FLAGS);
    let (hostile, token) = (host(5), home.token(&host(5)));
    let beats = Beats::start(&serving, &home, 4);
    let idle_from = Instant::now();
    wait(Duration::from_secs(4));
    let idle_to = Instant::now();
    let (stop, accepted) = (Stop::new(), AtomicUsize::new(0));
    let (from, to) = std::thread::scope(|scope| {
        let end = stop.at_the_end();
        for _ in 0..LISTERS {
            scope.spawn(|| list_until(&serving, serving.key(), &stop));
        }
        for _ in 0..FLOODS {
            scope.spawn(|| flood_until(&serving, &token, &hostile, &stop));
        }
        for _ in 0..FLOODS {
            scope.spawn(|| change_until(&serving, &stop, "/v1/hosts", &accepted));
        }
        eventually("looks", || (agents.calls(0) >= 2).then_some(()));
        let frozen = disk.freeze();
        let from = Instant::now();
        wait(FROZEN_FOR);
        drop(end);
        let to = Instant::now();
        drop(frozen);
        (from, to)
    });
    let taken = beats.stop();
    println!("idle: p99 {:?}", taken.p99(idle_from, idle_to));
    taken.must_be_quick("all at once", from, to);
    eventually("readiness", || (serving.get("/readyz").status == 200).then_some(()));
    for shown in serving.get("/v1/hosts").json().as_array().unwrap() {
        let beats = (1..=4).any(|n| shown["id"] == json!(host(n)));
        assert!(!beats || shown["status"] == "online", "{shown}");
    }
    serving.stop();
    home.verify();
}
