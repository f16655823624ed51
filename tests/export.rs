//! Owns `roost db export` from outside: what it writes is loaded into a real PostgreSQL and
//! read back, row by row; what is cut off, changed or loaded twice is refused whole.
//!
//! Never: skips in silence. Without PostgreSQL the tests that load say that they did not;
//! with `CI` set that is a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[path = "export/postgres.rs"]
mod postgres;

use postgres::{Database, cluster};
use roost::model::id::{HostId, SandboxId, TeamId};
use roost::model::sandbox::SandboxStatus;
use roost::model::time::Wall;
use roost::store::Connection;
use roost::store::open::{open_reader, open_writer};
use rusqlite::types::Value as Stored;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Home, eventually, host, sandbox};

/// Texts that mean something to COPY, to psql, to SQL, to JSON or to a terminal.
const NASTY: &[&str] = &[
    "",
    "\\N",
    "\\.",
    "line\n\\.\nline",
    "\\\\N\\",
    "tab\tnewline\nreturn\rbell\u{7}escape\u{1b}[31m",
    "'; DROP SCHEMA roost CASCADE; --",
    "\"quoted\" $$ $1 :name :'name' :\"name\"",
    "\\! touch broken",
    "NULL",
    "żółć 漢字 🦀 e\u{301} \u{202e}",
    "\u{1}\u{7f}\u{85}\u{2028}\u{feff}\u{fffd}\u{10fffd}",
];

/// A fleet with every status, and every nasty text wherever a text may stand.
fn fleet() -> Value {
    let statuses = ["online", "unreachable", "draining", "pending", "offline"];
    let hosts: Vec<Value> = (1..=20)
        .map(|n: u128| {
            let text = NASTY[n as usize % NASTY.len()];
            json!({"id": host(n), "status": statuses[n as usize % 5], "heartbeat_age_s": n,
                   "provider": text, "availability_zone": text, "arch": "arm64",
                   "degraded": n.is_multiple_of(3), "contact_gap": n.is_multiple_of(2)})
        })
        .collect();
    let sandboxes: Vec<Value> = (0..300)
        .map(|n: u128| {
            let text = NASTY[n as usize % NASTY.len()];
            let status = SandboxStatus::ALL[n as usize % SandboxStatus::ALL.len()];
            let mut row = json!({
                "id": sandbox(n), "host_id": host(1 + n % 20), "status": status.as_str(),
                "status_reason": text, "template": text.repeat(1 + n as usize), "vcpus": n,
                "memory_mb": 512, "metadata": {text: text, "n": n.to_string()},
            });
            if n.is_multiple_of(7) {
                row = json!({"id": sandbox(n), "host_id": host(1), "status": status.as_str()});
            }
            row
        })
        .collect();
    json!({"hosts": hosts, "sandboxes": sandboxes, "tombstones": [host(99)],
           "listened_age_s": 150})
}

