//! Owns deferred responses as a client sees them.
//!
//! Never: sleeps to be in time.

use super::*;

impl Testee {
    /// Made by a thread of its own, in the way that the query says.
    pub(super) fn deferred(&self, request: Request) -> Response {
        let (begun, gate, streams) = (self.begun.clone(), self.gate.clone(), self.streams.clone());
        Response::deferred(move |caller| match request.query.as_str() {
            "gate" => {
                begun.send(()).expect("test listens");
                gate.recv().expect("test opens the gate");
                Response::bytes(200, "text/plain", b"through".to_vec()).with_header("x", "y")
            }
            "wait" => {
                begun.send(()).expect("test listens");
                let waited = caller.wait(PATIENCE);
                let end = format!("{waited:?} gone={}", caller.is_gone());
                // A test that does not ask about the end has dropped its receiver.
                let _ = streams.send(end.clone());
                Response::bytes(200, "text/plain", end.into_bytes())
            }
            "short-wait" => {
                let waited = caller.wait(Duration::from_millis(1));
                let end = format!("{waited:?} gone={}", caller.is_gone());
                Response::bytes(200, "text/plain", end.into_bytes())
            }
            "empty" => Response::empty(204),
            "cut" => Response::cut(),
            "twice" => Response::deferred(|_| Response::bytes(200, "text/plain", b"2".to_vec())),
            "stream" => Response {
                status: 200,
                headers: Vec::new(),
                body: Body::Stream(Box::new(|writer| writer.write(b"streamed").expect("writes"))),
            },
            "panic" => panic!("as asked"),
            _ => echo(&request),
        })
    }
}

#[test]
fn a_deferred_response_is_like_any_other() {
    let running = start(config());
    check(
        &running,
        "GET /deferred?a HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /deferred HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz\
         GET /deferred?empty HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /deferred?twice HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /deferred?panic HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /next HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /deferred?last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        &[
            "200 GET /deferred?a",
            "200 POST /deferred [xyz]",
            "204 ",
            "200 2",
            "500 internal_error",
            "200 GET /next",
            "200 GET /deferred?last close",
        ],
    );
    let mut client = running.connect();
    client.send("HEAD /deferred?short-wait HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer(true).header("content-length"), Some("19"));
    assert_eq!(client.get("/deferred?short-wait"), "200 TimedOut gone=false");
    client.send("GET /deferred?stream HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.chunks().expect("complete"), [b"streamed"]);
    let mut client = running.connect();
    client.send("GET /deferred?cut HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.rest(), b"");
    let figures = running.server.as_ref().expect("runs").figures();
    wait_until("all have ended", || figures.deferred() == 0);
    let before = figures.answers()[1];
    assert_eq!(running.connect().get("/deferred?a"), "200 GET /deferred?a");
    assert_eq!(figures.answers()[1], before + 1, "counted once, when it is made");
}

#[test]
fn deferred_responses_are_limited_and_workers_stay_free() {
    let mut running = start(ServerConfig { deferred_max: 3, workers: 1, ..config() });
    let mut waiting: Vec<_> = (0..3).map(|_| running.connect()).collect();
    for client in &mut waiting {
        client.send("GET /deferred?gate HTTP/1.1\r\nHost: a\r\n\r\n");
        running.begun.recv_timeout(PATIENCE).expect("begins");
    }
    let mut client = running.connect();
    assert_eq!(client.get("/"), "200 GET /");
    client.send("GET /deferred?gate HTTP/1.1\r\nHost: a\r\n\r\n");
    let refused = client.answer(false);
    assert_eq!(refused.brief(), "503 unavailable");
    assert_eq!(refused.header("retry-after"), Some("5"));
    running.gate.send(()).expect("waits");
    wait_until("one has its answer", || running.begun.is_empty() && answered(&mut waiting) == 1);
    // The refused client may ask again on the same connection.
    wait_until("there is room", || client.get("/deferred?a") == "200 GET /deferred?a");
    for _ in 0..2 {
        running.gate.send(()).expect("waits");
    }
    wait_until("all have their answers", || answered(&mut waiting) == 3);
    for client in &mut waiting {
        let answer = client.answer(false);
        assert_eq!((answer.brief().as_str(), answer.header("x")), ("200 through", Some("y")));
    }
    assert_eq!(running.begin_shutdown(PATIENCE).recv_timeout(PATIENCE), Ok(true));
}

/// How many of these have something to read.
fn answered(clients: &mut [Client]) -> usize {
    let readable =
        |client: &&mut Client| rustix::io::ioctl_fionread(&client.stream).expect("known") > 0;
    clients.iter_mut().filter(readable).count()
}

#[test]
fn a_deferred_response_learns_that_its_client_is_gone() {
    let running = start(config());
    let mut client = running.connect();
    client.send("GET /deferred?wait HTTP/1.1\r\nHost: a\r\n\r\n");
    running.begun.recv_timeout(PATIENCE).expect("begins");
    drop(client);
    assert_eq!(running.streams.recv_timeout(PATIENCE), Ok("PeerGone gone=true".to_owned()));
    wait_until("its place is free", || running.connections() == 0);
    // A client that only has nothing more to say gets its answer.
    let mut client = running.connect();
    client.send("GET /deferred?wait HTTP/1.1\r\nHost: a\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).expect("closes");
    assert_eq!(client.answer(false).brief(), "200 PeerGone gone=true");
}

#[test]
fn deferred_responses_end_with_the_server() {
    let mut running = start(config());
    let mut waiting: Vec<_> = (0..4).map(|_| running.connect()).collect();
    for client in &mut waiting {
        client.send("GET /deferred?wait HTTP/1.1\r\nHost: a\r\n\r\n");
        running.begun.recv_timeout(PATIENCE).expect("begins");
    }
    let outcome = running.begin_shutdown(PATIENCE);
    for client in &mut waiting {
        assert_eq!(client.answer(false).brief(), "200 Stopping gone=false close");
        assert_eq!(client.rest(), b"");
    }
    drop(waiting);
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(true));
}
