//! What the client sends and what it makes of answers recorded from a real agent's
//! server, byte for byte; and the reading of listings by themselves.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "agent_raw/mod.rs"]
mod raw;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use raw::{Step, answer, client, json, serve};
use roost::agent::client::{BODY_BYTES_MAX, CallError};
use roost::agent::listing::{self, AUTO_PAUSED_MAX, HOST_IP_BYTES_MAX, SANDBOXES_MAX};
use roost::agent::wire::{
    ConnectCode, CreateSandboxRequest, CreateSandboxResponse, CreateSnapshotRequest,
    METADATA_BYTES_MAX, Method, ResumeSandboxRequest, SERVICE_PATH, SandboxRef, TemplateRef,
    TemplateSize,
};
use roost::model::id::{SandboxId, TeamId, TemplateId};
use roost::model::probe::{Details, FailureKind, Listed, ListedState, Listing, Probe};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(8);

fn recorded(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fixtures", "wire", name].iter().collect();
    std::fs::read(path).unwrap()
}

fn probe(answer: Vec<u8>) -> Probe {
    let server = serve(vec![Step::Read, Step::Send(answer)]);
    let probe = client(LONG).list_sandboxes(raw::host(), &server.address);
    server.request();
    probe
}

fn shown(probe: &Probe) -> String {
    match probe {
        Probe::Failed(failure) => format!("{failure}; drained {:?}", failure.drained),
        Probe::Listed(listing) => {
            let mut lines = vec![format!("listed {}", listing.sandboxes.len())];
            let long = listing.sandboxes.len() > 4;
            let few = if long { &listing.sandboxes[48..] } else { &listing.sandboxes[..] };
            for Listed { id, state, created_at_unix, details } in few {
                let Details { host_ip, metadata } = details;
                lines.push(format!(
                    "{id} {state:?} {created_at_unix} {} {}",
                    host_ip.as_deref().unwrap_or("-"),
                    metadata.as_deref().unwrap_or("-")
                ));
            }
            lines.push(format!("auto-paused {:?}", listing.auto_paused));
            lines.join("\n")
        }
    }
}

fn check_recorded(name: &str, expected: Expect) {
    expected.assert_eq(&shown(&probe(recorded(name))));
}

