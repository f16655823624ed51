//! Owns what is allowed but probably not meant: settings, files and a clock that people
//! should hear about. Each is one sentence that says what to do.
//!
//! Never: refuses anything, changes a file. Called at the start of `serve` and by
//! `roost config`.

use super::{AgentTls, Config, Key, Paths, show};
use crate::model::endpoint::{Endpoint, Resolved};
use crate::model::host::{AgentAddress, Host};
use crate::model::policy::HEARTBEAT_INTERVAL;
use crate::model::time::Wall;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// 2024-01-01T00:00:00Z: no Roost is older, so a clock that says less is not set.
const NO_ROOST_BEFORE: Wall = Wall(1_704_067_200_000);

/// Rights of everybody who is neither the owner nor of the group.
const OF_OTHERS: u32 = 0o007;

/// Rights of everybody but the owner.
const OF_ALL_BUT_OWNER: u32 = 0o077;

impl Config {
    /// What the settings alone tell.
    pub fn warnings(&self) -> Vec<String> {
        let (patience, beat) = (self.unreachable_after, HEARTBEAT_INTERVAL);
        let mut warnings = Vec::new();
        if !self.listen.ip().is_loopback() && self.https().is_none() {
            warnings.push(format!(
                "listen is {} without TLS: whoever is on the way reads API keys and the tokens of agents; set tls_cert and tls_key, or listen on 127.0.0.1 behind something that speaks HTTPS",
                self.listen,
            ));
        }
        if patience < beat * 2 {
            warnings.push(format!(
                "unreachable_after is {}: agents beat every {}, one lost heartbeat looks like a lost host",
                show::span(patience),
                show::span(beat),
            ));
        }
        if self.startup_grace < patience {
            warnings.push(format!(
                "startup_grace is {}, less than unreachable_after: a restart may mark healthy hosts unreachable",
                show::span(self.startup_grace),
            ));
        }
        warnings
    }

    /// What the settings, the files that are there and the clock tell.
    pub fn warnings_here(&self, paths: &Paths, now: Wall) -> Vec<String> {
        let mut warnings = self.warnings();
        if now < NO_ROOST_BEFORE {
            warnings.push(format!(
                "the clock says {now}: certificates and tokens cannot be judged; set it, and let NTP keep it",
            ));
        }
        if may(&paths.dir, OF_OTHERS) {
            warnings.push(format!(
                "{} is open to every user of this machine; `chmod 700` it",
                paths.dir.display(),
            ));
        }
        let ours = [&paths.admin_key, &paths.host_token_key, &paths.ca_key];
        let open = ours.into_iter().filter(|path| may(path, OF_ALL_BUT_OWNER));
        // The API's key is often shared with a group that renews it.
        let given = self.tls_key.as_ref().filter(|path| may(path, OF_OTHERS));
        warnings.extend(open.chain(given).map(|path| {
            format!("{} holds a secret and others may read it; `chmod 600` it", path.display())
        }));
        warnings
    }

    /// What the fleet's addresses tell, once it is known.
    pub fn warnings_of_agents(&self, hosts: &[Host]) -> Vec<String> {
        let found = |is_one: &dyn Fn(&Host, &AgentAddress) -> bool| {
            let is_one = |host: &&Host| host.address.as_ref().is_some_and(|at| is_one(host, at));
            let mut some = hosts.iter().filter(is_one);
            let first = some.next()?;
            Some((1 + some.count(), first.id, first.address.clone()?))
        };
        let mut warnings = Vec::new();
        let tls = self.agent_tls;
        if tls == AgentTls::Off
            && let Some((count, id, at)) = found(&|_, at| is_public(at.as_str()))
        {
            warnings.push(format!(
                "{} is off, and {count} of the hosts have public addresses ({id} at {at}): an attacker on the path can command them; set agent_tls = \"mtls\"",
                Key::AgentTls,
            ));
        }
        if tls == AgentTls::Mtls
            && let Some((count, id, at)) = found(&|_, at| at.is_plain())
        {
            warnings.push(format!(
                "{} is mtls, and the addresses of {count} of the hosts begin with http:// ({id} at {at}): these are commanded without TLS; have them register again without http://",
                Key::AgentTls,
            ));
        }
        let closed = |host: &Host, at: &AgentAddress| {
            let endpoint = Endpoint::of(at, &Resolved::new());
            endpoint.ips().iter().any(|ip| !self.agent_networks.admit(host.team_id, *ip))
        };
        if let Some((count, id, at)) = found(&closed) {
            warnings.push(format!(
                "{count} hosts of teams have addresses that are closed to them ({id} at {at}) and are not probed; allow their networks with agent_networks, or have them register other addresses",
            ));
        }
        warnings
    }
}

/// Whether the file is there and has one of these rights.
fn may(path: &Path, rights: u32) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & rights != 0)
}

/// Names are not looked up: a name may mean anything.
fn is_public(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| match address.ip() {
        IpAddr::V4(ip) => {
            // Addresses of carriers (100.64/10) also serve private overlays.
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared)
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Inputs;

    fn config(flags: &[(Key, &str)]) -> Config {
        let flags = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        Config::load(&Inputs { flags, ..Inputs::default() }).unwrap()
    }

    #[test]
    fn an_address_for_others_needs_tls() {
        for (listen, warned) in [
            ("127.0.0.1:8000", false),
            ("[::1]:8000", false),
            ("0.0.0.0:8000", true),
            ("[::]:8000", true),
            ("10.0.0.5:8000", true),
        ] {
            let plain = config(&[(Key::Listen, listen)]).warnings();
            assert_eq!(plain.iter().any(|w| w.contains("without TLS")), warned, "{listen}");
            let tls = [(Key::Listen, listen), (Key::TlsCert, "c"), (Key::TlsKey, "k")];
            assert_eq!(config(&tls).warnings(), [] as [&str; 0], "{listen}");
        }
    }

    #[test]
    fn public_addresses() {
        for public in ["203.0.113.9:1", "8.8.8.8:50051", "[2001:db8::1]:1", "100.63.0.1:1"] {
            assert!(is_public(public), "{public}");
        }
        for private in [
            "127.0.0.1:1",
            "10.1.2.3:1",
            "192.168.0.1:1",
            "172.31.0.1:1",
            "169.254.0.1:1",
            "100.64.0.1:1",
            "[::1]:1",
            "[fd00::1]:1",
            "[fe80::1]:1",
            "agent.example.org:1",
        ] {
            assert!(!is_public(private), "{private}");
        }
    }

    #[test]
    fn rights_and_clock() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::of(dir.path());
        let config = config(&[]);
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let found = |now| config.warnings_here(&paths, Wall(now)).join("\n");
        set(dir.path(), 0o700);
        let (good, bad) = (NO_ROOST_BEFORE.0, NO_ROOST_BEFORE.0 - 1);
        assert_eq!(found(good), "");
        assert!(
            found(bad).starts_with("the clock says 2023-12-31T23:59:59.999Z"),
            "{}",
            found(bad)
        );
        set(dir.path(), 0o750);
        assert_eq!(found(good), "", "a group is somebody's choice");
        set(dir.path(), 0o701);
        assert!(found(good).contains("`chmod 700`"), "{}", found(good));
        set(dir.path(), 0o700);
        for path in [&paths.admin_key, &paths.host_token_key, &paths.ca_key] {
            std::fs::write(path, "x").unwrap();
            set(path, 0o600);
            assert_eq!(found(good), "");
            set(path, 0o640);
            assert!(found(good).starts_with(path.to_str().unwrap()), "{}", found(good));
            set(path, 0o400);
        }
    }
}
