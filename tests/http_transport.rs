//! Owns the transport's behaviour as a client sees it: raw bytes in, bytes out.
//!
//! Never: sleeps to be in time. Waits are for events, with deadlines only a hung server
//! reaches. What concerns the whole process is in `http_process.rs`.

#[path = "http_transport/deferred.rs"]
mod deferred;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use proptest::prelude::*;
use roost::http::{
    Body, Handler, Method, Request, Response, Server, ServerConfig, TlsSource, Waited,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything takes, short enough to end a hung test.
const PATIENCE: Duration = Duration::from_secs(60);

/// A deadline that a test waits for.
const SHORT: Duration = Duration::from_millis(200);

// ---- the server under test ----

/// Answers by path; everything else is echoed.
struct Testee {
    /// `/gate` says that it has begun, then waits for a word.
    begun: Sender<()>,
    gate: Receiver<()>,
    /// What streams have to say about their end.
    streams: Sender<String>,
}

impl Handler for Testee {
    fn handle(&self, request: Request) -> Response {
        match request.path.as_str() {
            "/panic" => panic!("as asked"),
            "/empty" => Response::empty(204),
            "/large" => {
                let bytes = request.query.parse().expect("a size");
                Response::bytes(200, "application/octet-stream", vec![b'x'; bytes])
            }
            "/gate" => {
                self.begun.send(()).expect("test listens");
                self.gate.recv().expect("test opens the gate");
                Response::bytes(200, "text/plain", b"through".to_vec())
            }
            "/stream" => self.stream(request.query),
            "/deferred" => self.deferred(request),
            "/listener" => Response::bytes(200, "text/plain", request.listener.to_string().into()),
            _ => echo(&request),
        }
    }
}

impl Testee {
    fn stream(&self, kind: String) -> Response {
        let (say, begun) = (self.streams.clone(), self.begun.clone());
        let body = Body::Stream(Box::new(move |writer| {
            let mut run = || -> std::io::Result<String> {
                match kind.as_str() {
                    "three" => {
                        for part in ["one", "two", "three"] {
                            writer.write(part.as_bytes())?;
                        }
                        Ok("done".to_owned())
                    }
                    "wait" => {
                        writer.write(b"hello")?;
                        begun.send(()).expect("test listens");
                        Ok(format!("{:?}", writer.wait(PATIENCE)?))
                    }
                    "select" => {
                        begun.send(()).expect("test listens");
                        let disconnected = writer.stopping().recv_timeout(PATIENCE).is_err();
                        Ok(format!("{disconnected} {}", writer.is_stopping()))
                    }
                    "short-wait" => Ok(format!("{:?}", writer.wait(Duration::from_millis(1))?)),
                    "endless" => loop {
                        writer.write(&[b'x'; 65536])?;
                    },
                    _ => panic!("as asked"),
                }
            };
            let end = run().unwrap_or_else(|error| format!("{:?}", error.kind()));
            // A test that does not ask about the end has dropped its receiver.
            let _ = say.send(end);
        }));
        Response { status: 200, headers: vec![("content-type", "text/event-stream".into())], body }
    }
}

/// `METHOD path?query [body]`, with the header `X` when there is one.
fn echo(request: &Request) -> Response {
    let mut text = format!("{} {}", request.method, request.path);
    if !request.query.is_empty() {
        text += &format!("?{}", request.query);
    }
    if let Some(value) = request.headers.get("x") {
        text += &format!(" x={value}");
    }
    if !request.body.is_empty() {
        text += &format!(" [{}]", String::from_utf8_lossy(&request.body));
    }
    Response::bytes(200, "text/plain", text.into_bytes())
}

/// A server with the ends of what its handler talks to.
struct Running {
    server: Option<Server>,
    address: SocketAddr,
    begun: Receiver<()>,
    gate: Sender<()>,
    streams: Receiver<String>,
}

fn start(config: ServerConfig) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (begun_sender, begun) = unbounded();
    let (gate, gate_receiver) = unbounded();
    let (streams_sender, streams) = unbounded();
    let handler =
        Arc::new(Testee { begun: begun_sender, gate: gate_receiver, streams: streams_sender });
    let server = Server::start(vec![listener], handler, config).expect("starts");
    Running { server: Some(server), address, begun, gate, streams }
}

