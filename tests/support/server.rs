//! Owns a running `roost serve`: started on a port of its own, watched by its log, stopped
//! by signals.
//!
//! Never: outlives the test.
#![allow(clippy::print_stderr, reason = "the log of a server whose test failed")]

use super::client::{Answer, try_ask};
use super::{Home, PATIENCE, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

/// A server process; killed when dropped.
pub struct Serving {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    key: String,
}

impl Home {
    /// Starts `roost serve` with these flags and waits until it is ready.
    pub fn serve(&self, flags: &[&str]) -> Serving {
        self.served(self.serving(flags))
    }

    /// Starts `roost serve` on a database that nobody has accepted; waits until it answers.
    pub fn serve_restored(&self, flags: &[&str]) -> Serving {
        let mut serving = Serving::start(self.serving(flags));
        let read_key = || std::fs::read_to_string(self.path("admin.key")).ok();
        serving.key = eventually("the admin key", read_key).trim().to_owned();
        eventually("an answer of the open database", || {
            serving.try_get("/v1/hosts").ok().filter(|answer| answer.status == 200)
        });
        serving
    }

    /// The command that `serve` starts.
    pub fn serving(&self, flags: &[&str]) -> Command {
        self.command(&[&["serve", "--listen", "127.0.0.1:0"], flags].concat())
    }

    /// Starts this command of ours and waits until it is ready.
    pub fn served(&self, command: Command) -> Serving {
        let mut serving = Serving::start(command);
        let read_key = || std::fs::read_to_string(self.path("admin.key")).ok();
        serving.key = eventually("the admin key", read_key).trim().to_owned();
        eventually("readiness", || {
            serving.try_get("/readyz").ok().filter(|answer| answer.status == 200)
        });
        serving
    }
}

impl Serving {
    /// Starts this command and waits until it listens, which it says only once its database
    /// is open.
    pub fn begin(mut command: Command) -> Serving {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (log, reader) = Serving::read(&mut child);
        let address = eventually("a socket that listens", || listening(child.id()));
        Serving { child, address, log, reader: Some(reader), key: String::new() }
    }

    /// Keeps what it logs.
    fn read(child: &mut Child) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        (log, reader)
    }

    /// Starts this command and waits until it says where it listens.
    pub fn start(mut command: Command) -> Serving {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (log, reader) = Serving::read(&mut child);
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("listening on http");
        let address = address.and_then(|rest| rest.trim_start_matches('s').strip_prefix("://"));
        let Some(address) = address.map(|text| text.parse().unwrap()) else {
            let _ = child.wait();
            panic!("no address: {first:?}, {:?}", log.lock().unwrap());
        };
        Serving { child, address, log, reader: Some(reader), key: String::new() }
    }

    /// The key of the operator.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a line of the log has all of these words.
    pub fn logged(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), || {
            let log = self.log.lock().unwrap();
            log.iter().find(|line| words.iter().all(|word| line.contains(word))).cloned()
        })
    }

    pub fn try_get(&self, path: &str) -> std::io::Result<Answer> {
        try_ask(self.address, "GET", path, &[("X-API-Key", &self.key)], "")
    }

    /// Asks as the operator.
    pub fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap()
    }

    /// Asks as the operator, with a body.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[("X-API-Key", &self.key)], &body.to_string())
    }

    /// Asks as anybody.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        try_ask(self.address, method, path, headers, body).unwrap()
    }

    /// Beats for a host.
    pub fn beat(&self, host: &str, token: &str) -> Answer {
        let path = format!("/v1/hosts/{host}/heartbeat");
        self.ask("POST", &path, &[("X-Host-Token", token)], "{}")
    }

    /// Adds a host and registers it at this address; gives what the agent was answered.
    pub fn register(&self, address: &str) -> Value {
        let added = self.post("/v1/hosts", &json!({})).json();
        let body = json!({"token": added["registration_token"], "address": address});
        let answer = self.ask("POST", "/v1/hosts/register", &[], &body.to_string());
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; the exit code, or minus the signal.
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "still running after {PATIENCE:?}: {:?}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        // Everything it said is there once its end of the pipe is closed.
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    /// Asks it to stop and waits; it must say that it did.
    pub fn stop(mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), 0, "{:?}", self.log());
        self.log()
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) -> Vec<String> {
        self.signal(Signal::KILL);
        assert_eq!(self.wait(), -9);
        self.log()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has often ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log().join("\n"));
        }
    }
}

/// Where a process listens: the first of its sockets that does.
pub fn listening(pid: u32) -> Option<SocketAddr> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| {
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields[3] == "0A" && sockets.iter().any(|inode| inode == fields[9]);
        let port = fields[1].rsplit_once(':').filter(|_| listens)?.1;
        Some(SocketAddr::from(([127, 0, 0, 1], u16::from_str_radix(port, 16).ok()?)))
    })
}
