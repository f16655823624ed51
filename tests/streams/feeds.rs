//! Owns feeds as the transport serves them, without the API: how they begin and end, and
//! that one of them cannot harm another.
//!
//! Never: events.

use super::crowd::allow_files;
use super::support::{PATIENCE, eventually};
use roost::http::{Body, Chunk, Feed, Handler, Request, Response, Server, ServerConfig, Step};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// Does what the path says.
struct Script {
    path: String,
    turn: usize,
    gate: Arc<Gate>,
    _alive: Alive,
}

/// What the second thread waits for, if a test has it wait.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Feed for Script {
    fn next(&mut self, _: Instant) -> Step {
        self.turn += 1;
        match (self.path.as_str(), self.turn) {
            ("/two", 1) => Step::Send(Chunk::new(b"one")),
            ("/two", 2) => Step::Again,
            ("/two", 3) => Step::CatchUp,
            ("/panic", 2) => panic!("as asked"),
            ("/wait", 2..) | ("/behind", 3..) => Step::Wait,
            ("/behind", 2) => Step::CatchUp,
            (_, 1) => Step::Send(Chunk::new(b"hello")),
            _ => Step::End,
        }
    }

    fn catch_up(&mut self, _: Instant) -> Step {
        if self.path == "/behind" {
            let open = self.gate.open.lock().unwrap();
            drop(self.gate.changed.wait_while(open, |open| !*open).unwrap());
        }
        Step::Send(Chunk::new(b"two"))
    }
}

#[derive(Default)]
struct Scripts {
    alive: Arc<AtomicUsize>,
    gate: Arc<Gate>,
}

impl Handler for Scripts {
    fn handle(&self, request: Request) -> Response {
        self.alive.fetch_add(1, Ordering::SeqCst);
        let (gate, _alive) = (Arc::clone(&self.gate), Alive(Arc::clone(&self.alive)));
        let feed = Script { path: request.path, turn: 0, gate, _alive };
        Response { status: 200, headers: Vec::new(), body: Body::Feed(Box::new(feed)) }
    }
}

struct Running {
    server: Server,
    address: SocketAddr,
    scripts: Arc<Scripts>,
}

fn start(config: ServerConfig) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let scripts = Arc::new(Scripts::default());
    let server = Server::start(vec![listener], scripts.clone(), config).unwrap();
    Running { server, address, scripts }
}

impl Running {
    fn send(&self, first_line: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(format!("{first_line}\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        socket
    }

    fn ask(&self, first_line: &str) -> String {
        let mut text = String::new();
        self.send(first_line).read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn all_free(&self) {
        eventually("every place is free", || {
            let alive = self.scripts.alive.load(Ordering::SeqCst);
            (alive == 0 && self.server.figures().feeds() == 0).then_some(())
        });
    }
}

fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn a_feed_is_framed_as_the_clients_version_wants_it() {
    let running = start(ServerConfig::default());
    assert_eq!(running.ask("GET /two HTTP/1.1"), "3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(running.ask("GET /two HTTP/1.0"), "onetwo");
    assert_eq!(running.ask("HEAD /two HTTP/1.1"), "");
    running.all_free();
    assert!(running.server.shutdown(PATIENCE));
}

#[test]
fn a_feed_that_panics_ends_alone() {
    let running = start(ServerConfig::default());
    let mut waits = running.send("GET /wait HTTP/1.1");
    read_until(&mut waits, "hello\r\n");
    assert_eq!(running.ask("GET /panic HTTP/1.1"), "5\r\nhello\r\n");
    assert_eq!(running.server.figures().feeds(), 1);
    // Also at the end of the server nothing is cut.
    let ended = std::thread::spawn(move || running.server.shutdown(PATIENCE));
    assert_eq!(read_until(&mut waits, "0\r\n\r\n"), "0\r\n\r\n");
    drop(waits);
    assert!(ended.join().unwrap());
}

/// The one who is behind keeps the second thread busy for as long as the test wants.
#[test]
fn who_catches_up_holds_up_no_one_and_may_leave_meanwhile() {
    allow_files();
    let running = start(ServerConfig::default());
    let mut behind = running.send("GET /behind HTTP/1.1");
    read_until(&mut behind, "hello\r\n");
    let mut left = running.send("GET /behind HTTP/1.1");
    read_until(&mut left, "hello\r\n");
    drop(left);
    eventually("the place of the one who left", || {
        (running.server.figures().feeds() == 1).then_some(())
    });
    for _ in 0..10 {
        let mut waits = running.send("GET /wait HTTP/1.1");
        read_until(&mut waits, "hello\r\n");
    }
    *running.scripts.gate.open.lock().unwrap() = true;
    running.scripts.gate.changed.notify_all();
    assert_eq!(read_until(&mut behind, "two\r\n"), "3\r\ntwo\r\n");
    drop(behind);
    running.all_free();
    assert!(running.server.shutdown(PATIENCE));
}

#[test]
fn a_server_without_feeds_says_so() {
    let running = start(ServerConfig { feeds: false, ..ServerConfig::default() });
    assert!(running.ask("GET /wait HTTP/1.1").contains("\"unavailable\""));
    running.all_free();
}
