//! Owns the proof that settings are found, refused and documented as promised.
//!
//! Never: reads the environment of the test run; every case brings its own.

use expect_test::{Expect, expect, expect_file};
use roost::config::{Config, ConfigError, Inputs, KEYS, Key, reference};
use roost::model::policy::Policy;
use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// Everything a case sets; `file` is the text of `roost.toml` in the data directory.
#[derive(Default)]
struct Case<'a> {
    file: &'a str,
    variables: &'a [(&'a str, &'a str)],
    flags: &'a [(Key, &'a str)],
}

/// The value of each key is written in a file under a directory whose name changes with
/// every run; it is cut from what is compared.
fn load(case: &Case<'_>) -> (Result<Config, ConfigError>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    if !case.file.is_empty() {
        std::fs::write(dir.path().join("roost.toml"), case.file).expect("written");
    }
    let data_dir = dir.path().to_str().expect("UTF-8").to_owned();
    let mut flags = vec![(Key::DataDir, data_dir.clone())];
    flags.extend(case.flags.iter().map(|(key, text)| (*key, (*text).to_owned())));
    let variables = variables(case.variables);
    (Config::load(&Inputs { config_file: None, flags, variables }), format!("{data_dir}/"))
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// The message of a refusal, or the settings that are not defaults.
fn outcome(case: &Case<'_>) -> String {
    let (loaded, dir) = load(case);
    let text = match loaded {
        Err(error) => chain(&error),
        Ok(config) => changed(&config),
    };
    text.replace(&dir, "")
}

fn changed(config: &Config) -> String {
    let set = config.settings().iter().filter(|row| row.source.word() != "default");
    let set = set.filter(|row| row.key != Key::DataDir);
    set.map(|row| format!("{} = {} ({})\n", row.key, row.text, row.source)).collect()
}

fn check(case: &Case<'_>, expected: &Expect) {
    expected.assert_eq(&outcome(case));
}

/// One line per file, with its outcome.
fn check_files(files: &[&str], expected: &Expect) {
    let lines = files.iter().map(|file| {
        let outcome = outcome(&Case { file, ..Case::default() });
        format!("{}\n", outcome.trim_end())
    });
    expected.assert_eq(&lines.collect::<String>());
}

#[test]
fn defaults_are_the_policy_of_the_model() {
    let (config, _) = load(&Case::default());
    let config = config.unwrap();
    assert_eq!(config.policy(), Policy::default());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
    assert_eq!((config.workers, config.probe_timeout), (32, Duration::from_secs(8)));
    assert_eq!(config.heartbeat_flush, Duration::from_secs(80));
    assert!(config.warnings().is_empty());
    assert_eq!(config.file(), None);
}

#[test]
fn every_key_can_be_set_everywhere() {
    for info in &KEYS {
        let pair = [Key::TlsCert, Key::TlsKey];
        let is_path = info.key == Key::DataDir || pair.contains(&info.key);
        let value = match info.default {
            // Nothing in the environment is no setting.
            "" if !is_path => "10.0.0.0/8",
            _ if is_path => "/nowhere",
            default => default,
        };
        // What is only valid together with another.
        let partners = pair.iter().filter(|key| pair.contains(&info.key) && **key != info.key);
        let partner: Vec<_> = partners.map(|key| (*key, value.to_owned())).collect();
        let flags = [partner.clone(), vec![(info.key, value.to_owned())]].concat();
        let set = Config::load(&Inputs { flags, ..Inputs::default() }).unwrap();
        assert_eq!(set.settings()[info.key as usize].source.word(), "flag");

        let variables = variables(&[(info.key.variable(), value)]);
        let flags = partner.clone();
        let set = Config::load(&Inputs { flags, variables, ..Inputs::default() }).unwrap();
        assert_eq!(set.settings()[info.key as usize].source.word(), "env");

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{} = {value:?}", info.key)).unwrap();
        let config_file = Some(file.path().to_owned());
        let inputs = Inputs { config_file, flags: partner, ..Inputs::default() };
        let set = Config::load(&inputs).unwrap();
        assert_eq!(set.settings()[info.key as usize].source.word(), "file");
    }
}

