//! Owns the command line as people and scripts meet it: what is printed, the one line of an
//! error, exit codes, fixtures that are refused, a reader that leaves.
//!
//! Never: a running server; the parsing of arguments, which is tested where it lives.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use support::agents::{Agents, Says};
use support::{Home, host, sandbox, without_ages};

const CREATED: &str = "2026-05-17T06:40:00.000Z";

/// Nobody listens there, and nobody may.
const NO_SERVER: &[&str] = &["--url", "http://127.0.0.1:1"];

/// A small fleet with something of everything that is shown. Every age is half a minute or
/// more from where its wording changes.
fn fleet() -> Value {
    json!({
        "hosts": [
            {"id": host(1), "status": "online", "address": "127.0.0.1:1", "heartbeat_age_s": 330,
             "provider": "own", "availability_zone": "attic", "arch": "arm64", "cpu_cores": 4,
             "memory_mb": 8192, "disk_gb": 64, "created_at": CREATED},
            {"id": host(2), "status": "unreachable", "address": "http://edge-2.example:50051/",
             "heartbeat_age_s": 9000, "created_at": CREATED},
            {"id": host(3), "status": "draining", "degraded": true, "rejoining": true,
             "heartbeat_age_s": 200000, "created_at": CREATED},
            {"id": host(4), "status": "pending", "created_at": CREATED},
        ],
        "sandboxes": [
            {"id": sandbox(1), "host_id": host(1), "status": "running", "status_age_s": 330,
             "template": "base", "vcpus": 2, "memory_mb": 512, "timeout_sec": 300,
             "disk_size_mb": 2048, "guest_ip": "172.16.0.2", "host_ip": "10.11.0.2",
             "metadata": {"kernel": "6.1"}, "created_at": CREATED, "started_at": CREATED},
            {"id": sandbox(2), "host_id": host(1), "status": "paused",
             "status_reason": "auto_paused", "created_at": CREATED},
            {"id": sandbox(3), "host_id": host(2), "status": "missing", "status_age_s": 9000,
             "status_reason": "an \u{1b}[31magent's\nown words", "created_at": CREATED},
            {"id": sandbox(4), "host_id": host(3), "status": "stopped", "created_at": CREATED},
        ],
        "listened_age_s": 150,
    })
}

/// The text without what differs from run to run: times, fresh ids, the directory.
fn stable(home: &Home, text: &str) -> String {
    let text = text.replace(home.dir().to_str().unwrap(), "DATA");
    replaced_time(&replaced(&text, "log-", 29, "LOG"))
}

/// Replaces every word of this length that starts so.
fn replaced(text: &str, start: &str, length: usize, with: &str) -> String {
    let mut out = text.to_owned();
    while let Some(at) = out.find(start).filter(|at| out.is_char_boundary(at + length)) {
        out.replace_range(at..at + length, with);
    }
    out
}

/// Replaces every time but the one that the fixture itself says.
fn replaced_time(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("20") {
        let (before, found) = rest.split_at(at);
        let time = found.get(..CREATED.len()).filter(|time| is_time(time) && *time != CREATED);
        let length = if time.is_some() { CREATED.len() } else { 2 };
        out.push_str(before);
        out.push_str(if time.is_some() { "TIME" } else { "20" });
        rest = &found[length..];
    }
    out + rest
}

fn is_time(text: &str) -> bool {
    let same_kind = |(found, known): (char, char)| {
        found == known || found.is_ascii_digit() && known.is_ascii_digit()
    };
    text.chars().count() == CREATED.len() && text.chars().zip(CREATED.chars()).all(same_kind)
}

/// A command that succeeds prints exactly this.
fn check(home: &Home, args: &[&str], expected: &Expect) {
    expected.assert_eq(&stable(home, &home.roost(args).ok()));
}

