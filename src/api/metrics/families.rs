//! Owns the table of all metrics: name, type, labels, meaning. docs/metrics.md is made from
//! it, and nothing that is missing here can be written: a sample names its row.
//!
//! Never: holds a figure. Names are in base units (seconds, bytes), counters end in
//! `_total`, labels take words of closed lists only.

use super::{HEARTBEAT_ANSWERS, HTTP_CLASSES, PROBE_OUTCOMES, RESULTS, TROUBLES};
use crate::model::host::HostStatus;
use crate::model::operation::OperationKind;
use crate::model::sandbox::SandboxStatus;
use crate::model::template::TemplateKind;
use std::fmt::Write as _;

/// What a metric's numbers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Goes up, and begins anew with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts durations by class.
    Histogram,
}

impl Type {
    /// As Prometheus calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        }
    }
}

/// A label and every value that it takes; without values: what the build says.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub words: &'static [&'static str],
}

/// One metric.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: Type,
    /// By what it is split.
    pub labels: &'static [Label],
    /// What it says, in one line.
    pub help: &'static str,
}

impl Family {
    /// The base unit, as the name says it.
    pub fn unit(&self) -> &'static str {
        match self.name.trim_end_matches("_total").trim_end_matches("_max") {
            name if name.ends_with("_seconds") => "seconds",
            name if name.ends_with("_bytes") => "bytes",
            _ => "",
        }
    }
}

const fn label(name: &'static str, words: &'static [&'static str]) -> Label {
    Label { name, words }
}

const HOST_STATUS: Label = label("status", HostStatus::WORDS);
const SANDBOX_STATUS: Label = label("status", SandboxStatus::WORDS);
const KIND: Label = label("kind", OperationKind::WORDS);

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:expr),*] $help:literal;)+) => {
        $(pub(super) static $id: Family = Family {
            name: $name,
            kind: Type::$kind,
            labels: &[$($label),*],
            help: $help,
        };)+

        /// Every metric, in the order in which they are written.
        pub static ALL: &[&Family] = &[$(&$id),+];
    };
}