#[test]
fn flags_over_environment_over_file_over_default() {
    let file = "# a comment\nworkers = 1\nlog = \"warn\"\nprobe_interval = '30s'\n";
    check(
        &Case { file, ..Case::default() },
        &expect![[r#"
            probe_interval = 30s (roost.toml:4)
            workers = 1 (roost.toml:2)
            log = warn (roost.toml:3)
        "#]],
    );
    let variables = &[("ROOST_WORKERS", "2"), ("ROOST_LOG", "debug"), ("ROOST_LISTEN", "")];
    check(
        &Case { file, variables, ..Case::default() },
        &expect![[r#"
            probe_interval = 30s (roost.toml:4)
            workers = 2 (ROOST_WORKERS)
            log = debug (ROOST_LOG)
        "#]],
    );
    check(
        &Case { file, variables, flags: &[(Key::Workers, "3")] },
        &expect![[r#"
            probe_interval = 30s (roost.toml:4)
            workers = 3 (--workers)
            log = debug (ROOST_LOG)
        "#]],
    );
}

#[test]
fn a_named_file_replaces_the_one_in_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().join("other.toml");
    std::fs::write(dir.path().join("roost.toml"), "workers = 1").unwrap();
    std::fs::write(&named, "data_dir = '/srv/roost'\nworkers = 2").unwrap();
    let load = |inputs: &Inputs| Config::load(inputs).unwrap();
    let in_dir = (Key::DataDir, dir.path().to_str().unwrap().to_owned());

    let by_flag = load(&Inputs { config_file: Some(named.clone()), ..Inputs::default() });
    assert_eq!((by_flag.workers, by_flag.data_dir.as_path()), (2, Path::new("/srv/roost")));
    assert_eq!(by_flag.paths().db, Path::new("/srv/roost/roost.db"));
    assert_eq!(by_flag.file(), Some(named.as_path()));

    let variables = vec![("ROOST_CONFIG".into(), named.into_os_string())];
    let flags = vec![in_dir.clone()];
    let by_variable = load(&Inputs { variables, flags, ..Inputs::default() });
    assert_eq!((by_variable.workers, by_variable.data_dir.as_path()), (2, dir.path()));

    let found = load(&Inputs { flags: vec![in_dir], ..Inputs::default() });
    assert_eq!(found.workers, 1);
}

#[test]
fn bad_values_are_refused_in_the_same_words() {
    check_files(
        &[
            "data_dir = '/elsewhere'",
            "listen = '8000'",
            "listen = 8000",
            "listen = 'example.org:80'",
            "unreachable_after = '999ms'",
            "startup_grace = '2days'",
            "\n\nprobe_interval = '0s'",
            "probe_interval = '0'",
            "probe_interval = 60",
            "probe_interval = '2h'",
            "probe_timeout = 'soon'",
            "workers = 0",
            "workers = 1025",
            "workers = -1",
            "workers = 0x10",
            "workers = 1.5",
            "workers = 'many'",
            "transient_grace = ['2m']",
            "confirm_delay = { s = 3 }",
            "policy = 'Strict'",
            "policy = ''",
            "zombies = 'kill'",
            "heartbeat_flush = '-1s'",
            "mass_guard_max = '5 m 5'",
            "agent_tls = true",
            "tls_cert = '/nowhere'",
            "tls_key = '/nowhere'",
            "answers = 'done'",
            "log = 'inof'",
            "log = ''",
            "log_format = 'yaml'",
            "workers = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'",
            "policy = \"a\\nb\\u001b[2J\"",
        ],
        &expect![[r#"
            data_dir = "/elsewhere" (roost.toml:1): must not be set in a file that lies in the data directory; use --data-dir, or name the file with --config
            listen = "8000" (roost.toml:1): must be address:port; for example 127.0.0.1:8000, 0.0.0.0:8000 or [::]:8000
            listen = 8000 (roost.toml:1): must be address:port; it is written in quotes
            listen = "example.org:80" (roost.toml:1): must be address:port; for example 127.0.0.1:8000, 0.0.0.0:8000 or [::]:8000
            unreachable_after = "999ms" (roost.toml:1): must be 1s to 1day
            startup_grace = "2days" (roost.toml:1): must be 0s to 1day
            probe_interval = "0s" (roost.toml:3): must be 1s to 1h
            probe_interval = "0" (roost.toml:1): must be 1s to 1h; a duration has a unit, for example 90s or 2m
            probe_interval = 60 (roost.toml:1): must be 1s to 1h; a duration has a unit, for example 90s or 2m
            probe_interval = "2h" (roost.toml:1): must be 1s to 1h
            probe_timeout = "soon" (roost.toml:1): must be 100ms to 5m; a duration is written like 90s or 2m
            workers = 0 (roost.toml:1): must be 1 to 1024
            workers = 1025 (roost.toml:1): must be 1 to 1024
            workers = -1 (roost.toml:1): must be 1 to 1024
            workers = 0x10 (roost.toml:1): must be 1 to 1024
            workers = 1.5 (roost.toml:1): must be 1 to 1024
            workers = "many" (roost.toml:1): must be 1 to 1024
            transient_grace = ['2m'] (roost.toml:1): must be 1s to 1h
            confirm_delay = { s = 3 } (roost.toml:1): must be 10ms to 5m
            policy = "Strict" (roost.toml:1): must be default or strict
            policy = "" (roost.toml:1): must be default or strict
            zombies = "kill" (roost.toml:1): must be report or destroy
            heartbeat_flush = "-1s" (roost.toml:1): must be 100ms to 5m; a duration is written like 90s or 2m
            mass_guard_max = "5 m 5" (roost.toml:1): must be 0s to 1day; a duration is written like 90s or 2m
            agent_tls = true (roost.toml:1): must be off or mtls or mtls_or_http; it is written in quotes
            tls_cert = "/nowhere" (roost.toml:1): must be set together with tls_key
            tls_key = "/nowhere" (roost.toml:1): must be set together with tls_cert
            answers = "done" (roost.toml:1): must be accepted or when_done
            log = "inof" (roost.toml:1): must be an env_logger filter; for example info, or warn,roost::engine=debug
            log = "" (roost.toml:1): must be an env_logger filter; for example info, or warn,roost::engine=debug
            log_format = "yaml" (roost.toml:1): must be text or json
            workers = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…" (roost.toml:1): must be 1 to 1024
            policy = "a\nb\u{1b}[2J" (roost.toml:1): must be default or strict
        "#]],
    );
    check(
        &Case { variables: &[("ROOST_PROBE_INTERVAL", "0s")], ..Case::default() },
        &expect![[r#"probe_interval = "0s" (ROOST_PROBE_INTERVAL): must be 1s to 1h"#]],
    );
    check(
        &Case { flags: &[(Key::ProbeInterval, "0s")], ..Case::default() },
        &expect![[r#"probe_interval = "0s" (--probe-interval): must be 1s to 1h"#]],
    );
    check(
        &Case { flags: &[(Key::DataDir, "")], ..Case::default() },
        &expect![[r#"data_dir = "" (--data-dir): must be a path"#]],
    );
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known() {
    check_files(
        &[
            "wrokers = 4",
            "# two lines\nprobe-interval = '30s'",
            "colour = 'always'",
            "[monitor]\nworkers = 4",
            "workers = 4\nworkers = 5",
            "workers = 4\npolicy = strict",
            "workers",
            "z = 1\na = 2",
        ],
        &expect![[r#"
            wrokers (roost.toml:1): unknown key; did you mean workers?
            probe-interval (roost.toml:2): unknown key; did you mean probe_interval?
            colour (roost.toml:1): unknown key
            monitor (roost.toml:1): unknown key; keys stand at the top, without sections
            roost.toml:2: duplicate key
            roost.toml:2: string values must be quoted, expected literal string
            roost.toml:1: key with no value, expected `=`
            z (roost.toml:1): unknown key
        "#]],
    );
    for (name, expected) in [
        (
            "ROOST_PROBE_INTERVALL",
            expect!["ROOST_PROBE_INTERVALL: unknown variable; did you mean ROOST_PROBE_INTERVAL?"],
        ),
        ("ROOST_ULR", expect!["ROOST_ULR: unknown variable"]),
        ("ROOST_COLOUR", expect!["ROOST_COLOUR: unknown variable"]),
    ] {
        check(&Case { variables: &[(name, "x")], ..Case::default() }, &expected);
    }
    for name in ["ROOST_URL", "ROOST_API_KEY", "ROOST_TEST_SEED", "ROOST_BENCH_HOSTS", "ROOSTER"] {
        check(&Case { variables: &[(name, "x")], ..Case::default() }, &expect![[""]]);
    }
}

#[test]
fn values_that_contradict_each_other() {
    check_files(
        &[
            "probe_interval = '2s'",
            "probe_interval = '5s'\nprobe_timeout = '6s'",
            "confirm_delay = '60s'",
            "confirm_delay = '59s'\nprobe_timeout = '60s'",
        ],
        &expect![[r#"
            probe_interval = 2s (roost.toml:1)
            probe_timeout = "6s" (roost.toml:2): must be at most probe_interval = "5s" (roost.toml:1)
            confirm_delay = "60s" (roost.toml:1): must be less than probe_interval = "60s" (default)
            probe_timeout = 60s (roost.toml:2)
            confirm_delay = 59s (roost.toml:1)
        "#]],
    );
    let (config, _) = load(&Case { file: "probe_interval = '2s'", ..Case::default() });
    let config = config.unwrap();
    assert_eq!(config.probe_timeout, Duration::from_secs(2), "a default gives way");
    assert_eq!(config.confirm_delay, Duration::from_secs(1), "a default gives way");
    assert_eq!(config.settings()[Key::ConfirmDelay as usize].text, "1s");
}

#[test]
fn allowed_but_unwise() {
    let flags = &[(Key::UnreachableAfter, "40s"), (Key::StartupGrace, "10s")];
    let (config, _) = load(&Case { flags, ..Case::default() });
    expect![[r#"
        unreachable_after is 40s: agents beat every 30s, one lost heartbeat looks like a lost host
        startup_grace is 10s, less than unreachable_after: a restart may mark healthy hosts unreachable"#]].assert_eq(&config.unwrap().warnings().join("\n"));
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let message = |name: &str| {
        let config_file = Some(dir.path().join(name));
        let error = Config::load(&Inputs { config_file, ..Inputs::default() }).unwrap_err();
        chain(&error).replace(dir.path().to_str().unwrap(), "DIR") + "\n"
    };
    std::fs::write(dir.path().join("binary"), b"\xff\xfe").unwrap();
    std::fs::write(dir.path().join("large"), vec![b'#'; 300 * 1024]).unwrap();
    std::fs::create_dir(dir.path().join("directory")).unwrap();
    let messages: String = ["absent", "binary", "large", "directory"].map(message).concat();
    expect![[r#"
        DIR/absent: No such file or directory (os error 2)
        DIR/binary: stream did not contain valid UTF-8
        DIR/large: larger than 256 KiB
        DIR/directory: Is a directory (os error 21)
    "#]]
    .assert_eq(&messages);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text() {
    use std::os::unix::ffi::OsStringExt;
    let variables = vec![("ROOST_LOG".into(), OsString::from_vec(vec![0xff]))];
    let error = Config::load(&Inputs { variables, ..Inputs::default() }).unwrap_err();
    expect!["ROOST_LOG: must be UTF-8"].assert_eq(&error.to_string());
}

#[test]
fn effective_settings_for_people_and_scripts() {
    let file = "workers = 4\n";
    let flags = &[(Key::LogFormat, "json")];
    let (config, dir) = load(&Case { file, flags, variables: &[("ROOST_POLICY", "strict")] });
    let config = config.unwrap();
    let text = config.to_text().replace(&dir, "").replace(dir.trim_end_matches('/'), "DIR");
    // The column is as wide as the longest value, here a path that changes with every run.
    let squeezed: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    expect![[r#"
        data_dir DIR --data-dir
        listen 127.0.0.1:8000 default
        unreachable_after 90s default
        startup_grace 90s default
        probe_interval 60s default
        probe_timeout 8s default
        workers 4 roost.toml:1
        transient_grace 2m default
        confirm_delay 3s default
        policy strict ROOST_POLICY
        zombies report default
        heartbeat_flush 80s default
        mass_guard_max 5m default
        memory_overcommit 1 default
        cpu_overcommit 8 default
        stop_timeout 10m default
        events_keep_age 30d default
        events_keep_count 250000 default
        audit_keep_age 0s default
        stopped_keep_age 30d default
        team_sandboxes_max 0 default
        team_creates_per_minute 0 default
        agent_tls off default
        agent_networks default
        tls_cert default
        tls_key default
        answers accepted default
        log info default
        log_format json --log-format
        notify_delay 60s default
        notify_reminder 4h default"#]]
    .assert_eq(&squeezed.join("\n"));
    let json = config.to_json();
    assert_eq!(json["settings"]["workers"]["source"], "file");
    assert_eq!(json["settings"]["policy"]["at"], "ROOST_POLICY");
    assert_eq!(json["settings"]["log_format"]["value"], "json");
    assert_eq!(json["settings"]["log"]["at"], serde_json::Value::Null);
}

#[test]
fn a_reload_names_what_changed() {
    let older = load(&Case { file: "workers = 4\nlog = 'info'", ..Case::default() }).0.unwrap();
    let (newer, _) = load(&Case { file: "workers = 5\nlog = 'debug'", ..Case::default() });
    let newer = newer.unwrap();
    let changed = older.changed(&newer).into_iter().filter(|info| info.key != Key::DataDir);
    let changed: Vec<_> = changed.map(|info| (info.key, info.live)).collect();
    assert_eq!(changed, [(Key::Workers, false), (Key::Log, true)]);
}

#[test]
fn the_documentation_is_the_table() {
    expect_file!["../docs/configuration.md"].assert_eq(&reference());
}