impl Running {
    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    fn connections(&self) -> usize {
        self.server.as_ref().map_or(0, Server::connections)
    }

    /// Begins a shutdown elsewhere; the receiver gets its outcome.
    fn begin_shutdown(&mut self, deadline: Duration) -> Receiver<bool> {
        let server = self.server.take().expect("not shut down yet");
        let (sender, outcome) = bounded(1);
        std::thread::spawn(move || sender.send(server.shutdown(deadline)));
        // Closed listeners are the first sign of it.
        wait_until("the listener closes", || TcpStream::connect(self.address).is_err());
        outcome
    }
}

/// Looks until it is so. Only for what gives no event to wait for.
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn config() -> ServerConfig {
    ServerConfig { workers: 2, linger: SHORT * 2, ..ServerConfig::default() }
}

// ---- the client ----

/// One response as it came.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `200 text`, or `400 code` for an error; ` close` when the connection is to end.
    fn brief(&self) -> String {
        let error: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        let code = error.as_ref().and_then(|error| error["error"]["code"].as_str());
        let closes = self.header("connection") == Some("close");
        let words = code.map_or_else(|| self.text(), str::to_owned);
        format!("{} {words}{}", self.status, if closes { " close" } else { "" })
    }
}

/// A raw connection, plain or whatever else reads and writes.
struct Client<S = TcpStream> {
    stream: S,
    unread: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        stream.set_write_timeout(Some(PATIENCE)).expect("settable");
        stream.set_nodelay(true).expect("settable");
        Client { stream, unread: Vec::new() }
    }
}

impl<S: Read + Write> Client<S> {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("writes");
    }

    /// What `answer` says to a request without body.
    fn get(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        self.answer(false).brief()
    }

    /// More bytes; false at the end of the stream, a reset included.
    fn fill(&mut self) -> bool {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(count) => {
                self.unread.extend_from_slice(&piece[..count]);
                count > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => false,
            Err(error) => panic!("could not read: {error}"),
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(self.fill(), "closed in the middle of a response");
        }
        self.unread.drain(..count).collect()
    }

    fn take_line(&mut self) -> String {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).expect("text");
            }
            assert!(self.fill(), "closed in the middle of a line");
        }
    }

    fn head(&mut self) -> Answer {
        let status_line = self.take_line();
        let status = status_line.strip_prefix("HTTP/1.1 ").expect("HTTP/1.1").get(..3);
        let status = status.expect("a status").parse().expect("a number");
        let mut head = String::new();
        loop {
            match self.take_line().as_str() {
                "" => return Answer { status, head, body: Vec::new() },
                line => head += &format!("{line}\n"),
            }
        }
    }

    /// The next response; one to `HEAD` has no body.
    fn answer(&mut self, to_head: bool) -> Answer {
        let mut answer = self.head();
        let bodiless = to_head || answer.status < 200 || answer.status == 204;
        answer.body = match answer.header("content-length") {
            _ if bodiless => Vec::new(),
            Some(length) => self.take(length.parse().expect("a number")),
            None => {
                assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
                self.chunks().expect("ends properly").concat()
            }
        };
        answer
    }

    /// The chunks to come, or nothing when they end without the last one.
    fn chunks(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut chunks = Vec::new();
        loop {
            while !self.unread.contains(&b'\n') {
                if !self.fill() {
                    return None;
                }
            }
            let size = usize::from_str_radix(&self.take_line(), 16).expect("a size");
            let chunk = self.take(size);
            assert_eq!(self.take(2), b"\r\n");
            if size == 0 {
                return Some(chunks);
            }
            chunks.push(chunk);
        }
    }

    /// Everything until the server closes.
    fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.unread)
    }

    fn answers_until_close(&mut self) -> Vec<String> {
        let mut answers = Vec::new();
        while !self.unread.is_empty() || self.fill() {
            answers.push(self.answer(false).brief());
        }
        answers
    }
}

