//! Owns what becomes of a server whose disk fails it: full, read-only, damaged, its log or
//! its whole directory gone, no file descriptors left. Whatever it is, agents are told
//! nothing that kills, what was acknowledged stays, and what can pass passes without a
//! restart.
//!
//! Never: skips in silence. Small disks are mounted, which takes root; where that is not
//! permitted the test says so, and fails when `CI` is set.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use roost::clock::{Clock, SystemClock};
use roost::store::open::open_reader;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use support::agents::{Agents, Says};
use support::client::{Answer, try_ask};
use support::server::{Serving, listening};
use support::{Home, PATIENCE, eventually, host, sandbox};
use tempfile::TempDir;

/// Room of a small disk: less than the log takes before it is copied back and used anew.
const DISK: &str = "size=3m";

/// More than are kept of one host while nothing can be written.
const TOO_MANY: u128 = 2000;

/// A small disk of its own; gone with the test.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where nothing may be mounted, which it says.
    fn mount() -> Option<SmallDisk> {
        let disk = SmallDisk(tempfile::tempdir().unwrap());
        let mounted = disk.command("mount", &["-t", "tmpfs", "-o", DISK, "tmpfs"]);
        if mounted {
            return Some(disk);
        }
        assert!(std::env::var_os("CI").is_none(), "could not mount a small disk; CI must be root");
        // Past the capture of tests that pass.
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        let text = format!("\nSKIPPED {name}: could not mount a small disk; run it as root\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        None
    }

    fn command(&self, program: &str, args: &[&str]) -> bool {
        let mut command = Command::new(program);
        command.args(args).arg(self.0.path()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn home(&self) -> Home {
        Home::at(self.0.path().join("data"))
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        assert!(self.command("mount", &["-o", options]), "could not {options}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.command("umount", &["--lazy"]);
    }
}

/// Two hosts with a running sandbox each; agent `n` lists what it has.
fn two_hosts() -> (Agents, Value) {
    let running = |n: u128| Says::lists(&[(&sandbox(n), "running")]);
    let agents = Agents::start(vec![running(1), running(2)]);
    let row = |n: u128| {
        json!({"id": host(n), "status": "online", "heartbeat_age_s": 5,
            "address": agents.address(n as usize - 1)})
    };
    let sandbox = |n: u128| json!({"id": sandbox(n), "host_id": host(n), "status": "running"});
    let fleet = json!({"hosts": [row(1), row(2)], "sandboxes": [sandbox(1), sandbox(2)]});
    (agents, fleet)
}

const FLAGS: &[&str] = &[
    "--probe-interval",
    "1s",
    "--probe-timeout",
    "1s",
    "--confirm-delay",
    "100ms",
    "--heartbeat-flush",
    "100ms",
];

const UNAVAILABLE: u16 = 503;

fn unavailable(answer: &Answer) {
    assert_eq!(answer.refusal(), (UNAVAILABLE, "unavailable".to_owned()), "{answer:?}");
}

fn refresh(serving: &Serving, registered: &Value) -> Answer {
    let body = json!({"refresh_token": registered["refresh_token"]});
    serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body.to_string())
}

fn report_auto_pause(serving: &Serving, token: &str, n: u128) -> Answer {
    let body = json!({"event": "sandbox.auto_paused", "sandbox_id": sandbox(n),
        "host_id": host(n), "timestamp": SystemClock.now().wall.to_string()});
    let headers = [("X-Host-Token", token)];
    serving.ask("POST", "/v1/hosts/sandbox-events", &headers, &body.to_string())
}

fn capsule(serving: &Serving, n: u128) -> Value {
    serving.get(&format!("/v1/capsules/{}", sandbox(n))).json()
}

/// Waits until a capsule is paused; why.
fn paused(serving: &Serving, n: u128) -> String {
    eventually("a pause", || {
        let capsule = capsule(serving, n);
        assert_ne!(capsule["status"], "stopped", "{capsule}");
        let is_paused = capsule["status"] == "paused";
        is_paused.then(|| capsule["status_reason"].as_str().unwrap().to_owned())
    })
}

fn ready(serving: &Serving) {
    eventually("readiness", || (serving.get("/readyz").status == 200).then_some(()));
}

/// What agents hear while the database takes no writes: those with a good token go on, and
/// nobody is sent to renew what cannot be renewed.
fn agents_wait(home: &Home, serving: &Serving) {
    assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204);
    unavailable(&serving.beat(&host(1), &home.expired_token(&host(1))));
    unavailable(&serving.beat(&host(1), &support::token::forged(&host(1))));
}

/// Nobody else gets anything done either.
fn users_wait(serving: &Serving) {
    let path = format!("/v1/capsules/{}", sandbox(1));
    unavailable(&serving.post("/v1/capsules", &json!({})));
    unavailable(&serving.post(&format!("{path}/pause"), &Value::Null));
    unavailable(&serving.ask("DELETE", &path, &[("X-API-Key", serving.key())], ""));
    unavailable(&serving.post(&format!("/v1/hosts/{}/drain", host(1)), &Value::Null));
    unavailable(&serving.post("/v1/hosts", &json!({})));
    assert_eq!(serving.get(&path).status, 200, "a look needs no disk");
    assert_eq!(serving.get("/healthz").status, 200);
}

/// Not ready, and it says why in these words.
fn not_ready(serving: &Serving, words: &[&str]) {
    let answer = serving.get("/readyz");
    assert_eq!(answer.status, UNAVAILABLE, "{answer:?}");
    for word in words {
        assert!(answer.message().contains(word), "{word}: {answer:?}");
    }
}

/// With less room than the log takes before it is usually copied back, it would fill the disk,
/// and nothing could be copied back any more.
#[test]
fn a_small_disk_is_not_filled_by_the_log_alone() {
    let Some(disk) = SmallDisk::mount() else { return };
    let home = disk.home();
    let serving = home.serve(FLAGS);
    for _ in 0..300 {
        let added = serving.post("/v1/hosts", &json!({}));
        assert_eq!(added.status, 201, "{added:?}");
        let path = format!("/v1/hosts/{}", added.json()["host"]["id"].as_str().unwrap());
        let deleted = serving.ask("DELETE", &path, &[("X-API-Key", serving.key())], "");
        assert_eq!(deleted.status, 204, "{deleted:?}");
    }
    let size = |name: &str| std::fs::metadata(home.path(name)).unwrap().len();
    let (log, database) = (size("roost.db-wal"), size("roost.db"));
    assert!(log < 1_500_000 && database > 200_000, "log {log}, database {database}");
    serving.stop();
    home.verify();
}

#[test]
fn a_full_disk_loses_nothing_and_is_over_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (agents, fleet) = two_hosts();
    let home = disk.home();
    home.load(&fleet);
    let serving = home.serve(FLAGS);
    let registered = serving.register("127.0.0.1:1");
    let pending = serving.post("/v1/hosts", &json!({})).json();

    disk.fill();
    let mut added = 2 + 2;
    eventually("the last of the log's room", || {
        let answer = serving.post("/v1/hosts", &json!({}));
        added += usize::from(answer.status == 201);
        (answer.status == UNAVAILABLE).then_some(())
    });
    let line = serving.logged(&["ERROR", "could not write"]);
    assert!(line.contains("the disk refused a write") && line.contains("free space"), "{line}");
    not_ready(&serving, &["the disk refused a write", "free space"]);
    users_wait(&serving);
    agents_wait(&home, &serving);
    unavailable(&refresh(&serving, &registered));
    let body = json!({"token": pending["registration_token"], "address": "127.0.0.1:2"});
    let register = || serving.ask("POST", "/v1/hosts/register", &[], &body.to_string());
    unavailable(&register());
    unavailable(&report_auto_pause(&serving, &home.token(&host(2)), 2));
    // Said once, and several answers later still not written.
    agents.say(0, Says::listing(&[], &[&sandbox(1)]));
    agents.then(0, Says::lists(&[]));
    let asked = agents.calls(0);
    eventually("more looks", || (agents.calls(0) >= asked + 3).then_some(()));
    assert_eq!(capsule(&serving, 1)["status"], "running");

    disk.free();
    ready(&serving);
    assert_eq!(paused(&serving, 1), "auto_paused");
    agents.say(1, Says::lists(&[]));
    assert_eq!(report_auto_pause(&serving, &home.token(&host(2)), 2).status, 204);
    assert_eq!(paused(&serving, 2), "auto_paused");
    assert_eq!(refresh(&serving, &registered).status, 200);
    assert_eq!(register().status, 201, "the token was not used up");
    assert_eq!(serving.get("/v1/hosts").json().as_array().unwrap().len(), added);
    assert_eq!(serving.beat(&host(1), &home.expired_token(&host(1))).status, 401);
    serving.stop();
    home.verify();
}

