//! Owns the proof that the Python SDK of the original API works with Roost: its oldest
//! version that agents of today know, and its newest, with a team's key against a running
//! server and simulated agents.
//!
//! Never: what happens inside a sandbox. Without python3 and its packages the tests are
//! skipped, loudly; with `CI` set that is a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use support::python::Python;
use support::server::Serving;
use support::{Home, eventually};

const HOSTS: usize = 2;

/// Simulated agents that joined a server; ended when dropped.
struct Agents(Child);

impl Agents {
    fn join(home: &Home, serving: &Serving) -> Agents {
        let token = |_| serving.post("/v1/hosts", &json!({})).json()["registration_token"].clone();
        let tokens: Vec<String> =
            (0..HOSTS).map(token).map(|token| token.as_str().unwrap().to_owned()).collect();
        let (url, tokens) = (format!("http://{}", serving.address()), tokens.join(","));
        let args = ["agent-sim", "--join", &url, "--token", &tokens, "--base-port", "0"];
        let mut command: Command = home.command(&args);
        command.args(["--sandboxes", "0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let agents = Agents(command.spawn().unwrap());
        eventually("hosts that were observed", || {
            let hosts = serving.get("/v1/hosts").json();
            let observed =
                |host: &&Value| host["status"] == "online" && host["last_probe"]["at"].is_string();
            (hosts.as_array().unwrap().iter().filter(observed).count() == HOSTS).then_some(())
        });
        agents
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs everything in tests/sdk/lifecycle.py with this version of the SDK.
fn check(version: &str, flags: &[&str]) {
    let requirements = format!("tests/sdk/requirements-{version}.txt");
    let unchecked = format!("version {version} of the Python SDK was NOT tried");
    let Some(python) = Python::with(&requirements, &unchecked) else { return };
    let home = Home::new();
    let serving = home.serve(&[&["--probe-interval", "1s"], flags].concat());
    let agents = Agents::join(&home, &serving);
    let team = "team-0000000000000000000000007";
    let key = serving.post("/v1/api-keys", &json!({"name": "sdk", "team_id": team})).json();
    let url = format!("http://{}", serving.address());
    let env = [
        ("WRENN_BASE_URL", url.as_str()),
        ("WRENN_API_KEY", key["key"].as_str().unwrap()),
        ("SDK_VERSION", version),
    ];
    python.run("tests/sdk/lifecycle.py", &[], &env);
    let left = serving.get("/v1/capsules").json();
    assert_eq!(left, json!([]), "every capsule was destroyed");
    drop(agents);
    serving.stop();
    home.verify();
}

#[test]
fn the_oldest_version_works_with_answers_that_wait() {
    check("0.1.2", &["--answers", "when_done"]);
}

#[test]
fn the_newest_version_works() {
    check("0.3.0", &[]);
}

#[test]
fn the_newest_version_works_with_answers_that_wait() {
    check("0.3.0", &["--answers", "when_done"]);
}
