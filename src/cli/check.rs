//! Owns `roost check`: options in, one pass, a report out.
//!
//! Never: changes what interfaces.md says of the JSON report.

use super::args::{Check, Format};
use super::output::{Exit, Failure, Out};
use super::{clock, paths};
use crate::config::Config;
use crate::engine::{self, CheckOptions, CheckReport};
use serde_json::{Value, json};

pub(super) fn run(config: &Config, options: &Check) -> Result<Exit, Failure> {
    let check = CheckOptions {
        db: paths(config, &options.database).db,
        dry_run: options.dry_run,
        policy: config.policy(),
        host: options.host,
        workers: config.workers,
        client: engine::client_config(config),
    };
    let report = engine::check(&check, clock())
        .map_err(|e| Failure::new(format!("could not check {}", check.db.display())).because(e))?;
    let mut out = Out::stdout();
    match options.printing.format {
        Format::Json => out.json(&to_json(&report))?,
        Format::Text => out.text(&to_text(&report))?,
    }
    out.finish()?;
    let changed = options.exit_code && report.has_changes();
    Ok(if changed { Exit::Changed } else { Exit::Done })
}

fn to_json(report: &CheckReport) -> Value {
    let failed = report.failed_probes.iter().map(|(host, failure)| {
        json!({"host_id": host, "outcome": failure.kind, "detail": failure.detail})
    });
    let hosts = report.host_transitions.iter().map(|(host, from, to, reason)| {
        json!({"host_id": host, "from": from, "to": to, "reason": reason})
    });
    let sandboxes = report.transitions.iter().map(|(host, t)| {
        json!({"sandbox_id": t.sandbox, "host_id": host, "from": t.from, "to": t.to,
               "reason": t.reason, "revision": t.revision})
    });
    let held = report.held.iter().map(|held| match held.sandbox {
        Some(sandbox) => json!({"sandbox_id": sandbox, "host_id": held.host, "reason": held.why}),
        None => json!({"host_id": held.host, "reason": held.why}),
    });
    let zombies = report.zombies.iter().map(
        |(host, sandbox, status)| json!({"sandbox_id": sandbox, "host_id": host, "status": status}),
    );
    json!({
        "dry_run": report.dry_run,
        "policy": report.policy,
        "hosts_checked": report.hosts_checked,
        "observations": report.observations,
        "failed_probes": failed.collect::<Vec<_>>(),
        "host_transitions": hosts.collect::<Vec<_>>(),
        "transitions": sandboxes.collect::<Vec<_>>(),
        "held": held.collect::<Vec<_>>(),
        "zombies": zombies.collect::<Vec<_>>(),
        "elapsed_ms": report.elapsed.as_millis() as u64,
    })
}

fn to_text(report: &CheckReport) -> String {
    let mut lines = Vec::new();
    for (host, from, to, reason) in &report.host_transitions {
        lines.push(format!("{host}: {from} → {to} ({reason})"));
    }
    for (host, t) in &report.transitions {
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
        report.transitions.len(),
        report.elapsed.as_millis()
    ));
    lines.join("\n") + "\n"
}
