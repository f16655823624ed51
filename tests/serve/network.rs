//! Owns what Roost gives away over the network: headers that keep answers out of caches,
//! and where, on whose behalf, it opens connections.
//!
//! Never: which keys open what (`keys` shows that).

use super::keys::team;
use crate::support::agents::{Agents, Says};
use crate::support::server::Serving;
use crate::support::{Home, eventually, host};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Everything about a response but its body.
fn head(serving: &Serving, request: &str) -> String {
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split("\r\n\r\n").next().unwrap().to_lowercase()
}

#[test]
fn no_answer_that_a_key_opens_is_kept_or_taken_for_something_else() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n")
    };
    let key = format!("X-API-Key: {}\r\n", serving.key());
    let with_key =
        ["/v1/hosts", "/v1/capsules", "/v1/audit", "/v1/api-keys", "/v1/history", "/v1/nothing"];
    let mut requests: Vec<String> = with_key.iter().map(|path| get(path, &key)).collect();
    requests.extend([
        get("/v1/capsules", ""),
        get("/v1/capsules", "X-API-Key: wrong\r\n"),
        get("/v1/hosts/x/heartbeat", ""),
        get(&format!("/{}", "x".repeat(20_000)), ""),
        get("/v1/hosts", "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"),
        "no HTTP at all\r\n\r\n".to_owned(),
        "GET / HTTP/3.0\r\n\r\n".to_owned(),
        "POST /v1/hosts HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".to_owned(),
    ]);
    for request in &requests {
        let head = head(&serving, request);
        assert!(head.contains("content-type: application/json"), "{request}: {head}");
        for header in [
            "cache-control: no-store",
            "vary: x-api-key, authorization",
            "x-content-type-options: nosniff",
        ] {
            assert_eq!(head.matches(header).count(), 1, "{header} of {request}: {head}");
        }
    }
    for path in ["/healthz", "/metrics"] {
        let head = head(&serving, &get(path, ""));
        assert!(head.contains("cache-control: no-store") && head.contains("nosniff"), "{head}");
        assert!(!head.contains("vary:"), "{head}");
    }
    let page = head(&serving, &get("/", ""));
    assert!(page.contains("cache-control: no-cache") && page.contains("nosniff"), "{page}");
    assert!(!page.contains("no-store"), "{page}");
}

/// Adds a host of this team; gives its registration token.
fn added(serving: &Serving, team: &str) -> String {
    let added = serving.post("/v1/hosts", &json!({"team_id": team}));
    assert_eq!(added.status, 201, "{added:?}");
    added.json()["registration_token"].as_str().unwrap().to_owned()
}

fn registered(serving: &Serving, token: &str, address: &str) -> (u16, String) {
    let body = json!({"token": token, "address": address}).to_string();
    let answer = serving.ask("POST", "/v1/hosts/register", &[], &body);
    (answer.status, answer.body)
}

const CLOSED: &[&str] = &[
    "127.0.0.1:9",
    "127.8.8.8:9",
    "localhost:9",
    "LOCALHOST.:9",
    "http://localhost:9/x",
    "0.0.0.0:9",
    "[::1]:9",
    "[::]:9",
    "0x7f.1:9",
    "[::ffff:127.0.0.1]:9",
    "[::ffff:169.254.169.254]:80",
    "[64:ff9b::a9fe:a9fe]:80",
    "169.254.169.254:80",
    "http://169.254.169.254/latest",
    "169.254.1.1:9",
    "[fe80::1]:9",
    "100.100.100.200:80",
    "[fd00:ec2::254]:80",
    "224.0.0.1:9",
    "255.255.255.255:9",
];

#[test]
fn a_host_of_a_team_may_not_be_where_only_the_operator_may_send_us() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let token = added(&serving, &team(1));
    for address in CLOSED {
        let (status, body) = registered(&serving, &token, address);
        assert_eq!(status, 400, "{address}: {body}");
        assert!(body.contains("address: ") && body.contains("agent_networks"), "{body}");
    }
    let (status, body) = registered(&serving, &token, "192.0.2.7:9");
    assert_eq!(status, 201, "the token still counts: {body}");
    for address in CLOSED {
        let (status, body) = registered(&serving, &added(&serving, &team(0)), address);
        assert!(matches!(status, 201 | 409), "the operator's own at {address}: {body}");
    }
    serving.stop();
    let serving = home.serve(&["--agent-networks", "127.0.0.0/8, ::1"]);
    let token = added(&serving, &team(2));
    assert_eq!(registered(&serving, &token, "169.254.169.254:80").0, 400, "no more than allowed");
    assert_eq!(registered(&serving, &token, "127.77.0.1:9").0, 201);
}

