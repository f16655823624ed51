//! Owns what Roost makes of the files that it finds: links, prepared names, wrong owners and
//! modes, schemas of others, a database that is not the one that was served, paths that were
//! handed over badly.
//!
//! Never: what a failing disk does (`tests/disk.rs`). What takes another user takes root;
//! where that is not to be had the test says so, and fails when `CI` is set.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use roost::store::Connection;
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use support::client::try_ask;
use support::server::Serving;
use support::{Done, Home, eventually, host};

/// A user that owns nothing here.
const OTHER_USER: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Registers a host at an address that no other has; nothing answers there.
fn register(serving: &Serving) -> serde_json::Value {
    static PORT: AtomicU16 = AtomicU16::new(1);
    serving.register(&format!("127.0.0.1:{}", PORT.fetch_add(1, Ordering::Relaxed)))
}

/// A server that must not start.
fn refused(home: &Home, flags: &[&str]) -> Done {
    let mut command = home.serving(flags);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ended = eventually("the end of a server", || child.try_wait().unwrap());
    assert!(!ended.success());
    Done::of(child.wait_with_output().unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The address of a server that may not have its database open.
fn asks(serving: &Serving, path: &str) -> (u16, String) {
    let answer = try_ask(serving.address(), "GET", path, &[], "").unwrap();
    (answer.status, answer.body)
}

#[test]
fn one_server_for_one_database_whatever_leads_to_it() {
    let (home, other) = (Home::new(), Home::new());
    let serving = home.serve(&[]);
    register(&serving);
    std::fs::create_dir_all(other.dir()).unwrap();
    let link = other.path("roost.db");
    let places: [&dyn Fn(); 3] = [
        &|| symlink(home.path("roost.db"), &link).unwrap(),
        &|| {
            let between = other.path("between");
            let _ = symlink(home.path("roost.db"), &between);
            symlink(&between, &link).unwrap();
        },
        &|| std::fs::hard_link(home.path("roost.db"), &link).unwrap(),
    ];
    for place in places {
        place();
        for command in [&["db", "migrate"][..], &["check"], &["db", "init"]] {
            let done = other.roost(command);
            assert!(done.code == 1 && done.stderr.contains("held by another roost"), "{done:?}");
        }
        let second = refused(&other, &[]);
        assert!(second.code == 1 && second.stderr.contains("held by another roost"), "{second:?}");
        std::fs::remove_file(&link).unwrap();
    }
    assert_eq!(serving.get("/readyz").status, 200, "the first does not mind");
    serving.stop();

    // The link is followed by a copy and by a restore, and stays a link.
    symlink(home.path("roost.db"), &link).unwrap();
    let backup = other.path("backup.db");
    other.roost(&["db", "backup", text(&backup)]).ok();
    let said = other.roost(&["db", "restore", text(&backup)]).ok();
    assert!(link.symlink_metadata().unwrap().is_symlink(), "{said}");
    let names = |home: &Home| -> Vec<String> {
        let entries = std::fs::read_dir(home.dir()).unwrap().map(Result::unwrap);
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let aside = |home: &Home| names(home).iter().any(|name| name.contains(".replaced-"));
    assert!(aside(&home) && !aside(&other), "{said}");
    assert_eq!(home.json(&["hosts"]).as_array().unwrap().len(), 1);
    assert!(home.roost(&["status"]).ok().contains("not accepted"));
    let circle = Home::new();
    std::fs::create_dir_all(circle.dir()).unwrap();
    symlink("roost.db", circle.path("roost.db")).unwrap();
    assert_eq!(refused(&circle, &[]).code, 1);
}

/// A user who can prepare a name in the directory gets neither a secret nor a file of ours.
#[test]
fn prepared_names_lead_nowhere() {
    let home = Home::new();
    std::fs::create_dir_all(home.dir()).unwrap();
    let victim = home.path("victim");
    let names = ["admin.new", "host-token.new", "ca.key.new", "ca.pem.new", "served"];
    let check = |prepare: &dyn Fn(&Path)| {
        std::fs::write(&victim, "precious").unwrap();
        names.iter().for_each(|name| prepare(&home.path(name)));
        home.serve(&["--agent-tls", "mtls"]).stop();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        for made in ["admin.key", "host-token.key", "ca.key", "ca.pem"] {
            let path = home.path(made);
            assert!(path.symlink_metadata().unwrap().is_file(), "{made}");
            assert_eq!(mode(&path), 0o600, "{made}");
            std::fs::remove_file(path).unwrap();
        }
        names.iter().for_each(|name| drop(std::fs::remove_file(home.path(name))));
    };
    check(&|path| symlink(&victim, path).unwrap());
    check(&|path| symlink(home.path("nowhere"), path).unwrap());
    check(&|path| {
        std::fs::write(path, "").unwrap();
        set_mode(path, 0o666);
    });
    assert!(!home.path("nowhere").exists());

    // Locks, and what backups and exports are written to.
    let backup = home.path("backup.db");
    for (planted, command) in [
        ("lock", vec!["db", "migrate"]),
        ("backup.db.part", vec!["db", "backup", text(&backup)]),
        ("backup.db", vec!["db", "backup", text(&backup)]),
        ("backup.db", vec!["db", "export", "--format", "postgres", text(&backup)]),
        ("roost.db.part", vec!["db", "restore", text(&victim)]),
    ] {
        let _ = std::fs::remove_file(home.path(planted));
        symlink(&victim, home.path(planted)).unwrap();
        let done = home.roost(&command);
        assert_ne!(done.code, 0, "{command:?}: {done:?}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious", "{command:?}");
        std::fs::remove_file(home.path(planted)).unwrap();
    }
}

#[test]
fn every_file_is_for_its_owner_only_also_in_an_open_directory() {
    let home = Home::new();
    std::fs::create_dir_all(home.dir()).unwrap();
    set_mode(home.dir(), 0o755);
    let check = |serving: &Serving| {
        register(serving);
        for name in ["roost.db", "roost.db-wal", "roost.db-shm", "lock", "served", "admin.key"] {
            assert_eq!(mode(&home.path(name)), 0o600, "{name}");
        }
    };
    let serving = home.serve(&[]);
    check(&serving);
    serving.kill();
    // As an older one left them.
    for name in ["roost.db", "roost.db-wal", "roost.db-shm", "lock"] {
        set_mode(&home.path(name), 0o644);
    }
    let serving = home.serve(&[]);
    check(&serving);
    serving.stop();
}

#[test]
fn a_schema_of_others_is_refused_and_named() {
    for (sql, named) in [
        (
            "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM audit_logs; END",
            "trigger t is not roost's",
        ),
        ("ALTER TABLE events RENAME TO e; CREATE VIEW events AS SELECT * FROM e", "view events"),
        ("CREATE TABLE theirs (x)", "table theirs is not roost's"),
        ("DROP INDEX sandboxes_by_id", "index sandboxes_by_id is missing"),
    ] {
        let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "pending"}]}));
        let bad = home.path("bad.db");
        home.roost(&["db", "backup", text(&bad)]).ok();
        Connection::open(&bad).unwrap().execute_batch(sql).unwrap();
        let verified = home.roost(&["db", "verify", "--db", text(&bad)]);
        assert!(verified.code == 1 && verified.stdout.contains(named), "{verified:?}");
        let before = std::fs::read(home.path("roost.db")).unwrap();
        let restored = home.roost(&["db", "restore", text(&bad)]);
        assert!(
            restored.code == 1 && restored.stderr.contains("changed by others"),
            "{restored:?}"
        );
        assert!(restored.stderr.contains("use another backup"), "{restored:?}");
        let copied = home.roost(&["db", "backup", "--db", text(&bad), text(&home.path("copy"))]);
        assert!(copied.code == 1 && copied.stderr.contains("changed by others"), "{copied:?}");
        assert!(std::fs::read(home.path("roost.db")).unwrap() == before);
    }
}

