//! Owns the parser's cases: what is taken, what is refused, and that pieces do not matter.
//!
//! Never: opens a socket.

use super::*;
use proptest::prelude::*;

const BODY_BYTES_MAX: usize = 64;

/// What a connection's bytes came to.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Request(Box<Parsed>),
    Rejected(u16),
}

/// Feeds `pieces`; returns the requests and refusals, and what is left.
fn run<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Seen>, Stage) {
    let (mut parser, mut input) = (Parser::new(BODY_BYTES_MAX), Buffer::default());
    let mut seen = Vec::new();
    for piece in pieces {
        input.push(piece);
        loop {
            match parser.step(&mut input, &|_, _| usize::MAX) {
                Step::More => break,
                Step::Continue => {}
                Step::Complete(parsed) => seen.push(Seen::Request(parsed)),
                Step::Reject(reject) => {
                    seen.push(Seen::Rejected(reject.status()));
                    return (seen, Stage::Boundary);
                }
            }
        }
    }
    (seen, parser.stage())
}

/// One line for each thing seen: `GET /path?query [body] close`, or a status.
fn brief(seen: &[Seen]) -> String {
    let lines = seen.iter().map(|seen| match seen {
        Seen::Rejected(status) => status.to_string(),
        Seen::Request(parsed) => {
            let mut line = format!("{} {}", parsed.method, parsed.path);
            if !parsed.query.is_empty() {
                line += &format!("?{}", parsed.query);
            }
            if !parsed.body.is_empty() {
                line += &format!(" [{}]", String::from_utf8_lossy(&parsed.body));
            }
            if !parsed.keep_alive {
                line += " close";
            }
            line
        }
    });
    lines.collect::<Vec<_>>().join(", ")
}

/// `wire` comes to `expected` as a whole, byte by byte, and split at every place.
fn check(wire: &str, expected: &str) {
    let bytes = wire.as_bytes();
    assert_eq!(brief(&run([bytes]).0), expected, "{wire:?}");
    assert_eq!(brief(&run(bytes.chunks(1)).0), expected, "{wire:?} byte by byte");
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 2000) {
        let (left, right) = bytes.split_at(at);
        assert_eq!(brief(&run([left, right]).0), expected, "{wire:?} split at {at}");
    }
}

#[test]
fn requests() {
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /");
    check("\r\nGET /a?b=c?d HTTP/1.1\r\nhost:\r\n\r\n", "GET /a?b=c?d");
    check("GET //x/%2e%2e/ HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET //x/%2e%2e/");
    check("BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "OTHER /pot");
    check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc", "POST / [abc]");
    check(
        "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\
         POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         \r\nDELETE /3 HTTP/1.1\r\nHost: a\r\nConnection: TE, Close\r\n\r\n",
        "POST /1 [hi], POST /2 [abc], DELETE /3 close",
    );
    check("GET / HTTP/1.0\r\n\r\n", "GET / close");
    check("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", "GET /");
    check(
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx",
        "PUT / [x]",
    );
}

#[test]
fn heads_that_are_refused() {
    for (request, status) in [
        // Framing that two readers could understand differently.
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", "400"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", "400"),
        ("Content-Length: 3\r\nContent-Length: 3", "400"),
        ("Content-Length: 3\r\nContent-Length: 4", "400"),
        ("Content-Length: 3, 3", "400"),
        ("Content-Length: +3", "400"),
        ("Content-Length: -3", "400"),
        ("Content-Length: 0x3", "400"),
        ("Content-Length: 3 3", "400"),
        ("Content-Length:", "400"),
        ("Content-Length: 65", "413"),
        ("Content-Length: 99999999999999999999999999", "413"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "400"),
        ("Transfer-Encoding: gzip, chunked", "501"),
        ("Transfer-Encoding: chunked, identity", "501"),
        ("Transfer-Encoding: xchunked", "501"),
        ("Transfer-Encoding: \"chunked\"", "501"),
        ("Transfer-Encoding:", "501"),
        ("Transfer-Encoding: \u{b}chunked", "400"),
        ("Transfer-Encoding : chunked", "400"),
        ("Transfer-Encoding\t: chunked", "400"),
        ("X: y\r\n Transfer-Encoding: chunked", "400"),
        ("X: y\r\n\tContent-Length: 3", "400"),
        (" X: y", "400"),
        (": empty", "400"),
        ("no colon", "400"),
        ("X: a\rb", "400"),
        ("X: a\nContent-Length: 3", "400"),
        ("X: a\r\r\nY: b", "400"),
        ("X: a\0b", "400"),
        ("X\0: a", "400"),
        ("Host: b", "400"),
        ("Expect: 200-ok", "417"),
    ] {
        check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{request}\r\n\r\n"), status);
    }
}

