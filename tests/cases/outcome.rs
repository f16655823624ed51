//! Owns the words of `expected.json`: how a case ends, written down so that a change of
//! behaviour is a readable difference.
//!
//! Never: runs anything; forgives a difference.

use roost::model::event::AuditEntry;
use roost::model::host::Host;
use roost::store::StoreError;
use roost::store::read::{self, Before, HistoryFilter, SandboxFilter};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// How a case ends. What is left out of `expected.json` must be empty, but for
/// `events` and `rows_by_probes`, which are compared only when they are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Outcome {
    /// Public status, followed by `degraded` and `rejoining` where they hold.
    pub(crate) hosts: BTreeMap<String, String>,
    /// Status and its reason.
    pub(crate) sandboxes: BTreeMap<String, (String, Option<String>)>,
    /// The audit log: resource, action, status, from, to, reason.
    pub(crate) audit: Vec<[String; 6]>,
    /// Kinds of all events, by revision.
    pub(crate) events: Option<Vec<String>>,
    /// Sandboxes whose stop was held at any time because too many vanished at once.
    pub(crate) held: BTreeSet<String>,
    /// Strangers that were reported, once for each report, with their kind.
    pub(crate) strangers: Vec<String>,
    /// What is to be asked of agents a second time.
    pub(crate) again: BTreeMap<String, String>,
    /// Whether verdicts on silent hosts are being held at the end.
    pub(crate) verdicts_held: bool,
    /// Rows that probes changed; compared only when it is there.
    pub(crate) rows_by_probes: Option<u64>,
}

impl Outcome {
    /// What the database says, without what only the monitor knows.
    pub(crate) fn of_database(conn: &Connection) -> Result<Outcome, StoreError> {
        let all = SandboxFilter { all: true, ..SandboxFilter::default() };
        let history = HistoryFilter { limit: u32::MAX, ..HistoryFilter::default() };
        let hosts = read::hosts(conn)?;
        let sandboxes = read::sandboxes(conn, &all)?;
        let mut audit = read::audit_before(conn, Before::default(), &history)?;
        audit.reverse();
        let events = read::events_after(conn, 0, &history)?;
        Ok(Outcome {
            hosts: hosts.iter().map(|host| (host.id.to_string(), host_words(host))).collect(),
            sandboxes: sandboxes
                .iter()
                .map(|row| {
                    let reason = row.status_reason.as_ref().map(ToString::to_string);
                    (row.id.to_string(), (row.status.to_string(), reason))
                })
                .collect(),
            audit: audit.iter().map(audit_words).collect(),
            events: Some(events.iter().map(|event| event.kind.to_string()).collect()),
            ..Outcome::default()
        })
    }

    /// Without what the other one leaves out on purpose.
    pub(crate) fn limited_to(mut self, expected: &Outcome) -> Outcome {
        if expected.events.is_none() {
            self.events = None;
        }
        if expected.rows_by_probes.is_none() {
            self.rows_by_probes = None;
        }
        self
    }

    /// As it stands in `expected.json`: one entry a line.
    pub(crate) fn text(&self) -> String {
        let mut sections = vec![map("hosts", &self.hosts), map("sandboxes", &self.sandboxes)];
        sections.push(list("audit", &self.audit));
        sections.extend(self.events.as_ref().map(|events| list("events", events)));
        if !self.held.is_empty() {
            sections.push(list("held", &self.held));
        }
        if !self.strangers.is_empty() {
            sections.push(list("strangers", &self.strangers));
        }
        if !self.again.is_empty() {
            sections.push(map("again", &self.again));
        }
        if self.verdicts_held {
            sections.push("  \"verdicts_held\": true".to_owned());
        }
        sections.extend(self.rows_by_probes.map(|rows| format!("  \"rows_by_probes\": {rows}")));
        format!("{{\n{}\n}}\n", sections.join(",\n"))
    }
}

fn host_words(host: &Host) -> String {
    let mut words = host.status().to_string();
    for (word, holds) in [("degraded", host.degraded), ("rejoining", host.rejoining)] {
        if holds {
            let _ = write!(words, ", {word}");
        }
    }
    words
}

fn audit_words(entry: &AuditEntry) -> [String; 6] {
    let metadata: Value = serde_json::from_str(&entry.metadata).unwrap_or_default();
    let word = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
    let (action, status) = (entry.action.to_string(), entry.status.to_string());
    [entry.resource_id.clone(), action, status, word("from"), word("to"), word("reason")]
}

fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    text.replace("\",\"", "\", \"").replace("\",null", "\", null")
}

fn section(key: &str, lines: Vec<String>, (open, close): (char, char)) -> String {
    if lines.is_empty() {
        return format!("  \"{key}\": {open}{close}");
    }
    format!("  \"{key}\": {open}\n    {}\n  {close}", lines.join(",\n    "))
}

fn map<T: Serialize>(key: &str, entries: &BTreeMap<String, T>) -> String {
    let line = |(key, value)| format!("{}: {}", json(key), json(value));
    section(key, entries.iter().map(line).collect(), ('{', '}'))
}

fn list<T: Serialize>(key: &str, entries: impl IntoIterator<Item = T>) -> String {
    section(key, entries.into_iter().map(|entry| json(&entry)).collect(), ('[', ']'))
}

/// The lines of both texts, those that only one has marked with `-` (expected) or `+`.
pub(crate) fn difference(expected: &str, actual: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let common = common_lengths(&old, &new);
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        let (sign, line) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
            (' ', old[i - 1])
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', old[i - 1])
        } else {
            j += 1;
            ('+', new[j - 1])
        };
        let _ = writeln!(out, "{sign} {line}");
    }
    out
}

/// Length of the longest common subsequence of what follows each pair of positions.
fn common_lengths(old: &[&str], new: &[&str]) -> Vec<Vec<usize>> {
    let mut common = vec![vec![0; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    common
}