/// A database with rows in every table.
fn filled() -> Home {
    let home = Home::with(&fleet());
    let conn = writer(&home);
    let put = |sql: &str, values: &[&dyn rusqlite::ToSql]| conn.execute(sql, values).unwrap();
    for (n, text) in NASTY.iter().enumerate() {
        let (at, n) = (1_779_000_000_000 + n as i64, n as i64);
        let (first, second) = (host(1), sandbox(n as u128));
        let metadata = json!({"from": text, *text: [n, null, true, 0.5]}).to_string();
        put(
            "INSERT INTO audit_logs (id, team_id, actor_type, actor_id, actor_name, \
             resource_type, resource_id, action, scope, status, metadata, created_at) \
             VALUES ('log-' || ?1, ?2, 'user', ?3, ?3, 'sandbox', ?3, 'pause', 'team', \
             'success', ?4, ?5)",
            &[&n, &TeamId::from_u128(7).to_string(), text, &metadata, &at],
        );
        put(
            "INSERT INTO events (revision, at, kind, host_id, sandbox_id, team_id, from_status, \
             to_status, reason, actor) VALUES (?1, ?2, 'sandbox.paused', ?3, ?4, 't', NULL, \
             'paused', ?5, 'system')",
            &[&(n + 1), &at, &first, &second, text],
        );
        put(
            "INSERT INTO api_keys (id, hash, team_id, name, suffix, created_at, last_used_at) \
             VALUES (?1, randomblob(32), 'team', ?2, 'abcd', ?3, NULL)",
            &[&format!("key-{n}"), text, &at],
        );
        put(
            "INSERT INTO refresh_tokens (hash, id, host_id, parent, created_at, expires_at) \
             VALUES (randomblob(32), 'hrt', ?1, randomblob(32), ?2, ?2 + 1)",
            &[&first, &at],
        );
        put(
            "INSERT INTO registration_tokens (hash, id, host_id, created_at, expires_at) \
             VALUES (CAST(x'005c4e0a09' || randomblob(27) AS BLOB), 'htok', ?1, ?2, ?2)",
            &[&first, &at],
        );
        put(
            "INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at, \
             finished_at, error) VALUES ('op-' || ?1, ?2, ?3, 'pause', ?4, ?4, ?4, ?5)",
            &[&n, &second, &first, &at, text],
        );
        put("INSERT INTO auto_pause_inbox VALUES (?1, ?2, 0, ?3)", &[&first, &second, &at]);
        put("INSERT INTO strangers VALUES (?1, ?2, 'zombie', ?3)", &[&first, &second, &at]);
        put(
            "INSERT INTO templates (id, team_id, name, type, default_env, metadata, created_at) \
             VALUES (?1, 'team', 'name-' || ?1, 'base', ?2, ?2, ?3)",
            &[&format!("template-{n}"), &metadata, &at],
        );
        put("INSERT INTO template_hosts VALUES (?1, ?2)", &[&format!("template-{n}"), &first]);
    }
    put(
        "UPDATE hosts SET probe_outcome = 'timed_out', probe_detail = ?1, probe_at = 5",
        &[&NASTY[3]],
    );
    put("UPDATE hosts SET address = 'host' || id || ':1', type = ?1", &[&NASTY[6]]);
    put("UPDATE state SET revision = 9007199254740993, listened_until = NULL", &[]);
    home
}

fn writer(home: &Home) -> Connection {
    open_writer(&home.path("roost.db"), false, Wall(0)).unwrap()
}

/// Exports into a file of this name, which the command names with what is in it.
fn export(home: &Home, name: &str, flags: &[&str]) -> PathBuf {
    let file = home.path(name);
    let args = ["db", "export", "--format", "postgres", file.to_str().unwrap()];
    let said = home.roost(&[&args, flags].concat()).ok();
    assert!(said.starts_with(&format!("{}: ", file.display())), "{said}");
    file
}

/// Every row of the tables that PostgreSQL has, as SQLite has them.
fn here(home: &Home, types: &BTreeMap<String, String>) -> BTreeMap<String, Vec<Value>> {
    let conn = open_reader(&home.path("roost.db")).unwrap();
    let mut tables: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for column in types.keys() {
        let (table, column) = column.split_once('.').unwrap();
        if (table, column) != ("hosts", "status") {
            tables.entry(table.to_owned()).or_default().push(column);
        }
    }
    let rows = |table: &String, columns: &Vec<&str>| {
        let sql = format!("SELECT {} FROM {table}", columns.join(", "));
        let mut select = conn.prepare(&sql).unwrap();
        let mut found = select.query([]).unwrap();
        let mut rows = Vec::new();
        while let Some(row) = found.next().unwrap() {
            let cell = |(at, column): (usize, &&str)| {
                let kind = &types[&format!("{table}.{column}")];
                ((*column).to_owned(), expected(kind, row.get(at).unwrap()))
            };
            rows.push(Value::Object(columns.iter().enumerate().map(cell).collect()));
        }
        rows.sort_by_key(Value::to_string);
        rows
    };
    tables.iter().map(|(table, columns)| (table.clone(), rows(table, columns))).collect()
}

/// What a value of SQLite is as this type of PostgreSQL.
fn expected(kind: &str, value: Stored) -> Value {
    match (kind, value) {
        (_, Stored::Null) => Value::Null,
        ("bigint", Stored::Integer(n)) => json!(n),
        ("boolean", Stored::Integer(n)) => json!(n != 0),
        ("timestamp with time zone", Stored::Integer(ms)) => json!(ms),
        ("jsonb", Stored::Text(text)) => serde_json::from_str(&text).unwrap(),
        ("text", Stored::Text(text)) => json!(text),
        ("bytea", Stored::Blob(bytes)) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!(format!("\\x{hex}"))
        }
        (kind, value) => panic!("{value:?} as {kind}"),
    }
}

/// Table and column with their type, of everything in a schema of PostgreSQL.
fn types(database: &Database, schema: &str) -> BTreeMap<String, String> {
    let sql = format!(
        "SELECT table_name || '.' || column_name || '=' || data_type \
         FROM information_schema.columns WHERE table_schema = '{schema}'"
    );
    let split = |line: String| line.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()));
    database.ask(&sql).into_iter().filter_map(split).collect()
}

