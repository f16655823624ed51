//! Owns what the transport does to its whole process: threads, memory, file descriptors.
//!
//! Never: runs two tests at a time, since each would see the other's. `measure` prints
//! figures: `cargo test --release --test http_process -- --ignored --nocapture`.

use roost::http::{Handler, Request, Response, Server, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// One heartbeat-like request.
const POST: &[u8] =
    b"POST /v1/hosts/host-0000000000000000000000000/heartbeat HTTP/1.1\r\nHost: roost:8000\r\n\
      User-Agent: agent\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\
      X-Host-Token: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n{}";
const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

struct NoContent;

impl Handler for NoContent {
    fn handle(&self, request: Request) -> Response {
        assert_eq!((request.path.len(), request.body.as_slice()), (50, &b"{}"[..]));
        Response::empty(204)
    }
}

fn start() -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    // Longer than any test: what ends here does not end by its deadline.
    let config = ServerConfig { body_deadline: PATIENCE * 9, ..ServerConfig::default() };
    let server = Server::start(vec![listener], Arc::new(NoContent), config);
    (server.expect("starts"), address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream.set_nodelay(true).expect("settable");
    stream
}

fn beat(stream: &mut TcpStream) {
    stream.write_all(POST).expect("writes");
    let mut answer = [0; NO_CONTENT.len()];
    stream.read_exact(&mut answer).expect("is answered");
    assert_eq!(answer, NO_CONTENT);
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads of all servers of this process.
fn server_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("listed");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("http-")).count()
}

