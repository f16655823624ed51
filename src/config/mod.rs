//! Owns what an operator can set: every key, its validation, and where its value came from.
//!
//! Never: opens a database or a socket, creates files, prints. Called by `cli` at the start
//! and by `engine` when SIGHUP asks for another look at the file.
//!
//! Everything is text first. Flags, environment, `roost.toml` and defaults are gathered as
//! strings, then the table in `key` lowers them all the same way, so that a bad value is
//! refused in the same words wherever it was written.

mod error;
mod gather;
mod key;
mod notify;
mod paths;
mod rule;
mod show;
mod warnings;

pub use error::ConfigError;
pub use gather::{
    API_KEY_FILE_VARIABLE, API_KEY_VARIABLE, CA_VARIABLE, Inputs, OTHER_VARIABLES, Setting, Source,
    TEST_VARIABLE_PREFIXES, URL_VARIABLE,
};
pub use key::{KEYS, Key, KeyInfo};
pub use notify::{Secret, SecretError, Target, TargetKind};
pub use paths::Paths;
pub use rule::{AgentTls, Answers, LogFormat, Rule, parse_span, path_of_flag};
pub use show::reference;

use crate::model::networks::AgentNetworks;
use crate::model::policy::{Keep, Policy, PolicyName, Quotas, ZombiePolicy};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every setting, valid: each value is within the bounds of `KEYS`, and together they fit.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the database, keys and certificates.
    pub data_dir: PathBuf,
    /// Where the HTTP API and the status page are served. Port 0: the system picks one.
    pub listen: SocketAddr,
    /// Silence after which a host is unreachable.
    pub unreachable_after: Duration,
    /// How long we listen after a start before we judge anybody.
    pub startup_grace: Duration,
    /// Time between two probes of a healthy host.
    pub probe_interval: Duration,
    /// Deadline of one whole probe; never longer than `probe_interval`.
    pub probe_timeout: Duration,
    /// Probes in flight at once, over all hosts.
    pub workers: usize,
    /// How long a transient status is left alone.
    pub transient_grace: Duration,
    /// Time between two looks before an absence counts; shorter than `probe_interval`.
    pub confirm_delay: Duration,
    /// How a probe's answer is mapped to statuses.
    pub policy: PolicyName,
    /// What happens to a sandbox that runs although it should not.
    pub zombies: ZombiePolicy,
    /// Time between two writes of the heartbeats kept in memory.
    pub heartbeat_flush: Duration,
    /// How long the verdict on most of the fleet is held.
    pub mass_guard_max: Duration,
    /// How much memory of a host may be promised, in percent of what it has.
    pub memory_overcommit_percent: u32,
    /// The same of its processor cores.
    pub cpu_overcommit_percent: u32,
    /// How long a stop waits for calls in flight.
    pub stop_timeout: Duration,
    /// What of the past is kept.
    pub keep: Keep,
    /// What one team may have.
    pub quotas: Quotas,
    /// How we talk to agents.
    pub agent_tls: AgentTls,
    /// Where hosts of teams may be although these networks are closed to them.
    pub agent_networks: AgentNetworks,
    /// Certificate chain of the API; with it `tls_key` is set too.
    pub tls_cert: Option<PathBuf>,
    /// Its private key.
    pub tls_key: Option<PathBuf>,
    /// When a lifecycle request is answered.
    pub answers: Answers,
    /// Which records are logged, in the syntax of env_logger.
    pub log: String,
    /// How a record is written.
    pub log_format: LogFormat,
    /// How long something must be wrong before anybody is told.
    pub notify_delay: Duration,
    /// Time between two reminders of what is still wrong; zero: none.
    pub notify_reminder: Duration,
    /// Who is told.
    pub targets: Vec<Target>,
    settings: Vec<Setting>,
    file: Option<PathBuf>,
}

impl Config {
    /// Gathers every source, refuses what is unknown or out of range, and returns the rest.
    ///
    /// # Errors
    /// A file that cannot be read, a name nobody knows, a value that is not allowed, or two
    /// values that contradict each other. The first one found is reported.
    pub fn load(inputs: &Inputs) -> Result<Config, ConfigError> {
        let gathered = gather::gather(inputs)?;
        let mut config = Config::empty();
        config.file = gathered.file;
        config.targets = gathered.targets;
        for (info, setting) in KEYS.iter().zip(gathered.settings) {
            let lowered = info.rule.lower(&mut config, &setting);
            lowered.map_err(|hint| ConfigError::refused(info, &setting, hint))?;
            config.settings.push(setting);
        }
        config.reconcile_spans()?;
        config.require_pair(Key::TlsCert, Key::TlsKey)?;
        config.require_pair(Key::TlsKey, Key::TlsCert)?;
        Ok(config)
    }