#[test]
fn request_lines_that_are_refused() {
    for (line, status) in [
        ("GET / HTTP/1.1\r\nHost: a/b", "400"),
        ("GET / HTTP/1.1\r\nHost: a b", "400"),
        ("GET / HTTP/1.1\r\nX: no host", "400"),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: a", "400"),
        ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked", "400"),
        ("GET http://a/ HTTP/1.1\r\nHost: a", "400"),
        ("OPTIONS * HTTP/1.1\r\nHost: a", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a", "400"),
        ("GET a HTTP/1.1\r\nHost: a", "400"),
        ("GET /#f HTTP/1.1\r\nHost: a", "400"),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a", "400"),
        ("GET  / HTTP/1.1\r\nHost: a", "400"),
        ("GET /  HTTP/1.1\r\nHost: a", "400"),
        ("GET / HTTP/1.1 \r\nHost: a", "400"),
        ("GET /a b HTTP/1.1\r\nHost: a", "400"),
        ("GET /\r\nHost: a", "400"),
        ("GET\r\nHost: a", "400"),
        ("GE\u{1}T / HTTP/1.1\r\nHost: a", "400"),
        ("GET / HTTP/2.0\r\nHost: a", "505"),
        ("GET / HTTP/1.2\r\nHost: a", "505"),
        ("GET / HTTP/0.9\r\nHost: a", "505"),
        ("GET / HTTP/11\r\nHost: a", "400"),
        ("GET / http/1.1\r\nHost: a", "400"),
        ("PRI * HTTP/2.0", "505"),
    ] {
        check(&format!("{line}\r\n\r\n"), status);
    }
    check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "400");
    check("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "400");
    check("GET / HTTP/1.1\nHost: a\n\n", "400");
    check("\u{16}\u{3}\u{1}", "400");
}

#[test]
fn bodies_that_are_refused() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    check(&format!("{head}zz\r\n"), "400");
    check(&format!("{head}1\r\nxGET"), "400");
    check(&format!("{head}41\r\n"), "413");
    check(&format!("{head}ffffffffffffffff\r\n"), "400");
}

#[test]
fn limits_of_heads() {
    let host = "HTTP/1.1\r\nHost: a\r\n";
    let longest = "a".repeat(TARGET_BYTES_MAX - 1);
    check(&format!("GET /{longest} {host}\r\n"), &format!("GET /{longest}"));
    check(&format!("GET /{longest}a {host}\r\n"), "414");
    check(&format!("GET /{}", longest.repeat(3)), "414");

    let fill = HEAD_BYTES_MAX - format!("GET / {host}X: \r\n\r\n").len();
    check(&format!("GET / {host}X: {}\r\n\r\n", "x".repeat(fill)), "GET /");
    check(&format!("GET / {host}X: {}\r\n\r\n", "x".repeat(fill + 1)), "431");
    check(&format!("GET / {host}X: {}", "x".repeat(HEAD_BYTES_MAX)), "431");

    check(&format!("GET / {host}{}\r\n", "a: b\r\n".repeat(HEADERS_MAX - 1)), "GET /");
    check(&format!("GET / {host}{}\r\n", "a: b\r\n".repeat(HEADERS_MAX)), "431");
}