/// Fills the disk, and the log's room with it.
fn fill_to_the_last(disk: &SmallDisk, serving: &Serving) {
    disk.fill();
    eventually("the last of the log's room", || {
        (serving.post("/v1/hosts", &json!({})).status == UNAVAILABLE).then_some(())
    });
}

/// On a machine whose disk is full, the log must not be what fills it.
#[test]
fn refused_writes_are_at_most_one_line_a_second() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (_agents, fleet) = two_hosts();
    let home = disk.home();
    home.load(&fleet);
    let serving = home.serve(FLAGS);
    fill_to_the_last(&disk, &serving);
    let (began, before) = (Instant::now(), serving.log().len());
    for _ in 0..300 {
        unavailable(&serving.post("/v1/hosts", &json!({})));
        unavailable(&report_auto_pause(&serving, &home.token(&host(2)), 2));
    }
    eventually("a second to count what was left out", || {
        serving.log()[before..].iter().any(|line| line.contains(" more")).then_some(())
    });
    let (log, most) = (serving.log(), began.elapsed().as_secs() as usize + 2);
    let said = &log[before..];
    assert!(said.len() <= most, "{} lines in {most} s: {said:#?}", said.len());
    disk.free();
    ready(&serving);
    serving.stop();
}

/// What is kept in memory has a bound; of a host that goes beyond it nobody knows what else
/// it paused, so what is absent is presumed paused.
#[test]
fn announcements_that_do_not_fit_in_memory_stop_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (agents, fleet) = two_hosts();
    let home = disk.home();
    home.load(&fleet);
    let serving = home.serve(FLAGS);
    fill_to_the_last(&disk, &serving);
    let made_up: Vec<String> = (100..100 + TOO_MANY).map(sandbox).collect();
    let mut announced: Vec<&str> = made_up.iter().map(String::as_str).collect();
    let last = sandbox(1);
    announced.push(&last);
    agents.say(0, Says::listing(&[], &announced));
    agents.then(0, Says::lists(&[]));
    serving.logged(&["WARN", &host(1), "more than can be kept"]);
    let asked = agents.calls(0);
    eventually("more looks", || (agents.calls(0) >= asked + 3).then_some(()));
    serving.beat(&host(1), &home.token(&host(1)));
    disk.free();
    assert_eq!(paused(&serving, 1), "presumed_paused");
    assert_eq!(capsule(&serving, 2)["status"], "running", "nobody else is concerned");
    serving.stop();
    home.verify();
}