/// One host of team 1, online, with its agent there since before any setting.
fn of_team(address: &str) -> Value {
    json!({"hosts": [{"id": host(1), "team_id": team(1), "status": "online", "address": address,
        "heartbeat_age_s": 1}]})
}

const QUICK: &[&str] =
    &["--probe-interval", "1s", "--probe-timeout", "500ms", "--confirm-delay", "10ms"];

/// The last probe, as the operator and as the team see it.
fn last_probe(serving: &Serving, key: &str) -> Option<(Value, Value)> {
    let path = format!("/v1/hosts/{}", host(1));
    let (all, own) = (serving.get(&path).json(), serving.get_as(key, &path).json());
    (!all["last_probe"].is_null()).then(|| (all["last_probe"].clone(), own["last_probe"].clone()))
}

#[test]
fn a_closed_address_is_not_connected_to_whatever_led_there() {
    let agents = Agents::start(vec![Says::lists(&[])]);
    let port = agents.address(0).rsplit_once(':').unwrap().1.to_owned();
    for address in
        [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("http://0.0.0.0:{port}")]
    {
        let home = Home::with(&of_team(&address));
        let before = agents.calls(0);
        let serving = home.serve(QUICK);
        serving.logged(&["closed", "agent_networks", &host(1)]);
        let key = serving.make_key("theirs", &team(1));
        let (all, own) = eventually("a probe", || last_probe(&serving, &key.text));
        assert_eq!(all["outcome"], "unreachable", "{address}");
        assert!(all["detail"].as_str().unwrap().contains("agent_networks"), "{address}: {all}");
        assert_eq!(own["detail"], "the agent could not be reached", "{address}: {own}");
        serving.stop();
        assert_eq!(agents.calls(0), before, "{address}");
        let asked = agents.calls(0);
        let serving = home.serve(&[QUICK, &["--agent-networks", "127.0.0.0/8,0.0.0.0"]].concat());
        eventually("an observation", || {
            last_probe(&serving, &key.text).filter(|(all, _)| all["outcome"] == "observation")
        });
        assert!(agents.calls(0) > asked, "{address}: allowed");
    }
}

/// Listens, and answers every connection with this; with nothing, it keeps them open.
fn listener(says: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            if says.is_empty() {
                kept.push(stream);
            } else {
                // The other side may have hung up.
                let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(says.as_bytes()));
            }
        }
    });
    address
}

#[test]
fn what_answers_at_an_address_is_not_for_the_team_that_names_it() {
    let mut shown = Vec::new();
    for (address, outcome) in [
        ("127.0.0.1:1".to_owned(), "unreachable"),
        (listener(""), "timed_out"),
        (listener("SSH-2.0-OpenSSH_9.2\r\n"), "malformed"),
        (
            listener("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret"),
            "malformed",
        ),
        (
            listener("HTTP/1.1 302 Found\r\nLocation: /admin\r\nContent-Length: 0\r\n\r\n"),
            "malformed",
        ),
    ] {
        let home = Home::with(&of_team(&address));
        let serving = home.serve(&[QUICK, &["--agent-networks", "127.0.0.0/8"]].concat());
        let key = serving.make_key("theirs", &team(1));
        let token = home.token(&host(1));
        let (all, mut own) = eventually("a probe", || last_probe(&serving, &key.text));
        assert_eq!(all["outcome"], outcome, "the operator sees what it is: {all}");
        assert!(all["took_ms"].is_u64() && all["detail"] != own["detail"], "{all} {own}");
        own["at"] = Value::Null;
        shown.push(own);
        // Degraded after a few: its event goes to the team.
        let event = eventually("the event", || {
            assert_eq!(serving.beat(&host(1), &token).status, 204);
            let events = home.roost(&["events", "--format", "json"]).ok();
            let events: Vec<Value> = serde_json::from_str(&events).unwrap();
            events.into_iter().find(|event| event["kind"] == "host.degraded")
        });
        assert_eq!(event["reason"], "unreachable: the agent could not be reached", "{event}");
        assert_eq!(event["team_id"], json!(team(1)), "{event}");
    }
    shown.dedup();
    assert_eq!(shown.len(), 1, "all the same: {shown:?}");
}