/// Sends `wire` as a whole and byte by byte; the answers until the connection ends must be
/// `expected`.
fn check(running: &Running, wire: &str, expected: &[&str]) {
    for piece in [wire.len(), 1] {
        let mut client = running.connect();
        for bytes in wire.as_bytes().chunks(piece) {
            // After a refusal the server may have closed already.
            if client.stream.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = client.stream.shutdown(Shutdown::Write);
        assert_eq!(client.answers_until_close(), expected, "{wire:?} by {piece}");
    }
}

// ---- requests and answers ----

#[test]
fn requests_are_answered_in_order_on_one_connection() {
    let running = start(config());
    check(&running, "GET /a?b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n", &["200 GET /a?b x=y"]);
    check(
        &running,
        "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n\
         GET /empty HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n\
         GET /never HTTP/1.1\r\nHost: a\r\n\r\n",
        &["200 POST /1 [abc]", "200 POST /2 [abc]", "204 ", "200 GET /3 close"],
    );
    let many: String = (0..50).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let answers: Vec<_> = (0..50).map(|n| format!("200 GET /{n}")).collect();
    check(&running, &many, &answers.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_connection_stays_open_between_requests() {
    let running = start(config());
    let mut client = running.connect();
    for number in 0..100 {
        assert_eq!(client.get(&format!("/{number}")), format!("200 GET /{number}"));
    }
    assert_eq!(running.connections(), 1);
}

#[test]
fn http_1_0_closes_unless_asked_otherwise() {
    let running = start(config());
    check(&running, "GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", &["200 GET / close"]);
    let mut client = running.connect();
    client.send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert_eq!(client.answer(false).header("connection"), Some("keep-alive"));
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer(false).header("connection"), Some("close"));
    assert_eq!(client.rest(), b"");
}

#[test]
fn head_has_the_head_of_get_and_no_body() {
    let running = start(config());
    let mut client = running.connect();
    client.send("HEAD /large?5000 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.answer(true);
    assert_eq!((head.status, head.header("content-length")), (200, Some("5000")));
    assert_eq!(client.answer(false).brief(), "200 GET /next");
    client.send("HEAD /stream?endless HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer(true).header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.rest(), b"");
    assert_eq!(running.streams.len(), 0);
}

#[test]
fn continue_is_said_before_the_body_is_sent() {
    let running = start(config());
    let mut client = running.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ";
    client.send(format!("{head}2\r\n\r\n"));
    assert_eq!(client.answer(false).status, 100);
    client.send("hi");
    assert_eq!(client.answer(false).brief(), "200 POST / [hi]");
    // Too large: refused before a byte of it is sent.
    client.send(format!("{head}1048577\r\n\r\n"));
    assert_eq!(client.answer(false).brief(), "413 payload_too_large close");
}

#[test]
fn what_is_not_plain_http_is_refused_and_the_connection_ends() {
    let running = start(config());
    let next = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (head, expected) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 40", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 40", "400"),
        ("GET / HTTP/1.1", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b", "400"),
        ("GET http://a/ HTTP/1.1\r\nHost: a", "400"),
    ] {
        check(
            &running,
            &format!("{head}\r\n\r\n{next}"),
            &[&format!("{expected} invalid_request close")],
        );
    }
    let coding = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
    check(&running, coding, &["501 not_implemented close"]);
    check(&running, "GET / HTTP/3.0\r\n\r\n", &["505 version_not_supported close"]);
    check(&running, "\u{16}\u{3}\u{1}\u{2}", &["400 invalid_request close"]);
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000));
    check(&running, &line, &["414 target_too_long close"]);
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(17_000));
    check(&running, &head, &["431 headers_too_large close"]);
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(64));
    check(&running, &head, &["431 headers_too_large close"]);
    // The ones before it are answered all the same.
    check(&running, &format!("{next}\0"), &["200 GET /smuggled", "400 invalid_request close"]);
}

#[test]
fn a_client_in_the_middle_of_a_large_upload_gets_to_read_the_refusal() {
    let running = start(config());
    for head in ["Content-Length: 3000000", "Transfer-Encoding: chunked"] {
        let mut client = running.connect();
        let mut sender = client.stream.try_clone().expect("cloned");
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
        let upload = std::thread::spawn(move || {
            sender.write_all(head.as_bytes())?;
            sender.write_all(b"2dc6c0\r\n")?;
            sender.write_all(&vec![b'x'; 3_000_000])
        });
        assert_eq!(client.answer(false).brief(), "413 payload_too_large close");
        // The server reads on for a while, so that no reset destroys the answer.
        upload.join().expect("ends").expect("nobody cut it");
    }
}