families! {
    READY = Gauge "roost_ready" []
        "1 when /readyz answers 200, else 0.";
    HOSTS = Gauge "roost_hosts" [HOST_STATUS]
        "Hosts by public status.";
    HOSTS_DEGRADED = Gauge "roost_hosts_degraded" []
        "Hosts whose probes fail while their heartbeats arrive.";
    TEMPLATES = Gauge "roost_templates" [label("type", TemplateKind::WORDS)]
        "Templates by type, without minimal, which every agent has.";
    TEMPLATES_DELETED = Gauge "roost_templates_to_delete" []
        "Deleted templates whose files hosts have yet to delete, counted once for each host.";
    UNKNOWN_HOSTS = Gauge "roost_unknown_hosts" []
        "Hosts that sent a heartbeat within a day and are not in this database; see `roost status`.";
    CONTACT_GAPS = Gauge "roost_hosts_with_contact_gap" []
        "Hosts whose agents may have paused everything unannounced: what is absent there is presumed paused.";
    SANDBOXES = Gauge "roost_sandboxes" [SANDBOX_STATUS]
        "Sandboxes by status.";
    SANDBOX_MOVES = Counter "roost_sandbox_transitions_total" [label("to", SandboxStatus::WORDS)]
        "Transitions of sandboxes, and sandboxes made, by the status they came into.";
    ZOMBIES = Gauge "roost_zombies" []
        "Sandboxes that run on a host and should not, as the last observation of each host saw them.";
    MISPLACED = Gauge "roost_misplaced_sandboxes" []
        "Sandboxes that a host has although they belong to another host, as the last observation of each host saw them.";
    FOREIGN = Counter "roost_foreign_notices_total" []
        "Sandboxes that agents said they had paused although they belong to other hosts, or to none; ignored.";
    HELD = Gauge "roost_held_sandboxes" []
        "Sandboxes that vanished from a host together, whose stop is held for another look.";
    HEARTBEATS = Counter "roost_heartbeats_total" [label("answer", HEARTBEAT_ANSWERS)]
        "Heartbeats by the status code of their answer.";
    HEARTBEAT_AGE = Gauge "roost_heartbeat_age_seconds_max" []
        "Age of the newest heartbeat of the host that was silent longest, unreachable hosts left out.";
    FLUSHES = Counter "roost_heartbeat_flushes_total" [label("result", RESULTS)]
        "Flushes of heartbeats to the database by result.";
    FLUSH_AGE = Gauge "roost_heartbeat_flush_age_seconds" []
        "Time since heartbeats were last flushed to the database, or since the start.";
    PROBES = Counter "roost_probes_total" [label("outcome", PROBE_OUTCOMES)]
        "Probes that ended, by outcome; only listed ones move sandboxes.";
    PROBES_TOOK = Histogram "roost_probe_duration_seconds" []
        "How long agents took to answer a probe, or to fail.";
    PROBES_IN_FLIGHT = Gauge "roost_probes_in_flight" []
        "Probes under way.";
    PROBES_SLOW = Gauge "roost_probes_in_slow_lane" []
        "Probes under way of hosts that were slow or failed last time.";
    OBSERVATION_AGE = Gauge "roost_observation_age_seconds_max" []
        "Time since an observation was applied, of the host that has waited longest, unreachable hosts left out.";
    PROBE_INTERVAL = Gauge "roost_probe_interval_seconds" []
        "The setting probe_interval; the scheduler makes a round at least so often.";
    ROUND_AGE = Gauge "roost_scheduler_round_age_seconds" []
        "Time since the scheduler's last round; late beyond two probe intervals.";
    RESTORED = Gauge "roost_restored_not_accepted" []
        "1 while a restored database waits for `roost db accept`, else 0.";
    MASS_GUARD = Gauge "roost_mass_guard_holding" []
        "1 while the verdict on most of the fleet is held, else 0.";
    MASS_GUARD_FOR = Gauge "roost_mass_guard_holding_seconds" []
        "For how long the verdict on most of the fleet has been held; 0 when it is not.";
    OPERATIONS = Counter "roost_operations_total" [KIND, label("result", RESULTS)]
        "Operations that ended, by kind and result.";
    OPERATIONS_UNFINISHED = Gauge "roost_operations_unfinished" [KIND]
        "Operations that have not ended, by kind.";
    OPERATIONS_OLDEST = Gauge "roost_operation_age_seconds_max" []
        "Age of the oldest operation that has not ended; 0 when there is none.";
    COMMITS = Counter "roost_commits_total" []
        "Transactions of the writer that wrote something.";
    IDLE_TRANSACTIONS = Counter "roost_idle_transactions_total" []
        "Transactions of the writer that found nothing to write.";
    COMMIT_FAILURES = Counter "roost_commit_failures_total" []
        "Transactions of the writer that failed and were taken back.";
    COMMIT_TOOK = Histogram "roost_commit_duration_seconds" []
        "How long a commit took that had something to write.";
    COMMANDS = Counter "roost_commands_total" []
        "Commands that the writer took in.";
    QUEUE = Gauge "roost_commands_queued" []
        "Commands that wait for the writer.";
    ROWS = Counter "roost_rows_written_total" []
        "Rows that were written.";
    EVENTS = Counter "roost_events_total" []
        "Events that were written.";
    REVISION = Gauge "roost_revision" []
        "Newest revision of the database.";
    TROUBLE = Gauge "roost_database_trouble" [label("kind", TROUBLES)]
        "1 for what keeps the database from being used, else 0.";
    DATABASE_SIZE = Gauge "roost_database_size_bytes" []
        "Size of the database's file.";
    WAL_SIZE = Gauge "roost_database_wal_size_bytes" []
        "Size of the database's write-ahead log.";
    DISK_FREE = Gauge "roost_disk_free_bytes" []
        "Space left on the database's disk.";
    DISK_SIZE = Gauge "roost_disk_size_bytes" []
        "Size of the database's disk.";
    CLOCK_SUSPECT = Gauge "roost_clock_suspect" []
        "1 while the clock on the wall is not believed, else 0.";
    ANSWERS = Counter "roost_http_requests_total" [label("class", HTTP_CLASSES)]
        "HTTP requests by class of their answer's status code.";
    CONNECTIONS = Gauge "roost_http_connections" []
        "HTTP connections that are open.";
    DROPPED = Counter "roost_http_connections_dropped_total" []
        "HTTP connections that were dropped for want of room.";
    WAITING = Gauge "roost_http_requests_waiting" []
        "HTTP requests whose answer waits for an agent or an operation.";
    STREAMS = Gauge "roost_event_streams" []
        "Event streams that are open.";
    STREAMS_CUT = Counter "roost_event_streams_cut_total" []
        "Event streams that were cut because their reader did not read.";
    NOTIFICATIONS = Counter "roost_notifications_sent_total" []
        "Notifications that arrived, over all targets.";
    NOTIFICATIONS_FAILED = Counter "roost_notification_attempts_failed_total" []
        "Attempts to deliver a notification that failed; most are made again.";
    NOTIFICATIONS_GIVEN_UP = Counter "roost_notifications_given_up_total" []
        "Notifications that were given up.";
    NOTIFICATIONS_WAITING = Gauge "roost_notifications_waiting" []
        "Notifications that are not delivered yet, one for each target.";
    CERTIFICATE_EXPIRES = Gauge "roost_api_certificate_expiry_timestamp_seconds" []
        "When the certificate of the API expires; absent without HTTPS.";
    RESIDENT = Gauge "process_resident_memory_bytes" []
        "Memory of the process that is in use.";
    CPU = Counter "process_cpu_seconds_total" []
        "CPU time of the process, user and system.";
    FDS = Gauge "process_open_fds" []
        "File descriptors that are open.";
    FDS_MAX = Gauge "process_max_fds" []
        "File descriptors that may be open.";
    THREADS = Gauge "process_threads" []
        "Threads of the process.";
    STARTED = Gauge "process_start_time_seconds" []
        "When the process began, in unix time.";
    BUILD = Gauge "roost_build_info" [label("version", &[]), label("commit", &[]), label("sqlite", &[])]
        "1, with what is built as labels.";
}

