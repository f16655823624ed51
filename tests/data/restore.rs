//! Owns `roost db restore` as a command: what it refuses, what becomes of the database that
//! was there.
//!
//! Never: what a server makes of a restored database.

use crate::support::{Home, eventually, host};
use crate::{files, only};
use roost::store::Connection;
use rustix::process::Signal;
use serde_json::json;
use std::path::Path;

fn fleet(hosts: u128) -> serde_json::Value {
    let row = |n| json!({"id": host(n), "status": "online", "heartbeat_age_s": 5});
    json!({"hosts": (1..=hosts).map(row).collect::<Vec<_>>()})
}

fn count(home: &Home) -> usize {
    home.json(&["hosts"]).as_array().unwrap().len()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_cannot_be_restored_changes_nothing() {
    let home = Home::with(&fleet(1));
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("good");
    home.roost(&["db", "backup", text(&good)]).ok();
    let made = |name: &str, change: &dyn Fn(&Path)| {
        let path = out.path().join(name);
        std::fs::copy(&good, &path).unwrap();
        change(&path);
        path
    };
    let sql = |sql: &'static str| {
        move |path: &Path| Connection::open(path).unwrap().execute_batch(sql).unwrap()
    };
    let cut = |path: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(8192).unwrap();
    };
    let zeroes = |path: &Path| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0; 4096], 4096).unwrap();
    };
    let refused = [
        (made("newer", &sql("PRAGMA user_version = 99")), "use the newer roost"),
        (made("foreign", &sql("PRAGMA application_id = 5")), "is not a roost database"),
        (made("broken", &sql("UPDATE state SET revision = 7")), "is damaged"),
        (made("cut", &cut), "is damaged"),
        (made("zeroes", &zeroes), "is damaged"),
        (made("text", &|path| std::fs::write(path, "a letter").unwrap()), "is damaged"),
        (made("empty", &|path| std::fs::write(path, "").unwrap()), "is not a roost database"),
        (out.path().to_owned(), "is not a roost database"),
        (out.path().join("nothing"), "there is no file"),
        (home.path("roost.db"), "is not overwritten"),
    ];
    let before = files(home.dir());
    for (file, why) in refused {
        let done = home.roost(&["db", "restore", text(&file)]);
        assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{}", file.display());
        assert!(done.stderr.contains(why), "{}: {}", file.display(), done.stderr);
        assert_eq!(done.stderr.lines().count(), 1);
        assert!(files(home.dir()) == before, "{}", file.display());
    }
    let serving = home.serve(&[]);
    let done = home.roost(&["db", "restore", text(&good)]);
    assert!(done.stderr.contains(&format!("pid {}", serving.pid())), "{}", done.stderr);
    assert_eq!(done.code, 1);
}

#[test]
fn the_database_that_was_there_is_whole_under_another_name() {
    let home = Home::with(&fleet(1));
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("good");
    home.roost(&["db", "backup", text(&good)]).ok();
    // Killed, it leaves its log behind, full of what the file does not have yet.
    let serving = home.serve(&[]);
    for _ in 0..3 {
        assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    }
    let keys = std::fs::read(home.path("host-token.key")).unwrap();
    serving.kill();
    assert!(std::fs::metadata(home.path("roost.db-wal")).unwrap().len() > 0);

    let said = home.roost(&["db", "restore", text(&good)]).ok();
    let aside = only(&home, "roost.db.replaced-");
    assert!(said.contains(text(&aside)) && said.contains("roost db accept"), "{said}");
    assert_eq!(count(&home), 1);
    home.verify();
    assert_eq!(home.json(&["hosts", "--db", text(&aside)]).as_array().unwrap().len(), 4);
    assert_eq!(home.json(&["db", "verify", "--db", text(&aside)])["ok"], json!(true));
    assert_eq!(std::fs::read(home.path("host-token.key")).unwrap(), keys, "not in the database");
    let status = home.roost(&["status"]).ok();
    assert!(status.contains("not accepted"), "{status}");

    // And back again.
    home.roost(&["db", "restore", text(&aside)]).ok();
    assert_eq!(count(&home), 4);
    home.verify();
    assert_eq!(home.roost(&["db", "accept"]).ok().lines().count(), 1);
    assert!(!home.roost(&["status"]).ok().contains("not accepted"));
    home.serve(&[]).stop();
    home.verify();
}

/// The damaged one and what lies beside it are kept as they are.
#[test]
fn a_damaged_database_gives_way_and_its_log_with_it() {
    let home = Home::with(&fleet(2));
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("good");
    home.roost(&["db", "backup", text(&good)]).ok();
    home.write("roost.db", &"not a database any more ".repeat(1000));
    home.write("roost.db-wal", "and a log");
    home.roost(&["db", "restore", text(&good)]).ok();
    home.verify();
    assert_eq!(count(&home), 2);
    let aside = files(home.dir());
    let kept: Vec<&[u8]> = aside
        .iter()
        .filter(|(name, _)| name.starts_with("roost.db.replaced-"))
        .map(|(_, bytes)| bytes.as_slice())
        .collect();
    assert_eq!(kept.len(), 2);
    assert!(kept[0].starts_with(b"not a database any more") && kept[1] == b"and a log");
}

#[test]
fn a_new_machine_needs_no_directory_and_a_backup_from_a_medium_that_takes_no_writes_will_do() {
    let home = Home::with(&fleet(3));
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("good");
    home.roost(&["db", "backup", text(&good)]).ok();
    let new = Home::new();
    let said = new.roost(&["db", "restore", text(&good)]).ok();
    assert!(said.contains("there was no database before"), "{said}");
    assert_eq!(count(&new), 3);
    assert_eq!(files(out.path()).len(), 1, "nothing is put beside the backup");

    // A raw copy of the files, log and all, is a backup too.
    let serving = home.serve(&[]);
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    serving.kill();
    for end in ["", "-wal"] {
        let raw = out.path().join(format!("raw{end}"));
        std::fs::copy(home.path(&format!("roost.db{end}")), raw).unwrap();
    }
    new.roost(&["db", "restore", text(&out.path().join("raw"))]).ok();
    assert_eq!(count(&new), 4);
    new.verify();
}

/// Killed at any moment, it leaves the old database or the new one.
#[test]
fn a_restore_that_is_killed_leaves_one_or_the_other() {
    let home = Home::with(&fleet(1));
    crate::enlarge(&home, 20_000);
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("good");
    home.roost(&["db", "backup", text(&good)]).ok();
    let mut restored = 0;
    for wait_us in [0, 2000, 20_000, 60_000, 100_000, 150_000, 200_000, 300_000, 500_000] {
        let mut child = home.command(&["db", "restore", text(&good)]);
        let mut child = child.stdout(std::process::Stdio::null()).spawn().unwrap();
        // Wherever it is by then; no event tells.
        std::thread::sleep(std::time::Duration::from_micros(wait_us));
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::KILL)
            .unwrap();
        child.wait().unwrap();
        home.verify();
        assert_eq!(count(&home), 1);
        let asides = files(home.dir()).into_keys();
        restored = asides.filter(|name| name.starts_with("roost.db.replaced-")).count();
    }
    home.roost(&["db", "restore", text(&good)]).ok();
    let serving = home.serve_restored(&[]);
    eventually("hosts", || (serving.get("/v1/hosts").status == 200).then_some(()));
    serving.stop();
    home.verify();
    assert!(restored <= 9);
}