#[test]
fn a_body_of_just_the_limit_is_taken() {
    let running = start(config());
    let mut client = running.connect();
    client.send("POST /empty HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n");
    client.send(vec![b'x'; 1 << 20]);
    assert_eq!(client.answer(false).status, 204);
}

#[test]
fn a_large_answer_arrives_whole() {
    let running = start(config());
    let mut client = running.connect();
    client.send("GET /large?20000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer(false);
    assert_eq!(answer.body.len(), 20_000_000);
    assert!(answer.body.iter().all(|&byte| byte == b'x'));
    assert_eq!(client.get("/next"), "200 GET /next");
}

#[test]
fn a_panic_in_a_handler_is_a_500_and_nothing_more() {
    let running = start(config());
    let mut client = running.connect();
    for _ in 0..10 {
        assert_eq!(client.get("/panic"), "500 internal_error");
    }
    assert_eq!(client.get("/"), "200 GET /");
}

#[test]
fn every_listener_is_told_apart() {
    let listeners: Vec<_> =
        (0..1000).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
    let (sender, _) = unbounded();
    let (streams, gate) = (unbounded().0, unbounded().1);
    let handler = Arc::new(Testee { begun: sender, gate, streams });
    let server = Server::start(listeners, handler, config()).expect("starts");
    for (index, address) in addresses.iter().enumerate() {
        assert_eq!(Client::connect(*address).get("/listener"), format!("200 {index}"));
    }
    assert!(server.shutdown(PATIENCE));
    assert!(addresses.iter().all(|address| TcpStream::connect(address).is_err()));
}

// ---- slow and silent clients ----

#[test]
fn half_open_clients_do_not_keep_others_waiting() {
    let running = start(config());
    let halves = [
        "",
        "G",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ];
    let mut half_open: Vec<_> = (0..600)
        .map(|n| {
            let mut client = running.connect();
            client.send(halves[n % halves.len()]);
            client
        })
        .collect();
    let mut client = running.connect();
    for _ in 0..100 {
        assert_eq!(client.get("/"), "200 GET /");
        assert_eq!(running.connect().get("/"), "200 GET /");
    }
    // They were waited for, not forgotten.
    for (n, client) in half_open.iter_mut().enumerate() {
        let (rest, expected) = match n % halves.len() {
            0 => ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "200 GET /"),
            1 => ("ET / HTTP/1.1\r\nHost: a\r\n\r\n", "200 GET /"),
            2 => ("\r\n", "200 GET /"),
            3 => (" done", "200 POST / [half done]"),
            _ => ("cde\r\n0\r\n\r\n", "200 POST / [abcde]"),
        };
        client.send(rest);
        assert_eq!(client.answer(false).brief(), expected);
    }
}

#[test]
fn a_half_request_is_given_up_at_its_deadline() {
    let running = start(ServerConfig { head_deadline: SHORT, body_deadline: SHORT, ..config() });
    let expect = |sent: &str, expected: &[&str]| {
        let mut client = running.connect();
        client.send(sent);
        assert_eq!(client.answers_until_close(), expected, "{sent:?}");
    };
    expect("", &[]);
    expect("GET / HTTP/1.1\r\n", &["408 timeout close"]);
    expect("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx", &["408 timeout close"]);
    expect("GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b", &["200 GET /a", "408 timeout close"]);
}