/// Every row of a schema of PostgreSQL; times in ms.
fn there(
    database: &Database,
    schema: &str,
    types: &BTreeMap<String, String>,
) -> BTreeMap<String, Vec<Value>> {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for table in types.keys().map(|column| column.split_once('.').unwrap().0) {
        let sql = format!("SELECT to_jsonb(t) FROM {schema}.{table} t");
        let row = |line: &String| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            for (column, value) in row.as_object_mut().unwrap() {
                let kind = types[&format!("{table}.{column}")].as_str();
                if let ("timestamp with time zone", Some(text)) = (kind, value.as_str()) {
                    let at: Wall = text.replace("+00:00", "Z").parse().unwrap();
                    *value = json!(at.0);
                }
            }
            if table == "hosts" {
                row.as_object_mut().unwrap().remove("status").unwrap();
            }
            row
        };
        found.entry(table.to_owned()).or_insert_with(|| {
            let mut rows: Vec<Value> = database.ask(&sql).iter().map(row).collect();
            rows.sort_by_key(Value::to_string);
            rows
        });
    }
    found
}

#[test]
fn every_row_is_in_postgresql_as_it_was() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (filled(), cluster.database());
    let file = export(&home, "all.sql", &["--events"]);
    assert_eq!(database.load(&file).ok(), "");
    let types = types(&database, "roost");
    let (here, there) = (here(&home, &types), there(&database, "roost", &types));
    assert_eq!(here.len(), 14, "tables: {:?}", here.keys());
    for (table, rows) in &here {
        assert!(!rows.is_empty(), "nothing to compare in {table}");
        for (here, there) in rows.iter().zip(&there[table]) {
            assert_eq!(there, here, "{table}");
        }
        assert_eq!(there[table].len(), rows.len(), "{table}");
    }
    assert_eq!(here["sandboxes"].len(), 300);
    let kind = |column: &str| types[column].as_str();
    assert_eq!(kind("hosts.created_at"), "timestamp with time zone");
    assert_eq!(kind("sandboxes.metadata"), "jsonb");
    assert_eq!(kind("api_keys.hash"), "bytea");
    assert_eq!(kind("hosts.degraded"), "boolean");
}

#[test]
fn what_others_need_is_made_from_what_there_is() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (filled(), cluster.database());
    database.load(&export(&home, "all.sql", &[])).ok();
    let shown = home.json(&["hosts"]);
    for host in shown.as_array().unwrap() {
        let id = host["id"].as_str().unwrap();
        let uuid = id.parse::<HostId>().unwrap().to_uuid();
        let sql = format!("SELECT status, roost.uuid_of(id) FROM roost.hosts WHERE id = '{id}'");
        let status = host["status"].as_str().unwrap();
        assert_eq!(database.ask(&sql), [format!("{status}|{uuid}")]);
    }
    for value in [0, 1, u128::MAX, u128::MAX / 36, 1 << 64] {
        let id = SandboxId::from_u128(value);
        let asked = database.ask(&format!("SELECT roost.uuid_of('{id}')"));
        assert_eq!(asked, [id.to_uuid()]);
    }
    let refused = |sql: &str, why: &str| {
        let done = database.psql(&["-c", sql]);
        assert!(done.code == 1 && done.stderr.contains(why), "{done:?}");
    };
    refused("UPDATE roost.sandboxes SET status = 'gone'", "sandboxes_status_check");
    refused("UPDATE roost.hosts SET intent = 'x'", "hosts_intent_check");
    refused("UPDATE roost.sandboxes SET host_id = 'x'", "sandboxes_host_id_fkey");
    let id = "UPDATE roost.sandboxes SET id = (SELECT max(id) FROM roost.sandboxes)";
    refused(id, "sandboxes_id_key");
    let events = database.ask("SELECT to_regclass('roost.events') IS NULL");
    assert_eq!(events, ["t"], "events were not asked for");
}

#[test]
fn a_second_load_is_refused_and_changes_nothing() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (filled(), cluster.database());
    let file = export(&home, "all.sql", &[]);
    database.load(&file).ok();
    database.ask("DELETE FROM roost.audit_logs");
    let types = types(&database, "roost");
    let before = there(&database, "roost", &types);
    let again = database.load(&file);
    assert_eq!((again.code, again.stdout.as_str()), (3, ""), "{again:?}");
    let why = "ERROR:  schema \"roost\" already exists";
    assert!(again.stderr.trim_end().ends_with(why), "{again:?}");
    assert_eq!(there(&database, "roost", &types), before);
}