/// A thread that has ended is listed for a moment longer, and that gives no event.
fn wait_for_threads(expected: usize) {
    let until = Instant::now() + PATIENCE;
    while server_threads() != expected {
        assert!(Instant::now() < until, "{} threads, not {expected}", server_threads());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn status_kib(field: &str) -> i64 {
    let status = fs::read_to_string("/proc/self/status").expect("read");
    let line = status.lines().find(|line| line.starts_with(field)).expect("there");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn two_thousand_idle_connections_hold_no_thread_and_little_memory() {
    let _alone = alone();
    let (server, address) = start();
    // The workers, the reaper, and two for event streams.
    let at_rest = ServerConfig::default().workers + 3;
    let mut clients = Vec::with_capacity(2000);
    // The first ones warm the workers' buffers.
    for _ in 0..100 {
        clients.push(connect(address));
    }
    clients.iter_mut().for_each(beat);
    let before_kib = status_kib("VmRSS:");
    for _ in 100..2000 {
        clients.push(connect(address));
    }
    clients.iter_mut().for_each(beat);
    let grown_kib = status_kib("VmRSS:") - before_kib;
    assert_eq!(server.connections(), 2000);
    wait_for_threads(at_rest);
    assert!(grown_kib < 1900, "1900 connections took {grown_kib} KiB");
    clients.iter_mut().for_each(beat);
    assert!(server.shutdown(PATIENCE));
    wait_for_threads(0);
}

#[test]
fn half_sent_bodies_take_bounded_memory_and_heartbeats_get_through() {
    let _alone = alone();
    let (server, address) = start();
    let mut kept = connect(address);
    beat(&mut kept);
    let before_kib = status_kib("VmRSS:");
    let body = vec![b'x'; 1_000_000];
    let mut hostile = Vec::new();
    for _ in 0..150 {
        let mut client = connect(address);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000001\r\n\r\n";
        client.write_all(head.as_bytes()).expect("writes");
        // Those for whom there is no room are cut in the middle.
        let _ = client.write_all(&body);
        hostile.push(client);
        beat(&mut kept);
    }
    let until = Instant::now() + PATIENCE;
    while server.connections() > 80 {
        assert!(Instant::now() < until, "{} connections were kept", server.connections());
        beat(&mut connect(address));
    }
    let grown_kib = status_kib("VmRSS:") - before_kib;
    assert!(grown_kib < 100 * 1024, "they took {grown_kib} KiB");
    beat(&mut kept);
}

#[test]
fn a_server_without_file_descriptors_goes_on_when_there_are_some() {
    let _alone = alone();
    let (server, address) = start();
    let mut kept = connect(address);
    beat(&mut kept);
    let limit = getrlimit(Resource::Nofile);
    // Files take whatever the limit leaves but for one client's side of a connection.
    let open = fs::read_dir("/proc/self/fd").expect("listed").count() as u64;
    let scarce = Rlimit { current: Some(open + 8), maximum: limit.maximum };
    setrlimit(Resource::Nofile, scarce).expect("lowered");
    let mut hoard = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        hoard.push(file);
    }
    hoard.pop();
    let mut waiting = connect(address);
    // The one that waited longest makes room for it.
    assert_eq!(kept.read(&mut [0; 1]).expect("closed properly"), 0);
    let until = Instant::now() + PATIENCE;
    while server.connections() != 1 {
        assert!(Instant::now() < until, "nobody was let in");
        std::thread::sleep(Duration::from_millis(2));
    }
    // And is let in once, not dropped for a next one that does not exist.
    beat(&mut waiting);

    hoard.clear();
    setrlimit(Resource::Nofile, limit).expect("raised");
    beat(&mut connect(address));
    assert!(server.shutdown(PATIENCE));
}

/// Calls `round` `rounds` times from each of `threads` threads; returns rate and latencies.
fn measure_rounds(
    what: &str,
    threads: usize,
    rounds: usize,
    pause: Duration,
    round: impl Fn(&mut Option<TcpStream>) + Sync,
) -> String {
    let (cpu_before, barrier) = (cpu_ms(), Barrier::new(threads));
    let begun = Instant::now();
    let mut took_us: Vec<u128> = std::thread::scope(|scope| {
        let work = || {
            barrier.wait();
            let mut kept = None;
            let took = (0..rounds).map(|_| {
                let begun = Instant::now();
                round(&mut kept);
                let took = begun.elapsed().as_micros();
                std::thread::sleep(pause);
                took
            });
            took.collect::<Vec<_>>()
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("ends")).collect()
    });
    let (wall, cpu) = (begun.elapsed(), cpu_ms() - cpu_before);
    took_us.sort_unstable();
    let at = |per_mille: usize| took_us[(took_us.len() - 1) * per_mille / 1000];
    format!(
        "{{\"case\":\"{what}\",\"per_second\":{:.0},\"p50_us\":{},\"p99_us\":{},\"max_us\":{},\
         \"cpu_us_per_request_client_included\":{:.1}}}",
        took_us.len() as f64 / wall.as_secs_f64(),
        at(500),
        at(990),
        at(1000),
        cpu as f64 * 1000.0 / took_us.len() as f64,
    )
}

/// Of this process, client threads included.
fn cpu_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

#[test]
#[ignore = "prints figures, proves nothing"]
fn measure() {
    let _alone = alone();
    let (server, address) = start();
    let keep = |kept: &mut Option<TcpStream>| {
        beat(kept.get_or_insert_with(|| connect(address)));
    };
    let (none, pause) = (Duration::ZERO, Duration::from_millis(12));
    println!("{}", measure_rounds("keep-alive", 32, 4000, none, keep));
    println!("{}", measure_rounds("keep-alive, paced near 5000/s", 64, 400, pause, keep));
    let once = |_: &mut Option<TcpStream>| beat(&mut connect(address));
    println!("{}", measure_rounds("a connection per request", 16, 1000, none, once));
    let before_kib = status_kib("VmRSS:");
    let mut idle: Vec<_> = (0..2000).map(|_| connect(address)).collect();
    idle.iter_mut().for_each(beat);
    println!("{{\"case\":\"2000 idle\",\"rss_kib\":{}}}", status_kib("VmRSS:") - before_kib);
    let cpu_before = cpu_ms();
    std::thread::sleep(Duration::from_secs(5));
    println!("{{\"case\":\"2000 idle for 5 s\",\"cpu_ms\":{}}}", cpu_ms() - cpu_before);
    assert!(server.shutdown(PATIENCE));
}
