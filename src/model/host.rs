//! Owns what a host is: intent, liveness, the status derived from both, and the address
//! of its agent.
//!
//! Never: decides when a host is alive (`plan::liveness` does).

use super::id::{HostId, TeamId};
use super::probe::FailureKind;
use super::time::Wall;
use super::vocabulary;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

vocabulary! {
    /// What the operator wants of a host. Never changed by liveness.
    Intent, "host intent", {
        /// Takes part in everything.
        Active = "active",
        /// Keeps what it has, gets nothing new.
        Draining = "draining",
        /// Neither watched nor probed.
        Offline = "offline",
    }
}

vocabulary! {
    /// What we see of a host.
    Liveness, "host liveness", {
        /// Heard from recently enough.
        Alive = "alive",
        /// Silent for longer than `unreachable_after`.
        Unreachable = "unreachable",
    }
}

vocabulary! {
    /// The public status, derived from registration, intent and liveness.
    HostStatus, "host status", {
        /// Created by an operator, never registered.
        Pending = "pending",
        /// Alive and wanted.
        Online = "online",
        /// Silent.
        Unreachable = "unreachable",
        /// Alive; the operator wants nothing new on it.
        Draining = "draining",
        /// Set aside by an operator.
        Offline = "offline",
    }
}

impl HostStatus {
    /// The public status (behaviour.md section 1): an operator's `offline` outranks what
    /// we see, what we see outranks draining.
    pub const fn derive(registered: bool, intent: Intent, liveness: Liveness) -> HostStatus {
        match (registered, intent, liveness) {
            (false, Intent::Active | Intent::Draining | Intent::Offline, _) => HostStatus::Pending,
            (true, Intent::Offline, Liveness::Alive | Liveness::Unreachable) => HostStatus::Offline,
            (true, Intent::Active | Intent::Draining, Liveness::Unreachable) => {
                HostStatus::Unreachable
            }
            (true, Intent::Draining, Liveness::Alive) => HostStatus::Draining,
            (true, Intent::Active, Liveness::Alive) => HostStatus::Online,
        }
    }
}

/// A host as the database has it. Optional figures are unknown until it registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Who owns it.
    pub team_id: TeamId,
    /// What kind of machine it is, in the operator's words; `regular` by default.
    pub kind: String,
    /// Where it was rented.
    pub provider: Option<String>,
    /// Where it stands.
    pub availability_zone: Option<String>,
    /// Processor architecture, as the agent says it.
    pub arch: Option<String>,
    /// Processor cores.
    pub cpu_cores: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Disk in GiB.
    pub disk_gb: Option<u64>,
    /// Where its agent listens.
    pub address: Option<AgentAddress>,
    /// What the operator wants.
    pub intent: Intent,
    /// What we see.
    pub liveness: Liveness,
    /// When it registered; `None` while pending.
    pub registered_at: Option<Wall>,
    /// Heard again after silence, not looked at since: takes no new sandboxes.
    pub rejoining: bool,
    /// Heartbeats arrive and probes fail: takes no new sandboxes.
    pub degraded: bool,
    /// The agent may have paused everything unannounced since it was last looked at.
    pub contact_gap: bool,
    /// Last heartbeat that was flushed.
    pub last_heartbeat_at: Option<Wall>,
    /// How probes fail, and since when; `None` while they do not.
    pub probe_failure: Option<ProbeTrouble>,
    /// Revision of its last change of status or intent.
    pub revision: u64,
    /// When it was created.
    pub created_at: Wall,
    /// When it last changed.
    pub updated_at: Wall,
    /// Revision of its newest registration; tokens of an earlier one are void.
    pub registration: u64,
}

/// A failure of probes that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTrouble {
    /// How they fail.
    pub kind: FailureKind,
    /// What was wrong, for people.
    pub detail: String,
    /// When they began to fail in this way.
    pub since: Wall,
}

/// How messages name a machine: people know it by its address, programs by its id.
pub fn named(id: HostId, address: Option<&AgentAddress>) -> String {
    address.map_or_else(|| id.to_string(), |address| format!("{id} ({address})"))
}

impl Host {
    /// As messages name it.
    pub fn named(&self) -> String {
        named(self.id, self.address.as_ref())
    }

    /// Where it is, for what names it by its id already.
    pub fn place(&self) -> Option<String> {
        self.address.as_ref().map(|address| format!("at {address}"))
    }

    /// The public status.
    pub fn status(&self) -> HostStatus {
        HostStatus::derive(self.registered_at.is_some(), self.intent, self.liveness)
    }

    /// Whether an agent answers for it, as far as is known.
    pub fn is_live(&self) -> bool {
        match self.status() {
            HostStatus::Online | HostStatus::Draining => true,
            HostStatus::Pending | HostStatus::Unreachable | HostStatus::Offline => false,
        }
    }

    /// Whether it is watched: registered and not set aside.
    pub fn is_active(&self) -> bool {
        match self.status() {
            HostStatus::Online | HostStatus::Unreachable | HostStatus::Draining => true,
            HostStatus::Pending | HostStatus::Offline => false,
        }
    }
}

/// Where a host's agent listens: `host:port`, or a URL whose scheme is then fixed.
///
/// Keeps the text as it was registered, less a closing slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentAddress {
    text: Box<str>,
}

