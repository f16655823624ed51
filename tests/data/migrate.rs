//! Owns `roost db migrate` and what a server does with an older database.
//!
//! Never: what a migration does to the rows, which `src/store/open.rs` tests.

use crate::support::{Done, Home, eventually};
use crate::{files, only};
use roost::store::Connection;
use serde_json::json;

/// A database as version 1 left it, with a history of some size.
fn version_1(home: &Home) {
    std::fs::create_dir_all(home.dir()).unwrap();
    let conn = Connection::open(home.path("roost.db")).unwrap();
    conn.execute_batch(include_str!("../../src/store/migrations/0001.sql")).unwrap();
    conn.execute_batch(
        "PRAGMA application_id = 0x526f6f73; PRAGMA user_version = 1; PRAGMA journal_mode = WAL; \
         INSERT INTO state (id, revision, created_at) VALUES (1, 0, 1000)",
    )
    .unwrap();
    drop(conn);
    crate::enlarge(home, 1000);
}

fn version(home: &Home, name: &str) -> i64 {
    let conn = Connection::open(home.path(name)).unwrap();
    conn.query_row("SELECT user_version FROM pragma_user_version", [], |row| row.get(0)).unwrap()
}

#[test]
fn an_older_database_is_migrated_once_and_kept_as_it_was() {
    let home = Home::new();
    version_1(&home);
    let unread = home.roost(&["status"]);
    assert!(unread.stderr.contains("roost db migrate"), "{unread:?}");
    // A backup of what it is can be taken before.
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    home.roost(&["db", "backup", copy.to_str().unwrap()]).ok();

    let said = home.roost(&["db", "migrate"]).ok();
    assert!(said.contains("migrated from schema 1 to"), "{said}");
    let kept = only(&home, "roost.db.v1-");
    assert!(said.contains(kept.to_str().unwrap()), "{said}");
    assert_eq!(version(&home, kept.file_name().unwrap().to_str().unwrap()), 1);
    home.verify();
    let again = home.roost(&["db", "migrate"]).ok();
    assert!(again.contains("nothing was to do"), "{again}");

    // The older backup is migrated when it is restored.
    home.roost(&["db", "restore", copy.to_str().unwrap()]).ok();
    home.verify();
    assert_eq!(home.json(&["audit", "--limit", "1000"]).as_array().unwrap().len(), 1000);
    let serving = home.serve_restored(&[]);
    let held = home.roost(&["db", "migrate"]);
    assert!(held.stderr.contains(&format!("pid {}", serving.pid())), "{held:?}");
    let none = Home::new().roost(&["db", "migrate"]);
    assert!(none.code == 1 && none.stderr.contains("no database at"), "{none:?}");
}

#[test]
fn a_server_migrates_when_it_starts_and_keeps_a_copy() {
    let home = Home::new();
    version_1(&home);
    let serving = home.serve(&[]);
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    let kept = only(&home, "roost.db.v1-");
    assert!(!home.path(&format!("{}-wal", kept.display())).exists());
    serving.stop();
    home.verify();
    home.serve(&[]).stop();
    only(&home, "roost.db.v1-");
}

/// Runs a command that may let no file grow beyond so many blocks of 512 bytes.
fn with_files_of(home: &Home, blocks: u32, args: &[&str]) -> Done {
    let command = home.command(args);
    let mut shell = std::process::Command::new("/bin/sh");
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    shell.args(["-c", &limited]).arg(command.get_program()).args(command.get_args());
    Done::of(shell.env_clear().output().unwrap())
}

#[test]
fn on_a_full_disk_nothing_is_migrated_or_left_behind() {
    let home = Home::new();
    version_1(&home);
    let before = files(home.dir());
    let done = with_files_of(&home, 400, &["db", "migrate"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("nothing was changed"), "{}", done.stderr);
    assert_eq!(version(&home, "roost.db"), 1);
    let after = files(home.dir());
    assert!(after == before, "{:?}", after.keys());

    // A backup and a restore, too, leave what was there.
    home.roost(&["db", "migrate"]).ok();
    let copy = home.path("copy");
    let copy = copy.to_str().unwrap();
    home.roost(&["db", "backup", copy]).ok();
    let before = files(home.dir());
    let other = home.path("other");
    for args in [["db", "backup", other.to_str().unwrap()], ["db", "restore", copy]] {
        let done = with_files_of(&home, 400, &args);
        assert!(done.code == 1 && !done.stderr.is_empty(), "{done:?}");
        assert!(files(home.dir()) == before, "{args:?}: {:?}", files(home.dir()).keys());
    }
    eventually("whole", || (home.json(&["db", "verify"])["ok"] == json!(true)).then_some(()));
}
