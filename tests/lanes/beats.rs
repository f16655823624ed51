//! Owns heartbeats at a steady rate, as a fleet sends them, and how long each took.
//!
//! Never: decides what is too long but for agents' own patience.

use crate::support::server::Serving;
use crate::support::{Home, host};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a real agent waits for the answer to a heartbeat.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

/// What the 99th of a hundred heartbeats may take.
const P99_MAX: Duration = Duration::from_millis(100);

/// Time between two heartbeats of one host.
const EVERY: Duration = Duration::from_millis(100);

/// A p99 is taken of so much time. The machine is shared with other work, so of several
/// windows the best counts: a server that makes heartbeats wait does so in all of them.
const WINDOW: Duration = Duration::from_secs(2);

/// One heartbeat: when it was sent and how long its answer took.
type Beat = (Instant, Duration);

/// Hosts that send heartbeats until they are stopped, each on its own connection.
pub(crate) struct Beats {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Beat>>>,
}

impl Beats {
    /// Of the first `hosts` hosts.
    pub(crate) fn start(serving: &Serving, home: &Home, hosts: u128) -> Beats {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |n: u128| {
            let (address, stop) = (serving.address(), Arc::clone(&stop));
            let (id, token) = (host(n), home.token(&host(n)));
            std::thread::spawn(move || beat(address, &id, &token, &stop))
        };
        let threads = (1..=hosts).map(thread).collect();
        Beats { stop, threads }
    }

    /// Stops them. Every heartbeat was answered 204, and within the agents' patience.
    pub(crate) fn stop(self) -> Taken {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.threads.into_iter().flat_map(|thread| thread.join().unwrap());
        Taken(all.collect())
    }
}

fn beat(address: SocketAddr, id: &str, token: &str, stop: &AtomicBool) -> Vec<Beat> {
    const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
    let request = format!(
        "POST /v1/hosts/{id}/heartbeat HTTP/1.1\r\nHost: a\r\nX-Host-Token: {token}\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(AGENT_PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut beats = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let sent = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; NO_CONTENT.len()];
        stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("no answer to {id}: {e}"));
        assert_eq!(String::from_utf8_lossy(&answer), String::from_utf8_lossy(NO_CONTENT));
        let took = sent.elapsed();
        beats.push((sent, took));
        std::thread::sleep(EVERY.saturating_sub(took));
    }
    beats
}

/// What heartbeats took.
pub(crate) struct Taken(Vec<Beat>);

impl Taken {
    /// Of those between the two moments the p99 of the best window.
    pub(crate) fn p99(&self, from: Instant, to: Instant) -> Duration {
        let mut best: Option<Duration> = None;
        let mut begin = from;
        while begin + WINDOW <= to {
            let within = |at: Instant| begin <= at && at < begin + WINDOW;
            let mut took: Vec<Duration> =
                self.0.iter().filter(|(at, _)| within(*at)).map(|(_, took)| *took).collect();
            assert!(!took.is_empty(), "no heartbeat at all in a window");
            took.sort_unstable();
            let p99 = took[(took.len() - 1) * 99 / 100];
            best = Some(best.map_or(p99, |best| best.min(p99)));
            begin += WINDOW;
        }
        best.expect("at least one window")
    }

    /// Fails when the p99 between the two moments is too long.
    pub(crate) fn must_be_quick(&self, what: &str, from: Instant, to: Instant) {
        let p99 = self.p99(from, to);
        println!("{what}: {} heartbeats, p99 of the best {WINDOW:?} is {p99:?}", self.0.len());
        assert!(p99 < P99_MAX, "{what}: p99 {p99:?}");
    }
}