/// Longest address that is accepted, in bytes: a DNS name has at most 253.
pub const ADDRESS_BYTES_MAX: usize = 512;

/// Why a text is not an agent's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError(pub &'static str);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {}; expected host:port or http(s)://host[:port]", self.0)
    }
}

impl std::error::Error for AddressError {}

impl AgentAddress {
    /// The text, without a closing slash.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The URL that method paths are appended to; `tls` chooses the scheme where the
    /// address has none.
    pub fn base_url(&self, tls: bool) -> String {
        if self.text.contains("://") {
            return self.text.to_string();
        }
        format!("{}://{}", if tls { "https" } else { "http" }, self.text)
    }

    /// Whether it is spoken to without TLS, whatever the setting.
    pub fn is_plain(&self) -> bool {
        self.text.starts_with("http://")
    }

    /// The name or IP literal without port and brackets, as a certificate would name it.
    pub fn host(&self) -> &str {
        let rest = self.text.split_once("://").map_or(&*self.text, |(_, rest)| rest);
        let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
        if let Some(bracketed) = authority.strip_prefix('[') {
            return bracketed.split_once(']').map_or(bracketed, |(host, _)| host);
        }
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    }
}

impl FromStr for AgentAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<AgentAddress, AddressError> {
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError("is longer than 512 bytes"));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        if scheme.is_some_and(|s| s != "http" && s != "https") {
            return Err(AddressError("has a scheme that is not http or https"));
        }
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/".contains(&b)) {
            return Err(AddressError("has a path with a character that is not allowed"));
        }
        if scheme.is_none() && !path.is_empty() {
            return Err(AddressError("has a path but no scheme"));
        }
        check_authority(authority, scheme.is_some())?;
        Ok(AgentAddress { text: text.trim_end_matches('/').into() })
    }
}

fn check_authority(authority: &str, port_optional: bool) -> Result<(), AddressError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(AddressError("has no closing bracket"))?;
        host.parse::<Ipv6Addr>()
            .map_err(|_| AddressError("has brackets around no IPv6 address"))?;
        (None, after.strip_prefix(':').or(if after.is_empty() { None } else { Some("") }))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(authority), None),
        }
    };
    host.map_or(Ok(()), check_host)?;
    match port {
        None if port_optional => Ok(()),
        None => Err(AddressError("has no port")),
        Some(digits) => {
            let decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            match digits.parse::<u16>() {
                Ok(1..) if decimal => Ok(()),
                Ok(_) | Err(_) => Err(AddressError("has a port that is not 1 to 65535")),
            }
        }
    }
}

fn check_host(host: &str) -> Result<(), AddressError> {
    if host.is_empty() {
        return Err(AddressError("has no host"));
    }
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let literal = host.parse::<Ipv4Addr>();
        return literal.map(|_| ()).map_err(|_| AddressError("has a malformed IPv4 address"));
    }
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(label_ok) {
        return Err(AddressError("has a host that is not a name or an IP address"));
    }
    Ok(())
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl serde::Serialize for AgentAddress {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_status_of_every_combination() {
        let mut seen = Vec::new();
        for registered in [false, true] {
            for &intent in Intent::ALL {
                for &liveness in Liveness::ALL {
                    let status = HostStatus::derive(registered, intent, liveness);
                    seen.push(format!("{registered} {intent} {liveness} = {status}"));
                }
            }
        }
        expect_test::expect![[r#"
            false active alive = pending
            false active unreachable = pending
            false draining alive = pending
            false draining unreachable = pending
            false offline alive = pending
            false offline unreachable = pending
            true active alive = online
            true active unreachable = unreachable
            true draining alive = draining
            true draining unreachable = unreachable
            true offline alive = offline
            true offline unreachable = offline"#]]
        .assert_eq(&seen.join("\n"));
    }

    #[test]
    fn addresses() {
        let base = |text: &str, tls| text.parse::<AgentAddress>().map(|a| a.base_url(tls));
        let ok = |text: &str| Ok::<_, AddressError>(text.to_owned());
        assert_eq!(base("10.0.0.7:50051", false), ok("http://10.0.0.7:50051"));
        assert_eq!(base("10.0.0.7:50051/", true), ok("https://10.0.0.7:50051"));
        assert_eq!(base("http://edge-1.local:80/", true), ok("http://edge-1.local:80"));
        assert_eq!(base("https://edge-1.local/agent/", false), ok("https://edge-1.local/agent"));
        assert_eq!(base("[fe80::1]:50051", false), ok("http://[fe80::1]:50051"));
        let host = |text: &str| text.parse::<AgentAddress>().map(|a| a.host().to_owned());
        assert_eq!(host("[::1]:9"), ok("::1"));
        assert_eq!(host("https://a.b:1/c"), ok("a.b"));
        assert_eq!(host("localhost:1"), ok("localhost"));
        for bad in [
            "",
            ":1",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:1:2",
            "10.0.0:1",
            "1.2.3.400:1",
            "[::1]",
            "[::1:1",
            "[::g]:1",
            "[::1]x:1",
            "ftp://a:1",
            "a b:1",
            "a:1/x",
            "http://a:1/x?y",
            "http://u@a:1",
            "-a:1",
            "a..b:1",
            "http://",
            "hôte:1",
            "a:1\r\n",
        ] {
            assert!(bad.parse::<AgentAddress>().is_err(), "{bad:?} was accepted");
        }
    }
}
