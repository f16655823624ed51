//! Owns the proof that contrib/standby takes over: a primary is killed, another directory
//! with its keys goes on from the replica within a minute, at the primary's address, and no
//! sandbox or snapshot is lost by it.
//!
//! Never: two machines. The address goes to the standby by being free.

use crate::support::server::Serving;
use crate::support::{Home, eventually};
use crate::{Litestream, add};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Within what time the standby must serve.
const A_MINUTE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A standby for the server at this address, in this directory.
struct Standby<'a> {
    litestream: &'a Litestream,
    home: &'a Home,
    address: String,
}

impl Standby<'_> {
    fn command(&self, what: &str) -> Command {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(top.join("contrib/standby"));
        let programs = [Path::new(env!("CARGO_BIN_EXE_roost")), &self.litestream.program];
        let path = programs.map(|program| program.parent().unwrap().display().to_string());
        let path = format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap());
        let config = self.litestream.path("litestream.yml");
        let db = self.litestream.path("primary/roost.db");
        let start = format!(
            "roost serve --listen {} --probe-interval 1s >{} 2>&1 & echo $! >{}",
            self.address,
            self.litestream.path("served.log").display(),
            self.litestream.path("pid").display()
        );
        command
            .arg(what)
            .env("PATH", path)
            .env("ROOST_DATA_DIR", self.home.dir())
            .env("STANDBY_PRIMARY", format!("http://{}", self.address))
            .env("STANDBY_REPLICA", format!("-config {} {}", config.display(), db.display()))
            .env("STANDBY_FENCE", format!("test -e {}", self.litestream.path("off").display()))
            .env("STANDBY_START", start)
            .env("STANDBY_AFTER", "5")
            .env("STANDBY_EVERY", "1")
            .stdout(Stdio::null());
        command
    }

    /// What `check` and `take-over` come to, and say.
    fn says(&self, what: &str) -> (Option<i32>, String) {
        let done = self.command(what).stderr(Stdio::piped()).output().unwrap();
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

/// Ends the server that a take-over has started.
struct Started<'a>(&'a Litestream);

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.0.path("pid")) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).status();
        }
    }
}

fn sandboxes(home: &Home) -> Vec<(String, String)> {
    let rows = home.json(&["sandboxes", "--all"]);
    let of = |row: &Value| {
        let word = |name: &str| row[name].as_str().unwrap().to_owned();
        (word("id"), word("status"))
    };
    let mut all: Vec<_> = rows.as_array().unwrap().iter().map(of).collect();
    all.sort();
    all
}

fn create(serving: &Serving) -> String {
    let made = serving.post("/v1/capsules", &json!({}));
    assert_eq!(made.status, 202, "{made:?}");
    made.json()["id"].as_str().unwrap().to_owned()
}

fn settled(serving: &Serving, id: &str, status: &str) {
    let path = format!("/v1/capsules/{id}");
    eventually(&format!("{id} {status}"), || {
        (serving.get(&path).json()["status"] == json!(status)).then_some(())
    });
}