/// What stands before the table in docs/metrics.md.
const INTRODUCTION: &str = "# Metrics

<!-- Written from src/api/metrics/families.rs by tests/metrics.rs; `UPDATE_EXPECT=1 cargo test --test metrics` renews it. -->

`GET /metrics` answers in Prometheus' text format, version 0.0.4. It needs no key, like \
`/healthz` and `/readyz`, so no label names a host or a sandbox: which one it is, `roost hosts`, \
`roost sandboxes` and `roost events` say. Where the figures are nobody's business, let the \
address be reached by agents and operators only.

```yaml
scrape_configs:
  - job_name: roost
    static_configs: [{targets: [\"127.0.0.1:8000\"]}]
```

[contrib/prometheus/alerts.yml](../contrib/prometheus/alerts.yml) has rules for what should \
wake somebody, [contrib/grafana/roost.json](../contrib/grafana/roost.json) a dashboard, and \
[operate.md](operate.md) what to do.

- Counters begin at 0 with the process. Every value of a label is there from the start.
- Sandboxes are counted when they are asked for first; from then on the writer adds up what \
moves, so a scrape costs the same with ten sandboxes and with a million.
- While the database is busy or damaged, what only it knows (`roost_hosts`, \
`roost_sandboxes`, `roost_operations_unfinished` and the like) has no samples; everything else \
goes on. One scrape at a time asks it. Before the database is open `/metrics` answers 503.

";

/// The whole text of docs/metrics.md.
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    out.push_str("| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for family in ALL {
        let labels: Vec<String> = family.labels.iter().map(described).collect();
        let (name, kind, unit, help) =
            (family.name, family.kind.as_str(), family.unit(), family.help);
        let _ = writeln!(out, "| `{name}` | {kind} | {unit} | {} | {help} |", labels.join("; "));
    }
    out
}

fn described(label: &Label) -> String {
    let words: Vec<String> = label.words.iter().map(|word| format!("`{word}`")).collect();
    match words.is_empty() {
        true => format!("`{}`", label.name),
        false => format!("`{}`: {}", label.name, words.join(", ")),
    }
}
