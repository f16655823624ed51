//! Owns `roost db backup` from outside: a server at work, a name that is taken, `kill -9`.
//!
//! Never: what a restore makes of the copy.

use crate::support::{Home, eventually};
use crate::{enlarge, files};
use roost::store::open::open_reader;
use roost::store::read;
use roost::store::verify::verify;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many hosts a copy has, which must be whole and one file.
fn hosts(copy: &Path) -> u64 {
    let conn = open_reader(copy).unwrap();
    assert_eq!(verify(&conn).unwrap(), [] as [&str; 0]);
    read::hosts(&conn).unwrap().len() as u64
}

#[test]
fn copies_of_a_database_that_is_written_to_are_whole_and_of_one_moment() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let out = tempfile::tempdir().unwrap();
    let (written, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for n in 0..5 {
            eventually("more is written", || {
                (written.load(Ordering::Relaxed) > n * 5).then_some(())
            });
            let copy = out.path().join(format!("copy-{n}.db"));
            let before = written.load(Ordering::Relaxed);
            let said = home.roost(&["db", "backup", copy.to_str().unwrap()]).ok();
            assert!(said.contains("verified"), "{said}");
            // One more may have been committed and not counted yet.
            let (found, after) = (hosts(&copy), written.load(Ordering::Relaxed) + 1);
            assert!(before <= found && found <= after, "{before} {found} {after}");
            let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        done.store(true, Ordering::Relaxed);
    });
    let names: Vec<String> = files(out.path()).into_keys().collect();
    assert_eq!(names.len(), 5, "one file each, nothing beside it: {names:?}");
    serving.stop();
    home.verify();
}

#[test]
fn a_name_that_is_taken_stays_what_it_is() {
    let home = Home::new();
    home.roost(&["db", "init"]).ok();
    let out = tempfile::tempdir().unwrap();
    let taken = out.path().join("taken");
    std::fs::write(&taken, "a letter").unwrap();
    let done = home.roost(&["db", "backup", taken.to_str().unwrap()]);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    assert!(done.stderr.contains("is there already and is not overwritten"), "{}", done.stderr);
    assert_eq!(files(out.path()), [("taken".to_owned(), b"a letter".to_vec())].into());

    let nowhere = out.path().join("no/such/directory");
    assert_eq!(home.roost(&["db", "backup", nowhere.to_str().unwrap()]).code, 1);
    let missing = Home::new();
    let done = missing.roost(&["db", "backup", out.path().join("new").to_str().unwrap()]);
    assert!(done.code == 1 && done.stderr.contains("there is no file"), "{done:?}");
    assert_eq!(files(out.path()).len(), 1);
}

#[test]
fn a_database_that_is_not_whole_gives_no_backup() {
    let home = Home::new();
    home.roost(&["db", "init"]).ok();
    let conn = roost::store::Connection::open(home.path("roost.db")).unwrap();
    conn.execute_batch("UPDATE state SET revision = 7").unwrap();
    drop(conn);
    let out = tempfile::tempdir().unwrap();
    let done = home.roost(&["db", "backup", out.path().join("new").to_str().unwrap()]);
    assert!(done.stderr.contains("the last revision has no event"), "{done:?}");
    assert_eq!(files(out.path()).len(), 0);
}

#[test]
fn killed_at_any_moment_a_backup_has_its_name_only_when_it_is_whole() {
    let home = Home::new();
    home.roost(&["db", "init"]).ok();
    enlarge(&home, 60_000);
    let size = std::fs::metadata(home.path("roost.db")).unwrap().len();
    assert!(size > 20_000_000, "{size}");
    let out = tempfile::tempdir().unwrap();
    let (copy, part) = (out.path().join("copy"), out.path().join("copy.part"));
    let mut cut = 0;
    for percent in [0, 1, 30, 60, 90, 100, 100] {
        let mut command = home.command(&["db", "backup", copy.to_str().unwrap()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("so much is copied", || {
            let done = std::fs::metadata(&part).map(|file| file.len()).ok();
            let ended = child.try_wait().unwrap().is_some();
            (ended || done.is_some_and(|done| done * 100 >= size * percent)).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        match copy.exists() {
            true => {
                hosts(&copy);
                std::fs::remove_file(&copy).unwrap();
            }
            false => cut += 1,
        }
    }
    assert!(cut >= 3, "it was killed in the middle {cut} times only");
    home.roost(&["db", "backup", copy.to_str().unwrap()]).ok();
    hosts(&copy);
    let names: Vec<String> = files(out.path()).into_keys().collect();
    assert_eq!(names, ["copy"], "what the killed left is gone");
}