/// A server that has not said that it is ready; killed when dropped.
struct Starting {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Starting {
    fn new(home: &Home, log: &Path) -> Starting {
        let mut command = home.serving(FLAGS);
        let stderr = std::fs::File::create(log).unwrap();
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let address = eventually("a socket that listens", || listening(child.id()));
        Starting { child, address, log: log.to_owned() }
    }

    fn beat(&self, token: &str) -> Answer {
        let path = format!("/v1/hosts/{}/heartbeat", host(1));
        try_ask(self.address, "POST", &path, &[("X-Host-Token", token)], "").unwrap()
    }

    fn logged(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
            log.lines().find(has_all).map(str::to_owned)
        })
    }

    fn end(&mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        let ended = eventually("the end", || self.child.try_wait().unwrap());
        ended.code()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // It has often ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What of its log is beside a database. A log with room in it would do for a start on a
/// full disk.
#[derive(Debug, Clone, Copy)]
enum Beside {
    /// A log in which nothing is: all of it was copied back.
    EmptyLog,
    /// Nothing, as after a restore or a copy of the file.
    Nothing,
}

impl Beside {
    fn leave(self, home: &Home) {
        let log = home.path("roost.db-wal");
        match self {
            Beside::EmptyLog => std::fs::write(&log, "").unwrap(),
            Beside::Nothing => {
                let database = rusqlite::Connection::open(home.path("roost.db")).unwrap();
                database.execute_batch("SELECT * FROM state").unwrap();
                database.close().unwrap();
                assert!(!log.exists() && !home.path("roost.db-shm").exists());
            }
        }
    }
}

/// Agents that get no answer three times pause everything: a server that cannot write yet
/// answers them all the same, and begins when it can.
fn starts_when_it_can(beside: Beside, spoil: fn(&SmallDisk), mend: fn(&SmallDisk), words: &[&str]) {
    let Some(disk) = SmallDisk::mount() else { return };
    let (_agents, fleet) = two_hosts();
    let home = disk.home();
    home.load(&fleet);
    home.serve(FLAGS).stop();
    beside.leave(&home);
    let token = home.token(&host(1));
    spoil(&disk);
    let logs = tempfile::tempdir().unwrap();
    let mut starting = Starting::new(&home, &logs.path().join("one"));
    starting.logged(&["ERROR", "could not open the database", "trying again"]);
    starting.logged(words);
    unavailable(&starting.beat(&token));
    unavailable(&starting.beat("no token at all"));
    assert_eq!(starting.end(), Some(1), "whoever does not want to wait may end it");

    let mut starting = Starting::new(&home, &logs.path().join("two"));
    starting.logged(&["trying again"]);
    mend(&disk);
    eventually("the database is open", || (starting.beat(&token).status == 204).then_some(()));
    assert_eq!(starting.end(), Some(0));
    home.verify();
}

fn starts_when_it_can_be_written(beside: Beside) {
    let set = |disk: &SmallDisk| disk.set_read_only(true);
    let unset = |disk: &SmallDisk| disk.set_read_only(false);
    starts_when_it_can(beside, set, unset, &["readonly", "repair"]);
}

/// A start on the machine that it last ran on has nothing to write.
#[test]
fn a_server_starts_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (_agents, fleet) = two_hosts();
    let home = disk.home();
    home.load(&fleet);
    home.serve(FLAGS).stop();
    Beside::EmptyLog.leave(&home);
    let token = home.token(&host(1));
    disk.fill();
    let serving = home.serve(FLAGS);
    assert_eq!(serving.beat(&host(1), &token).status, 204);
    unavailable(&serving.post("/v1/hosts", &json!({})));
    disk.free();
    ready(&serving);
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    serving.stop();
    home.verify();
}