#[test]
fn recorded_listings() {
    check_recorded(
        "01-list.http",
        expect![[r#"
        listed 2
        cl-0000000001d7tmz9j2abdrls0 Running 1779000000 10.11.0.2 {"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}
        cl-9d7dyocpuepcxz5rhv151fy81 Running 0 - -
        auto-paused [cl-3ksu0apgj21icfgdvfc5zh98i]"#]],
    );
    check_recorded(
        "02-list-gzip.http",
        expect![[r#"
        listed 2
        cl-0000000001d7tmz9j2abdrls0 Running 1779000000 10.11.0.2 {"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}
        cl-9d7dyocpuepcxz5rhv151fy81 Running 0 - -
        auto-paused [cl-3ksu0apgj21icfgdvfc5zh98i]"#]],
    );
    check_recorded(
        "03-list-empty.http",
        expect![[r#"
        listed 0
        auto-paused []"#]],
    );
    check_recorded(
        "08-only-auto-paused.http",
        expect![[r#"
        listed 0
        auto-paused [cl-3ksu0apgj21icfgdvfc5zh98i, cl-9d7dyocpuepcxz5rhv151fy81]"#]],
    );
    check_recorded(
        "20-odd-values.http",
        expect![[r#"
        listed 1
        cl-9d7dyocpuepcxz5rhv151fy81 Running -9007199254740993 - {"a":"x","b":""}
        auto-paused []"#]],
    );
    check_recorded(
        "26-list-50.http",
        expect![[r#"
        listed 50
        cl-a36aluz4zaxzxdm7bmcbsxueo Running 1779000048 10.11.0.50 {"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}
        cl-4arqnhbvnya5btwtp6ncqz5f5 Running 1779000049 10.11.0.51 {"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}
        auto-paused []"#]],
    );
    check_recorded(
        "27-list-50-gzip.http",
        expect![[r#"
        listed 50
        cl-a36aluz4zaxzxdm7bmcbsxueo Running 1779000048 10.11.0.50 {"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}
        cl-4arqnhbvnya5btwtp6ncqz5f5 Running 1779000049 10.11.0.51 {"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}
        auto-paused []"#]],
    );
    assert_eq!(probe(recorded("01-list.http")), probe(recorded("02-list-gzip.http")));
    assert_eq!(probe(recorded("26-list-50.http")), probe(recorded("27-list-50-gzip.http")));
}

#[test]
fn recorded_errors() {
    check_recorded(
        "05-error-unavailable.http",
        expect!["refused: unavailable: sandbox host is shutting down; drained []"],
    );
    check_recorded(
        "07-error-unimplemented.http",
        expect![
            "refused: unimplemented: hostagent.v1.HostAgentService.CreateSandbox is not implemented; drained []"
        ],
    );
    check_recorded(
        "11-content-type-text.http",
        expect![[r#"malformed: status 415 without a Connect error, content type ""; drained []"#]],
    );
    check_recorded(
        "13-get.http",
        expect![[r#"malformed: status 405 without a Connect error, content type ""; drained []"#]],
    );
    check_recorded(
        "14-unknown-method.http",
        expect![[
            r#"malformed: status 404 without a Connect error, content type "text/plain; charset=utf-8"; drained []"#
        ]],
    );
    check_recorded(
        "17-malformed-json.http",
        expect![
            "refused: invalid_argument: unmarshal message: unmarshal into *hostagentv1.ListSandboxesRequest: proto: unexpected EOF; drained []"
        ],
    );
}

#[test]
fn every_recorded_file_is_checked() {
    let source = include_str!("agent_wire.rs");
    let directory = [env!("CARGO_MANIFEST_DIR"), "fixtures", "wire"].iter().collect::<PathBuf>();
    for file in std::fs::read_dir(directory).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(source.contains(&format!("\"{name}\"")), "{name} is not used by any test");
    }
}

#[test]
fn every_connect_code_with_its_status() {
    let lines = String::from_utf8(recorded("error-codes.txt")).unwrap();
    let mut codes = Vec::new();
    for line in lines.lines() {
        let (body, rest) = line.split_once("  ").unwrap();
        let (status, word) = rest.split_once(' ').unwrap();
        let code: ConnectCode = word.parse().unwrap();
        assert_eq!(code.http_status().to_string(), status, "{word}");
        let status = format!("{status} Whatever");
        let bytes = answer(&status, "Content-Type: application/json\r\n", body.as_bytes());
        let Probe::Failed(failure) = probe(bytes.clone()) else { panic!("{word} was a listing") };
        assert_eq!((failure.kind, failure.detail), (FailureKind::Refused, format!("{word}: m")));
        let server = serve(vec![Step::Read, Step::Send(bytes)]);
        let refused =
            client(LONG).ping(raw::host(), &server.address, SandboxId::from_u128(1), LONG);
        assert_eq!(refused, Err(CallError::Refused { code, message: "m".to_owned() }));
        codes.push(code);
    }
    assert_eq!(codes.len(), ConnectCode::ALL.len());
    assert!(ConnectCode::ALL.iter().all(|code| codes.contains(code)));
}

/// A request with what differs from run to run replaced.
fn sent(request: &[u8], port: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    String::from_utf8(request.to_vec())
        .unwrap()
        .replace(port, "PORT")
        .replace(version, "VERSION")
        .replace("\r\n", "\n")
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').unwrap().1
}

#[test]
fn a_probe_asks_exactly_this() {
    let server = serve(vec![Step::Read, Step::Send(json(b"{}"))]);
    let address = server.address.clone();
    assert_eq!(
        client(LONG).list_sandboxes(raw::host(), &address),
        Probe::Listed(Listing::default())
    );
    let request = sent(&server.request(), port_of(address.as_str()));
    expect![[r#"
        POST /hostagent.v1.HostAgentService/ListSandboxes HTTP/1.1
        accept-encoding: gzip
        content-length: 2
        user-agent: roost/VERSION
        accept: application/json
        host: 127.0.0.1:PORT
        content-type: application/json
        connect-protocol-version: 1
        connect-timeout-ms: 8000
        connection: close

        {}"#]]
    .assert_eq(&request);
}

/// Makes one call against `answer` and tells what was sent and what came of it.
fn check_call(
    answer: Vec<u8>,
    call: impl FnOnce(&roost::agent::client::AgentClient, &roost::model::host::AgentAddress) -> String,
    expected: Expect,
) {
    let server = serve(vec![Step::Read, Step::Send(answer)]);
    let address = server.address.clone();
    let outcome = call(&client(LONG), &address);
    let request = sent(&server.request(), port_of(address.as_str()));
    let (line, rest) = request.split_once('\n').unwrap();
    let timeout = rest.lines().find(|line| line.starts_with("connect-timeout-ms")).unwrap();
    let body = request.rsplit_once("\n\n").unwrap().1;
    expected.assert_eq(&format!("{line}\n{timeout}\n{body}\n{outcome}"));
}

const MINUTE: Duration = Duration::from_secs(60);

fn some_id() -> SandboxId {
    SandboxId::from_u128(36)
}

#[test]
fn every_call_asks_exactly_this() {
    let created = br#"{"sandboxId":"cl-0000000000000000000000010","status":"running",
        "hostIp":"10.11.0.2","metadata":{"kernel_version":"6.1"}}"#;
    let id = some_id().to_string();
    let (team, template) = (TeamId::from_u128(255), TemplateId::from_u128(7));
    let create = CreateSandboxRequest {
        sandbox_id: id.as_str().into(),
        template: "base".into(),
        vcpus: 2,
        memory_mb: 512,
        timeout_sec: 300,
        disk_size_mb: 1024,
        team_id: "00000000-0000-0000-0000-000000000000".into(),
        default_env: BTreeMap::from([("A".to_owned(), "b\n".to_owned())]),
        ..CreateSandboxRequest::default()
    };
    check_call(
        json(created),
        |client, at| format!("{:?}", client.create(raw::host(), at, &create, MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/CreateSandbox HTTP/1.1
            connect-timeout-ms: 60000
            {"sandboxId":"cl-0000000000000000000000010","template":"base","vcpus":2,"memoryMb":512,"timeoutSec":300,"diskSizeMb":1024,"teamId":"00000000-0000-0000-0000-000000000000","defaultEnv":{"A":"b\n"}}
            Ok(Details { host_ip: Some("10.11.0.2"), metadata: Some("{\"kernel_version\":\"6.1\"}") })"#]],
    );
    let resume = ResumeSandboxRequest {
        sandbox_id: id.as_str().into(),
        kernel_version: "6.1".into(),
        ..ResumeSandboxRequest::default()
    };
    check_call(
        json(created),
        |client, at| format!("{:?}", client.resume(raw::host(), at, &resume, MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/ResumeSandbox HTTP/1.1
            connect-timeout-ms: 60000
            {"sandboxId":"cl-0000000000000000000000010","kernelVersion":"6.1"}
            Ok(Details { host_ip: Some("10.11.0.2"), metadata: Some("{\"kernel_version\":\"6.1\"}") })"#]],
    );
    check_call(
        json(b"{}"),
        |client, at| format!("{:?}", client.pause(raw::host(), at, some_id(), MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/PauseSandbox HTTP/1.1
            connect-timeout-ms: 60000
            {"sandboxId":"cl-0000000000000000000000010"}
            Ok(())"#]],
    );
    check_call(
        json(b"{}"),
        |client, at| format!("{:?}", client.destroy(raw::host(), at, some_id(), MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/DestroySandbox HTTP/1.1
            connect-timeout-ms: 60000
            {"sandboxId":"cl-0000000000000000000000010"}
            Ok(())"#]],
    );
    check_call(
        json(b"{}"),
        |client, at| format!("{:?}", client.ping(raw::host(), at, some_id(), MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/PingSandbox HTTP/1.1
            connect-timeout-ms: 60000
            {"sandboxId":"cl-0000000000000000000000010"}
            Ok(())"#]],
    );
    check_call(
        json(b"{}"),
        |client, at| format!("{:?}", client.terminate(raw::host(), at, MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/Terminate HTTP/1.1
            connect-timeout-ms: 60000
            {}
            Ok(())"#]],
    );
    let snapshot = CreateSnapshotRequest {
        sandbox_id: id.as_str().into(),
        name: "with-deps".into(),
        team_id: team.to_uuid().into(),
        template_id: template.to_uuid().into(),
    };
    check_call(
        json(br#"{"name":"with-deps","sizeBytes":"5368709120"}"#),
        |client, at| format!("{:?}", client.create_snapshot(raw::host(), at, &snapshot, MINUTE)),
        expect![[r#"
            POST /hostagent.v1.HostAgentService/CreateSnapshot HTTP/1.1
            connect-timeout-ms: 60000
            {"sandboxId":"cl-0000000000000000000000010","name":"with-deps","teamId":"00000000-0000-0000-0000-0000000000ff","templateId":"00000000-0000-0000-0000-000000000007"}
            Ok(Some(5368709120))"#]],
    );
    check_call(
        json(b"{}"),
        |client, at| {
            format!("{:?}", client.delete_snapshot(raw::host(), at, (team, template), MINUTE))
        },
        expect![[r#"
            POST /hostagent.v1.HostAgentService/DeleteSnapshot HTTP/1.1
            connect-timeout-ms: 60000
            {"teamId":"00000000-0000-0000-0000-0000000000ff","templateId":"00000000-0000-0000-0000-000000000007"}
            Ok(())"#]],
    );
    check_call(
        json(br#"{"sizeBytes":7}"#),
        |client, at| {
            format!("{:?}", client.template_size(raw::host(), at, (team, template), MINUTE))
        },
        expect![[r#"
            POST /hostagent.v1.HostAgentService/GetTemplateSize HTTP/1.1
            connect-timeout-ms: 60000
            {"teamId":"00000000-0000-0000-0000-0000000000ff","templateId":"00000000-0000-0000-0000-000000000007"}
            Ok(Some(7))"#]],
    );
    let paths: Vec<String> = Method::ALL.iter().map(|m| format!("{SERVICE_PATH}{m}")).collect();
    assert_eq!(paths.len(), 10, "a new method needs a case above");
}

#[test]
fn a_size_is_a_positive_number_or_none() {
    let outcome = |body: &[u8]| {
        let server = serve(vec![Step::Read, Step::Send(json(body))]);
        let template = (TeamId::from_u128(0), TemplateId::from_u128(1));
        let size = client(LONG).template_size(raw::host(), &server.address, template, LONG);
        server.request();
        size.map_err(|error| error.to_string())
    };
    assert_eq!(outcome(br#"{"sizeBytes":"9223372036854775807"}"#), Ok(Some(i64::MAX as u64)));
    for none in [&br#"{}"#[..], br#"{"sizeBytes":null}"#, br#"{"sizeBytes":"0"}"#] {
        assert_eq!(outcome(none), Ok(None));
    }
    let wrong = [&br#"{"sizeBytes":-1}"#[..], br#"{"sizeBytes":"9223372036854775808"}"#, b"[]"];
    for body in wrong {
        assert!(outcome(body).unwrap_err().starts_with("outcome unknown, malformed: "));
    }
}

#[test]
fn answers_to_calls_that_are_not_what_was_asked_for() {
    let outcome = |bytes: Vec<u8>| {
        let server = serve(vec![Step::Read, Step::Send(bytes)]);
        let id = some_id().to_string();
        let request =
            ResumeSandboxRequest { sandbox_id: id.into(), ..ResumeSandboxRequest::default() };
        let outcome =
            client(LONG).resume(raw::host(), &server.address, &request, LONG).unwrap_err();
        server.request();
        format!("{outcome}; snapshot gone: {}", outcome.is_snapshot_gone())
    };
    let refusal = |status: &str, body: &str| {
        outcome(answer(status, "Content-Type: application/json\r\n", body.as_bytes()))
    };
    let long = "x".repeat(2000);
    let outcomes = [
        outcome(json(br#"{"sandboxId":"cl-0000000000000000000000011"}"#)),
        outcome(json(b"[]")),
        outcome(json(b"")),
        outcome(json(br#"{"hostIp":1}"#)),
        outcome(json(br#"{"metadata":{"a":1}}"#)),
        outcome(json(b"{\"hostIp\":\"\xff\"}")),
        outcome(answer("200 OK", "Content-Type: text/html\r\n", b"{}")),
        outcome(answer("302 Found", "Location: http://127.0.0.1:1/\r\n", b"")),
        refusal("404 Not Found", r#"{"code":"not_found","message":"sandbox not found"}"#),
        refusal("500 Oops", r#"{"code":"internal","message":"resume: no snapshot found for x"}"#),
        refusal("500 Oops", r#"{"code":"internal","message":"disk\r\nfull\u0007 \u202e"}"#),
        refusal("500 Oops", r#"{"code":"internal"}"#),
        refusal("500 Oops", r#"{"code":"strange","message":"m"}"#),
        refusal("500 Oops", r#"{"message":"m"}"#),
        refusal("500 Oops", r#"["internal","m"]"#),
        refusal("500 Oops", &format!(r#"{{"code":"internal","message":"{long}"}}"#))
            .replace(&long[..999], "x999"),
    ];
    expect![[r#"
        outcome unknown, malformed: asked for cl-0000000000000000000000010, answered for "cl-0000000000000000000000011"; snapshot gone: false
        outcome unknown, malformed: unexpected answer: invalid type: sequence, expected an object at line 1 column 0; snapshot gone: false
        outcome unknown, malformed: unexpected answer: EOF while parsing a value at line 1 column 0; snapshot gone: false
        outcome unknown, malformed: unexpected answer: invalid type: integer `1`, expected a string at line 1 column 11; snapshot gone: false
        outcome unknown, malformed: unexpected answer: invalid type: integer `1`, expected a string at line 1 column 18; snapshot gone: false
        outcome unknown, malformed: not UTF-8: invalid utf-8 sequence of 1 bytes from index 11; snapshot gone: false
        outcome unknown, malformed: content type "text/html"; snapshot gone: false
        outcome unknown, malformed: status 302: redirects are not followed; snapshot gone: false
        refused, not_found: sandbox not found; snapshot gone: true
        refused, internal: resume: no snapshot found for x; snapshot gone: true
        refused, internal: disk  full   ; snapshot gone: false
        refused, internal: ; snapshot gone: false
        outcome unknown, malformed: status 500: unknown Connect code "strange"; snapshot gone: false
        outcome unknown, malformed: status 500 without a Connect error, content type "application/json"; snapshot gone: false
        outcome unknown, malformed: status 500 without a Connect error, content type "application/json"; snapshot gone: false
        refused, internal: x999…; snapshot gone: false"#]].assert_eq(&outcomes.join("\n"));
}

/// Reads a body and tells what came of it, in one line.
fn read(body: impl AsRef<[u8]>) -> String {
    match listing::read(body.as_ref()) {
        Ok(listing) => shown(&Probe::Listed(listing)).replace('\n', " | "),
        Err(unreadable) => format!("{}; drained {:?}", unreadable.detail, unreadable.drained),
    }
}

const A: &str = "cl-0000000001d7tmz9j2abdrls0";
const B: &str = "cl-9d7dyocpuepcxz5rhv151fy81";

/// Fills in ids and reads.
fn read_with_ids(bodies: &[&str]) -> String {
    let filled = bodies.iter().map(|body| body.replace("$A", A).replace("$B", B));
    filled.map(|body| format!("{body}\n  {}\n", read(&body))).collect()
}

#[test]
fn what_the_wire_allows() {
    expect![[r#"
         { } 
          listed 0 | auto-paused []
        {"sandboxes":[],"autoPausedSandboxIds":[]}
          listed 0 | auto-paused []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0"}]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 0 - - | auto-paused []
        {"sandboxes":[{"sandbox_id":"cl-0000000001d7tmz9j2abdrls0","host_ip":"h","created_at_unix":5}],"auto_paused_sandbox_ids":["cl-9d7dyocpuepcxz5rhv151fy81"]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 5 h - | auto-paused [cl-9d7dyocpuepcxz5rhv151fy81]
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","status":"paused"},{"sandboxId":"cl-9d7dyocpuepcxz5rhv151fy81","status":"Paused"}]}
          listed 2 | cl-0000000001d7tmz9j2abdrls0 Paused 0 - - | cl-9d7dyocpuepcxz5rhv151fy81 Running 0 - - | auto-paused []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","status":null,"hostIp":null,"createdAtUnix":null,"metadata":null}]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 0 - - | auto-paused []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":-7,"metadata":{}}]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running -7 - - | auto-paused []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":"-9223372036854775808"}]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running -9223372036854775808 - - | auto-paused []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","metadata":{ "k\n\"" : "\u00fc" , "":"" }}]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 0 - {"k\n\"":"ü","":""} | auto-paused []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","vcpus":"many","teamId":[[]],"template":{},"new":[{"x":1}]}],"new":null}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 0 - - | auto-paused []
        {"sandboxes":[{"sandboxId":"\u0063l-0000000001d7tmz9j2abdrls0"}]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 0 - - | auto-paused []
        {"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0","cl-9d7dyocpuepcxz5rhv151fy81","cl-0000000001d7tmz9j2abdrls0"]}
          listed 0 | auto-paused [cl-0000000001d7tmz9j2abdrls0, cl-9d7dyocpuepcxz5rhv151fy81]
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0"}],"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"]}
          listed 1 | cl-0000000001d7tmz9j2abdrls0 Running 0 - - | auto-paused [cl-0000000001d7tmz9j2abdrls0]
        {"code":"not a code of Connect"}
          listed 0 | auto-paused []
    "#]].assert_eq(&read_with_ids(&[
        r#" { } "#,
        r#"{"sandboxes":[],"autoPausedSandboxIds":[]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A"}]}"#,
        r#"{"sandboxes":[{"sandbox_id":"$A","host_ip":"h","created_at_unix":5}],"auto_paused_sandbox_ids":["$B"]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","status":"paused"},{"sandboxId":"$B","status":"Paused"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","status":null,"hostIp":null,"createdAtUnix":null,"metadata":null}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":-7,"metadata":{}}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":"-9223372036854775808"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","metadata":{ "k\n\"" : "\u00fc" , "":"" }}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","vcpus":"many","teamId":[[]],"template":{},"new":[{"x":1}]}],"new":null}"#,
        r#"{"sandboxes":[{"sandboxId":"\u0063l-0000000001d7tmz9j2abdrls0"}]}"#,
        r#"{"autoPausedSandboxIds":["$A","$B","$A"]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A"}],"autoPausedSandboxIds":["$A"]}"#,
        r#"{"code":"not a code of Connect"}"#,
    ]));
}

#[test]
fn what_the_wire_does_not_allow() {
    expect![[r#"

          not a listing: EOF while parsing a value at line 1 column 0; drained []
        null
          not a listing: invalid type: null, expected an object at line 1 column 4; drained []
        []
          not a listing: invalid type: sequence, expected an object at line 1 column 0; drained []
        [[],["cl-0000000001d7tmz9j2abdrls0"]]
          not a listing: invalid type: sequence, expected an object at line 1 column 0; drained []
        "{}"
          not a listing: invalid type: string "{}", expected an object at line 1 column 4; drained []
        {
          not a listing: EOF while parsing an object at line 1 column 1; drained []
        {} {}
          not a listing: trailing characters at line 1 column 4; drained []
        {"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"]
          not a listing: EOF while parsing an object at line 1 column 56; drained []
        {"sandboxes":null,"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"]}
          not a listing: invalid type: null, expected a list of sandboxes at line 1 column 17; drained [cl-0000000001d7tmz9j2abdrls0]
        {"sandboxes":{},"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"]}
          not a listing: invalid type: map, expected a list of sandboxes at line 1 column 13; drained [cl-0000000001d7tmz9j2abdrls0]
        {"sandboxes":"","autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"]}
          not a listing: invalid type: string "", expected a list of sandboxes at line 1 column 15; drained [cl-0000000001d7tmz9j2abdrls0]
        {"autoPausedSandboxIds":null}
          not a listing: invalid type: null, expected a list of sandbox ids at line 1 column 28; drained []
        {"autoPausedSandboxIds":"cl-0000000001d7tmz9j2abdrls0"}
          not a listing: invalid type: string "cl-0000000001d7tmz9j2abdrls0", expected a list of sandbox ids at line 1 column 54; drained []
        {"autoPausedSandboxIds":{"cl-0000000001d7tmz9j2abdrls0":"cl-0000000001d7tmz9j2abdrls0"}}
          not a listing: invalid type: map, expected a list of sandbox ids at line 1 column 24; drained []
        {"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0",null,{"a":["cl-0000000001d7tmz9j2abdrls0"]},7,"cl-x","cl-9d7dyocpuepcxz5rhv151fy81","cl-0000000001d7tmz9j2abdrls0"]}
          not a listing: invalid type: null, expected an id that starts with "cl-" at line 1 column 60; drained [cl-0000000001d7tmz9j2abdrls0, cl-9d7dyocpuepcxz5rhv151fy81]
        {"sandboxes":[null]}
          not a listing: invalid type: null, expected an object at line 1 column 18; drained []
        {"sandboxes":["cl-0000000001d7tmz9j2abdrls0"]}
          not a listing: invalid type: string "cl-0000000001d7tmz9j2abdrls0", expected an object at line 1 column 44; drained []
        {"sandboxes":[["cl-0000000001d7tmz9j2abdrls0","running"]]}
          not a listing: invalid type: sequence, expected an object at line 1 column 14; drained []
        {"sandboxes":[{}],"autoPausedSandboxIds":["cl-9d7dyocpuepcxz5rhv151fy81"]}
          not a listing: sandbox "": id does not start with "cl-" at line 1 column 17; drained [cl-9d7dyocpuepcxz5rhv151fy81]
        {"sandboxes":[{"sandboxId":null}]}
          not a listing: sandbox "": id does not start with "cl-" at line 1 column 33; drained []
        {"sandboxes":[{"sandboxId":7}]}
          not a listing: invalid type: integer `7`, expected a string at line 1 column 28; drained []
        {"sandboxes":[{"sandboxId":"host-0000000001d7tmz9j2abdrls0"}]}
          not a listing: sandbox "host-0000000001d7tmz9j2abdrls0": id does not start with "cl-" at line 1 column 61; drained []
        {"sandboxes":[{"sandboxId":"cl-f5lxx1zz5pnorynqglhzmsp34"}]}
          not a listing: sandbox "cl-f5lxx1zz5pnorynqglhzmsp34": id is larger than 128 bits at line 1 column 59; drained []
        {"sandboxes":[{"sandboxId":"CL-0000000001D7TMZ9J2ABDRLS0"}]}
          not a listing: sandbox "CL-0000000001D7TMZ9J2ABDRLS0": id does not start with "cl-" at line 1 column 59; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0"},{"sandboxId":"cl-9d7dyocpuepcxz5rhv151fy81"},{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","status":"paused"}]}
          not a listing: cl-0000000001d7tmz9j2abdrls0 is listed twice; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","sandboxId":"cl-9d7dyocpuepcxz5rhv151fy81"}]}
          not a listing: duplicate field `sandboxId` at line 1 column 69; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","sandbox_id":"cl-0000000001d7tmz9j2abdrls0"}]}
          not a listing: duplicate field `sandboxId` at line 1 column 70; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0"}],"sandboxes":[],"autoPausedSandboxIds":["cl-9d7dyocpuepcxz5rhv151fy81"]}
          not a listing: duplicate field `sandboxes` at line 1 column 71; drained [cl-9d7dyocpuepcxz5rhv151fy81]
        {"autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"],"auto_paused_sandbox_ids":["cl-9d7dyocpuepcxz5rhv151fy81"]}
          not a listing: duplicate field `autoPausedSandboxIds` at line 1 column 82; drained [cl-0000000001d7tmz9j2abdrls0, cl-9d7dyocpuepcxz5rhv151fy81]
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","status":1}]}
          not a listing: invalid type: integer `1`, expected a string at line 1 column 68; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","status":["paused"]}]}
          not a listing: invalid type: sequence, expected a string at line 1 column 67; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","hostIp":{}}]}
          not a listing: invalid type: map, expected a string at line 1 column 67; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":"soon"}]}
          not a listing: invalid value: string "soon", expected an integer, or one in a string at line 1 column 80; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":""}]}
          not a listing: invalid value: string "", expected an integer, or one in a string at line 1 column 76; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":1.5}]}
          not a listing: invalid type: floating point `1.5`, expected an integer, or one in a string at line 1 column 77; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":true}]}
          not a listing: invalid type: boolean `true`, expected an integer, or one in a string at line 1 column 78; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":9223372036854775808}]}
          not a listing: invalid value: integer `9223372036854775808`, expected an integer, or one in a string at line 1 column 93; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","createdAtUnix":"9223372036854775808"}]}
          not a listing: invalid value: string "9223372036854775808", expected an integer, or one in a string at line 1 column 95; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","metadata":[]}]}
          not a listing: metadata: invalid type: sequence, expected an object of strings at line 1 column 73; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","metadata":"{}"}]}
          not a listing: metadata: invalid type: string "{}", expected an object of strings at line 1 column 75; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","metadata":{"a":1}}]}
          not a listing: metadata: invalid type: integer `1`, expected a string at line 1 column 78; drained []
        {"sandboxes":[{"sandboxId":"cl-0000000001d7tmz9j2abdrls0","metadata":{"a":null}}]}
          not a listing: metadata: invalid type: null, expected a string at line 1 column 81; drained []
        {"code":"unavailable","message":"sandbox host is shutting down"}
          a Connect error with status 200; drained []
        ﻿{}
          not a listing: expected value at line 1 column 1; drained []
    "#]].assert_eq(&read_with_ids(&[
        r#""#,
        r#"null"#,
        r#"[]"#,
        r#"[[],["$A"]]"#,
        r#""{}""#,
        r#"{"#,
        r#"{} {}"#,
        r#"{"autoPausedSandboxIds":["$A"]"#,
        r#"{"sandboxes":null,"autoPausedSandboxIds":["$A"]}"#,
        r#"{"sandboxes":{},"autoPausedSandboxIds":["$A"]}"#,
        r#"{"sandboxes":"","autoPausedSandboxIds":["$A"]}"#,
        r#"{"autoPausedSandboxIds":null}"#,
        r#"{"autoPausedSandboxIds":"$A"}"#,
        r#"{"autoPausedSandboxIds":{"$A":"$A"}}"#,
        r#"{"autoPausedSandboxIds":["$A",null,{"a":["$A"]},7,"cl-x","$B","$A"]}"#,
        r#"{"sandboxes":[null]}"#,
        r#"{"sandboxes":["$A"]}"#,
        r#"{"sandboxes":[["$A","running"]]}"#,
        r#"{"sandboxes":[{}],"autoPausedSandboxIds":["$B"]}"#,
        r#"{"sandboxes":[{"sandboxId":null}]}"#,
        r#"{"sandboxes":[{"sandboxId":7}]}"#,
        r#"{"sandboxes":[{"sandboxId":"host-0000000001d7tmz9j2abdrls0"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"cl-f5lxx1zz5pnorynqglhzmsp34"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"CL-0000000001D7TMZ9J2ABDRLS0"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A"},{"sandboxId":"$B"},{"sandboxId":"$A","status":"paused"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","sandboxId":"$B"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","sandbox_id":"$A"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A"}],"sandboxes":[],"autoPausedSandboxIds":["$B"]}"#,
        r#"{"autoPausedSandboxIds":["$A"],"auto_paused_sandbox_ids":["$B"]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","status":1}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","status":["paused"]}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","hostIp":{}}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":"soon"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":""}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":1.5}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":true}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":9223372036854775808}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","createdAtUnix":"9223372036854775808"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","metadata":[]}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","metadata":"{}"}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","metadata":{"a":1}}]}"#,
        r#"{"sandboxes":[{"sandboxId":"$A","metadata":{"a":null}}]}"#,
        r#"{"code":"unavailable","message":"sandbox host is shutting down"}"#,
        "\u{feff}{}",
    ]));
}

#[test]
fn ids_are_saved_from_text_that_is_not_utf8() {
    let mut body = format!(r#"{{"autoPausedSandboxIds":["{A}","#).into_bytes();
    body.extend(b"\"cl-\xff\xfe\"]}");
    expect!["not UTF-8: invalid utf-8 sequence of 1 bytes from index 60; drained [cl-0000000001d7tmz9j2abdrls0]"].assert_eq(&read(&body));
}

fn many(entry: impl Fn(usize) -> String, count: usize) -> String {
    (0..count).map(entry).collect::<Vec<_>>().join(",")
}

#[test]
fn limits_of_a_listing_are_exact() {
    let id = |n: usize| SandboxId::from_u128(n as u128);
    let sandboxes = |count| {
        let entries = many(|n| format!(r#"{{"sandboxId":"{}"}}"#, id(n)), count);
        listing::read(format!(r#"{{"sandboxes":[{entries}]}}"#).as_bytes())
    };
    assert_eq!(sandboxes(SANDBOXES_MAX).unwrap().sandboxes.len(), SANDBOXES_MAX);
    assert!(sandboxes(SANDBOXES_MAX + 1).unwrap_err().detail.contains("over 16384 sandboxes"));

    let paused = |count| {
        let ids = many(|n| format!("\"{}\"", id(n)), count);
        listing::read(format!(r#"{{"autoPausedSandboxIds":[{ids}]}}"#).as_bytes())
    };
    assert_eq!(paused(AUTO_PAUSED_MAX).unwrap().auto_paused.len(), AUTO_PAUSED_MAX);
    let over = paused(AUTO_PAUSED_MAX + 1).unwrap_err();
    assert!(over.detail.contains("over 65536 ids"), "{}", over.detail);
    assert_eq!(over.drained.len(), AUTO_PAUSED_MAX, "what fits is kept");

    let field = |json: String| {
        let body = format!(r#"{{"sandboxes":[{{"sandboxId":"{A}",{json}}}]}}"#);
        listing::read(body.as_bytes()).map(|mut listing| listing.sandboxes.remove(0).details)
    };
    let ip = |bytes| field(format!(r#""hostIp":"{}""#, "x".repeat(bytes)));
    assert_eq!(ip(HOST_IP_BYTES_MAX).unwrap().host_ip.unwrap().len(), HOST_IP_BYTES_MAX);
    assert!(ip(HOST_IP_BYTES_MAX + 1).is_err());
    let overhead = r#"{"a":""}"#.len();
    let metadata =
        |bytes: usize| field(format!(r#""metadata":{{"a":"{}"}}"#, "x".repeat(bytes - overhead)));
    let largest = metadata(METADATA_BYTES_MAX).unwrap().metadata.unwrap();
    assert_eq!(largest.len(), METADATA_BYTES_MAX);
    assert!(metadata(METADATA_BYTES_MAX + 1).is_err());
    assert!(BODY_BYTES_MAX as usize > 100 * SANDBOXES_MAX, "so many do fit into a body");
}

#[test]
fn requests_are_read_as_they_are_written() {
    let create = CreateSandboxRequest {
        sandbox_id: A.into(),
        template: "base".into(),
        vcpus: 4,
        memory_mb: 2048,
        timeout_sec: -1,
        disk_size_mb: 1,
        team_id: "t".into(),
        template_id: "u".into(),
        default_user: "root".into(),
        default_env: BTreeMap::from([("K".to_owned(), "ü\"".to_owned())]),
    };
    let json = serde_json::to_string(&create).unwrap();
    assert_eq!(serde_json::from_str::<CreateSandboxRequest<'_>>(&json).unwrap(), create);
    let resume = ResumeSandboxRequest {
        sandbox_id: B.into(),
        timeout_sec: 7,
        default_user: "u".into(),
        default_env: BTreeMap::from([("K".to_owned(), String::new())]),
        kernel_version: "6.1".into(),
    };
    let json = serde_json::to_string(&resume).unwrap();
    assert_eq!(serde_json::from_str::<ResumeSandboxRequest<'_>>(&json).unwrap(), resume);
    let reference = SandboxRef { sandbox_id: A.into() };
    let json = serde_json::to_string(&reference).unwrap();
    assert_eq!(json, format!(r#"{{"sandboxId":"{A}"}}"#));
    assert_eq!(serde_json::from_str::<SandboxRef<'_>>(&json).unwrap(), reference);
    let response = CreateSandboxResponse { sandbox_id: A.into(), ..Default::default() };
    let json = serde_json::to_string(&response).unwrap();
    assert_eq!(serde_json::from_str::<CreateSandboxResponse<'_>>(&json).unwrap(), response);
    let snapshot = CreateSnapshotRequest {
        sandbox_id: A.into(),
        name: "n".into(),
        team_id: "t".into(),
        template_id: "u".into(),
    };
    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<CreateSnapshotRequest<'_>>(&json).unwrap(), snapshot);
    let template = TemplateRef { team_id: "t".into(), template_id: "u".into() };
    let json = serde_json::to_string(&template).unwrap();
    assert_eq!(serde_json::from_str::<TemplateRef<'_>>(&json).unwrap(), template);
    let size = TemplateSize::of(1 << 40);
    let json = serde_json::to_string(&size).unwrap();
    assert_eq!(serde_json::from_str::<TemplateSize<'_>>(&json).unwrap(), size);
    // Zero values may be written out, numbers be strings, and null stands for them.
    let lenient =
        r#"{"sandbox_id":null,"vcpus":"2","memoryMb":null,"timeoutSec":0,"defaultEnv":null}"#;
    let read: CreateSandboxRequest<'_> = serde_json::from_str(lenient).unwrap();
    assert_eq!(read, CreateSandboxRequest { vcpus: 2, ..Default::default() });
    assert!(serde_json::from_str::<CreateSandboxRequest<'_>>(r#"{"vcpus":2147483648}"#).is_err());
    assert!(serde_json::from_str::<SandboxRef<'_>>(r#"["cl-x"]"#).is_err());
}

fn any_listed() -> impl Strategy<Value = Listed> {
    let metadata = prop::collection::btree_map(any::<String>(), any::<String>(), 0..4);
    let parts = (any::<u128>(), any::<bool>(), any::<i64>(), "[0-9a-f.:]{0,40}", metadata);
    parts.prop_map(|(id, paused, created_at_unix, ip, metadata)| {
        let json = serde_json::to_string(&metadata).unwrap().into();
        let details = Details {
            host_ip: if ip.is_empty() { None } else { Some(ip.into()) },
            metadata: if metadata.is_empty() { None } else { Some(json) },
        };
        let state = if paused { ListedState::Paused } else { ListedState::Running };
        Listed { id: SandboxId::from_u128(id), state, created_at_unix, details }
    })
}

fn any_listing() -> impl Strategy<Value = Listing> {
    let sandboxes = prop::collection::vec(any_listed(), 0..8);
    let auto_paused = prop::collection::hash_set(any::<u128>(), 0..8);
    (sandboxes, auto_paused).prop_map(|(mut sandboxes, auto_paused)| {
        sandboxes.sort_by_key(|listed| listed.id);
        sandboxes.dedup_by_key(|listed| listed.id);
        let auto_paused = auto_paused.into_iter().map(SandboxId::from_u128).collect();
        Listing { sandboxes, auto_paused }
    })
}

/// Text that looks like a listing from far away: what real parsers stumble over.
fn json_ish() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"", "\"sandboxes\":", "\"autoPausedSandboxIds\":[",
            "\"sandboxId\":\"cl-0000000001d7tmz9j2abdrls0\"", "\"status\":", "\"metadata\":{",
            "\"createdAtUnix\":", "null", "true", "-", "1e999", "\\u", "\\ud800", " ", "\"a\":\"b\"",
            "{\"sandboxes\":[{", "}]}",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_listing_survives_the_wire(listing in any_listing()) {
        let bytes = listing::write(&listing).unwrap();
        prop_assert_eq!(listing::read(&bytes), Ok(listing));
    }

    #[test]
    fn any_text_is_read_or_refused(text in json_ish()) {
        // What is accepted must survive being written again: nothing half-read gets through.
        if let Ok(listing) = listing::read(text.as_bytes()) {
            let bytes = listing::write(&listing).unwrap();
            prop_assert_eq!(listing::read(&bytes), Ok(listing));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let an_object = bytes.contains(&b'{');
        prop_assert!(listing::read(&bytes).is_err() || an_object);
    }

    #[test]
    fn a_cut_off_listing_is_refused(listing in any_listing(), at in any::<prop::sample::Index>()) {
        let bytes = listing::write(&listing).unwrap();
        let cut = at.index(bytes.len());
        prop_assert!(listing::read(&bytes[..cut]).is_err(), "at {}", cut);
    }
}
