//! Owns the proof that the real Litestream 0.5 replicates a Roost that works: the example
//! configuration is read, what was acknowledged is found after both were killed, a database
//! that Litestream puts in place itself is noticed, and a second machine takes over.
//!
//! Never: a network; the replica is a directory. Without python3 and the package the tests
//! are skipped, loudly; with `CI` set that is a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "litestream/standby.rs"]
mod standby;
mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use support::python::Python;
use support::server::Serving;
use support::{Home, eventually};
use tempfile::TempDir;

/// How often the replica gets what is new, in these tests.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// What a sync may lack that was acknowledged before it: it copies what the database's own
/// side had read, once a second as well, and the machine is shared.
const SYNC_LACKS: Duration = Duration::from_secs(3);

/// Litestream with a configuration made of the example, and its replica.
struct Litestream {
    program: PathBuf,
    out: TempDir,
}

impl Litestream {
    /// `None`, loudly, where it cannot be had.
    fn new() -> Option<Litestream> {
        let python =
            Python::with("tests/litestream/requirements.txt", "the real Litestream was NOT tried")?;
        Some(Litestream {
            program: python.program("litestream"),
            out: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.out.path().join(name)
    }

    /// The example, with this database and a directory in the place of S3.
    fn configure(&self, db: &Path) -> PathBuf {
        let text = example()
            .replace("/var/lib/roost/roost.db", db.to_str().unwrap())
            .replace("type: s3", "type: file")
            .replace("      bucket: roost-backups\n", "")
            .replace("path: roost\n", &format!("path: {}\n", self.path("replica").display()))
            .replace("sync-interval: 10s", &format!("sync-interval: {}s", SYNC_EVERY.as_secs()));
        let file = self.path("litestream.yml");
        std::fs::write(&file, text).unwrap();
        file
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Begins to replicate this database.
    fn replicate(&self, db: &Path) -> Replicating {
        let config = self.configure(db);
        let mut command = self.command(&["replicate", "-config", config.to_str().unwrap()]);
        let log = std::fs::File::create(self.path("log")).unwrap();
        Replicating(command.stderr(log).spawn().unwrap())
    }

    /// Restores this database, elsewhere if asked.
    fn restore(&self, db: &Path, flags: &[&str]) {
        let config = self.path("litestream.yml");
        let fixed = ["restore", "-config", config.to_str().unwrap()];
        let args = [&fixed, flags, &[db.to_str().unwrap()]].concat();
        let done = self.command(&args).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// When the replica last got something.
    fn synced_at(&self) -> Option<SystemTime> {
        newest(&self.path("replica"))
    }

    /// Waits until the replica has got something that is newer.
    fn synced_after(&self, then: SystemTime) {
        eventually("a sync", || self.synced_at().filter(|at| *at > then + SYNC_LACKS));
    }
}

/// The newest time of any file below.
fn newest(dir: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => newest(&entry.path()),
        Ok(found) => found.modified().ok(),
        Err(_) => None,
    };
    entries.filter_map(of).max()
}

fn example() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/litestream.yml");
    std::fs::read_to_string(file).unwrap()
}

/// Killed when dropped.
struct Replicating(Child);

impl Replicating {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Replicating {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A key that is not read may say anything.
#[test]
fn every_key_of_the_example_is_read() {
    let Some(litestream) = Litestream::new() else { return };
    let file = litestream.path("changed.yml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let done = litestream.command(&["databases", "-config", file.to_str().unwrap()]).output();
        let done = done.unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let (is_good, said) = check(&example());
    assert!(is_good, "{said}");
    let mut tried = Vec::new();
    for line in example().lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((key, value)) = line.split_once(": ") else { continue };
        let key = key.trim().trim_start_matches("- ");
        // Any text is a path or a name.
        if ["path", "bucket"].contains(&key) {
            continue;
        }
        let (accepted, said) = check(&example().replace(line, &line.replace(value, "banana")));
        assert!(!accepted && said.contains("banana"), "{key} is not read: {said}");
        tried.push(key.to_owned());
    }
    assert_eq!(
        tried,
        [
            "interval",
            "retention",
            "min-checkpoint-page-count",
            "checkpoint-interval",
            "type",
            "sync-interval"
        ]
    );
}

/// Adds a host; its id, and when that was acknowledged.
fn add(serving: &Serving) -> (String, SystemTime) {
    let answer = serving.post("/v1/hosts", &json!({}));
    assert_eq!(answer.status, 201, "{answer:?}");
    (answer.json()["host"]["id"].as_str().unwrap().to_owned(), SystemTime::now())
}

fn hosts(serving: &Serving) -> Vec<String> {
    let hosts = serving.get("/v1/hosts").json();
    let id = |host: &Value| host["id"].as_str().unwrap().to_owned();
    hosts.as_array().unwrap().iter().map(id).collect()
}

#[test]
fn what_was_acknowledged_before_the_last_sync_survives_both_being_killed() {
    let Some(litestream) = Litestream::new() else { return };
    let home = Home::new();
    let db = home.path("roost.db");
    let serving = home.serve(&["--heartbeat-flush", "1s"]);
    let replicating = litestream.replicate(&db);
    eventually("the first sync", || litestream.synced_at());

    // Several at once, over more than one of Litestream's own checkpoints, until the replica
    // has got something of most of it.
    let over = AtomicBool::new(false);
    let (acknowledged, killed_at) = std::thread::scope(|scope| {
        let load = || {
            let mut added = Vec::new();
            while !over.load(Ordering::Relaxed) {
                added.push(add(&serving));
            }
            added
        };
        let loads = [(); 3].map(|()| scope.spawn(load));
        let began = SystemTime::now();
        litestream.synced_after(began + 2 * SYNC_EVERY);
        over.store(true, Ordering::Relaxed);
        let added = loads.map(|load| load.join().unwrap());
        (Vec::from_iter(added.into_iter().flatten()), SystemTime::now())
    });
    serving.kill();
    replicating.kill();
    let synced_at = litestream.synced_at().unwrap();
    let until = synced_at - SYNC_LACKS;
    let certain: Vec<&String> =
        acknowledged.iter().filter(|(_, at)| *at < until).map(|(id, _)| id).collect();
    assert!(certain.len() > 20, "{} of {}", certain.len(), acknowledged.len());
    let lag = killed_at.duration_since(synced_at).unwrap_or_default();
    assert!(lag < Duration::from_secs(10), "the last sync was {lag:?} before");

    let recovered = litestream.path("recovered.db");
    litestream.restore(&db, &["-o", recovered.to_str().unwrap()]);
    home.roost(&["db", "restore", recovered.to_str().unwrap()]).ok();
    let serving = home.serve_restored(&[]);
    home.roost(&["db", "accept", "--url", &format!("http://{}", serving.address())]).ok();
    let found = hosts(&serving);
    let lost: Vec<&&String> = certain.iter().filter(|id| !found.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), certain.len());
    home.verify();

    // It goes on into the same replica.
    let replicating = litestream.replicate(&db);
    let (id, at) = add(&serving);
    let mut at = at;
    eventually("another sync", || {
        // Something new to sync.
        at = at.max(add(&serving).1 - SYNC_LACKS * 2);
        litestream.synced_at().filter(|synced| *synced > at + SYNC_LACKS)
    });
    serving.kill();
    replicating.kill();
    let again = litestream.path("again.db");
    litestream.restore(&db, &["-o", again.to_str().unwrap()]);
    let list = home.json(&["hosts", "--db", again.to_str().unwrap()]);
    assert!(list.as_array().unwrap().iter().any(|host| host["id"] == json!(id)), "{id}");
}

/// `litestream restore -if-db-not-exists && roost serve`, as entrypoints have it.
#[test]
fn a_database_that_litestream_puts_in_place_is_taken_for_restored() {
    let Some(litestream) = Litestream::new() else { return };
    let home = Home::new();
    let db = home.path("roost.db");
    let serving = home.serve(&["--heartbeat-flush", "1s"]);
    let known = serving.register("127.0.0.1:1");
    let replicating = litestream.replicate(&db);
    let config = litestream.path("litestream.yml");
    let mut once = litestream.command(&["replicate", "-once", "-config", config.to_str().unwrap()]);
    eventually("the first sync", || litestream.synced_at());
    replicating.kill();
    assert!(once.status().unwrap().success());
    let lost = serving.register("127.0.0.1:2");
    serving.kill();

    let restored_in_place = || {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(home.path(&format!("roost.db{end}")));
        }
        litestream.restore(&db, &["-if-db-not-exists"]);
    };
    restored_in_place();
    let serving = home.serve_restored(&[]);
    serving.logged(&["WARN", "older than the one that was served last", "taken for a restored"]);
    let ready = serving.get("/readyz");
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(ready.message().contains("restored"), "{ready:?}");
    let beat = |serving: &Serving, registered: &Value| {
        let (id, token) = (&registered["host"]["id"], &registered["token"]);
        serving.beat(id.as_str().unwrap(), token.as_str().unwrap()).status
    };
    assert_eq!([beat(&serving, &known), beat(&serving, &lost)], [503, 503], "agents wait");
    home.roost(&["db", "accept", "--url", &format!("http://{}", serving.address())]).ok();
    assert_eq!([beat(&serving, &known), beat(&serving, &lost)], [204, 503]);
    let refresh = json!({"refresh_token": lost["refresh_token"]}).to_string();
    let renewed = serving.ask("POST", "/v1/hosts/auth/refresh", &[], &refresh);
    assert_eq!(renewed.status, 503, "genuine, and not known: {renewed:?}");
    serving.kill();
    // Killed is not restored.
    home.serve(&[]).stop();
    home.verify();
}