#[test]
fn a_server_on_a_full_disk_starts_without_a_log_when_there_is_room() {
    let words = ["the disk refused a write", "free space"];
    starts_when_it_can(Beside::Nothing, SmallDisk::fill, SmallDisk::free, &words);
}

#[test]
fn a_server_on_a_read_only_disk_starts_when_it_can_be_written() {
    starts_when_it_can_be_written(Beside::EmptyLog);
}

#[test]
fn a_server_on_a_read_only_disk_starts_without_a_log_when_it_can_be_written() {
    starts_when_it_can_be_written(Beside::Nothing);
}

#[test]
fn a_database_that_somebody_else_keeps_locked_is_waited_for() {
    let (_agents, fleet) = two_hosts();
    let home = Home::with(&fleet);
    home.serve(FLAGS).stop();
    let token = home.token(&host(1));
    let other = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let logs = tempfile::tempdir().unwrap();
    let mut starting = Starting::new(&home, &logs.path().join("log"));
    starting.logged(&["ERROR", "keeps the database locked", "trying again"]);
    unavailable(&starting.beat(&token));
    other.execute_batch("ROLLBACK").unwrap();
    eventually("the database is open", || (starting.beat(&token).status == 204).then_some(()));
    assert_eq!(starting.end(), Some(0));

    let serving = home.serve(FLAGS);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    unavailable(&serving.post("/v1/hosts", &json!({})));
    not_ready(&serving, &["keeps the database locked"]);
    agents_wait(&home, &serving);
    assert_eq!(serving.get("/v1/hosts").json().as_array().unwrap().len(), 2);
    other.execute_batch("ROLLBACK").unwrap();
    ready(&serving);
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    serving.stop();
    home.verify();
}