#[test]
fn stages_tell_what_is_waited_for() {
    let stage = |wire: &str| run([wire.as_bytes()]).1;
    assert_eq!(stage(""), Stage::Boundary);
    assert_eq!(stage("\r\n"), Stage::Boundary);
    assert_eq!(stage("G"), Stage::Head);
    assert_eq!(stage("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"), Stage::Body);
    assert_eq!(stage("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"), Stage::Boundary);
}

#[test]
fn continue_is_asked_for_once_and_only_when_the_body_is_missing() {
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let asked = |pieces: &[&str]| {
        let (mut parser, mut input) = (Parser::new(BODY_BYTES_MAX), Buffer::default());
        let mut asked = 0;
        for piece in pieces {
            input.push(piece.as_bytes());
            while let Step::Continue = parser.step(&mut input, &|_, _| usize::MAX) {
                asked += 1;
            }
        }
        asked
    };
    assert_eq!(asked(&[head]), 1);
    assert_eq!(asked(&[head, "h", "i"]), 1);
    assert_eq!(asked(&[&format!("{head}h"), "i"]), 0);
    assert_eq!(asked(&[&head.replace("1.1", "1.0"), "hi"]), 0);
    assert_eq!(asked(&[&head.replace("Length: 2", "Length: 0")]), 0);
}

/// Valid requests with every framing, as they go over the wire.
fn wire_request() -> impl Strategy<Value = (String, String)> {
    let body = proptest::option::of(("[a-z\r\n]{0,40}", 1..9_usize));
    ("[a-z0-9/%.]{0,12}", "[ -~]{0,20}", body).prop_map(|(path, value, body)| {
        let head = format!("POST /{path} HTTP/1.1\r\nHost: a\r\nX: {value}\r\n");
        match body {
            None => (format!("{head}\r\n"), String::new()),
            Some((body, 1)) => (format!("{head}content-length:{}\r\n\r\n{body}", body.len()), body),
            Some((body, size)) => {
                let mut wire = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
                for chunk in body.as_bytes().chunks(size) {
                    let chunk = String::from_utf8_lossy(chunk);
                    wire += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
                }
                (wire + "0\r\n\r\n", body)
            }
        }
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_pieces_do_not_matter(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        size in 1..50_usize,
    ) {
        prop_assert_eq!(run(bytes.chunks(size)), run([&bytes[..]]));
    }

    #[test]
    fn bent_requests_never_panic_and_pieces_do_not_matter(
        (wire, _) in wire_request(),
        (next, _) in wire_request(),
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"\r\n :;,\t0a\0\xff".to_vec()),
        size in 1..50_usize,
    ) {
        let mut bytes = (wire + &next).into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        prop_assert_eq!(run(bytes.chunks(size)), run([&bytes[..]]));
    }

    #[test]
    fn pipelined_requests_come_out_as_sent(
        requests in proptest::collection::vec(wire_request(), 1..6),
        sizes in proptest::collection::vec(1..60_usize, 1..20),
    ) {
        let wire: String = requests.iter().map(|(wire, _)| wire.as_str()).collect();
        let (mut rest, mut pieces) = (wire.as_bytes(), Vec::new());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let (seen, stage) = run(pieces);
        prop_assert_eq!(stage, Stage::Boundary);
        let bodies: Vec<_> = seen
            .iter()
            .map(|seen| match seen {
                Seen::Request(parsed) => String::from_utf8_lossy(&parsed.body).into_owned(),
                Seen::Rejected(status) => status.to_string(),
            })
            .collect();
        let expected: Vec<_> = requests.iter().map(|(_, body)| body.clone()).collect();
        prop_assert_eq!(bodies, expected);
    }
}
