//! What a probe costs: CPU of the probing threads, kernel included, per probe. Not run by
//! default, because figures are no proof of behaviour:
//! `cargo test --release --test agent_cpu -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

#[path = "agent_raw/mod.rs"]
mod raw;

use flate2::{Compression, write::GzEncoder};
use raw::{address, answer, client, json};
use roost::agent::client::AgentClient;
use roost::agent::listing;
use roost::model::host::AgentAddress;
use roost::model::probe::Probe;
use rustix::time::{ClockId, clock_gettime};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const THREADS: u32 = 32;
const PROBES: u32 = 500;

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap())
}

/// Answers every connection with the same bytes, from four threads.
fn start_server(bytes: Vec<u8>) -> AgentAddress {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = address(&listener);
    for _ in 0..4 {
        let (listener, bytes) = (listener.try_clone().unwrap(), bytes.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 2048];
                let mut length = 0;
                while !request[..length].ends_with(b"{}") {
                    length += stream.read(&mut request[length..]).unwrap();
                }
                stream.write_all(&bytes).unwrap();
            }
        });
    }
    at
}

fn probe_all(client: &AgentClient, at: &AgentAddress) -> Duration {
    let one = || {
        let start = thread_cpu();
        for _ in 0..PROBES {
            assert!(matches!(client.list_sandboxes(raw::host(), at), Probe::Listed(_)));
        }
        thread_cpu() - start
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

fn body_of_fifty() -> Vec<u8> {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "fixtures", "wire", "26-list-50.http"].iter().collect();
    let recorded = std::fs::read_to_string(path).unwrap();
    let body = recorded.split("\r\n").find(|line| line.starts_with('{')).unwrap();
    body.as_bytes().to_vec()
}

#[test]
#[ignore = "measures, proves nothing"]
fn cpu_per_probe() {
    let fifty = body_of_fifty();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&fifty).unwrap();
    let zipped = encoder.finish().unwrap();
    let gzip_head = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
    let cases = [
        ("empty", json(b"{}")),
        ("50 sandboxes", json(&fifty)),
        ("50 sandboxes, gzip", answer("200 OK", gzip_head, &zipped)),
    ];
    let client = client(Duration::from_secs(8));
    for (name, bytes) in cases {
        let at = start_server(bytes);
        let start = Instant::now();
        let cpu = probe_all(&client, &at) / (THREADS * PROBES);
        let wall = start.elapsed() / (THREADS * PROBES);
        println!("probe, {name}: {cpu:?} CPU, {wall:?} wall, {THREADS} threads");
    }
    let rounds = 2000;
    let start = thread_cpu();
    for _ in 0..rounds {
        assert_eq!(listing::read(&fifty).unwrap().sandboxes.len(), 50);
    }
    let cpu = (thread_cpu() - start) / rounds;
    println!("reading 50 sandboxes, {} bytes: {cpu:?} CPU", fifty.len());
}
