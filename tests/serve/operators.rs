//! Owns what operators and scripts are answered: the key, hosts, capsules, refusals, and
//! what is said while the database is being opened.
//!
//! Never: anything that agents ask.

use crate::support::client::try_ask;
use crate::support::{Home, host, sandbox};
use roost::api::Api;
use roost::http::{Server, ServerConfig};
use roost::model::id::PLATFORM_TEAM;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CREATED: &str = "2026-05-17T06:40:00.000Z";

/// One host and one sandbox with everything, one of each with nothing, two that are over.
fn fleet() -> Value {
    json!({
        "hosts": [
            {"id": host(1), "status": "draining", "heartbeat_age_s": 5, "type": "metal",
             "provider": "own", "availability_zone": "attic", "arch": "arm64", "cpu_cores": 4,
             "memory_mb": 8192, "disk_gb": 64, "created_at": CREATED},
            {"id": host(2), "status": "pending", "created_at": CREATED},
        ],
        "sandboxes": [
            {"id": sandbox(1), "host_id": host(1), "status": "paused", "status_reason": "auto_paused",
             "template": "base", "vcpus": 2, "memory_mb": 512, "timeout_sec": 300,
             "disk_size_mb": 2048, "guest_ip": "172.16.0.2", "host_ip": "10.11.0.2",
             "metadata": {"kernel": "6.1"}, "created_at": CREATED, "started_at": CREATED,
             "last_active_at": CREATED},
            {"id": sandbox(2), "host_id": host(1), "status": "hibernated", "created_at": CREATED},
            {"id": sandbox(3), "host_id": host(1), "status": "stopped"},
            {"id": sandbox(4), "host_id": host(1), "status": "error"},
        ],
    })
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[test]
fn hosts_look_as_documented_and_leave_out_what_is_empty() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let answer = serving.get("/v1/hosts");
    assert_eq!(answer.status, 200);
    let mut list = answer.json();
    for row in list.as_array().unwrap() {
        let alone = serving.get(&format!("/v1/hosts/{}", row["id"].as_str().unwrap()));
        assert_eq!((alone.status, &alone.json()), (200, row));
    }
    let heard = list[0]["last_heartbeat_at"].take();
    assert!(heard.as_str().unwrap().ends_with('Z'), "{heard}");
    let team = PLATFORM_TEAM.to_string();
    let expected = json!([
        {"id": host(1), "team_id": team, "type": "metal", "status": "draining",
         "liveness": "alive", "intent": "draining", "degraded": false, "provider": "own",
         "availability_zone": "attic", "arch": "arm64", "cpu_cores": 4, "memory_mb": 8192,
         "disk_gb": 64, "last_heartbeat_at": null, "created_at": CREATED,
         "updated_at": CREATED},
        {"id": host(2), "team_id": team, "type": "regular", "status": "pending",
         "liveness": "alive", "intent": "active", "degraded": false, "created_at": CREATED, "updated_at": CREATED},
    ]);
    assert_eq!(list, expected);
}

#[test]
fn capsules_look_as_documented_and_leave_out_what_is_empty() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let mut list = serving.get("/v1/capsules").json();
    for row in list.as_array_mut().unwrap() {
        let alone = serving.get(&format!("/v1/capsules/{}", row["id"].as_str().unwrap()));
        assert_eq!((alone.status, &alone.json()), (200, &*row));
        assert!(row["last_updated"].take().as_str().unwrap().ends_with('Z'));
    }
    let team = PLATFORM_TEAM.to_string();
    let expected = json!([
        {"id": sandbox(1), "team_id": team, "status": "paused", "template": "base",
         "vcpus": 2, "memory_mb": 512, "timeout_sec": 300, "disk_size_mb": 2048, "host_id": host(1),
         "guest_ip": "172.16.0.2", "host_ip": "10.11.0.2", "created_at": CREATED,
         "started_at": CREATED, "last_active_at": CREATED, "last_updated": null,
         "metadata": {"kernel": "6.1"}, "status_reason": "auto_paused"},
        {"id": sandbox(2), "team_id": team, "status": "hibernated", "host_id": host(1),
         "created_at": CREATED, "last_updated": null},
    ]);
    assert_eq!(list, expected);
}