/// Agents that get no answer pause everything: the server answers and waits.
#[test]
fn a_server_waits_until_what_is_foreign_is_gone() {
    let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "pending"}]}));
    home.serve(&[]).stop();
    let sql = |sql: &str| Connection::open(home.path("roost.db")).unwrap().execute_batch(sql);
    sql("CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM audit_logs; END").unwrap();
    let serving = Serving::begin(home.serving(&[]));
    serving.logged(&["ERROR", "could not open the database", "trigger t", "trying again"]);
    let (status, body) = asks(&serving, "/readyz");
    assert!(status == 503 && body.contains("trigger t") && body.contains("drop"), "{body}");
    let beat = serving.beat(&host(1), &home.token(&host(1)));
    assert_eq!(beat.refusal(), (503, "unavailable".to_owned()));
    let url = format!("http://{}", serving.address());
    let health = home.roost(&["health", "--url", &url]);
    assert!(health.code == 1 && health.stderr.contains("trigger t"), "{health:?}");
    sql("DROP TRIGGER t").unwrap();
    eventually("readiness", || (asks(&serving, "/readyz").0 == 200).then_some(()));
    serving.stop();
}

/// `None`, loudly, where no other user can be had.
fn as_other_user(home: &Home, flags: &[&str]) -> Option<std::process::Command> {
    if rustix::process::geteuid().is_root() {
        let mut command = home.serving(flags);
        command.uid(OTHER_USER).gid(OTHER_USER);
        return Some(command);
    }
    assert!(std::env::var_os("CI").is_none(), "CI must be root");
    let words = "\nSKIPPED: files of another user were NOT tried; run it as root\n\n";
    std::io::stderr().write_all(words.as_bytes()).unwrap();
    None
}

