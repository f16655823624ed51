//! Owns what systemd would hear: a real socket in its place, a real server, a writer and a
//! scheduler that are really stuck.
//!
//! Never: takes silence for proof of anything before it has heard that we are fed.

use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually};
use crate::{program, skipped};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `WATCHDOG_USEC`: fed every 100 ms while all is well.
const WATCHDOG: &str = "200000";

/// Longer than a writer that finds its database locked takes for its answer (5 s).
const LONGER_THAN_BUSY: Duration = Duration::from_millis(6500);

/// Two flushes of heartbeats, a locked database, a slow machine.
const SOON: Duration = Duration::from_secs(25);

/// Stands in for systemd.
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        Manager { socket, dir }
    }

    fn starts(&self, mut command: Command) -> Command {
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        command.env("WATCHDOG_USEC", WATCHDOG);
        command
    }

    /// The next message, or that there was none for so long.
    fn next(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    /// The next message that begins so; those before it are passed to `also`.
    fn hears_with(&self, start: &str, mut also: impl FnMut(&str)) -> String {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let Some(message) = self.next(PATIENCE) else { break };
            if message.starts_with(start) {
                return message;
            }
            also(&message);
        }
        panic!("no {start} within {PATIENCE:?}");
    }

    fn hears(&self, start: &str) -> String {
        self.hears_with(start, |_| {})
    }

    fn is_fed(&self, times: usize) {
        (0..times).for_each(|_| drop(self.hears("WATCHDOG=1")));
    }

    /// Waits until nothing was said for so long. That it comes soon tells a thread that is
    /// stuck from one that waits behind it, which takes a full queue.
    fn falls_silent(&self, span: Duration) {
        let until = Instant::now() + SOON;
        while self.next(span).is_some() {
            assert!(Instant::now() < until, "it is still fed");
        }
    }
}

#[test]
fn it_hears_of_readiness_reloads_and_the_end() {
    let (manager, home) = (Manager::new(), Home::new());
    let serving = Serving::start(manager.starts(home.serving(&[])));
    let mut before = Vec::new();
    let ready = manager.hears_with("READY=1", |message| before.push(message.to_owned()));
    assert_eq!(serving.try_get("/readyz").unwrap().status, 200, "ready means ready");
    assert_eq!(ready, format!("READY=1\nSTATUS=listening on http://{}", serving.address()));
    let first = before.remove(0);
    assert_eq!(first, "STATUS=opening the database\nEXTEND_TIMEOUT_USEC=60000000");
    manager.is_fed(3);

    serving.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1\nMONOTONIC_USEC=");
    let micros: i64 = reloading.rsplit('=').next().unwrap().parse().unwrap();
    let now = clock_gettime(ClockId::Monotonic);
    let late = now.tv_sec * 1_000_000 + now.tv_nsec / 1000 - micros;
    assert!((0..60_000_000).contains(&late), "{late} µs ago");
    assert_eq!(manager.hears("READY=1"), ready);
    manager.is_fed(2);

    serving.signal(Signal::TERM);
    assert!(manager.hears("STOPPING=1\nSTATUS=").contains("stopping"));
    let mut serving = serving;
    assert_eq!(serving.wait(), 0);
}

/// A lock from outside, as a stuck `sqlite3` shell would hold it.
fn locked(home: &Home) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    conn.busy_timeout(Duration::from_secs(30)).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    conn
}

#[test]
fn a_start_that_waits_for_its_database_asks_for_more_time() {
    let (manager, home) = (Manager::new(), Home::with(&json!({"hosts": [], "sandboxes": []})));
    let lock = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let command = manager.starts(home.serving(&[]));
    let watch = std::thread::spawn(move || {
        manager.hears("STATUS=opening the database\nEXTEND_TIMEOUT_USEC=");
        let why = manager.hears_with("STATUS=waiting", |m| assert!(!m.contains("READY"), "{m}"));
        assert!(why.starts_with("STATUS=waiting for the database: "), "{why}");
        manager.hears_with("EXTEND_TIMEOUT_USEC=", |m| assert!(!m.contains("READY"), "{m}"));
        drop(lock);
        manager.hears("READY=1");
        manager.is_fed(2);
    });
    let serving = Serving::start(command);
    watch.join().unwrap();
    serving.stop();
}

#[test]
fn a_locked_database_is_no_reason_to_be_killed() {
    let (manager, home) = (Manager::new(), Home::new());
    let serving = Serving::start(manager.starts(home.serving(&["--heartbeat-flush", "100ms"])));
    manager.hears("READY=1");
    let lock = locked(&home);
    serving.logged(&["could not write", "lock"]);
    // The writer says within 5 s that it cannot; the service file waits for two minutes.
    manager.is_fed(3);
    drop(lock);
    manager.is_fed(3);
    serving.stop();
}