/// The one line of a command that fails with this code and prints nothing.
fn refusal(home: &Home, args: &[&str], code: i32) -> String {
    let done = home.roost(args);
    assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{args:?}: {done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {done:?}");
    stable(home, &done.stderr)
}

#[test]
fn hosts() {
    let home = Home::with(&fleet());
    check(
        &home,
        &["hosts"],
        &expect![[r#"
        HOST                            STATUS       HEARD  RUNNING  SANDBOXES  ADDRESS                      NOTE
        host-0000000000000000000000001  online          5m        1          2  127.0.0.1:1
        host-0000000000000000000000002  unreachable     2h        0          1  http://edge-2.example:50051
        host-0000000000000000000000003  draining        2d        0          0                               degraded; rejoining
        host-0000000000000000000000004  pending      never        0          0
    "#]],
    );
    check(
        &home,
        &["hosts", "list", "--format", "json"],
        &expect![[r#"
        [{"id":"host-0000000000000000000000001","team_id":"team-0000000000000000000000000","type":"regular","status":"online","liveness":"alive","intent":"active","degraded":false,"provider":"own","availability_zone":"attic","arch":"arm64","cpu_cores":4,"memory_mb":8192,"disk_gb":64,"address":"127.0.0.1:1","last_heartbeat_at":"TIME","created_at":"2026-05-17T06:40:00.000Z","updated_at":"2026-05-17T06:40:00.000Z"},{"id":"host-0000000000000000000000002","team_id":"team-0000000000000000000000000","type":"regular","status":"unreachable","liveness":"unreachable","intent":"active","degraded":false,"address":"http://edge-2.example:50051","last_heartbeat_at":"TIME","created_at":"2026-05-17T06:40:00.000Z","updated_at":"2026-05-17T06:40:00.000Z"},{"id":"host-0000000000000000000000003","team_id":"team-0000000000000000000000000","type":"regular","status":"draining","liveness":"alive","intent":"draining","degraded":true,"last_heartbeat_at":"TIME","created_at":"2026-05-17T06:40:00.000Z","updated_at":"2026-05-17T06:40:00.000Z"},{"id":"host-0000000000000000000000004","team_id":"team-0000000000000000000000000","type":"regular","status":"pending","liveness":"alive","intent":"active","degraded":false,"created_at":"2026-05-17T06:40:00.000Z","updated_at":"2026-05-17T06:40:00.000Z"}]
    "#]],
    );
    let id = host(1);
    let one = [&["hosts", "show", &id], NO_SERVER].concat();
    check(
        &home,
        &one,
        &expect![[r#"
        address            127.0.0.1:1
        arch               arm64
        availability_zone  attic
        cpu_cores          4
        created_at         2026-05-17T06:40:00.000Z
        degraded           false
        disk_gb            64
        id                 host-0000000000000000000000001
        intent             active
        last_heartbeat_at  TIME
        liveness           alive
        memory_mb          8192
        provider           own
        status             online
        team_id            team-0000000000000000000000000
        type               regular
        updated_at         2026-05-17T06:40:00.000Z
    "#]],
    );
    check(
        &home,
        &[&one[..], &["--format", "json"]].concat(),
        &expect![[r#"
        {"address":"127.0.0.1:1","arch":"arm64","availability_zone":"attic","cpu_cores":4,"created_at":"2026-05-17T06:40:00.000Z","degraded":false,"disk_gb":64,"id":"host-0000000000000000000000001","intent":"active","last_heartbeat_at":"TIME","liveness":"alive","memory_mb":8192,"provider":"own","status":"online","team_id":"team-0000000000000000000000000","type":"regular","updated_at":"2026-05-17T06:40:00.000Z"}
    "#]],
    );
}

#[test]
fn sandboxes() {
    let home = Home::with(&fleet());
    check(
        &home,
        &["sandboxes"],
        &expect![[r#"
        SANDBOX                       STATUS   SINCE  HOST                            REASON
        cl-0000000000000000000000001  running     5m  host-0000000000000000000000001
        cl-0000000000000000000000002  paused     10m  host-0000000000000000000000001  auto_paused
        cl-0000000000000000000000003  missing     2h  host-0000000000000000000000002  an \u{1b}[31magent's\nown words
    "#]],
    );
    check(
        &home,
        &["sandboxes", "--all", "--host", &host(3)],
        &expect![[r#"
        SANDBOX                       STATUS   SINCE  HOST                            REASON
        cl-0000000000000000000000004  stopped    10m  host-0000000000000000000000003
    "#]],
    );
    check(
        &home,
        &["sandboxes", "--status", "paused", "--format", "json"],
        &expect![[r#"
        [{"id":"cl-0000000000000000000000002","team_id":"team-0000000000000000000000000","status":"paused","host_id":"host-0000000000000000000000001","created_at":"2026-05-17T06:40:00.000Z","last_updated":"TIME","status_reason":"auto_paused"}]
    "#]],
    );
    check(
        &home,
        &["sandboxes", "show", &sandbox(1)],
        &expect![[r#"
        created_at         2026-05-17T06:40:00.000Z
        disk_size_mb       2048
        guest_ip           172.16.0.2
        host_id            host-0000000000000000000000001
        host_ip            10.11.0.2
        id                 cl-0000000000000000000000001
        last_updated       TIME
        memory_mb          512
        metadata           {"kernel":"6.1"}
        started_at         2026-05-17T06:40:00.000Z
        status             running
        team_id            team-0000000000000000000000000
        template           base
        timeout_sec        300
        vcpus              2
    "#]],
    );
    check(
        &home,
        &["sandboxes", "show", &sandbox(4), "--format", "json"],
        &expect![[r#"
        {"created_at":"2026-05-17T06:40:00.000Z","host_id":"host-0000000000000000000000003","id":"cl-0000000000000000000000004","last_updated":"TIME","status":"stopped","team_id":"team-0000000000000000000000000"}
    "#]],
    );
}

#[test]
fn status() {
    let home = Home::with(&fleet());
    check(
        &home,
        &[&["status"], NO_SERVER].concat(),
        &expect![[r#"
        server     not running at http://127.0.0.1:1
        hosts      1 draining, 1 online, 1 pending, 1 unreachable
        degraded   1; see `roost hosts`
        sandboxes  1 missing, 1 paused, 1 running, 1 stopped
        revision   0
        listened   until TIME, 2m ago
    "#]],
    );
    check(
        &home,
        &[&["status"], NO_SERVER, &["--format", "json"]].concat(),
        &expect![[r#"
        {"degraded":1,"hosts":{"draining":1,"online":1,"pending":1,"unreachable":1},"listened_until":"TIME","revision":0,"sandboxes":{"missing":1,"paused":1,"running":1,"stopped":1},"server":{"running":false,"url":"http://127.0.0.1:1"}}
    "#]],
    );
    let empty = Home::new();
    empty.roost(&["db", "init"]).ok();
    let text = empty.roost(&[&["status"], NO_SERVER].concat()).ok();
    let (before, _) = text.split_once("listened").unwrap();
    expect![[r#"
        server     not running at http://127.0.0.1:1
        hosts      none
        sandboxes  none
        revision   0
    "#]]
    .assert_eq(before);
}

/// A fleet that a strict pass changes, and what the pass and the history say of it.
#[test]
fn a_pass_and_its_history() {
    let id = sandbox(2);
    let agents = Agents::start(vec![Says::listing(&[], &[&id]), Says::Error("unavailable")]);
    let fleet = json!({
        "hosts": [
            {"id": host(1), "status": "online", "address": agents.address(0), "heartbeat_age_s": 5},
            {"id": host(2), "status": "online", "address": agents.address(1), "heartbeat_age_s": 5},
            {"id": host(3), "status": "online", "heartbeat_age_s": 300},
        ],
        "sandboxes": [
            {"id": sandbox(1), "host_id": host(1), "status": "missing"},
            {"id": sandbox(2), "host_id": host(1), "status": "running"},
            {"id": sandbox(3), "host_id": host(3), "status": "running"},
        ],
    });
    let home = Home::with(&fleet);
    let timeless = |text: String| {
        let (before, after) = text.rsplit_once(" in ").unwrap();
        assert!(after.ends_with(" ms\n"), "{after}");
        format!("{before} in N ms\n")
    };
    let strict = ["check", "--policy", "strict"];
    let dry = timeless(home.roost(&[&strict[..], &["--dry-run"]].concat()).ok());
    expect![[r#"
        host-0000000000000000000000003: online → unreachable (host_unreachable)
        cl-0000000000000000000000003: running → missing (host_unreachable) on host-0000000000000000000000003
        cl-0000000000000000000000001: missing → stopped (vanished) on host-0000000000000000000000001
        cl-0000000000000000000000002: running → paused (auto_paused) on host-0000000000000000000000001
        host-0000000000000000000000002: no answer (refused: unavailable: not now)
        3 hosts checked, 1 answered; would change 1 hosts and 3 sandboxes in N ms
    "#]].assert_eq(&dry);
    let mut report = home.json(&strict);
    assert!(report["elapsed_ms"].take().is_u64());
    expect![[r#"
        {
          "dry_run": false,
          "elapsed_ms": null,
          "failed_probes": [
            {
              "detail": "unavailable: not now",
              "host_id": "host-0000000000000000000000002",
              "outcome": "refused"
            }
          ],
          "held": [],
          "host_transitions": [
            {
              "from": "online",
              "host_id": "host-0000000000000000000000003",
              "reason": "host_unreachable",
              "to": "unreachable"
            }
          ],
          "hosts_checked": 3,
          "observations": 1,
          "policy": "strict",
          "transitions": [
            {
              "from": "running",
              "host_id": "host-0000000000000000000000003",
              "reason": "host_unreachable",
              "revision": 2,
              "sandbox_id": "cl-0000000000000000000000003",
              "to": "missing"
            },
            {
              "from": "missing",
              "host_id": "host-0000000000000000000000001",
              "reason": "vanished",
              "revision": 3,
              "sandbox_id": "cl-0000000000000000000000001",
              "to": "stopped"
            },
            {
              "from": "running",
              "host_id": "host-0000000000000000000000001",
              "reason": "auto_paused",
              "revision": 4,
              "sandbox_id": "cl-0000000000000000000000002",
              "to": "paused"
            }
          ],
          "zombies": []
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&report).unwrap());
    let nothing = timeless(home.roost(&strict).ok());
    expect![[r#"
        host-0000000000000000000000002: no answer (refused: unavailable: not now)
        3 hosts checked, 1 answered; changed 0 hosts and 0 sandboxes in N ms
    "#]]
    .assert_eq(&nothing);

    check(
        &home,
        &["events"],
        &expect![[r#"
        1  TIME  host-0000000000000000000000003  online → unreachable (host_unreachable)
        2  TIME  cl-0000000000000000000000003  running → missing (host_unreachable) on host-0000000000000000000000003
        3  TIME  cl-0000000000000000000000001  missing → stopped (vanished) on host-0000000000000000000000001
        4  TIME  cl-0000000000000000000000002  running → paused (auto_paused) on host-0000000000000000000000001
    "#]],
    );
    check(
        &home,
        &["events", "--limit", "1", "--format", "json"],
        &expect![[r#"
        [{"revision":4,"at":"TIME","kind":"sandbox.paused","host_id":"host-0000000000000000000000001","sandbox_id":"cl-0000000000000000000000002","team_id":"team-0000000000000000000000000","from":"running","to":"paused","reason":"auto_paused","actor":"system"}]
    "#]],
    );
    check(
        &home,
        &["events", "--after", "1", "--limit", "1"],
        &expect![[r#"
        2  TIME  cl-0000000000000000000000003  running → missing (host_unreachable) on host-0000000000000000000000003
    "#]],
    );
    check(&home, &["events", "--after", "99"], &expect![""]);
    check(
        &home,
        &["events", "--sandbox", &sandbox(2)],
        &expect![[r#"
        4  TIME  cl-0000000000000000000000002  running → paused (auto_paused) on host-0000000000000000000000001
    "#]],
    );
    check(
        &home,
        &["audit"],
        &expect![[r#"
        TIME                      ACTOR   RESOURCE                        ACTION       STATUS  DETAIL
        TIME  system  cl-0000000000000000000000002    pause        info    {"from":"running","to":"paused","reason":"auto_paused","host_id":"host-0000000000000000000000001","revision":4}
        TIME  system  host-0000000000000000000000003  marked_down  error   {"from":"online","to":"unreachable","reason":"host_unreachable","revision":1,"sandboxes_missing":1}
    "#]],
    );
    check(
        &home,
        &["audit", "--host", &host(3), "--format", "json"],
        &expect![[r#"
        [{"id":"LOG","team_id":"team-0000000000000000000000000","actor_type":"system","resource_type":"host","resource_id":"host-0000000000000000000000003","action":"marked_down","scope":"team","status":"error","metadata":{"from":"online","to":"unreachable","reason":"host_unreachable","revision":1,"sandboxes_missing":1},"created_at":"TIME"}]
    "#]],
    );
    check(
        &home,
        &["audit", "--before", CREATED, "--format", "json"],
        &expect![[r#"
        []
    "#]],
    );
}

#[test]
fn making_a_database() {
    let home = Home::new();
    check(
        &home,
        &["db", "init"],
        &expect![[r#"
        DATA/roost.db made
    "#]],
    );
    check(
        &home,
        &["db", "init"],
        &expect![[r#"
        DATA/roost.db is there already
    "#]],
    );
    assert_eq!(without_ages(home.dump()), json!({"hosts": [], "sandboxes": []}));
    check(
        &home,
        &["db", "verify"],
        &expect![[r#"
        DATA/roost.db: whole
    "#]],
    );
    check(
        &home,
        &["db", "verify", "--format", "json"],
        &expect![[r#"
        {"ok":true,"problems":[]}
    "#]],
    );
    let loaded = home.load_text(&fleet().to_string());
    expect![[r#"
        DATA/roost.db: 4 hosts, 4 sandboxes
    "#]]
    .assert_eq(&stable(&home, &loaded.ok()));
}

#[test]
fn a_broken_invariant_is_found() {
    let home = Home::with(&fleet());
    let db = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    db.execute_batch("UPDATE state SET revision = 7").unwrap();
    drop(db);
    let done = home.roost(&["db", "verify"]);
    assert_eq!(done.code, 1);
    expect![[r#"
        the last revision has no event (for example 7)
        roost: could not trust DATA/roost.db: 1 problems; restore a backup, and keep the damaged file for a look
    "#]].assert_eq(&stable(&home, &format!("{}{}", done.stdout, done.stderr)));
    let done = home.roost(&["db", "verify", "--format", "json"]);
    assert_eq!((done.code, &done.json()["ok"]), (1, &json!(false)));
}

#[test]
fn versions() {
    let home = Home::new();
    let text = home.roost(&["version"]).ok();
    let words: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(words, ["roost", "commit", "sqlite"]);
    assert!(text.starts_with(concat!("roost ", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
    let sqlite = text.lines().last().unwrap().trim_start_matches("sqlite ");
    assert!(sqlite.split('.').count() == 3 && sqlite.starts_with("3."), "{sqlite}");
    assert!(!home.dir().exists(), "asking makes nothing");
}

#[test]
fn settings() {
    let home = Home::new();
    home.write("roost.toml", "workers = 7\n");
    let text = home.roost(&["config", "--policy", "strict"]).ok();
    let line = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("workers")[..2], ["workers", "7"]);
    assert!(line("workers")[2].contains("roost.toml"), "{text}");
    assert_eq!(line("policy"), ["policy", "strict", "--policy"]);
    assert_eq!(line("listen"), ["listen", "127.0.0.1:8000", "default"]);
    let json = home.json(&["config"]);
    assert_eq!(json["settings"]["workers"]["value"], json!("7"));
}

#[test]
fn every_error_is_one_line_with_what_why_and_what_to_do() {
    let home = Home::with(&fleet());
    let failed = |args: &[&str]| refusal(&home, args, 1);
    let lines = [
        failed(&["hosts", "show", &host(9)]),
        failed(&["sandboxes", "show", &sandbox(9)]),
        failed(&["status", "--db", "nowhere/roost.db"]),
        failed(&["check", "--db", "nowhere.db"]),
        failed(&["db", "load", "nowhere.json"]),
        failed(&[&["hosts", "add"], NO_SERVER].concat()),
    ];
    expect![[r#"
        roost: could not show host-0000000000000000000000009: no such host
        roost: could not show cl-0000000000000000000000009: no such sandbox
        roost: could not open nowhere/roost.db: no database at nowhere/roost.db; make one with `roost db init` or `roost serve`
        roost: could not check nowhere.db: no database at nowhere.db; make one with `roost db init` or `roost serve`
        roost: could not load nowhere.json: No such file or directory (os error 2)
        roost: could not add a host: no API key; set ROOST_API_KEY, or name the server's data directory with --data-dir
    "#]].assert_eq(&lines.concat());
}

#[test]
fn a_wrong_configuration_exits_with_2() {
    let home = Home::with(&fleet());
    let with_file = |text: &str| {
        home.write("roost.toml", text);
        refusal(&home, &["status"], 2)
    };
    let lines = [
        refusal(&home, &["check", "--workers", "0"], 2),
        refusal(&home, &["check", "--unreachable-after", "90"], 2),
        refusal(&home, &["check", "--policy", "lenient"], 2),
        refusal(&home, &["status", "--config", "nowhere.toml"], 2),
        with_file("# one\nwrokers = 3\n"),
        with_file("workers = \n"),
    ];
    expect![[r#"
        roost: could not read the configuration: workers = "0" (--workers): must be 1 to 1024
        roost: could not read the configuration: unreachable_after = "90" (--unreachable-after): must be 1s to 1day; a duration has a unit, for example 90s or 2m
        roost: could not read the configuration: policy = "lenient" (--policy): must be default or strict
        roost: could not read the configuration: nowhere.toml: No such file or directory (os error 2)
        roost: could not read the configuration: wrokers (DATA/roost.toml:2): unknown key; did you mean workers?
        roost: could not read the configuration: DATA/roost.toml:1: string values must be quoted, expected literal string
    "#]].assert_eq(&lines.concat());
}

#[test]
fn an_unknown_variable_is_refused() {
    let home = Home::new();
    let done = home.command(&["version"]).env("ROOST_WROKERS", "3").output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    expect![[r#"
        roost: could not read the configuration: ROOST_WROKERS: unknown variable; did you mean ROOST_WORKERS?
    "#]].assert_eq(&String::from_utf8(done.stderr).unwrap());
}

#[test]
fn wrong_usage_exits_with_2() {
    let home = Home::with(&fleet());
    for args in [
        &["fly"][..],
        &["hosts", "show", "host-1"],
        &["hosts", "show", &sandbox(1)],
        &["sandboxes", "--status", "lost"],
        &["check", "--policy"],
        &["audit", "--before", "yesterday"],
        &["events", "--limit", "many"],
        &["status", "--no-such-flag"],
        &["hosts", "--format", "yaml"],
    ] {
        let done = home.roost(args);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{args:?}: {done:?}");
        assert!(done.stderr.starts_with("error: "), "{args:?}: {done:?}");
    }
}

/// Why a fixture is refused. Nothing may be written, whether there is a database or not.
fn refused(text: &str) -> String {
    let home = Home::new();
    home.write("fleet.json", text);
    let file = home.path("fleet.json");
    let load = || refusal(&home, &["db", "load", file.to_str().unwrap()], 1);
    let line = load();
    assert!(!home.path("roost.db").exists(), "nothing is made");

    home.roost(&["db", "init"]).ok();
    let before = home.dump();
    assert_eq!(load(), line);
    assert_eq!(without_ages(home.dump()), without_ages(before));

    let why = line.strip_prefix("roost: could not load DATA/fleet.json: ");
    let why = why.and_then(|why| {
        why.strip_suffix("; nothing was loaded; correct the file and load it again\n")
    });
    why.unwrap_or_else(|| panic!("{line}")).to_owned()
}

#[test]
fn a_wrong_fixture_is_refused_with_its_place() {
    let changed = |list: &str, key: &str, value: Value| {
        let mut fleet = json!({
            "hosts": [{"id": host(1), "status": "online"}],
            "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "running"}],
        });
        fleet[list][0][key] = value;
        fleet.to_string()
    };
    let twice = json!([{"id": host(1), "status": "online"}, {"id": host(1), "status": "pending"}]);
    let wrong = [
        "{\"hosts\": [".to_owned(),
        String::new(),
        "[]".to_owned(),
        "{\"hosts\": {}}".to_owned(),
        "{\"hosts\": [7]}".to_owned(),
        "{\"tombstones\": [\"x\"]}".to_owned(),
        json!({"tombstones": [host(1), host(1)]}).to_string(),
        json!({"hosts": twice}).to_string(),
        changed("hosts", "id", json!("host-1")),
        changed("hosts", "id", json!(sandbox(1))),
        changed("hosts", "id", json!(host(1).to_uppercase())),
        changed("hosts", "id", Value::Null),
        changed("hosts", "status", json!("asleep")),
        changed("hosts", "address", json!("nowhere")),
        changed("hosts", "heartbeat_age_s", json!("5s")),
        changed("hosts", "intent", json!("draining")),
        changed("sandboxes", "status", json!("lost")),
        changed("sandboxes", "host_id", json!(host(2))),
        changed("sandboxes", "vcpus", json!(-1)),
        changed("sandboxes", "metadata", json!({"a": 1})),
        changed("sandboxes", "created_at", json!("yesterday")),
        changed("sandboxes", "operation", json!({"kind": "fly"})),
    ];
    let why: Vec<String> = wrong.iter().map(|text| refused(text)).collect();
    expect![[r#"
        line 1 column 11: EOF while parsing a list at line 1 column 11
        line 1 column 0: EOF while parsing a value at line 1 column 0
        fixture: must be a JSON object
        hosts: must be a list
        hosts[0]: must be a JSON object
        tombstones[0]: id does not start with "host-"
        tombstones[1]: host-0000000000000000000000001 is there already
        hosts[1].id: host-0000000000000000000000001 is there twice
        hosts[0].id: "host-1": id has 1 digits after its prefix instead of 25
        hosts[0].id: "cl-0000000000000000000000001": id does not start with "host-"
        hosts[0].id: "HOST-0000000000000000000000001": id does not start with "host-"
        hosts[0].id: is missing
        hosts[0].status: "asleep": unknown host status "asleep"; allowed: pending, online, unreachable, draining, offline
        hosts[0].address: "nowhere": address has no port; expected host:port or http(s)://host[:port]
        hosts[0].heartbeat_age_s: must be a number of seconds up to 100000000000
        hosts[0].status: intent draining and liveness alive do not give this status
        sandboxes[0].status: "lost": unknown sandbox status "lost"; allowed: pending, starting, running, pausing, paused, resuming, stopping, stopped, missing, error, hibernated
        sandboxes[0].host_id: host-0000000000000000000000002 is not among the hosts
        sandboxes[0].vcpus: must be a whole number in range
        sandboxes[0].metadata.a: must be a string
        sandboxes[0].created_at: "yesterday": timestamp format is invalid
        sandboxes[0].operation.kind: "fly": unknown operation "fly"; allowed: create, pause, resume, destroy, snapshot"#]].assert_eq(&why.join("\n"));
}

#[test]
fn a_fleet_is_not_loaded_over_another() {
    let home = Home::with(&fleet());
    let before = std::fs::read(home.path("roost.db")).unwrap();
    let done = home.load_text("{\"hosts\": []}");
    assert_eq!(done.code, 1);
    expect![[r#"
        roost: could not load -: DATA/roost.db holds hosts already; choose another database with --db
    "#]].assert_eq(&stable(&home, &done.stderr));
    assert!(std::fs::read(home.path("roost.db")).unwrap() == before);
}

#[test]
fn a_field_that_nobody_knows_is_told_and_left_out() {
    let home = Home::new();
    let text = json!({"hosts": [{"id": host(1), "status": "online", "colour": "red"}]});
    let done = home.load_text(&text.to_string());
    assert_eq!(done.code, 0);
    assert!(done.stderr.contains("hosts[0].colour"), "{done:?}");
}

/// What is dumped and loaded is the same fleet; ages go on.
#[test]
fn a_dump_loads_to_the_same_dump() {
    let mut fleet = fleet();
    fleet["tombstones"] = json!([host(8), host(9)]);
    fleet["hosts"][0]["team_id"] = json!("team-0000000000000000000000007");
    fleet["hosts"][0]["type"] = json!("metal");
    fleet["hosts"][0]["contact_gap"] = json!(true);
    fleet["hosts"][1]["intent"] = json!("draining");
    fleet["sandboxes"][0]["operation"] = json!({"kind": "pause", "deadline_in_s": 500});
    fleet["sandboxes"][1]["announced"] = json!(true);
    fleet["sandboxes"][1]["team_id"] = json!("team-0000000000000000000000007");
    fleet["sandboxes"][1]["last_active_at"] = json!(CREATED);
    let home = Home::with(&fleet);
    let first = home.dump();
    let again = Home::with(&first);
    let second = again.dump();
    same(&first, &second, "");
    again.verify();
    // And it is what was written down to begin with, where that said something.
    for (list, n) in [("hosts", 4), ("sandboxes", 4)] {
        for row in 0..n {
            for (key, value) in fleet[list][row].as_object().unwrap() {
                if !value.is_null() && key != "address" {
                    same(value, &first[list][row][key], &format!("{list}[{row}].{key}"));
                }
            }
        }
    }
    assert_eq!(first["hosts"][1]["address"], json!("http://edge-2.example:50051"));
}

/// Equal, but that spans may have grown, or shrunk for what lies ahead, a little.
fn same(first: &Value, second: &Value, place: &str) {
    match (first, second) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| same(value, &b[key], &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b).for_each(|(a, b)| same(a, b, place));
        }
        (Value::Number(a), Value::Number(b)) if place.ends_with("_s") => {
            let grown = b.as_f64().unwrap() - a.as_f64().unwrap();
            let grown = if place.ends_with("_in_s") { -grown } else { grown };
            assert!((0.0..60.0).contains(&grown), "{place}: {a} {b}");
        }
        (a, b) => assert_eq!(a, b, "{place}"),
    }
}

#[test]
fn what_agents_write_moves_no_cursor_and_pipes_get_no_colour() {
    let home = Home::with(&fleet());
    for args in [&["hosts"][..], &["sandboxes"], &["sandboxes", "show", &sandbox(3)]] {
        for variable in [None, Some("NO_COLOR"), Some("CLICOLOR_FORCE")] {
            let mut command = home.command(args);
            variable.map(|name| command.env(name, "1"));
            let out = command.output().unwrap();
            assert!(out.status.success() && !out.stdout.contains(&0x1b), "{args:?} {variable:?}");
        }
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let one = |n: u128| json!({"id": sandbox(n), "host_id": host(1), "status": "running"});
    let sandboxes: Vec<Value> = (0..5000).map(one).collect();
    let home = Home::with(
        &json!({"hosts": [{"id": host(1), "status": "online"}], "sandboxes": sandboxes}),
    );
    for args in [&["sandboxes"][..], &["sandboxes", "--format", "json"], &["db", "dump"]] {
        let mut command = home.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut some = BufReader::with_capacity(16, child.stdout.take().unwrap());
        assert!(!some.fill_buf().unwrap().is_empty());
        drop(some);
        let out = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}