/// Overwrites the pages where these tables begin.
fn damage(db: &Path, tables: &[&str]) {
    let page = |table: &&str| -> u32 {
        let conn = open_reader(db).unwrap();
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        conn.query_row(sql, [table], |row| row.get(0)).unwrap()
    };
    let pages: Vec<u32> = tables.iter().map(page).collect();
    let file = std::fs::OpenOptions::new().write(true).open(db).unwrap();
    for page in pages {
        file.write_all_at(&[0xa5; 4096], u64::from(page - 1) * 4096).unwrap();
    }
}

/// A server over a database of which some tables are damaged, and nobody knows yet.
fn with_damage(tables: &[&str]) -> (Home, Serving, Value) {
    let home = Home::new();
    home.load(&json!({"hosts": [{"id": host(1), "status": "online", "heartbeat_age_s": 5}]}));
    let serving = home.serve(FLAGS);
    let registered = serving.register("127.0.0.1:1");
    serving.stop();
    let serving = home.serve(FLAGS);
    let db = home.path("roost.db");
    let other = rusqlite::Connection::open(&db).unwrap();
    // Nothing of the log may hide what is wrong in the file.
    let fold = |row: &rusqlite::Row<'_>| row.get::<_, bool>(0);
    eventually("the log is folded in", || {
        let busy = other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], fold).unwrap();
        (!busy).then_some(())
    });
    damage(&db, tables);
    // Somebody else's write: whoever has read the pages before reads them again.
    other.execute_batch("UPDATE state SET boot_id = boot_id").unwrap();
    (home, serving, registered)
}

fn damage_is_told(home: &Home, serving: Serving) {
    serving.logged(&["ERROR", "the database is damaged", "restore a backup"]);
    not_ready(&serving, &["damaged", "restore a backup"]);
    // Heartbeats go on being written, which proves nothing.
    for _ in 0..2 {
        let before = flushed_at(home);
        eventually("a flush", || (flushed_at(home) > before).then_some(()));
    }
    agents_wait(home, &serving);
    not_ready(&serving, &["damaged"]);
    serving.stop();
    let verified = home.roost(&["db", "verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
}

/// When heartbeats were written last.
fn flushed_at(home: &Home) -> i64 {
    let conn = open_reader(&home.path("roost.db")).unwrap();
    conn.query_row("SELECT listened_until FROM state", [], |row| row.get(0)).unwrap()
}

#[test]
fn damage_that_a_write_finds_sends_no_agent_to_renew() {
    let (home, serving, registered) = with_damage(&["refresh_tokens"]);
    unavailable(&refresh(&serving, &registered));
    damage_is_told(&home, serving);
}

#[test]
fn damage_that_a_look_finds_sends_no_agent_to_renew() {
    let (home, serving, _) = with_damage(&["sandboxes", "sandboxes_by_id", "sandboxes_by_age"]);
    unavailable(&serving.get("/v1/capsules"));
    damage_is_told(&home, serving);
}

#[test]
fn a_log_that_is_lost_costs_what_was_in_it_and_kills_nobody() {
    let home = Home::new();
    let serving = home.serve(FLAGS);
    let kept = serving.register("127.0.0.1:1");
    serving.stop();
    let serving = home.serve(FLAGS);
    let lost = serving.register("127.0.0.1:2");
    let renewed = refresh(&serving, &kept);
    assert_eq!(renewed.status, 200, "{renewed:?}");
    serving.kill();
    std::fs::remove_file(home.path("roost.db-wal")).unwrap();
    std::fs::remove_file(home.path("roost.db-shm")).unwrap();

    // The mark beside the keys knows of what was in it: as after a restore.
    let serving = home.serve_restored(FLAGS);
    not_ready(&serving, &["restored"]);
    let beat = |registered: &Value| {
        let id = registered["host"]["id"].as_str().unwrap();
        serving.beat(id, registered["token"].as_str().unwrap())
    };
    unavailable(&beat(&kept));
    unavailable(&beat(&lost));
    let accepted = serving.post("/v1/database/accept", &json!({}));
    assert_eq!(accepted.status, 200, "{accepted:?}");
    assert_eq!(beat(&kept).status, 204);
    assert_eq!(refresh(&serving, &renewed.json()).status, 200, "signed by us, and newer");
    unavailable(&beat(&lost));
    serving.stop();
    home.verify();
}

#[test]
fn a_database_that_was_only_in_its_log_is_begun_anew_and_kills_nobody() {
    let home = Home::new();
    let serving = home.serve(FLAGS);
    let lost = serving.register("127.0.0.1:3");
    serving.kill();
    std::fs::remove_file(home.path("roost.db-wal")).unwrap();
    let serving = home.serve_restored(FLAGS);
    let id = lost["host"]["id"].as_str().unwrap();
    unavailable(&serving.beat(id, lost["token"].as_str().unwrap()));
    unavailable(&refresh(&serving, &lost));
    serving.stop();
    home.verify();
}

/// What is written to a file that has no name any more is gone with the process: nothing
/// is acknowledged then.
#[test]
fn nothing_is_acknowledged_once_the_directory_is_gone() {
    let (_agents, fleet) = two_hosts();
    let home = Home::with(&fleet);
    let serving = home.serve(FLAGS);
    let away = home.dir().with_file_name("away");
    let token = home.token(&host(1));
    let expired = home.expired_token(&host(1));
    std::fs::rename(home.dir(), &away).unwrap();
    unavailable(&serving.post("/v1/hosts", &json!({})));
    not_ready(&serving, &["no longer at", "put it back"]);
    assert_eq!(serving.beat(&host(1), &token).status, 204);
    unavailable(&serving.beat(&host(1), &expired));
    std::fs::rename(&away, home.dir()).unwrap();
    ready(&serving);
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    assert_eq!(serving.beat(&host(1), &expired).status, 401);

    let wal = home.path("roost.db-wal");
    let hidden = home.path("hidden");
    std::fs::rename(&wal, &hidden).unwrap();
    unavailable(&serving.post("/v1/hosts", &json!({})));
    std::fs::rename(&hidden, &wal).unwrap();
    ready(&serving);
    serving.stop();
    home.verify();

    let mut serving = home.serve(FLAGS);
    std::fs::remove_dir_all(home.dir()).unwrap();
    unavailable(&serving.post("/v1/hosts", &json!({})));
    unavailable(&serving.beat(&host(1), &expired));
    assert_eq!(serving.beat(&host(1), &token).status, 204);
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait(), 0, "{:?}", serving.log());
}

fn open_files(serving: &Serving) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", serving.pid())).unwrap().count() as u64
}