fn own(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
}

#[test]
fn files_of_another_user_are_called_that_and_waited_for() {
    let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "pending"}]}));
    home.serve(&[]).stop();
    let Some(command) = as_other_user(&home, &[]) else { return };
    // Everything is the other user's, but the database, as after `cp` by root.
    set_mode(home.dir().parent().unwrap(), 0o755);
    own(home.dir(), OTHER_USER);
    for name in ["lock", "served", "admin.key", "host-token.key"] {
        let _ = chown(home.path(name), Some(OTHER_USER), Some(OTHER_USER));
    }
    set_mode(&home.path("roost.db"), 0o644);
    let serving = Serving::begin(command);
    let line = serving.logged(&["ERROR", "could not open the database", "belongs to user 0"]);
    assert!(line.contains("chown") && line.contains("user 65534"), "{line}");
    assert!(!line.contains("disk"), "{line}");
    let (status, body) = asks(&serving, "/readyz");
    assert!(status == 503 && body.contains("belongs to user 0"), "{body}");
    let url = format!("http://{}", serving.address());
    let health = home.roost(&["health", "--url", &url]);
    assert!(health.stderr.contains("belongs to user 0"), "{health:?}");
    for name in ["roost.db", "roost.db-wal", "roost.db-shm"] {
        let _ = chown(home.path(name), Some(OTHER_USER), Some(OTHER_USER));
    }
    eventually("readiness", || (asks(&serving, "/readyz").0 == 200).then_some(()));
    serving.stop();

    // A directory that may not be entered may be given to us later: not a wrong setting.
    own(home.dir(), 0);
    set_mode(home.dir(), 0o700);
    let mut command = as_other_user(&home, &[]).unwrap();
    let done = Done::of(command.output().unwrap());
    assert!(done.code == 1 && done.stderr.contains("Permission denied"), "{done:?}");
}

/// Root makes files for the user that the directory belongs to.
#[test]
fn what_root_makes_belongs_to_whom_the_directory_does() {
    let home = Home::new();
    if as_other_user(&home, &[]).is_none() {
        return;
    }
    std::fs::create_dir_all(home.dir()).unwrap();
    own(home.dir(), OTHER_USER);
    home.roost(&["db", "init"]).ok();
    home.serve(&[]).stop();
    for name in ["roost.db", "lock", "admin.key", "host-token.key"] {
        assert_eq!(home.path(name).metadata().unwrap().uid(), OTHER_USER, "{name}");
    }
}

