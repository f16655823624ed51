//! Owns what machines ask about Roost itself: alive, ready, figures.
//!
//! Never: needs a key, tells anything of a single sandbox.

use super::notify::TargetState;
use super::{Problem, Ready, load};
use crate::http::Response;
use crate::model::host::HostStatus;
use crate::model::sandbox::SandboxStatus;
use crate::store::{notify, read};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

/// `GET /healthz`: the process answers.
pub(super) fn healthz() -> Response {
    Response::bytes(200, "text/plain; charset=utf-8", b"ok\n".to_vec())
}

/// `GET /readyz`: the database answers and the scheduler ran within two intervals.
pub(super) fn readyz(ready: &Ready) -> Result<Response, Problem> {
    if ready.pulse.stopping.load(Ordering::Relaxed) {
        return Err(Problem::unavailable("shutting down"));
    }
    if let Some(trouble) = ready.figures.trouble() {
        return Err(Problem::unavailable(format!("the database cannot be used: {trouble}")));
    }
    read::revision(&*ready.read()?)?;
    let since_round = ready.now().mono.0.saturating_sub(load(&ready.pulse.last_round_ms));
    if since_round > load(&ready.pulse.interval_ms).saturating_mul(2) {
        return Err(Problem::unavailable(format!(
            "the scheduler has not run for {} s",
            since_round / 1000
        )));
    }
    Ok(Response::bytes(200, "text/plain; charset=utf-8", b"ready\n".to_vec()))
}

/// `GET /metrics`: Prometheus text.
pub(super) fn metrics(ready: &Ready) -> Result<Response, Problem> {
    let reader = ready.read()?;
    let mut hosts: BTreeMap<&str, u64> = HostStatus::WORDS.iter().map(|word| (*word, 0)).collect();
    let mut degraded = 0;
    for host in read::hosts(&reader)? {
        *hosts.entry(host.status().as_str()).or_default() += 1;
        degraded += u64::from(host.degraded);
    }
    let mut sandboxes: BTreeMap<&str, u64> =
        SandboxStatus::WORDS.iter().map(|word| (*word, 0)).collect();
    for (status, count) in read::counts(&reader)?.into_values().flatten() {
        *sandboxes.entry(status.as_str()).or_default() += count;
    }
    let mut out = Text::default();
    out.family("roost_hosts", "gauge", "Hosts by public status.");
    hosts.iter().for_each(|(status, n)| out.sample("roost_hosts", &[("status", status)], *n));
    out.one("roost_hosts_degraded", "gauge", "Hosts whose probes fail while they beat.", degraded);
    out.family("roost_sandboxes", "gauge", "Sandboxes by status.");
    sandboxes
        .iter()
        .for_each(|(status, n)| out.sample("roost_sandboxes", &[("status", status)], *n));
    let holding = u64::from(load(&ready.pulse.holding_since_ms) > 0);
    out.one(
        "roost_mass_guard_holding",
        "gauge",
        "1 while verdicts on silent hosts are held.",
        holding,
    );
    let in_flight = load(&ready.pulse.in_flight);
    out.one("roost_probes_in_flight", "gauge", "Probes under way.", in_flight);
    out.one("roost_revision", "counter", "Newest revision.", ready.revision.newest());
    let figures = &ready.figures;
    out.one("roost_commits_total", "counter", "Transactions that wrote.", load(&figures.commits));
    let failures = load(&figures.failures);
    out.one("roost_commit_failures_total", "counter", "Transactions that failed.", failures);
    out.one("roost_rows_written_total", "counter", "Rows written.", load(&figures.rows));
    notifications(ready, &reader, &mut out)?;
    let version = env!("CARGO_PKG_VERSION");
    out.family("roost_build_info", "gauge", "1, with the version as a label.");
    out.sample("roost_build_info", &[("version", version)], 1);
    let text = out.0.into_bytes();
    Ok(Response::bytes(200, "text/plain; version=0.0.4; charset=utf-8", text))
}

/// What became of notifications, over all targets: their names may say more than figures
/// should.
fn notifications(ready: &Ready, reader: &read::Reader, out: &mut Text) -> Result<(), Problem> {
    let targets = ready.notify.targets();
    let sum = |of: fn(&TargetState) -> u64| targets.iter().map(of).sum();
    let waiting = notify::waiting(reader)?.values().sum();
    out.one("roost_notifications_sent_total", "counter", "Messages that arrived.", sum(|t| t.sent));
    let failed = sum(|t| t.failed);
    out.one("roost_notifications_failed_total", "counter", "Attempts that failed.", failed);
    let given_up = sum(|t| t.given_up);
    out.one("roost_notifications_given_up_total", "counter", "Messages given up.", given_up);
    out.one("roost_notifications_waiting", "gauge", "Messages not yet delivered.", waiting);
    Ok(())
}

/// Prometheus text format, version 0.0.4.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        // Label values are words of our own vocabularies: nothing to escape.
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}
