//! Owns the numbers that decisions are made with.
//!
//! Never: reads a configuration (`config` fills a `Policy`).

use super::vocabulary;
use std::time::Duration;

vocabulary! {
    /// How a probe's answer is mapped to statuses.
    PolicyName, "policy", {
        /// Confirmation, presumption, grace, holds.
        Default = "default",
        /// The plain mapping, decided on one probe.
        Strict = "strict",
    }
}

vocabulary! {
    /// What happens to a sandbox that runs although it should not.
    ZombiePolicy, "zombie policy", {
        /// Event and metric.
        Report = "report",
        /// Destroyed.
        Destroy = "destroy",
    }
}

/// Every number that `plan` decides with. behaviour.md names each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which mapping.
    pub name: PolicyName,
    /// What to do with zombies.
    pub zombies: ZombiePolicy,
    /// Silence after which a host is unreachable. Larger: the dead stay in rotation for
    /// longer; smaller than three beats: a lost packet looks like a lost host.
    pub unreachable_after: Duration,
    /// How long we listen before we judge anybody. Smaller than `unreachable_after`: a
    /// restart marks a healthy fleet down.
    pub startup_grace: Duration,
    /// Time between two probes of a healthy host.
    pub probe_interval: Duration,
    /// How long a transient status is left alone, and a sandbox that should not be there.
    pub transient_grace: Duration,
    /// Time between two looks before an absence counts.
    pub confirm_delay: Duration,
    /// How long the verdict on most of the fleet is held.
    pub mass_guard_max: Duration,
    /// How much memory of a host may be promised to sandboxes that run, in percent of what it
    /// has. Larger: it swaps, or kills; smaller: part of it stays idle.
    pub memory_overcommit_percent: u32,
    /// The same of its processor cores.
    pub cpu_overcommit_percent: u32,
    /// What of the past is kept.
    pub keep: Keep,
    /// What one team may have.
    pub quotas: Quotas,
}

/// What the keys of one team may have Roost do; 0: as much as they like. The admin key is
/// exempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Sandboxes that are neither stopped nor failed.
    pub sandboxes_max: usize,
    /// Creates, pauses, resumes and snapshots that may begin within a minute.
    pub creates_per_minute: usize,
}

/// How much of the past is kept. A fleet with two hundred sandboxes a day writes about
/// 0.2 MB of events, 0.2 MB of audit entries and 0.2 MB of rows that are over: with the
/// defaults some 80 MB after a year, most of it the audit log, which is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Age of an event. Larger: the database grows; smaller: a client that was away for
    /// longer must read the state anew.
    pub events_age: Duration,
    /// Events, whatever their age. Larger: a flapping fleet fills the disk, about 170
    /// bytes an event; smaller: as above.
    pub events_count: usize,
    /// Age of an audit entry; zero: for ever.
    pub audit_age: Duration,
    /// Age of what is over: sandboxes that are stopped or failed, operations, tokens.
    /// Smaller: nobody can look up any more what became of a sandbox.
    pub stopped_age: Duration,
}

impl Default for Keep {
    fn default() -> Keep {
        let month = Duration::from_secs(30 * 24 * 3600);
        Keep {
            events_age: month,
            events_count: 250_000,
            audit_age: Duration::ZERO,
            stopped_age: month,
        }
    }
}

/// Time between two heartbeats of an agent; fixed in the agents.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// Silence between us and a host after which the agent may have paused everything without
/// saying so: two beats. It does so after three.
pub const CONTACT_GAP: Duration = Duration::from_secs(60);

/// A host whose silence would make this many percent of the fleet unreachable is not
/// judged alone. Kubernetes calls a zone disrupted at the same share.
pub const MASS_GUARD_PERCENT: usize = 55;

/// The mass guard needs more hosts than this: two hosts on one power strip are no mass.
pub const MASS_GUARD_HOSTS: usize = 2;

/// Fewest sandboxes of one host whose vanishing at once is held for another look.
pub const MASS_VANISH_MIN: usize = 3;

/// Looks that must agree before an absence or an adoption counts.
pub const CONFIRMATIONS: u32 = 2;

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            name: PolicyName::Default,
            zombies: ZombiePolicy::Report,
            unreachable_after: Duration::from_secs(90),
            startup_grace: Duration::from_secs(90),
            probe_interval: Duration::from_secs(60),
            transient_grace: Duration::from_secs(120),
            confirm_delay: Duration::from_secs(3),
            mass_guard_max: Duration::from_secs(300),
            memory_overcommit_percent: 100,
            cpu_overcommit_percent: 800,
            keep: Keep::default(),
            quotas: Quotas::default(),
        }
    }
}

impl Policy {
    /// The plain mapping with the default numbers.
    pub fn strict() -> Policy {
        Policy { name: PolicyName::Strict, ..Policy::default() }
    }

    /// Whether this is the plain mapping.
    pub fn is_strict(&self) -> bool {
        match self.name {
            PolicyName::Strict => true,
            PolicyName::Default => false,
        }
    }
}