#[test]
fn capsules_that_are_over_are_listed_on_request() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let listed = |query: &str| {
        let list = serving.get(&format!("/v1/capsules{query}")).json();
        let mut ends: Vec<_> = ids(&list).iter().map(|id| id[id.len() - 1..].to_owned()).collect();
        ends.sort_unstable();
        ends.concat()
    };
    for (query, expected) in [
        ("", "12"),
        ("?", "12"),
        ("?all=false", "12"),
        ("?unknown=1", "12"),
        ("?all=true", "1234"),
        ("?status=stopped", "3"),
        ("?all=true&status=paused", "1"),
    ] {
        assert_eq!(listed(query), expected, "{query}");
    }
    assert_eq!(listed(&format!("?host_id={}", host(2))), "");
    let status = |id: u128| serving.get(&format!("/v1/capsules/{}", sandbox(id))).status;
    assert_eq!((status(3), status(4)), (200, 200), "one that is asked for is shown");
    for wrong in ["?all=perhaps", "?status=lost", "?host_id=host-1"] {
        let refusal = serving.get(&format!("/v1/capsules{wrong}")).refusal();
        assert_eq!(refusal, (400, "invalid_request".to_owned()), "{wrong}");
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let mut fleet = fleet();
    fleet["tombstones"] = json!([host(7)]);
    let home = Home::with(&fleet);
    let serving = home.serve(&[]);
    let (host, deleted, capsule) = (host(9), host(7), sandbox(9));
    for path in [
        format!("/v1/hosts/{host}"),
        format!("/v1/hosts/{deleted}"),
        format!("/v1/hosts/{capsule}"),
        "/v1/hosts/host-1".to_owned(),
        format!("/v1/capsules/{capsule}"),
        format!("/v1/capsules/{host}"),
        "/v1/capsules/../hosts".to_owned(),
        "/v1".to_owned(),
        "/v2/hosts".to_owned(),
        "/v1/hosts/a/b/c".to_owned(),
        "//v1//hosts".to_owned(),
        "/healthz/x".to_owned(),
    ] {
        assert_eq!(serving.get(&path).refusal(), (404, "not_found".to_owned()), "{path}");
    }
    let token = serving.post(&format!("/v1/hosts/{host}/token"), &json!({}));
    assert_eq!(token.refusal(), (404, "not_found".to_owned()));
}

#[test]
fn a_known_path_refuses_other_methods() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let id = host(1);
    let check = |method: &str, path: &str, takes: &str| {
        let answer = serving.ask(method, path, &[("X-API-Key", serving.key())], "");
        let expected = (405, "method_not_allowed".to_owned());
        assert_eq!(answer.refusal(), expected, "{method} {path}");
        assert!(answer.message().contains(takes), "{}", answer.message());
    };
    check("PUT", "/v1/hosts", "GET, HEAD, POST");
    check("GET", "/v1/hosts/auth/refresh", "POST");
    check("GET", &format!("/v1/hosts/{id}/heartbeat"), "POST");
    check("DELETE", &format!("/v1/hosts/{id}/heartbeat"), "POST");
    check("PATCH", "/v1/hosts/register", "POST");
    check("DELETE", "/healthz", "GET");
    check("POST", "/readyz", "GET");
    check("OPTIONS", "/metrics", "GET");
    check("BREW", "/metrics", "GET");
}

