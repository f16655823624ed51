//! Owns a server that says exactly the bytes it is told: agents that behave, and agents
//! that do not.
//!
//! Never: HTTP of its own, fixed ports. Used by the tests of the agent's client.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use roost::agent::client::{AgentClient, ClientConfig};
use roost::model::host::AgentAddress;
use roost::model::id::HostId;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// What the server does with its one connection; it closes it after the last step.
pub enum Step {
    /// Takes a whole request.
    Read,
    /// Says this.
    Send(Vec<u8>),
    /// Says this again and again until the client goes away.
    Flood(Vec<u8>),
    /// Says one byte of this at a time, again and again, until the client goes away.
    Drip(Vec<u8>),
    /// Says no more until the client goes away.
    Hold,
}

/// A server for one connection.
pub struct RawServer {
    pub address: AgentAddress,
    requests: Receiver<Vec<u8>>,
    thread: thread::JoinHandle<()>,
}

/// Between two bytes of a slow server: far less than any deadline, so that no wait for a
/// single byte ever ends by itself.
const DRIP: Duration = Duration::from_millis(20);

pub fn serve(steps: Vec<Step>) -> RawServer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = address(&listener);
    let (tell, requests) = channel();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        drop(listener);
        for step in steps {
            let going_on = match step {
                Step::Read => {
                    tell.send(request(&mut stream)).unwrap();
                    true
                }
                Step::Send(bytes) => stream.write_all(&bytes).is_ok(),
                Step::Flood(bytes) => flood(&mut stream, &bytes),
                Step::Drip(bytes) => drip(&mut stream, &bytes),
                Step::Hold => hold(&mut stream),
            };
            if !going_on {
                break;
            }
        }
    });
    RawServer { address, requests, thread }
}

impl RawServer {
    /// The request that was read. Ends the server: the client must be done.
    pub fn request(self) -> Vec<u8> {
        let request = self.requests.recv().unwrap();
        self.thread.join().unwrap();
        request
    }
}

pub fn address(listener: &TcpListener) -> AgentAddress {
    listener.local_addr().unwrap().to_string().parse().unwrap()
}

/// Whether nobody has connected so far.
pub fn untouched(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    matches!(listener.accept(), Err(e) if e.kind() == ErrorKind::WouldBlock)
}

/// The host that is meant; without TLS nobody can tell.
pub fn host() -> HostId {
    HostId::from_u128(1)
}

pub fn client(probe_timeout: Duration) -> AgentClient {
    AgentClient::new(ClientConfig { probe_timeout, ..ClientConfig::default() })
}

/// An answer with the right head for its body.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

pub fn json(body: &[u8]) -> Vec<u8> {
    answer("200 OK", "Content-Type: application/json\r\n", body)
}

fn request(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes.clone()).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    bytes.extend(body);
    bytes
}

fn flood(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    while stream.write_all(bytes).is_ok() {}
    false
}

fn drip(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(DRIP);
    }
    false
}

fn hold(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    false
}
