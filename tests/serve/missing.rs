//! Owns what clients of the original API hear about the paths that Roost does not have.
//!
//! Never: a path that Roost has.

use crate::support::{Home, host, sandbox};
use serde_json::json;

/// Every path of the original API, with `cl` for a capsule's id and `host` for a host's.
const ORIGINAL: &[&str] = &[
    "POST v1/auth/signup",
    "POST v1/auth/activate",
    "POST v1/auth/switch-team",
    "POST v1/auth/login",
    "GET v1/auth/oauth/github",
    "GET auth/oauth/github/callback",
    "GET v1/me",
    "PATCH v1/me",
    "DELETE v1/me",
    "POST v1/me/password",
    "POST v1/me/password/reset",
    "POST v1/me/password/reset/confirm",
    "GET v1/me/providers/github/connect",
    "DELETE v1/me/providers/github",
    "GET v1/users/search?email=a",
    "GET v1/teams",
    "POST v1/teams",
    "GET v1/teams/t",
    "PATCH v1/teams/t",
    "DELETE v1/teams/t",
    "GET v1/teams/t/members",
    "POST v1/teams/t/members",
    "PATCH v1/teams/t/members/u",
    "DELETE v1/teams/t/members/u",
    "POST v1/teams/t/leave",
    "GET v1/capsules/stats?range=1h",
    "GET v1/capsules/usage?from=2026-01-01",
    "POST v1/capsules/cl/exec",
    "GET v1/capsules/cl/exec/stream",
    "GET v1/capsules/cl/processes",
    "DELETE v1/capsules/cl/processes/7?signal=SIGTERM",
    "GET v1/capsules/cl/processes/7/stream",
    "GET v1/capsules/cl/metrics?range=10m",
    "POST v1/capsules/cl/files/write",
    "POST v1/capsules/cl/files/read",
    "POST v1/capsules/cl/files/list",
    "POST v1/capsules/cl/files/mkdir",
    "POST v1/capsules/cl/files/remove",
    "POST v1/capsules/cl/files/stream/write",
    "POST v1/capsules/cl/files/stream/read",
    "GET v1/capsules/cl/pty",
    "GET v1/capsules/cl/ports/8080/index.html",
    "GET v1/events/stream",
    "GET v1/hosts/host/tags",
    "POST v1/hosts/host/tags",
    "DELETE v1/hosts/host/tags/t",
    "GET v1/channels",
    "POST v1/channels",
    "POST v1/channels/test",
    "GET v1/channels/c",
    "PATCH v1/channels/c",
    "DELETE v1/channels/c",
    "PUT v1/channels/c/config",
    "GET v1/audit-logs",
    "GET v1/admin/teams",
    "PUT v1/admin/teams/t/byoc",
    "GET v1/admin/users",
    "PUT v1/admin/users/u/active",
    "GET v1/admin/audit-logs",
    "GET v1/admin/templates",
    "POST v1/admin/builds",
    "POST v1/admin/builds/b/cancel",
    "GET v1/admin/capsules",
    "POST v1/admin/capsules/cl/snapshot",
    "GET health",
    "GET openapi.yaml",
    "GET docs",
];

#[test]
fn what_roost_does_not_have_is_not_implemented_rather_than_not_found() {
    let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "online"}],
        "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "running"}]}));
    let serving = home.serve(&[]);
    let (keyed, keyless) = ([("X-API-Key", serving.key())], []);
    for known in [true, false] {
        for original in ORIGINAL {
            let n = if known { 1 } else { 9 };
            let there = original.replace("/cl/", &format!("/{}/", sandbox(n)));
            let there = there.replace("/host/", &format!("/{}/", host(n)));
            let (method, path) = there.split_once(' ').unwrap();
            for headers in [&keyed[..], &keyless[..]] {
                let answer = serving.ask(method, &format!("/{path}"), headers, "");
                assert_eq!(answer.refusal(), (501, "not_implemented".to_owned()), "{there}");
                assert!(answer.message().len() > 20, "{there}: {}", answer.message());
            }
        }
    }
    // What only looks like one of them is still not there, or there.
    for (path, status) in
        [("v1/capsules/cl-nonsense", 404), ("v1/nothing", 404), ("v1/events", 400)]
    {
        let answer = serving.get(&format!("/{path}?after=x"));
        assert_eq!(answer.status, status, "{path}");
    }
    serving.stop();
}

#[test]
fn a_port_of_a_capsule_by_its_host_name_is_not_the_status_page() {
    let home = Home::with(&json!({"hosts": []}));
    let serving = home.serve(&[]);
    let ask = |host: &str, path: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(serving.address()).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let capsule = sandbox(1);
    let upper = capsule.to_uppercase();
    for host in [
        format!("8080-{capsule}.example.com"),
        format!("80-{capsule}.localhost:8000"),
        format!("65535-{upper}.sandboxes.example.com"),
    ] {
        for path in ["/", "/index.html", "/v1/hosts", "/healthz"] {
            let answer = ask(&host, path);
            assert!(answer.starts_with("HTTP/1.1 501 "), "{host}{path}: {answer}");
            assert!(answer.contains("ports of capsules"), "{answer}");
        }
    }
    for host in [
        capsule.clone(),
        format!("{capsule}.example.com"),
        format!("x-{capsule}.example.com"),
        format!("123456-{capsule}.example.com"),
        format!("8080-{capsule}"),
        "8080-cl-short.example.com".to_owned(),
        "localhost".to_owned(),
    ] {
        assert!(ask(&host, "/healthz").starts_with("HTTP/1.1 200 "), "{host}");
    }
    serving.stop();
}

#[test]
fn an_encoded_body_is_refused_as_such() {
    let home = Home::with(&json!({"hosts": []}));
    let serving = home.serve(&[]);
    let ask = |path: &str, coding: &str| {
        let headers = [("X-API-Key", serving.key()), ("Content-Encoding", coding)];
        serving.ask("POST", path, &headers, "{}")
    };
    for path in ["/v1/capsules", "/v1/hosts", "/v1/api-keys", "/v1/hosts/register"] {
        for coding in ["gzip", "br", "gzip, identity", "zstd"] {
            let answer = ask(path, coding);
            assert_eq!(answer.refusal(), (415, "unsupported_media_type".to_owned()), "{path}");
            assert!(answer.message().contains(coding), "{}", answer.message());
        }
        for plain in ["identity", ""] {
            assert_ne!(ask(path, plain).status, 415, "{path} {plain:?}");
        }
    }
    serving.stop();
}
