//! Owns that docs/data.md can be followed, command by command, and that somebody who
//! replicates the log of the database, as Litestream does, finds all of it there.
//!
//! Never: Litestream itself, which cannot be had here. A script answers in its name, and a
//! second connection does to the database what its documentation says that it does.

use crate::support;
use crate::support::Home;
use crate::support::docs::Shell;
use roost::store::Connection;
use roost::store::open::open_reader;
use roost::store::read;
use serde_json::json;
use std::path::Path;

/// Starts and stops a real server, as the machine's own would; where it listens stands in
/// the configuration then.
const SYSTEMCTL: &str = r#"
cd "$ROOST_DATA_DIR"/..
case "$1 $2" in
"start roost")
    # What the last one said is not taken for this one's.
    : >served
    roost serve --listen 127.0.0.1:0 >>served 2>>log & echo $! >pid
    until grep -q listening served; do kill -0 "$(cat pid)"; sleep 0.05; done
    sed 's,listening on http://\(.*\),listen = "\1",' served >"$ROOST_DATA_DIR/roost.toml"
    # It listens before its database is open.
    sleep 0.05
    until test -s "$ROOST_DATA_DIR/admin.key"; do sleep 0.05; done
    ;;
"stop roost")
    test -s pid || exit 0
    kill "$(cat pid)"
    while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done
    : >pid
    ;;
*) echo "systemctl $*: not known here" >&2; exit 1 ;;
esac
"#;

/// `litestream restore -config FILE -o OUT DB`: gives the newest backup that is there.
const LITESTREAM: &str = r#"
test "$1 $2 $4" = "restore -config -o" && test -s "$3" && ! test -e "$5"
grep -q "path: $6" "$3"
cp "$(ls -t roost-*.db | head -n 1)" "$5"
"#;

/// Ends what `systemctl start` left.
struct Stopped<'a>(&'a Shell);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.run("systemctl stop roost");
    }
}

#[test]
fn the_documentation_can_be_followed() {
    let mut shell = Shell::new();
    let here = shell.here();
    shell.set("ROOST_DATA_DIR", here.join("data").to_str().unwrap());
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The name that the example has for the database is where it is here.
    let example = std::fs::read_to_string(top.join("contrib/litestream.yml")).unwrap();
    let data = here.join("data/roost.db");
    let example = example.replace("/var/lib/roost/roost.db", data.to_str().unwrap());
    std::fs::write(here.join("litestream.yml"), example).unwrap();
    shell.stand_in("systemctl", SYSTEMCTL);
    shell.stand_in("litestream", LITESTREAM);
    let _stopped = Stopped(&shell);
    let started = shell.run("systemctl start roost");
    assert_eq!(started.code, 0, "{}", started.stderr);
    let said = shell.follow("docs/data.md");
    for words in ["verified", "the database that was there", "counts since", "nothing was to do"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

fn wal(home: &Home) -> Vec<u8> {
    std::fs::read(home.path("roost.db-wal")).unwrap()
}

/// Copies a database that this process has open. By another process: whoever closes a file
/// of a database gives up all locks that it has on it.
fn copy_of(file: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").args([file, to]).status().unwrap().success());
}

/// Litestream holds a read transaction from one of its own checkpoints to the next, and
/// copies what is added to the log meanwhile.
#[test]
fn what_a_replicator_has_not_read_yet_stays_in_the_log() {
    let home = Home::new();
    let serving = home.serve(&["--heartbeat-flush", "1s"]);
    assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
    let replicator = Connection::open(home.path("roost.db")).unwrap();
    // Its own tables, as it makes them.
    replicator
        .execute_batch(
            "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER); \
             CREATE TABLE _litestream_lock (id INTEGER); \
             BEGIN; SELECT count(*) FROM _litestream_seq",
        )
        .unwrap();
    let copy = tempfile::tempdir().unwrap();
    let replica = copy.path().join("roost.db");
    copy_of(&home.path("roost.db"), &replica);
    let begun = wal(&home);

    // More than one checkpoint's worth.
    let pages = |log: &[u8]| log.len() / (4096 + 24);
    let mut hosts = 1;
    while pages(&wal(&home)) < pages(&begun) + 2500 {
        assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201, "it goes on");
        hosts += 1;
    }
    let log = wal(&home);
    assert!(log.starts_with(&begun), "nothing of it was written over");
    serving.stop();
    let log_after = wal(&home);
    assert!(log_after.starts_with(&log), "nor cut off at the end");

    // What it read is all there is.
    std::fs::write(copy.path().join("roost.db-wal"), &log_after).unwrap();
    let replayed = open_reader(&replica).unwrap();
    assert_eq!(read::hosts(&replayed).unwrap().len(), hosts);
    assert_eq!(roost::store::verify::verify(&replayed).unwrap(), [] as [&str; 0]);
    drop(replayed);

    // While somebody has it open, nothing takes its place.
    let good = copy.path().join("good");
    home.roost(&["db", "backup", good.to_str().unwrap()]).ok();
    let (before, after) = (copy.path().join("before"), copy.path().join("after"));
    copy_of(&home.path("roost.db"), &before);
    let refused = home.roost(&["db", "restore", good.to_str().unwrap()]);
    assert!(refused.stderr.contains("stop whatever"), "{}", refused.stderr);
    copy_of(&home.path("roost.db"), &after);
    assert!(std::fs::read(before).unwrap() == std::fs::read(after).unwrap());
    assert!(wal(&home) == log_after);

    // When it lets go, the log begins anew and does not stay as long as it was.
    replicator.execute_batch("COMMIT").unwrap();
    let serving = home.serve(&[]);
    support::eventually("the log begins anew", || {
        assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
        (!wal(&home).starts_with(&begun[..32])).then_some(())
    });
    assert!(wal(&home).len() <= 16 * 1024 * 1024, "{}", wal(&home).len());
    drop(replicator);
    serving.stop();
    home.verify();
    home.roost(&["db", "restore", good.to_str().unwrap()]).ok();
}