#[test]
fn a_part_of_a_file_loads_nothing() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (filled(), cluster.database());
    let whole = std::fs::read_to_string(export(&home, "all.sql", &[])).unwrap();
    let refused = |text: &str, why: &str, what: &str| {
        home.write("part.sql", text);
        let done = database.load(&home.path("part.sql"));
        assert!(done.code != 0 && done.stderr.contains(why), "{what}: {done:?}");
        assert_eq!(database.schemas(), [] as [&str; 0], "{what}");
    };
    let promise = "load_the_whole_file_with_psql_single_transaction";
    let places = [
        "\nCREATE TABLE hosts",
        &host(2),
        "\n\\.\n\nCREATE TABLE tombstones",
        "\nALTER TABLE state",
        "\n-- The UUID",
        "\nDO $$\nDECLARE",
        "\n-- The end",
        "\nUPDATE pg_temp",
    ];
    for place in places {
        let at = whole.rfind(place).unwrap();
        refused(&whole[..at], promise, place);
    }
    // Whole lines of data can be lost without a word of SQL missing.
    let row = whole.lines().find(|line| line.starts_with("key-3\t")).unwrap();
    let lost = whole.replace(&format!("{row}\n"), "");
    refused(&lost, "api_keys: 11 rows were loaded instead of 12", "a lost row");
    // Without a transaction nothing begins, and nothing after that is taken for SQL.
    home.write("whole.sql", &whole);
    let done = database.psql(&["-f", home.path("whole.sql").to_str().unwrap()]);
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.stderr.contains(promise), "{done:?}");
    assert_eq!(database.schemas(), [] as [&str; 0]);
}

#[test]
fn a_schema_may_have_any_name() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (filled(), cluster.database());
    let name = "Über \"x\"; $$ \\! :a'";
    database.load(&export(&home, "all.sql", &["--schema", name])).ok();
    assert_eq!(database.schemas(), [name]);
    let revision = "SELECT revision FROM \"Über \"\"x\"\"; $$ \\! :a'\".state";
    assert_eq!(database.ask(revision), ["9007199254740993"]);
    for (name, why) in [("pg_x", "for itself"), ("", "has a name"), ("a\nb", "control")] {
        let done = home.roost(&["db", "export", "--schema", name]);
        assert!(done.code == 2 && done.stderr.contains(why), "{done:?}");
    }
}

#[test]
fn what_postgresql_cannot_hold_is_replaced_and_said() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (Home::with(&fleet()), cluster.database());
    let conn = writer(&home);
    conn.execute("UPDATE hosts SET provider = 'a' || char(0) || 'b' WHERE id = ?1", [host(1)])
        .unwrap();
    let sql =
        "UPDATE sandboxes SET metadata = ?1, template = CAST(x'61ff62' AS TEXT) WHERE id = ?2";
    conn.execute(sql, ["{\"a\":\"\\u0000\"", &sandbox(1)]).unwrap();
    conn.execute(sql, ["{\"a\":\"x\\u0000\"}", &sandbox(2)]).unwrap();
    let file = home.path("all.sql");
    let done = home.roost(&["db", "export", file.to_str().unwrap()]);
    assert_eq!(done.code, 0);
    assert!(done.stderr.contains("5 values cannot be said in PostgreSQL"), "{done:?}");
    database.load(&file).ok();
    let provider = format!("SELECT provider FROM roost.hosts WHERE id = '{}'", host(1));
    assert_eq!(database.ask(&provider), ["a\u{fffd}b"]);
    let of =
        |n| format!("SELECT template, metadata FROM roost.sandboxes WHERE id = '{}'", sandbox(n));
    assert_eq!(database.ask(&of(1)), ["a\u{fffd}b|\"{\\\"a\\\":\\\"\\\\u0000\\\"\""]);
    assert_eq!(database.ask(&of(2)), ["a\u{fffd}b|{\"a\": \"x\u{fffd}\"}"]);
}

/// Raises a flag when it goes, also when a test fails.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sandboxes stand between hosts and tokens in the file: so many that hosts are added while
/// they are read.
const BETWEEN: u128 = 20_000;

