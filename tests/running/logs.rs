//! Owns what the log looks like, what it never holds, and what it warns of.
//!
//! Never: looks for a secret that the run did not really have.

use crate::support::Home;
use crate::support::server::Serving;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

/// Runs a command until it ends, or until it listens and is told to stop; its stderr is a
/// file that `JOURNAL_STREAM` names when `journal` is set.
fn stderr_of(mut command: Command, journal: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stderr");
    let file = File::create(&path).unwrap();
    let found = file.metadata().unwrap();
    let inode = if journal { found.ino() } else { found.ino() + 1 };
    command.env("JOURNAL_STREAM", format!("{}:{inode}", found.dev()));
    let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    if line.starts_with("listening") {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    }
    child.wait().unwrap();
    std::fs::read_to_string(path).unwrap()
}

fn has_time(line: &str) -> bool {
    line.len() > 24 && line.as_bytes()[10] == b'T' && line.as_bytes()[23] == b'Z'
}

#[test]
fn the_journal_gets_priorities_and_no_times() {
    let home = Home::new();
    let flags = ["--unreachable-after", "30s"];
    let text = stderr_of(home.serving(&flags), true);
    assert!(text.lines().count() >= 3, "{text}");
    for line in text.lines() {
        let known = ["<4>roost", "<6>roost"].iter().any(|start| line.starts_with(start));
        assert!(known && !line.contains("Z "), "{line}");
    }
    assert!(text.contains("<4>roost::cli::serve: unreachable_after is 30s"), "{text}");

    let elsewhere = stderr_of(home.serving(&flags), false);
    assert!(elsewhere.lines().all(has_time), "{elsewhere}");

    let json = stderr_of(home.serving(&[&flags[..], &["--log-format", "json"]].concat()), true);
    for line in json.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(has_time(&format!("{} ", line["ts"].as_str().unwrap())), "{line}");
    }

    let failed = stderr_of(home.command(&["hosts", "show", &crate::support::host(7)]), true);
    assert!(failed.starts_with("<3>roost: could not show"), "{failed}");
}

/// Every text in a JSON answer that is long enough to be a secret.
fn texts(value: &Value, found: &mut Vec<(String, String)>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some(text) = value.as_str() {
            found.push((name.clone(), text.to_owned()));
        }
        texts(value, found);
    }
}

/// The secrets among them: tokens, keys, private keys in PEM.
fn secrets(answers: &[Value]) -> Vec<String> {
    let mut all = Vec::new();
    answers.iter().for_each(|answer| texts(answer, &mut all));
    let is_secret = |name: &str| ["key", "key_pem"].contains(&name) || name.ends_with("token");
    all.retain(|(name, text)| is_secret(name) && text.len() > 20);
    // Of a PEM one line of its body is enough to give it away.
    let line = |text: &str| text.lines().nth(1).map_or(text.to_owned(), str::to_owned);
    all.iter().map(|(_, text)| line(text)).collect()
}

fn use_everything(serving: &Serving) -> Vec<Value> {
    // Of its own: that of another live host is refused.
    let count = serving.get("/v1/hosts").json().as_array().unwrap().len();
    let registered = serving.register(&format!("127.0.0.1:{}", count + 1));
    let host = registered["host"]["id"].as_str().unwrap().to_owned();
    let refresh = json!({"refresh_token": registered["refresh_token"]}).to_string();
    let refreshed = serving.ask("POST", "/v1/hosts/auth/refresh", &[], &refresh);
    assert_eq!(refreshed.status, 200, "{refreshed:?}");
    let key = serving.post("/v1/api-keys", &json!({"name": "ci"})).json();
    let header = [("X-API-Key", key["key"].as_str().unwrap())];
    assert_eq!(serving.ask("GET", "/v1/capsules", &header, "").status, 200);
    let added = serving.post("/v1/hosts", &json!({})).json();
    assert_eq!(serving.beat(&host, registered["token"].as_str().unwrap()).status, 204);
    // Refused and broken requests are where secrets slip out.
    let wrong = [("X-API-Key", "roost_0123456789abcdef0123456789abcdef")];
    assert_eq!(serving.ask("GET", "/v1/hosts", &wrong, "").status, 401);
    serving.ask(
        "POST",
        "/v1/hosts/register",
        &[],
        &format!("{{\"token\": {}", added["registration_token"]),
    );
    serving.ask("POST", "/v1/hosts/auth/refresh", &[], &refresh);
    vec![registered, refreshed.json(), key, added]
}

#[test]
fn no_secret_is_ever_logged() {
    for format in ["text", "json"] {
        let home = Home::new();
        let flags = ["--log", "trace", "--log-format", format, "--agent-tls", "mtls"];
        let serving = home.serve(&flags);
        let mut hidden = secrets(&use_everything(&serving));
        let file = |name: &str| std::fs::read_to_string(home.path(name)).unwrap();
        hidden.push(file("admin.key").trim().to_owned());
        hidden.push(file("host-token.key").trim().to_owned());
        hidden.push(file("ca.key").lines().nth(1).unwrap().to_owned());
        hidden.push("roost_0123456789abcdef0123456789abcdef".to_owned());
        assert!(hidden.len() >= 9, "only {} secrets were looked for", hidden.len());
        // A command shows its key to the server, and says as much of it.
        let url = format!("http://{}", serving.address());
        let act = ["hosts", "add", "--url", &url, "--log", "trace", "--log-format", format];
        let acted = home.roost(&act);
        assert!(acted.code == 0 && acted.stderr.lines().count() > 3, "{acted:?}");
        let mut log = serving.stop();
        log.extend(acted.stderr.lines().map(str::to_owned));
        assert!(log.len() > 30, "trace says a lot");
        for line in &log {
            let told = hidden.iter().find(|secret| line.contains(secret.as_str()));
            assert!(told.is_none(), "{told:?} in {line}");
        }
    }
}

#[test]
fn dangers_are_told_at_the_start_and_by_config() {
    let fleet = json!({"hosts": [{"id": crate::support::host(1), "status": "offline",
        "address": "203.0.113.9:50051"}], "sandboxes": []});
    let home = Home::with(&fleet);
    home.serve(&[]).stop();
    assert_eq!(home.json(&["config"])["warnings"].as_array().unwrap().len(), 1);
    let open = |path: &str, mode| {
        std::fs::set_permissions(home.path(path), PermissionsExt::from_mode(mode)).unwrap();
    };
    open("", 0o755);
    open("admin.key", 0o644);
    let words = ["without TLS", "chmod 700", "chmod 600", "agent_tls", "unreachable_after"];
    let flags = ["--listen", "0.0.0.0:0", "--unreachable-after", "45s", "--log-format", "json"];
    let serving = Serving::start(home.command(&[&["serve"], &flags[..]].concat()));
    let log: Vec<Value> =
        serving.stop().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let warned: Vec<&str> = log
        .iter()
        .filter(|line| line["level"] == "WARN")
        .map(|line| line["message"].as_str().unwrap())
        .collect();
    let config = home.roost(&[&["config"], &flags[..]].concat()).ok();
    let listed: Vec<&str> =
        config.lines().filter_map(|line| line.strip_prefix("# warning: ")).collect();
    for word in words {
        assert!(warned.iter().any(|line| line.contains(word)), "{word}: {warned:?}");
        assert!(listed.iter().any(|line| line.contains(word)), "{word}: {listed:?}");
    }
    assert_eq!((warned.len(), listed.len()), (words.len(), words.len()), "{warned:?}");
}
