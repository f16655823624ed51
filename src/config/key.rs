//! Owns the table of keys: name, default, what is allowed, one sentence.
//!
//! Never: parses anything (`rule` does). Everything that lists the keys reads this table:
//! lowering, `--help`, `roost config`, docs/configuration.md.

use super::rule::{AgentTls, Answers, LogFormat, Rule};
use crate::model::policy::{PolicyName, ZombiePolicy};
use crate::model::vocabulary;
use std::sync::LazyLock;
use std::time::Duration;

vocabulary! {
    /// The name of a setting, spelt as in `roost.toml`.
    Key, "key", {
        /// Directory of the database, keys and certificates.
        DataDir = "data_dir",
        /// Where the API and the page are served.
        Listen = "listen",
        /// Silence after which a host is unreachable.
        UnreachableAfter = "unreachable_after",
        /// Listening before judging.
        StartupGrace = "startup_grace",
        /// Time between two probes.
        ProbeInterval = "probe_interval",
        /// Deadline of a probe.
        ProbeTimeout = "probe_timeout",
        /// Probes in flight.
        Workers = "workers",
        /// How long a transient status is left alone.
        TransientGrace = "transient_grace",
        /// Time between two looks.
        ConfirmDelay = "confirm_delay",
        /// Which mapping.
        Policy = "policy",
        /// What happens to zombies.
        Zombies = "zombies",
        /// Time between two writes of heartbeats.
        HeartbeatFlush = "heartbeat_flush",
        /// How long a mass verdict is held.
        MassGuardMax = "mass_guard_max",
        /// Memory promised to sandboxes.
        MemoryOvercommit = "memory_overcommit",
        /// Processors promised to sandboxes.
        CpuOvercommit = "cpu_overcommit",
        /// How long a stop waits for calls.
        StopTimeout = "stop_timeout",
        /// Age of events.
        EventsKeepAge = "events_keep_age",
        /// Number of events.
        EventsKeepCount = "events_keep_count",
        /// Age of audit entries.
        AuditKeepAge = "audit_keep_age",
        /// Age of what is over.
        StoppedKeepAge = "stopped_keep_age",
        /// Sandboxes of one team.
        TeamSandboxesMax = "team_sandboxes_max",
        /// Changes of one team in a minute.
        TeamCreatesPerMinute = "team_creates_per_minute",
        /// How we talk to agents.
        AgentTls = "agent_tls",
        /// Where hosts of teams may be.
        AgentNetworks = "agent_networks",
        /// Certificate of the API.
        TlsCert = "tls_cert",
        /// Key of that certificate.
        TlsKey = "tls_key",
        /// When clients are answered.
        Answers = "answers",
        /// Log filter.
        Log = "log",
        /// Log format.
        LogFormat = "log_format",
        /// How long trouble lasts before anybody is told.
        NotifyDelay = "notify_delay",
        /// Time between two reminders.
        NotifyReminder = "notify_reminder",
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct KeyInfo {
    /// Which setting.
    pub key: Key,
    /// The value when nobody sets one, as it would be written.
    pub default: &'static str,
    /// What is allowed, and the field it fills.
    pub rule: Rule,
    /// Whether SIGHUP applies a new value; otherwise a restart does.
    pub live: bool,
    /// What the setting does, one sentence.
    pub about: &'static str,
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn s(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn min(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

const HOUR: Duration = min(60);
const DAY: Duration = min(24 * 60);
/// As calendars have it, so that it is written as such.
const TEN_YEARS: Duration = Duration::from_secs(315_576_000);

/// Every key, in the order of `Key::ALL` and of the documentation.
pub const KEYS: [KeyInfo; Key::ALL.len()] = [
    KeyInfo {
        key: Key::DataDir,
        default: "./roost-data",
        rule: Rule::Path { field: |c| &mut c.data_dir },
        live: false,
        about: "Directory of the database, keys and certificates, relative to where roost is started.",
    },
    KeyInfo {
        key: Key::Listen,
        default: "127.0.0.1:8000",
        rule: Rule::Address { field: |c| &mut c.listen },
        live: false,
        about: "Address and port of the HTTP API and the status page; port 0 picks a free one.",
    },
    KeyInfo {
        key: Key::UnreachableAfter,
        default: "90s",
        // A day: beyond it nobody is being watched. A second: tests need small values.
        rule: Rule::Span { min: s(1), max: DAY, field: |c| &mut c.unreachable_after },
        live: true,
        about: "Silence after which a host is unreachable; agents beat every 30s.",
    },
    KeyInfo {
        key: Key::StartupGrace,
        default: "90s",
        rule: Rule::Span { min: s(0), max: DAY, field: |c| &mut c.startup_grace },
        live: true,
        about: "How long roost listens after a start, a suspend or a clock jump before it calls a host unreachable.",
    },
    KeyInfo {
        key: Key::ProbeInterval,
        default: "60s",
        rule: Rule::Span { min: s(1), max: HOUR, field: |c| &mut c.probe_interval },
        live: true,
        about: "Time between two probes of a healthy host.",
    },
    KeyInfo {
        key: Key::ProbeTimeout,
        default: "8s",
        // Below a tenth of a second a busy agent on a small board never answers in time.
        rule: Rule::Span { min: ms(100), max: min(5), field: |c| &mut c.probe_timeout },
        live: false,
        about: "Deadline of one whole probe; at most `probe_interval`.",
    },
    KeyInfo {
        key: Key::Workers,
        default: "32",
        // More than 1024 threads cost more than the probes they wait for.
        rule: Rule::Count { min: 1, max: 1024, field: |c| &mut c.workers },
        live: false,
        about: "Probes in flight at once, over all hosts.",
    },
    KeyInfo {
        key: Key::TransientGrace,
        default: "2m",
        rule: Rule::Span { min: s(1), max: HOUR, field: |c| &mut c.transient_grace },
        live: true,
        about: "How long a sandbox may stay starting, resuming, pausing or stopping before roost steps in, and one that should not exist may run before it is reported.",
    },
    KeyInfo {
        key: Key::ConfirmDelay,
        default: "3s",
        rule: Rule::Span { min: ms(10), max: min(5), field: |c| &mut c.confirm_delay },
        live: true,
        about: "Time until the second look that an absence needs; less than `probe_interval`.",
    },
    KeyInfo {
        key: Key::Policy,
        default: "default",
        rule: Rule::Word {
            allowed: PolicyName::WORDS,
            set: |c, word| word.parse().map(|value| c.policy = value).is_ok(),
        },
        live: true,
        about: "How a probe's answer is mapped to statuses; `strict` decides on one probe.",
    },
    KeyInfo {
        key: Key::Zombies,
        default: "report",
        rule: Rule::Word {
            allowed: ZombiePolicy::WORDS,
            set: |c, word| word.parse().map(|value| c.zombies = value).is_ok(),
        },
        live: true,
        about: "What happens to a sandbox that runs on a host although it should not; what a \
                restored database may have forgotten is only reported.",
    },
    KeyInfo {
        key: Key::HeartbeatFlush,
        default: "80s",
        // Nearly all that is written while nothing happens: two pages and those of the log's
        // index each time, 27 MB a day. Larger: a strict `roost check` beside a server, which
        // reads what is older by this and an interval of heartbeats, takes more hosts for
        // silent; smaller wears out an SD card.
        rule: Rule::Span { min: ms(100), max: min(5), field: |c| &mut c.heartbeat_flush },
        live: true,
        about: "Time between two writes of the heartbeats kept in memory.",
    },
    KeyInfo {
        key: Key::MassGuardMax,
        default: "5m",
        rule: Rule::Span { min: s(0), max: DAY, field: |c| &mut c.mass_guard_max },
        live: true,
        about: "How long the verdict is held when most hosts fall silent at once; 0s never holds it.",
    },
    KeyInfo {
        key: Key::MemoryOvercommit,
        default: "1",
        rule: Rule::Factor { min: 10, max: 1_000, field: |c| &mut c.memory_overcommit_percent },
        live: true,
        about: "How much of a host's memory may be promised to sandboxes that run, as a multiple of what it has.",
    },
    KeyInfo {
        key: Key::CpuOvercommit,
        default: "8",
        rule: Rule::Factor { min: 10, max: 10_000, field: |c| &mut c.cpu_overcommit_percent },
        live: true,
        about: "Virtual processors that one core of a host may be promised to; sandboxes are mostly idle.",
    },
    KeyInfo {
        key: Key::StopTimeout,
        default: "10m",
        rule: Rule::Span { min: s(0), max: HOUR, field: |c| &mut c.stop_timeout },
        live: true,
        about: "How long a stop waits for calls to agents that are in flight; an agent breaks off a \
                call that is cut, and a pause that is broken off may lose the sandbox.",
    },
    KeyInfo {
        key: Key::EventsKeepAge,
        default: "30d",
        // Below an hour a client that reconnects has missed what it was to be told.
        rule: Rule::Span { min: HOUR, max: TEN_YEARS, field: |c| &mut c.keep.events_age },
        live: true,
        about: "How long events are kept; a stream that asks for older ones is answered 410.",
    },
    KeyInfo {
        key: Key::EventsKeepCount,
        default: "250000",
        // A hundred million events are about 17 GB.
        rule: Rule::Count { min: 1, max: 100_000_000, field: |c| &mut c.keep.events_count },
        live: true,
        about: "How many events are kept, whatever their age; 250000 are about 45 MB.",
    },
    KeyInfo {
        key: Key::AuditKeepAge,
        default: "0s",
        rule: Rule::Span { min: s(0), max: TEN_YEARS, field: |c| &mut c.keep.audit_age },
        live: true,
        about: "How long audit entries are kept; 0s keeps them for ever, about 3 MB for every 10000.",
    },
    KeyInfo {
        key: Key::StoppedKeepAge,
        default: "30d",
        // Below an hour nobody sees what became of a sandbox.
        rule: Rule::Span { min: HOUR, max: TEN_YEARS, field: |c| &mut c.keep.stopped_age },
        live: true,
        about: "How long sandboxes that are stopped or failed, finished operations and expired tokens are kept.",
    },
    KeyInfo {
        key: Key::TeamSandboxesMax,
        default: "0",
        rule: Rule::Count { min: 0, max: 1_000_000, field: |c| &mut c.quotas.sandboxes_max },
        live: true,
        about: "Capsules that one team may have, stopped and failed ones not counted; 0 is no limit. The admin key is exempt.",
    },
    KeyInfo {
        key: Key::TeamCreatesPerMinute,
        default: "0",
        rule: Rule::Count { min: 0, max: 100_000, field: |c| &mut c.quotas.creates_per_minute },
        live: true,
        about: "Creates, pauses, resumes and snapshots that the keys of one team may begin in a minute; 0 is no limit. A destroy is never refused. The admin key is exempt.",
    },
    KeyInfo {
        key: Key::AgentTls,
        default: "off",
        rule: Rule::Word {
            allowed: AgentTls::WORDS,
            set: |c, word| word.parse().map(|value| c.agent_tls = value).is_ok(),
        },
        live: false,
        about: "How roost talks to agents; `mtls` uses the CA in the data directory and refuses \
                addresses that begin with `http://`, which `mtls_or_http` takes.",
    },
    KeyInfo {
        key: Key::AgentNetworks,
        default: "",
        rule: Rule::Networks { field: |c| &mut c.agent_networks },
        live: false,
        about: "Networks in which hosts of teams may be although they are closed to them: this \
                machine, link-local, multicast and reserved ones, and the metadata services of \
                clouds. Hosts of the operator may be anywhere.",
    },
    KeyInfo {
        key: Key::TlsCert,
        default: "",
        rule: Rule::OptionalPath { field: |c| &mut c.tls_cert },
        live: false,
        about: "Certificate chain in PEM for the HTTP API; with `tls_key` it is served over HTTPS only. SIGHUP reads both files again.",
    },
    KeyInfo {
        key: Key::TlsKey,
        default: "",
        rule: Rule::OptionalPath { field: |c| &mut c.tls_key },
        live: false,
        about: "Private key in PEM that belongs to `tls_cert`.",
    },
    KeyInfo {
        key: Key::Answers,
        default: "accepted",
        rule: Rule::Word {
            allowed: Answers::WORDS,
            set: |c, word| word.parse().map(|value| c.answers = value).is_ok(),
        },
        live: true,
        about: "When a create, pause, resume or destroy is answered: once it is `accepted`, or `when_done`, for at most 30s, as version 0.1.2 of the Python SDK needs it. `Prefer: wait=SECONDS` of a request takes precedence.",
    },
    KeyInfo {
        key: Key::Log,
        default: "info",
        rule: Rule::Filter { field: |c| &mut c.log },
        live: true,
        about: "Which records are logged: a level, or `target=level` pairs with commas between.",
    },
    KeyInfo {
        key: Key::LogFormat,
        default: "text",
        rule: Rule::Word {
            allowed: LogFormat::WORDS,
            set: |c, word| word.parse().map(|value| c.log_format = value).is_ok(),
        },
        live: true,
        about: "How a log record is written on stderr; `json` is one object a line.",
    },
    KeyInfo {
        key: Key::NotifyDelay,
        default: "60s",
        rule: Rule::Span { min: s(0), max: HOUR, field: |c| &mut c.notify_delay },
        live: true,
        about: "How long something must be wrong before anybody is told; see docs/notifications.md.",
    },
    KeyInfo {
        key: Key::NotifyReminder,
        default: "4h",
        rule: Rule::Span { min: s(0), max: min(30 * 24 * 60), field: |c| &mut c.notify_reminder },
        live: true,
        about: "Time between two reminders of what is still wrong; 0s sends none.",
    },
];

/// Other spellings of every key, in the order of `Key::ALL`: flag without dashes, variable.
static SPELLINGS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let words = Key::WORDS.iter();
    words.map(|word| (word.replace('_', "-"), format!("ROOST_{}", word.to_uppercase()))).collect()
});

impl Key {
    /// The row of this key.
    pub fn info(self) -> &'static KeyInfo {
        const TABLE: &[KeyInfo; Key::ALL.len()] = &KEYS;
        &TABLE[self as usize]
    }

    /// The flag without its dashes, for example `probe-interval`.
    pub fn flag(self) -> &'static str {
        &SPELLINGS[self as usize].0
    }

    /// The environment variable, for example `ROOST_PROBE_INTERVAL`.
    pub fn variable(self) -> &'static str {
        &SPELLINGS[self as usize].1
    }

    /// The sentence for `--help`: what it does, what is allowed, the default, the variable.
    pub fn help(self) -> String {
        let info = self.info();
        let about = info.about.trim_end_matches('.').replace('`', "");
        let allowed = info.rule.allowed();
        let default = match info.default {
            "" => String::new(),
            default => format!("default {default}; "),
        };
        format!("{about} [{allowed}; {default}env {}]", self.variable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_keys() {
        for (key, info) in Key::ALL.iter().zip(&KEYS) {
            assert_eq!(*key, info.key);
            assert_eq!(key.info().key, *key);
        }
    }

    #[test]
    fn every_sentence_ends() {
        for info in &KEYS {
            assert!(info.about.ends_with('.'), "{}", info.key);
        }
    }

    #[test]
    fn spellings() {
        assert_eq!(Key::ProbeInterval.flag(), "probe-interval");
        assert_eq!(Key::ProbeInterval.variable(), "ROOST_PROBE_INTERVAL");
    }
}