    /// The numbers that decisions are made with.
    pub fn policy(&self) -> Policy {
        Policy {
            name: self.policy,
            zombies: self.zombies,
            unreachable_after: self.unreachable_after,
            startup_grace: self.startup_grace,
            probe_interval: self.probe_interval,
            transient_grace: self.transient_grace,
            confirm_delay: self.confirm_delay,
            mass_guard_max: self.mass_guard_max,
            memory_overcommit_percent: self.memory_overcommit_percent,
            cpu_overcommit_percent: self.cpu_overcommit_percent,
            keep: self.keep,
            quotas: self.quotas,
        }
    }

    /// Where the files of the data directory are.
    pub fn paths(&self) -> Paths {
        Paths::of(&self.data_dir)
    }

    /// Every key with its text and source, in the order of `KEYS`.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The configuration file that was read; `None` when there was none.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Keys whose value differs in `newer`, for the log line after a reload.
    pub fn changed(&self, newer: &Config) -> Vec<&'static KeyInfo> {
        let pairs = self.settings.iter().zip(&newer.settings);
        let differs = KEYS.iter().zip(pairs).filter(|(_, (old, new))| old.text != new.text);
        differs.map(|(info, _)| info).collect()
    }

    /// Before lowering: every field is overwritten, because every field is in `KEYS`.
    fn empty() -> Config {
        Config {
            data_dir: PathBuf::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            unreachable_after: Duration::ZERO,
            startup_grace: Duration::ZERO,
            probe_interval: Duration::ZERO,
            probe_timeout: Duration::ZERO,
            workers: 0,
            transient_grace: Duration::ZERO,
            confirm_delay: Duration::ZERO,
            policy: PolicyName::Default,
            zombies: ZombiePolicy::Report,
            heartbeat_flush: Duration::ZERO,
            mass_guard_max: Duration::ZERO,
            memory_overcommit_percent: 0,
            cpu_overcommit_percent: 0,
            stop_timeout: Duration::ZERO,
            keep: Keep::default(),
            quotas: Quotas::default(),
            agent_tls: AgentTls::Off,
            agent_networks: AgentNetworks::default(),
            tls_cert: None,
            tls_key: None,
            answers: Answers::Accepted,
            log: String::new(),
            log_format: LogFormat::Text,
            notify_delay: Duration::ZERO,
            notify_reminder: Duration::ZERO,
            targets: Vec::new(),
            settings: Vec::with_capacity(KEYS.len()),
            file: None,
        }
    }

    /// A probe must be over before the next one is due, and a second look must come before
    /// it. A default gives way to what was set; two set values that contradict are refused.
    fn reconcile_spans(&mut self) -> Result<(), ConfigError> {
        let interval = self.probe_interval;
        if self.probe_timeout > interval {
            self.give_way(Key::ProbeTimeout, "at most", interval)?;
            self.probe_timeout = interval;
        }
        if self.confirm_delay >= interval {
            self.give_way(Key::ConfirmDelay, "less than", interval / 2)?;
            self.confirm_delay = interval / 2;
        }
        Ok(())
    }

    /// One of these without the other says nothing.
    fn require_pair(&self, key: Key, other: Key) -> Result<(), ConfigError> {
        let (set, missing) = (self.setting(key), self.setting(other));
        match !set.text.is_empty() && missing.text.is_empty() {
            true => Err(ConfigError::Refused {
                setting: set.to_string(),
                allowed: format!("set together with {other}"),
                hint: None,
            }),
            false => Ok(()),
        }
    }

    /// Certificate and key of the API; `None`: it speaks plainly.
    pub fn https(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }

    fn give_way(&mut self, key: Key, relation: &str, to: Duration) -> Result<(), ConfigError> {
        let against = self.setting(Key::ProbeInterval).to_string();
        let setting = &mut self.settings[key as usize];
        match setting.source {
            Source::Default => {
                setting.text = show::span(to);
                Ok(())
            }
            Source::File { .. } | Source::Env(_) | Source::Flag(_) => Err(ConfigError::Refused {
                setting: setting.to_string(),
                allowed: format!("{relation} {against}"),
                hint: None,
            }),
        }
    }

    fn setting(&self, key: Key) -> &Setting {
        &self.settings[key as usize]
    }
}