#[test]
fn the_export_is_one_moment_while_a_server_writes() {
    let Some(cluster) = cluster() else { return };
    let database = cluster.database();
    let row = |n| json!({"id": sandbox(n), "host_id": host(1), "status": "stopped"});
    let sandboxes: Vec<Value> = (0..BETWEEN).map(row).collect();
    let hosts = json!([{"id": host(1), "status": "offline"}]);
    let home = Home::with(&json!({"hosts": hosts, "sandboxes": sandboxes}));
    let serving = home.serve(&[]);
    let done = AtomicBool::new(false);
    let mut counts = Vec::new();
    std::thread::scope(|scope| {
        let _stop = Raised(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201);
            }
        });
        for n in 0..3 {
            let before = serving.get("/v1/hosts").body.len();
            eventually("more hosts", || {
                (serving.get("/v1/hosts").body.len() > before).then_some(())
            });
            let (file, schema) = (format!("{n}.sql"), format!("moment{n}"));
            database.load(&export(&home, &file, &["--schema", &schema])).ok();
            counts.push(database.ask(&format!(
                "SELECT (SELECT count(*) - 1 FROM {schema}.hosts), \
                 (SELECT count(*) FROM {schema}.registration_tokens), \
                 (SELECT count(*) FROM {schema}.audit_logs WHERE resource_type = 'host')"
            )));
        }
    });
    let mut last = 0;
    for line in counts.into_iter().flatten() {
        let count: Vec<u64> = line.split('|').map(|number| number.parse().unwrap()).collect();
        assert!(count[0] > last, "no host was added between two exports: {line}");
        assert_eq!((count[0], count[0]), (count[1], count[2]), "hosts, tokens and audit: {line}");
        last = count[0];
    }
    serving.stop();
}

#[test]
fn a_file_is_whole_private_and_never_overwritten() {
    let home = filled();
    let file = export(&home, "all.sql", &[]);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&file).unwrap();
    let args = ["db", "export", file.to_str().unwrap()];
    let again = home.roost(&args);
    assert_eq!((again.code, again.stdout.as_str()), (1, ""));
    let why = "it is there already; choose another file, or remove it\n";
    assert!(again.stderr.ends_with(why), "{again:?}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    // The same moment gives the same rows on stdout.
    let shown = home.roost(&["db", "export", "-"]).ok();
    let rows = |text: &str| text.split_once("\nCREATE TABLE").unwrap().1.len();
    assert_eq!(rows(&shown), rows(&String::from_utf8(before).unwrap()));

    let nowhere = home.roost(&["db", "export", "nowhere/all.sql"]);
    assert_eq!(nowhere.code, 1);
    assert!(nowhere.stderr.contains("could not write nowhere/all.sql"), "{nowhere:?}");
    // A table that cannot be read leaves no part of a file, under no name.
    writer(&home).execute_batch("ALTER TABLE audit_logs RENAME scope TO other").unwrap();
    let failed = home.roost(&["db", "export", home.path("part.sql").to_str().unwrap()]);
    assert!(failed.code == 1 && failed.stderr.contains("no such column: scope"), "{failed:?}");
    let names = std::fs::read_dir(home.dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name != "all.sql").collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().contains("export")), "{left:?}");
    assert!(!left.iter().any(|name| name == "part.sql"), "{left:?}");
}

#[test]
fn a_reader_that_leaves_is_no_error_and_a_full_disk_is() {
    let home = filled();
    let mut command = home.command(&["db", "export"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let done = home.command(&["db", "export"]).stdout(full).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(said.starts_with("roost: could not write to stdout: No space left"), "{said}");
}

/// Every line of the documentation's examples, one after another in one shell.
#[test]
fn the_documentation_works() {
    let Some(cluster) = cluster() else { return };
    let (home, database) = (filled(), cluster.database());
    let text = std::fs::read_to_string("docs/export.md").unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let script: String = blocks.collect();
    assert!(script.contains("roost db export"), "{script}");
    let roost = Path::new(env!("CARGO_BIN_EXE_roost")).parent().unwrap();
    let mut shell = Command::new("sh");
    shell.env_clear().env("ROOST_DATA_DIR", home.dir()).current_dir(home.dir());
    for (name, value) in database.environment() {
        let value = if name == "PATH" { format!("{}:{value}", roost.display()) } else { value };
        shell.env(name, value);
    }
    let done = shell.args(["-e", "-u", "-x", "-c", &script]).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(!said.contains("ERROR:") && !said.contains("WARNING:"), "{said}");
    assert_eq!(database.schemas(), ["edge_site", "roost"]);
}