fn limit_files(serving: &Serving, current: Option<u64>) {
    let pid = Pid::from_raw(serving.pid().cast_signed());
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = current.or(maximum);
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// No probe, no reader and no new connection is possible; what has a connection goes on,
/// and nothing is decided from questions that could not be asked.
#[test]
fn no_file_descriptors_left_harms_nobody() {
    let (agents, fleet) = two_hosts();
    let home = Home::with(&fleet);
    let serving = home.serve(FLAGS);
    let token = home.token(&host(1));
    eventually("a probe", || (agents.calls(0) > 0 && agents.calls(1) > 0).then_some(()));
    let mut kept = TcpStream::connect(serving.address).unwrap();
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(beat_over(&mut kept, &token), 204);
    limit_files(&serving, Some(3));
    assert_eq!(beat_over(&mut kept, &token), 204);
    let line = serving.logged(&["Too many open files"]);
    assert!(open_files(&serving) > 3, "{line}");
    let asked = agents.calls(0);
    // The probes that come now are never heard of by an agent.
    let failed = || serving.log().iter().filter(|line| line.contains("degraded")).count() > 1;
    eventually("failed probes", || failed().then_some(()));
    assert!(agents.calls(0) <= asked + 1);

    limit_files(&serving, None);
    ready(&serving);
    eventually("probes again", || (agents.calls(0) > asked + 2).then_some(()));
    for n in [1, 2] {
        assert_eq!(capsule(&serving, n)["status"], "running");
    }
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    serving.stop();
    home.verify();
}

/// Beats over a connection that stays open; the status.
fn beat_over(stream: &mut TcpStream, token: &str) -> u16 {
    let request = format!(
        "POST /v1/hosts/{}/heartbeat HTTP/1.1\r\nHost: roost\r\nX-Host-Token: {token}\r\n\
         Content-Length: 0\r\n\r\n",
        host(1)
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let text = String::from_utf8(answer).unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}