/// What is put in place by other means than `roost db restore`.
#[test]
fn another_database_than_the_one_that_was_served_waits_for_an_operator() {
    let home = Home::new();
    let serving = home.serve(&[]);
    register(&serving);
    serving.stop();
    let older = home.path("older");
    home.roost(&["db", "backup", text(&older)]).ok();
    let foreign = Home::new();
    let serving = foreign.serve(&[]);
    (0..9).for_each(|_| drop(register(&serving)));
    serving.stop();
    let serving = home.serve(&[]);
    let registered = register(&serving);
    let (id, token) = (&registered["host"]["id"], &registered["token"]);
    let beat =
        |serving: &Serving| serving.beat(id.as_str().unwrap(), token.as_str().unwrap()).status;
    assert_eq!(beat(&serving), 204);
    serving.stop();
    let newest = home.path("newest");
    home.roost(&["db", "backup", text(&newest)]).ok();

    let put = |from: Option<&Path>| {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(home.path(&format!("roost.db{end}")));
        }
        if let Some(from) = from {
            std::fs::copy(from, home.path("roost.db")).unwrap();
        }
    };
    let other = foreign.path("roost.db");
    for (from, words) in [
        (Some(older.as_path()), "older than"),
        (None, "another than"),
        (Some(other.as_path()), "another than"),
    ] {
        put(from);
        let serving = home.serve_restored(&[]);
        serving.logged(&["WARN", words, "taken for a restored one"]);
        assert_eq!(serving.get("/readyz").status, 503, "{words}");
        assert_eq!(beat(&serving), 503, "{words}");
        assert_eq!(serving.post("/v1/hosts", &json!({})).status, 503, "{words}");
        serving.kill();
        // However often it is started.
        let serving = home.serve_restored(&[]);
        assert_eq!(serving.get("/readyz").status, 503, "{words}");
        serving.stop();
        home.verify();
        home.roost(&["db", "accept"]).ok();
        let serving = home.serve(&[]);
        assert_eq!(beat(&serving), 503, "{words}: genuine, and not known");
        // The next one is older than this one, too.
        register(&serving);
        serving.stop();
        home.verify();
    }

    // The one that was served last, killed or stopped, is no other.
    home.roost(&["db", "restore", text(&newest)]).ok();
    home.roost(&["db", "accept"]).ok();
    for _ in 0..3 {
        let serving = home.serve(&[]);
        assert_eq!(beat(&serving), 204);
        register(&serving);
        serving.kill();
    }
    home.serve(&[]).stop();
}

#[test]
fn a_new_key_for_hosts_that_have_tokens_of_another_is_told() {
    let home = Home::new();
    let serving = home.serve(&[]);
    register(&serving);
    let log = serving.stop();
    assert!(!log.iter().any(|line| line.contains("host-token.key")), "{log:?}");
    std::fs::remove_file(home.path("host-token.key")).unwrap();
    let serving = home.serve(&[]);
    serving.logged(&["WARN", "host-token.key is missing", "1 hosts are registered", "put it back"]);
    serving.stop();
}

/// Some editors put a mark before a text; it is no part of a key.
#[test]
fn a_key_file_with_the_mark_of_an_editor_is_read() {
    let home = Home::new();
    home.write("admin.key", "\u{feff}roost_mine\r\n");
    let serving = home.serve(&[]);
    let answer = serving.ask("GET", "/v1/hosts", &[("X-API-Key", "roost_mine")], "");
    assert_eq!(answer.status, 200, "{answer:?}");
    let file = home.path("key");
    std::fs::write(&file, "\u{feff}roost_mine\n").unwrap();
    let url = format!("http://{}", serving.address());
    let mut command = home.command(&["keys", "list", "--url", &url]);
    let done = Done::of(command.env("ROOST_API_KEY_FILE", &file).output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
}

/// A directory of that name would be made anew, with an empty database.
#[test]
fn paths_that_were_handed_over_badly_are_refused_before_anything_is_made() {
    let home = Home::new();
    let good = home.dir().to_str().unwrap();
    for (bad, word) in [
        (format!("\"{good}\""), "take the quotes away"),
        (format!("'{good}'"), "take the quotes away"),
        (format!("{good}\r"), "CR"),
        (format!("{good} "), "white space"),
        (format!("{good}\u{9b}"), "control"),
    ] {
        for variable in
            ["ROOST_DATA_DIR", "ROOST_TLS_CERT", "ROOST_TLS_KEY", "ROOST_CONFIG", "ROOST_CA"]
        {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roost"));
            let outer = tempfile::tempdir().unwrap();
            command.env_clear().env(variable, &bad).current_dir(outer.path());
            let done =
                Done::of(command.args(["serve", "--listen", "127.0.0.1:0"]).output().unwrap());
            assert!(done.code == 2 && done.stderr.contains(word), "{variable} {bad:?}: {done:?}");
            assert!(done.stderr.contains(variable), "{done:?}");
            assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0, "{bad:?}");
        }
        for flag in ["--tls-cert", "--tls-key", "--db", "--config"] {
            let done = home.roost(&["serve", flag, &bad]);
            assert!(done.code == 2 && done.stderr.contains(word), "{flag} {bad:?}: {done:?}");
        }
    }
    assert!(!home.dir().exists());
    home.write("roost.toml", "tls_cert = \"/cert.pem \"\n");
    let done = home.roost(&["serve"]);
    assert!(done.code == 2 && done.stderr.contains("roost.toml:1"), "{done:?}");
}
