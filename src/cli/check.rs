//! Owns `roost check`: options in, one pass, a report out.
//!
//! Never: changes what interfaces.md says of the JSON report.

use super::args::{Check, Format};
use super::output::{Exit, Failure, Out};
use super::progress::Progress;
use super::{clock, paths};
use crate::config::Config;
use crate::engine::{self, CheckOptions, CheckReport};
use crate::model::id::{HostId, SandboxId};
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::store::apply::Written;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn run(config: &Config, options: &Check) -> Result<Exit, Failure> {
    let (paths, clock) = (paths(config, &options.database), clock());
    let client = engine::client_config_of(config, &paths, &clock)
        .map_err(|e| Failure::new("could not use the CA").because(e))?;
    let check = CheckOptions {
        db: paths.db,
        dry_run: options.dry_run,
        policy: config.policy(),
        host: options.host,
        workers: config.workers,
        client,
        done: Arc::default(),
    };
    let done = Arc::clone(&check.done);
    let progress = Progress::saying(move || match done.of.load(Ordering::Relaxed) {
        0 => "checking".to_owned(),
        of => format!("checking: {} of {of} hosts", done.hosts.load(Ordering::Relaxed)),
    });
    let report = engine::check(&check, clock)
        .map_err(|e| Failure::new(format!("could not check {}", check.db.display())).because(e))?;
    drop(progress);
    let mut out = Out::stdout();
    match options.printing.format {
        Format::Json => out.json(&Json(&report))?,
        Format::Text => out.lines(&to_text(&report))?,
    }
    out.finish()?;
    let changed = options.exit_code && report.has_changes();
    Ok(if changed { Exit::Changed } else { Exit::Done })
}

/// The report as interfaces.md has it. Written item by item: a large fleet makes long lists.
struct Json<'a>(&'a CheckReport);

/// A list that is made while it is written.
struct List<F>(F);

impl<I: Iterator<Item: Serialize>, F: Fn() -> I> Serialize for List<F> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq((self.0)())
    }
}

#[derive(Serialize)]
struct Moved<'a> {
    sandbox_id: SandboxId,
    host_id: HostId,
    from: SandboxStatus,
    to: SandboxStatus,
    reason: &'a Reason,
    revision: u64,
}

impl<'a> From<(HostId, &'a Written)> for Moved<'a> {
    fn from((host_id, t): (HostId, &'a Written)) -> Moved<'a> {
        let (sandbox_id, from, to, revision) = (t.sandbox, t.from, t.to, t.revision);
        Moved { sandbox_id, host_id, from, to, reason: &t.reason, revision }
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let report = self.0;
        let failed = report.failed_probes.iter().map(|(host, failure)| {
            json!({"host_id": host, "outcome": failure.kind, "detail": failure.detail})
        });
        let hosts = report.host_transitions.iter().map(|(host, from, to, reason)| {
            json!({"host_id": host, "from": from, "to": to, "reason": reason})
        });
        let held = report.held.iter().map(|held| match held.sandbox {
            Some(sandbox) => {
                json!({"sandbox_id": sandbox, "host_id": held.host, "reason": held.why})
            }
            None => json!({"host_id": held.host, "reason": held.why}),
        });
        let zombies = report.zombies.iter().map(|(host, sandbox, status)| {
            json!({"sandbox_id": sandbox, "host_id": host, "status": status})
        });
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("dry_run", &report.dry_run)?;
        map.serialize_entry("policy", &report.policy)?;
        map.serialize_entry("hosts_checked", &report.hosts_checked)?;
        map.serialize_entry("observations", &report.observations)?;
        map.serialize_entry("failed_probes", &failed.collect::<Vec<_>>())?;
        map.serialize_entry("host_transitions", &hosts.collect::<Vec<_>>())?;
        map.serialize_entry("transitions", &List(|| report.moves().map(Moved::from)))?;
        map.serialize_entry("held", &held.collect::<Vec<_>>())?;
        map.serialize_entry("zombies", &zombies.collect::<Vec<_>>())?;
        map.serialize_entry("elapsed_ms", &(report.elapsed.as_millis() as u64))?;
        map.end()
    }
}

fn to_text(report: &CheckReport) -> String {
    let mut lines = Vec::new();
    for (host, from, to, reason) in &report.host_transitions {
        lines.push(format!("{host}: {from} → {to} ({reason})"));
    }
    for (host, t) in report.moves() {
        lines.push(format!("{}: {} → {} ({}) on {host}", t.sandbox, t.from, t.to, t.reason));
    }
    for held in &report.held {
        match held.sandbox {
            Some(sandbox) => lines.push(format!("{sandbox}: held ({}) on {}", held.why, held.host)),
            None => lines.push(format!("{}: held ({})", held.host, held.why)),
        }
    }
    for (host, sandbox, status) in &report.zombies {
        let known = status.map_or("unknown", |status| status.as_str());
        lines.push(format!("{sandbox}: runs on {host} and should not ({known})"));
    }
    for (host, failure) in &report.failed_probes {
        lines.push(format!("{host}: no answer ({failure})"));
    }
    let verb = if report.dry_run { "would change" } else { "changed" };
    lines.push(format!(
        "{} hosts checked, {} answered; {verb} {} hosts and {} sandboxes in {} ms",
        report.hosts_checked,
        report.observations,
        report.host_transitions.len(),
        report.moves().count(),
        report.elapsed.as_millis()
    ));
    lines.join("\n") + "\n"
}