#[test]
fn only_the_operators_key_opens_the_operators_doors() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let doors = [
        ("GET", "/v1/hosts".to_owned()),
        ("POST", "/v1/hosts".to_owned()),
        ("GET", format!("/v1/hosts/{}", host(1))),
        ("POST", format!("/v1/hosts/{}/token", host(1))),
        ("GET", "/v1/capsules".to_owned()),
        ("GET", format!("/v1/capsules/{}", sandbox(1))),
    ];
    let token = home.token(&host(1));
    let cut = &serving.key()[..serving.key().len() - 1];
    for (method, path) in &doors {
        for headers in [
            vec![],
            vec![("X-API-Key", "")],
            vec![("X-API-Key", "roost_")],
            vec![("X-API-Key", cut)],
            vec![("X-Host-Token", token.as_str())],
            vec![("X-API-Key", token.as_str())],
            vec![("Authorization", serving.key())],
        ] {
            let answer = serving.ask(method, path, &headers, "{}");
            let expected = (401, "unauthorized".to_owned());
            assert_eq!(answer.refusal(), expected, "{method} {path} {headers:?}");
            assert!(!answer.body.contains("roost_"), "a refusal tells no key");
        }
    }
    assert_eq!(serving.get("/v1/hosts").json().as_array().unwrap().len(), 2, "none was made");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(serving.ask("GET", path, &[], "").status, 200, "{path} is open");
    }
}

#[test]
fn secrets_are_for_their_owner_only() {
    let home = Home::new();
    let _serving = home.serve(&[]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(home.dir()), 0o700);
    for name in ["admin.key", "host-token.key"] {
        assert_eq!(mode(&home.path(name)), 0o600, "{name}");
    }
}

#[test]
fn a_body_may_not_be_larger_than_its_route_needs() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let body = |bytes: usize| format!("{{\"type\": \"{}\"}}", "x".repeat(bytes - 12));
    let post = |path: &str, bytes: usize| {
        serving.ask("POST", path, &[("X-API-Key", serving.key())], &body(bytes)).refusal()
    };
    let (invalid, too_large) =
        ((400, "invalid_request".to_owned()), (413, "payload_too_large".to_owned()));
    assert_eq!(post("/v1/hosts", 64 * 1024), invalid, "too long a type");
    assert_eq!(post("/v1/hosts", 64 * 1024 + 1), too_large);
    assert_eq!(post("/v1/nothing", 64 * 1024 + 1), too_large, "whatever it asks for");
    assert_eq!(post("/v1/templates", 1024 * 1024), invalid, "a list of many hosts fits");
    assert_eq!(post("/v1/templates", 1024 * 1024 + 1), too_large);
}

#[test]
fn health_is_plain_text() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let answer = serving.ask("GET", "/healthz", &[], "");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
    let answer = serving.ask("GET", "/readyz", &[], "");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
    let metrics = serving.ask("GET", "/metrics", &[], "");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in metrics.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let ours = name.starts_with("roost_") || name.starts_with("process_");
        assert!(ours && value.parse::<f64>().is_ok(), "{line}");
    }
}

/// Whoever knocks early hears 503, which does no harm, and never 404 or 401, which do.
#[test]
fn before_the_database_is_open_everybody_is_asked_to_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server =
        Server::start(vec![listener], Arc::new(Api::new()), ServerConfig::default()).unwrap();
    let ask = |method: &str, path: &str| try_ask(address, method, path, &[], "{}").unwrap();
    assert_eq!(ask("GET", "/healthz").status, 200);
    assert_eq!(ask("GET", "/").status, 200, "the page says itself that it waits");
    let id = host(1);
    for (method, path) in [
        ("POST", format!("/v1/hosts/{id}/heartbeat")),
        ("POST", "/v1/hosts/x/heartbeat".to_owned()),
        ("GET", format!("/v1/hosts/{id}/heartbeat")),
        ("POST", "/v1/hosts/register".to_owned()),
        ("POST", "/v1/hosts/auth/refresh".to_owned()),
        ("GET", "/v1/hosts".to_owned()),
        ("GET", "/v1/capsules".to_owned()),
        ("GET", "/readyz".to_owned()),
        ("GET", "/metrics".to_owned()),
        ("POST", "/".to_owned()),
        ("GET", "/no/such/path".to_owned()),
    ] {
        let answer = ask(method, &path);
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{method} {path}");
        assert_eq!(answer.header("retry-after"), Some("5"));
    }
    assert!(server.shutdown(Duration::from_secs(5)));
}
