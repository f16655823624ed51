//! Owns how settings are shown: effective values for people and scripts, and the reference
//! in docs/configuration.md.
//!
//! Never: shows a secret; no key holds one, and of a target of notifications only its name
//! and kind are shown. Called by `roost config` and by the test that
//! compares the documentation with the code.

use super::gather::{OTHER_VARIABLES, Source};
use super::key::{KEYS, KeyInfo};
use super::{Config, Setting, Target};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::time::Duration;

impl Config {
    /// Key, value and source of every setting as an aligned table, one line each.
    pub fn to_text(&self) -> String {
        let rows = self.settings();
        let key_width = rows.iter().map(|row| row.key.as_str().len()).max().unwrap_or(0);
        let value_width = rows.iter().map(|row| row.text.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for Setting { key, text, source, .. } in rows {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{key:<key_width$}  {text:<value_width$}  {source}");
        }
        for target in &self.targets {
            let _ = writeln!(out, "notify: {} ({}, {})", target.name, target.kind, target.source);
        }
        out
    }

    /// The same for scripts: `{"file":…,"settings":{key:{"value","source","at"}}}`, where
    /// `source` is `default`, `file`, `env` or `flag`, and `at` says which, except for a
    /// default. Values are text, as they would be written in `roost.toml`.
    pub fn to_json(&self) -> Value {
        let settings = self.settings().iter().map(|row| (row.key.to_string(), setting_json(row)));
        let settings: Map<String, Value> = settings.collect();
        let mut value = json!({ "file": self.file(), "settings": settings });
        if !self.targets.is_empty() {
            let target = |t: &Target| json!({ "name": t.name, "kind": t.kind, "events": t.events });
            value["notify"] = self.targets.iter().map(target).collect();
        }
        value
    }
}

fn setting_json(row: &Setting) -> Value {
    let mut entry = json!({ "value": row.text, "source": row.source.word() });
    if row.source != Source::Default {
        entry["at"] = Value::String(row.source.to_string());
    }
    entry
}

/// A span as it would be written, without spaces: `90s` is `1m30s`.
pub(super) fn span(span: Duration) -> String {
    humantime::format_duration(span).to_string().replace(' ', "")
}

/// The text of docs/configuration.md.
pub fn reference() -> String {
    let mut out = String::from(HEAD);
    for KeyInfo { key, default, rule, live, about } in &KEYS {
        let reload = if *live { "SIGHUP" } else { "restart" };
        let allowed = rule.allowed();
        let default = match *default {
            "" => "none".to_owned(),
            default => format!("`{default}`"),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(out, "| `{key}` | {default} | {allowed} | {reload} | {about} |");
    }
    let others: Vec<String> = OTHER_VARIABLES.iter().map(|name| format!("`{name}`")).collect();
    let _ = write!(out, "{TAIL}", TAIL = TAIL.replace("{others}", &others.join(", ")));
    out
}

const HEAD: &str = "\
# Configuration

<!-- Written from src/config/key.rs by tests/config.rs; `UPDATE_EXPECT=1 cargo test --test config` renews it. -->

A setting is looked for in four places; the first that has it wins:

1. a flag, `--probe-interval 30s`
2. the environment, `ROOST_PROBE_INTERVAL=30s`; an empty variable sets nothing
3. the file, `probe_interval = \"30s\"`: the one named with `--config` or `ROOST_CONFIG`, else `roost.toml` in the data directory when there is one
4. the default

`roost config` prints what is in effect and where each value came from.

Durations are written with their unit: `90s`, `2m`, `1m30s`. A name nobody knows, a value out of range and values that contradict each other are refused at the start, with the key, the value, where it was written and what is allowed:

```text
roost: could not read the configuration: probe_interval = \"0s\" (roost.toml:3): must be 1s to 1h
```

| key | default | allowed | applied by | what it does |
|---|---|---|---|---|
";

const TAIL: &str = "
`probe_timeout` and `confirm_delay` must fit into `probe_interval`. When they are not set they give way to a shorter one; when they are, the contradiction is refused.

`tls_cert` and `tls_key` are set together.

`data_dir` cannot be set in a `roost.toml` that lies in the data directory.

`roost.toml` may also name who is told of trouble, in `[[notify]]` sections at its end; docs/notifications.md says how.

A key for the API can also come from a file: `ROOST_API_KEY_FILE` names it. Setting it and `ROOST_API_KEY` is refused.

Other variables: {others}. Any other name that starts with `ROOST_` is refused, so that a misspelt one does not go unnoticed; `ROOST_TEST_…`, `ROOST_BENCH_…` and `ROOST_SIM_…` are left to the tests.
";
