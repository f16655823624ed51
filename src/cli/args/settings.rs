//! Owns which settings each command takes as flags.
//!
//! Never: what a setting means; `config` says. Called by the definitions of the commands.

use super::flags::KeySet;
use crate::config::Key;

/// Settings of every command.
#[derive(Debug)]
pub struct GlobalKeys;

impl KeySet for GlobalKeys {
    const KEYS: &'static [Key] = &[Key::DataDir, Key::Log, Key::LogFormat];
    const GLOBAL: bool = true;
}

/// Settings of `serve`, and of `config`, which shows them: every one that is not global.
#[derive(Debug)]
pub struct ServeKeys;

impl KeySet for ServeKeys {
    const KEYS: &'static [Key] = &[
        Key::Listen,
        Key::UnreachableAfter,
        Key::StartupGrace,
        Key::ProbeInterval,
        Key::ProbeTimeout,
        Key::Workers,
        Key::TransientGrace,
        Key::ConfirmDelay,
        Key::Policy,
        Key::Zombies,
        Key::HeartbeatFlush,
        Key::MassGuardMax,
        Key::MemoryOvercommit,
        Key::CpuOvercommit,
        Key::StopTimeout,
        Key::EventsKeepAge,
        Key::EventsKeepCount,
        Key::AuditKeepAge,
        Key::StoppedKeepAge,
        Key::TeamSandboxesMax,
        Key::TeamCreatesPerMinute,
        Key::AgentTls,
        Key::AgentNetworks,
        Key::TlsCert,
        Key::TlsKey,
        Key::Answers,
        Key::NotifyDelay,
        Key::NotifyReminder,
    ];
}

/// Settings that make a demo quicker or slower. Its directory and its wire are its own, and
/// its policy is the default one: strict policy takes a create under way for a failure.
#[derive(Debug)]
pub struct DemoKeys;

impl KeySet for DemoKeys {
    const KEYS: &'static [Key] = &[
        Key::Listen,
        Key::UnreachableAfter,
        Key::ProbeInterval,
        Key::ProbeTimeout,
        Key::Workers,
        Key::TransientGrace,
        Key::ConfirmDelay,
        Key::Zombies,
    ];
}

/// Settings that one pass depends on.
#[derive(Debug)]
pub struct CheckKeys;

impl KeySet for CheckKeys {
    const KEYS: &'static [Key] = &[
        Key::Policy,
        Key::Zombies,
        Key::UnreachableAfter,
        Key::ProbeTimeout,
        Key::Workers,
        Key::TransientGrace,
        Key::ConfirmDelay,
        Key::AgentTls,
        Key::AgentNetworks,
    ];
}