#[test]
fn a_standby_takes_over_within_a_minute_and_nothing_is_lost() {
    let Some(litestream) = Litestream::new() else { return };
    let _started = Started(&litestream);
    let primary = Home::at(litestream.path("primary"));
    let flags = ["--probe-interval", "1s", "--heartbeat-flush", "1s", "--zombies", "destroy"];
    let serving = primary.serve(&flags);
    let address = serving.address().to_string();
    let replicating = litestream.replicate(&primary.path("roost.db"));

    // Agents with a sandbox that runs, one that is paused, and a template. They pause everything
    // after three heartbeats without an answer: later than the standby takes over.
    let tokens = [(); 2].map(|()| {
        let added = serving.post("/v1/hosts", &json!({})).json();
        added["registration_token"].as_str().unwrap().to_owned()
    });
    let agents = primary
        .command(&["agent-sim", "--join", &format!("http://{address}"), "--base-port", "0"])
        .args(["--sandboxes", "0", "--heartbeat-ms", "15000", "--token", &tokens.join(",")])
        .args(["--lists-paused", "--keeps-after-snapshot"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _agents = Ended(agents.unwrap());
    eventually("hosts that take sandboxes", || {
        let hosts = serving.get("/v1/hosts").json();
        let up = |host: &&Value| host["status"] == "online" && host["last_probe"]["at"].is_string();
        (hosts.as_array().unwrap().iter().filter(up).count() == 2).then_some(())
    });
    let [running, paused] = [(); 2].map(|()| create(&serving));
    [&running, &paused].iter().for_each(|id| settled(&serving, id, "running"));
    let snapshot = serving.post("/v1/snapshots", &json!({"sandbox_id": running, "name": "kept"}));
    assert!([201, 202].contains(&snapshot.status), "{snapshot:?}");
    settled(&serving, &running, "running");
    assert_eq!(serving.post(&format!("/v1/capsules/{paused}/pause"), &Value::Null).status, 202);
    settled(&serving, &paused, "paused");
    let (_, mut at) = add(&serving);
    eventually("a sync of all that", || {
        at = at.max(add(&serving).1 - crate::SYNC_LACKS * 2);
        litestream.synced_at().filter(|synced| *synced > at + crate::SYNC_LACKS)
    });

    // The standby says what it lacks.
    let other = Home::new();
    std::fs::create_dir_all(other.dir()).unwrap();
    let standby = Standby { litestream: &litestream, home: &other, address: address.clone() };
    for file in ["host-token.key", "admin.key"] {
        let (code, said) = standby.says("check");
        assert!(code == Some(2) && said.contains(file), "{said}");
        std::fs::copy(primary.path(file), other.path(file)).unwrap();
    }
    let (code, said) = standby.says("check");
    assert!(code == Some(0), "{said}");
    std::fs::write(other.path("roost.toml"), "zombies = \"destroy\"\n").unwrap();
    // Two at once are refused, whatever the fence says.
    std::fs::write(litestream.path("off"), "").unwrap();
    let (code, said) = standby.says("take-over");
    assert!(code == Some(1) && said.contains("still answers"), "{said}");
    std::fs::remove_file(litestream.path("off")).unwrap();
    assert!(!other.path("roost.db").exists() && !other.path("standby.took-over").exists());

    let log = std::fs::File::create(litestream.path("standby.log")).unwrap();
    let mut watching = Ended(standby.command("run").stderr(log).spawn().unwrap());
    let says = |words: &str| {
        eventually(words, || {
            let log = std::fs::read_to_string(litestream.path("standby.log")).unwrap();
            log.contains(words).then_some(())
        });
    };
    says("the replica can be restored");

    // What is made now, the replica does not get.
    replicating.kill();
    let forgotten = create(&serving);
    settled(&serving, &forgotten, "running");
    let before = sandboxes(&primary);
    serving.kill();
    let killed = Instant::now();
    says("STANDBY_FENCE failed");
    assert!(!other.path("roost.db").exists(), "not before the primary is off for certain");
    std::fs::write(litestream.path("off"), "").unwrap();
    let ended = eventually("the take-over", || watching.0.try_wait().unwrap());
    let took = killed.elapsed();
    let log = std::fs::read_to_string(litestream.path("standby.log")).unwrap();
    assert!(ended.success() && took < A_MINUTE, "{took:?}: {log}");

    // Agents are back by themselves, what ran runs, what was paused is, and nothing is destroyed.
    eventually("agents that are back", || {
        let hosts = other.json(&["hosts"]);
        let online = |host: &&Value| host["status"] == "online";
        (hosts.as_array().unwrap().iter().filter(online).count() == 2).then_some(())
    });
    let stranger = eventually("the one that was forgotten", || {
        let status = other.json(&["status"]);
        status["strangers"]
            .as_array()?
            .iter()
            .find(|s| s["sandbox_id"] == json!(forgotten))
            .cloned()
    });
    assert_eq!(stranger["kind"], json!("forgotten"), "{stranger}");
    let url = format!("http://{address}");
    let run = |args: &[&str]| other.roost(&[args, &["--url", &url]].concat()).ok();
    run(&["sandboxes", "resume", "--wait", &paused]);
    run(&["sandboxes", "adopt", &forgotten]);
    let expected: Vec<(String, String)> =
        before.into_iter().map(|(id, _)| (id, "running".to_owned())).collect();
    eventually("all of them run", || (sandboxes(&other) == expected).then_some(()));
    let templates = other.roost(&["templates"]).ok();
    assert!(templates.contains("kept"), "{templates}");
    let audit = other.roost(&["events"]).ok();
    assert!(!audit.contains("stopp") && !audit.contains("missing"), "{audit}");
    // It is the primary now.
    let (code, said) = standby.says("run");
    assert!(code == Some(2) && said.contains("took over"), "{said}");
    other.verify();
}