#[test]
fn a_full_disk_is_no_reason_to_be_killed() {
    let disk = tempfile::tempdir().unwrap();
    let mount = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).arg(disk.path()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !mount("mount", &["-t", "tmpfs", "-o", "size=3m", "tmpfs"]) {
        return skipped("could not mount a small disk; run it as root");
    }
    let (manager, home) = (Manager::new(), Home::at(disk.path().join("data")));
    let serving = home.served(manager.starts(home.serving(&["--heartbeat-flush", "100ms"])));
    manager.hears("READY=1");
    let mut ballast = File::create(disk.path().join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    let refused = || (serving.post("/v1/hosts", &json!({})).status >= 500).then_some(());
    eventually("a write that fails", refused);
    manager.is_fed(5);
    serving.stop();
    assert!(mount("umount", &["--lazy"]));
}

/// A server whose stderr is a pipe that nobody reads: who logs is stuck.
struct Stuck {
    child: Child,
    pipe: std::io::PipeReader,
}

impl Stuck {
    fn start(manager: &Manager, home: &Home, log: &str) -> Stuck {
        let (pipe, stderr) = std::io::pipe().unwrap();
        // Another description of the same pipe: the server's own stays blocking.
        let path = format!("/proc/self/fd/{}", stderr.as_raw_fd());
        let mut options = File::options();
        let mut filler = options.write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        while filler.write(&[b'.'; 4096]).is_ok() || filler.write(b".").is_ok() {}
        let flags = ["--log", log, "--heartbeat-flush", "2s"];
        let mut command = manager.starts(home.serving(&flags));
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on"), "{line}");
        Stuck { child, pipe }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With this filter only the thread that shall be stuck has something to say; `says` is it.
fn stuck(log: &str, says: &str) {
    let (manager, home) = (Manager::new(), Home::new());
    let stuck = Stuck::start(&manager, &home, log);
    manager.hears("READY=1");
    manager.is_fed(3);
    let lock = locked(&home);
    manager.falls_silent(LONGER_THAN_BUSY);
    drop(lock);
    manager.falls_silent(LONGER_THAN_BUSY);

    let mut pipe = stuck.pipe.try_clone().unwrap();
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    });
    manager.is_fed(3);
    kill_process(Pid::from_child(&stuck.child), Signal::TERM).unwrap();
    manager.hears("STOPPING=1");
    drop(stuck);
    let text = read.join().unwrap();
    assert!(text.contains(says), "{text}");
}

#[test]
fn a_stuck_writer_is_not_fed() {
    stuck("off,roost::store::writer=error", "could not write");
}

#[test]
fn a_stuck_scheduler_is_not_fed() {
    stuck("off,roost::engine::monitor=error", "could not flush heartbeats");
}

#[test]
fn a_wrong_watchdog_and_no_manager_stop_nothing() {
    let home = Home::new();
    let mut command = home.serving(&[]);
    command.env("NOTIFY_SOCKET", home.path("nobody")).env("WATCHDOG_USEC", "soon");
    home.served(command).stop();
}

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/roost.service");

fn unit() -> String {
    std::fs::read_to_string(UNIT).unwrap()
}

/// Writes the service file so that its program is there.
fn here(dir: &Path, text: &str) -> std::path::PathBuf {
    let path = dir.join("roost.service");
    let text = text.replace("/usr/local/bin/roost", env!("CARGO_BIN_EXE_roost"));
    std::fs::write(&path, text).unwrap();
    path
}

fn analyze(args: &[&str], unit: &Path) -> Option<(bool, String)> {
    let analyze = program("systemd-analyze")?;
    let out = Command::new(analyze).args(args).arg(unit).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    Some((out.status.success(), String::from_utf8(text).unwrap()))
}

#[test]
fn the_service_file_is_right_and_tight() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["#LoadCredential", "#Environment"];
    let is_setting = |line: &str| settings.iter().any(|start| line.starts_with(start));
    let all: Vec<String> = unit()
        .lines()
        .map(|line| if is_setting(line) { line[1..].to_owned() } else { line.to_owned() })
        .collect();
    assert!(all.len() > 40 && all.join("\n") != unit().trim_end());
    for text in [unit(), all.join("\n") + "\n"] {
        let Some((fine, said)) = analyze(&["verify"], &here(dir.path(), &text)) else {
            return skipped("no systemd-analyze; it is in Debian's package systemd");
        };
        assert!(fine && said.is_empty(), "{said}");
    }
    let path = here(dir.path(), &unit());
    // In tenths: 1.1 with systemd 252, and newer versions know more to complain of.
    let args = ["security", "--offline=true", "--no-pager", "--threshold=15"];
    let (fine, said) = analyze(&args, &path).unwrap();
    assert!(fine, "{said}");
    let loose = here(dir.path(), &unit().replace("CapabilityBoundingSet=\n", ""));
    assert!(!analyze(&args, &loose).unwrap().0, "the threshold notices");
}

#[test]
fn the_service_file_fits_the_program() {
    let unit = unit();
    let value = |key: &str| {
        let found = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        found.unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    assert_eq!(value("Type"), "notify");
    // Calls in flight may take `stop_timeout`, 10 minutes; probes and open answers 18 s more.
    let stop = humantime::parse_duration(&value("TimeoutStopSec")).unwrap();
    assert!(stop > Duration::from_secs(618));
    assert_eq!(value("WatchdogSec"), "2min");
    assert_eq!(value("RestartPreventExitStatus"), "2");
    assert!(!unit.contains("\nProcSubset=pid"), "the boot id would be hidden");
    // The flags and variables are ours.
    let args: Vec<String> = value("ExecStart").split(' ').skip(1).map(str::to_owned).collect();
    assert_eq!(args, ["serve"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    let nowhere = tempfile::tempdir().unwrap();
    command.env_clear().arg("config").current_dir(nowhere.path());
    for line in unit.lines() {
        let line = line.trim_start_matches('#');
        for pair in line.strip_prefix("Environment=").unwrap_or_default().split(' ') {
            if let Some((name, value)) = pair.split_once('=') {
                command.env(name, value);
            }
        }
    }
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}