#[test]
fn bytes_now_and_then_do_not_move_a_deadline() {
    let running = start(ServerConfig { head_deadline: SHORT, ..config() });
    let mut client = running.connect();
    client.send("GET / HTTP/1.1\r\nX: ");
    client.stream.set_read_timeout(Some(Duration::from_millis(5))).expect("settable");
    let until = Instant::now() + PATIENCE;
    // Drips until the answer comes; without a fixed deadline it never would.
    let mut piece = [0; 1024];
    let answer = loop {
        assert!(Instant::now() < until, "the deadline moved");
        let _ = client.stream.write_all(b"x");
        match client.stream.read(&mut piece) {
            Ok(count) => break String::from_utf8_lossy(&piece[..count]).into_owned(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn an_idle_connection_is_closed_without_a_word_at_its_timeout_only() {
    let patient = start(ServerConfig { head_deadline: SHORT, ..config() });
    let impatient = start(ServerConfig { idle_timeout: SHORT, ..config() });
    let (mut kept, mut closed) = (patient.connect(), impatient.connect());
    assert_eq!(kept.get("/"), "200 GET /");
    assert_eq!(closed.get("/"), "200 GET /");
    assert_eq!(closed.rest(), b"");
    // As long as this took, the head's deadline did not apply between requests.
    assert_eq!(kept.get("/"), "200 GET /");
}

#[test]
fn clients_that_do_not_read_hold_no_worker_and_are_cut_at_the_deadline() {
    let running = start(ServerConfig {
        write_deadline: Duration::from_secs(1),
        write_bytes_per_second_min: u64::MAX,
        ..config()
    });
    let mut deaf: Vec<_> = (0..8).map(|_| running.connect()).collect();
    for client in &mut deaf {
        client.send("GET /large?8000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        // The answer has begun, and will be stuck.
        client.take(1);
    }
    let mut client = running.connect();
    for _ in 0..50 {
        assert_eq!(client.get("/"), "200 GET /");
    }
    wait_until("they are cut", || running.connections() == 1);
    for client in &mut deaf {
        assert!(client.rest().len() < 8_000_000);
    }
}

#[test]
fn when_there_is_no_room_those_that_waited_longest_make_it() {
    let running = start(ServerConfig { connections_max: 8, ..config() });
    let mut clients: Vec<_> = (0..30)
        .map(|n| {
            let mut client = running.connect();
            assert_eq!(client.get(&format!("/{n}")), format!("200 GET /{n}"));
            client
        })
        .collect();
    assert!(running.connections() <= 8);
    assert_eq!(clients[0].rest(), b"");
    assert_eq!(clients[29].get("/last"), "200 GET /last");
}

// ---- streams ----

fn stream_request(kind: &str) -> String {
    format!("GET /stream?{kind} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn a_stream_arrives_as_it_was_written() {
    let running = start(config());
    let mut client = running.connect();
    client.send(stream_request("three"));
    let head = client.head();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("connection"), Some("close"));
    assert_eq!(client.chunks().expect("complete"), [&b"one"[..], b"two", b"three"]);
    assert_eq!(client.rest(), b"");

    let mut client = running.connect();
    client.send("GET /stream?three HTTP/1.0\r\n\r\n");
    assert_eq!(client.head().header("transfer-encoding"), None);
    assert_eq!(client.rest(), b"onetwothree");

    let mut client = running.connect();
    client.send(stream_request("short-wait"));
    let ends: Vec<_> = running.streams.iter().take(3).collect();
    assert_eq!(ends, ["done", "done", "TimedOut"]);
}

#[test]
fn a_stream_learns_that_its_peer_is_gone() {
    let running = start(config());
    let mut client = running.connect();
    client.send(stream_request("wait"));
    running.begun.recv_timeout(PATIENCE).expect("begins");
    drop(client);
    assert_eq!(running.streams.recv_timeout(PATIENCE), Ok(format!("{:?}", Waited::PeerGone)));
    wait_until("its place is free", || running.connections() == 0);
}

#[test]
fn a_stream_whose_peer_stops_reading_is_cut() {
    let running = start(ServerConfig { write_deadline: SHORT, ..config() });
    let mut client = running.connect();
    client.send(stream_request("endless"));
    assert_eq!(running.streams.recv_timeout(PATIENCE), Ok("TimedOut".to_owned()));
    client.head();
    assert_eq!(client.rest().windows(5).find(|end| end == b"0\r\n\r\n"), None);
}

#[test]
fn a_stream_that_panics_does_not_look_complete() {
    let running = start(config());
    let mut client = running.connect();
    client.send(stream_request("panic"));
    client.head();
    assert_eq!(client.chunks(), None);
    assert_eq!(running.connect().get("/"), "200 GET /");
    wait_until("its place is free", || running.connections() == 0);
}

#[test]
fn streams_are_limited_and_workers_stay_free() {
    let mut running = start(ServerConfig { streams_max: 3, ..config() });
    let mut streams: Vec<_> = (0..3).map(|_| running.connect()).collect();
    for client in &mut streams {
        client.send(stream_request("wait"));
        running.begun.recv_timeout(PATIENCE).expect("begins");
    }
    let mut client = running.connect();
    assert_eq!(client.get("/"), "200 GET /");
    assert_eq!(client.get("/stream?wait"), "503 unavailable close");
    // One that ends makes room for one, whoever was refused in between.
    drop(streams.pop());
    assert_eq!(running.streams.recv_timeout(PATIENCE), Ok("PeerGone".to_owned()));
    wait_until("its place is free", || {
        let mut client = running.connect();
        client.send(stream_request("wait"));
        let begins = client.head().status == 200;
        if begins {
            running.begun.recv_timeout(PATIENCE).expect("begins");
            streams.push(client);
        }
        begins
    });
    assert_eq!(running.connect().get("/stream?wait"), "503 unavailable close");
    // At the end of the server they return and end properly.
    assert_eq!(running.begin_shutdown(PATIENCE).recv_timeout(PATIENCE), Ok(true));
    for (n, client) in streams.iter_mut().enumerate() {
        if n < 2 {
            client.head();
        }
        assert_eq!(client.chunks().expect("complete"), [b"hello"]);
        assert_eq!(running.streams.try_recv(), Ok("Stopping".to_owned()));
    }
}

// ---- shutdown ----

#[test]
fn shutdown_lets_requests_in_flight_finish_and_closes_the_rest() {
    let mut running = start(ServerConfig { workers: 1, ..config() });
    let (mut idle, mut fresh) = (running.connect(), running.connect());
    let mut busy = running.connect();
    assert_eq!(idle.get("/"), "200 GET /");
    busy.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
    running.begun.recv_timeout(PATIENCE).expect("begins");
    // The only worker is busy: the kernel has let this one in, nobody else has.
    let mut queued = running.connect();
    queued.send("GET /queued HTTP/1.1\r\nHost: a\r\n\r\n");
    let outcome = running.begin_shutdown(PATIENCE);
    running.gate.send(()).expect("waits");
    assert_eq!(busy.answer(false).brief(), "200 through close");
    assert_eq!(queued.answer(false).brief(), "200 GET /queued close");
    for client in [&mut idle, &mut fresh, &mut busy, &mut queued] {
        assert_eq!(client.rest(), b"");
    }
    drop((busy, queued));
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn shutdown_is_bounded_whatever_handlers_and_clients_do() {
    let mut running = start(config());
    let (mut stuck, mut half) = (running.connect(), running.connect());
    stuck.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
    running.begun.recv_timeout(PATIENCE).expect("begins");
    half.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n");
    let outcome = running.begin_shutdown(SHORT);
    // The gate stays closed until the outcome is known.
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(false));
    assert_eq!(half.rest(), b"");
    running.gate.send(()).expect("waits");
}

#[test]
fn a_half_request_does_not_hold_a_shutdown_up() {
    let mut running = start(ServerConfig { head_deadline: PATIENCE * 9, ..config() });
    let mut half = running.connect();
    half.send("GET /");
    // Until its first bytes have been looked at it would count as idle.
    let mut other = running.connect();
    assert_eq!(other.get("/"), "200 GET /");
    let outcome = running.begin_shutdown(PATIENCE * 9);
    let answers = half.answers_until_close();
    assert!(answers.is_empty() || answers == ["408 timeout close"], "{answers:?}");
    drop(half);
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn streams_hear_of_a_shutdown_in_every_way() {
    let mut running = start(ServerConfig { write_deadline: PATIENCE * 9, ..config() });
    let (mut selecting, mut deaf) = (running.connect(), running.connect());
    selecting.send(stream_request("select"));
    running.begun.recv_timeout(PATIENCE).expect("begins");
    deaf.send(stream_request("endless"));
    // Stuck once nothing more has come for a while; if that is too early, this test shows
    // less, but passes.
    let (mut arrived, mut looks) = (0, 0);
    wait_until("the stream is stuck", || {
        let now = rustix::io::ioctl_fionread(&deaf.stream).expect("known");
        looks = if now > 0 && now == arrived { looks + 1 } else { 0 };
        arrived = now;
        looks == 30
    });
    let outcome = running.begin_shutdown(PATIENCE);
    assert_eq!(running.streams.recv_timeout(PATIENCE), Ok("true true".to_owned()));
    // Stuck in a write to somebody who does not read.
    assert_eq!(running.streams.recv_timeout(PATIENCE), Ok("TimedOut".to_owned()));
    drop(selecting);
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(true));
}

// ---- TLS ----

/// A certificate for `localhost`: what the server shows, and what a client trusts.
struct Identity {
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a pair");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Identity { server: Arc::new(server), client: Arc::new(client) }
}

type TlsStream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

impl Running {
    /// The handshake is over when this returns.
    fn connect_tls(&self, identity: &Identity) -> std::io::Result<Client<TlsStream>> {
        let name = "localhost".try_into().expect("a name");
        let config = Arc::clone(&identity.client);
        let mut tls = rustls::ClientConnection::new(config, name).expect("begins");
        let mut socket = self.connect().stream;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        Ok(Client { stream: rustls::StreamOwned::new(tls, socket), unread: Vec::new() })
    }
}

#[test]
fn tls_carries_the_same_and_takes_a_new_certificate_while_running() {
    let (first, second) = (identity(), identity());
    let source = TlsSource::new(Arc::clone(&first.server));
    let mut running = start(ServerConfig { tls: Some(source.clone()), ..config() });

    let mut old = running.connect_tls(&first).expect("trusts the first");
    assert_eq!(old.get("/a?b"), "200 GET /a?b");
    assert!(running.connect_tls(&second).is_err());
    source.replace(Arc::clone(&second.server));
    assert!(running.connect_tls(&first).is_err());
    let mut new = running.connect_tls(&second).expect("trusts the second");
    assert_eq!(new.get("/new"), "200 GET /new");
    // Open connections go on.
    assert_eq!(old.get("/old"), "200 GET /old");

    old.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
    old.send(vec![b'x'; 200_000]);
    assert_eq!(old.answer(false).body.len(), "POST / []".len() + 200_000);
    old.send("GET /large?5000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(old.answer(false).body.len(), 5_000_000);
    new.send(stream_request("three"));
    new.head();
    assert_eq!(new.chunks().expect("complete"), [&b"one"[..], b"two", b"three"]);
    // With a proper goodbye: `read` would say `UnexpectedEof` without it.
    assert_eq!(new.stream.read(&mut [0; 1]).expect("close_notify"), 0);
    drop(new);

    let outcome = running.begin_shutdown(PATIENCE);
    assert_eq!(old.rest(), b"");
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn tls_clients_that_never_finish_the_handshake_harm_nobody() {
    let identity = identity();
    let tls = Some(TlsSource::new(Arc::clone(&identity.server)));
    let running = start(ServerConfig { tls: tls.clone(), ..config() });
    let mut silent: Vec<_> = (0..300)
        .map(|n| {
            let mut client = running.connect();
            // The beginning of a ClientHello, or nothing.
            client.send(&b"\x16\x03\x01\x02\x00\x01\x00"[..n % 8]);
            client
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(running.connect_tls(&identity).expect("connects").get("/"), "200 GET /");
    }
    // Still waited for: the end of the server is what ends them.
    drop(running);
    silent.iter_mut().for_each(|client| assert_eq!(client.rest(), b""));

    let impatient = start(ServerConfig { tls, handshake_deadline: SHORT, ..config() });
    let mut client = impatient.connect();
    client.send(b"\x16\x03\x01");
    assert_eq!(client.rest(), b"");
    let mut client = impatient.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let alert = client.rest();
    assert!(!alert.starts_with(b"HTTP"), "spoke plainly");
    assert_eq!(impatient.connect_tls(&identity).expect("connects").get("/"), "200 GET /");
}

// ---- hostile bytes ----

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_sent_the_connection_ends_and_others_are_served(
        start_like_http: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        static RUNNING: Mutex<Option<Running>> = Mutex::new(None);
        let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let running = running.get_or_insert_with(|| start(config()));
        let mut client = running.connect();
        if start_like_http {
            let _ = client.stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\n");
        }
        let _ = client.stream.write_all(&bytes);
        let _ = client.stream.shutdown(Shutdown::Write);
        let answers = client.rest();
        prop_assert!(answers.is_empty() || answers.starts_with(b"HTTP/1.1 "));
        prop_assert_eq!(running.connect().get("/"), "200 GET /");
    }
}

#[test]
fn a_method_of_one_s_own_reaches_the_handler() {
    assert_eq!(Method::Other.to_string(), "OTHER");
    let running = start(config());
    check(&running, "BREW / HTTP/1.1\r\nHost: a\r\n\r\n", &["200 OTHER /"]);
}
