//! Owns what an agent's address comes down to, whatever its spelling.
//!
//! Never: looks a name up (`agent` does); decides what becomes of two hosts at one place.

use super::host::AgentAddress;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address leads: two addresses with the same endpoint reach the same agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The name in lower case without its closing dot, or the IP address.
    host: String,
    port: u16,
    path: String,
    /// The IP addresses that the host is known to have, in canonical form.
    ips: Vec<IpAddr>,
}

/// IP addresses of hosts that are named, not numbered, as the name service gave them.
pub type Resolved = HashMap<String, Vec<IpAddr>>;

impl Endpoint {
    /// The endpoint of an address, with what was resolved of names.
    pub fn of(address: &AgentAddress, resolved: &Resolved) -> Endpoint {
        let host = address.host();
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let (host, ips) = match (host.parse::<IpAddr>(), name.as_str()) {
            (Ok(ip), _) => (canonical(ip).to_string(), vec![canonical(ip)]),
            (Err(_), "localhost") => {
                (name, vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
            }
            (Err(_), _) => {
                let ips = resolved.get(&name).into_iter().flatten();
                let ips = ips.copied().map(canonical).collect();
                (name, ips)
            }
        };
        Endpoint { host, port: port(address), path: path(address), ips }
    }

    /// The IP addresses that the host is known to have, in canonical form.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Whether both lead to the same agent. A name that was not resolved is only its text.
    pub fn is_same(&self, other: &Endpoint) -> bool {
        self.port == other.port
            && self.path == other.path
            && (self.host == other.host || self.ips.iter().any(|ip| other.ips.contains(ip)))
    }

    /// Whether only the name service can tell whether both are the same.
    pub fn may_be_same(&self, other: &Endpoint) -> bool {
        self.port == other.port && self.path == other.path
    }

    /// The name to look up, under which [`Resolved`] has it; `None` when its IP addresses
    /// are known without.
    pub fn unresolved(&self) -> Option<&str> {
        self.ips.is_empty().then_some(self.host.as_str())
    }
}

/// An IPv4 address is the same when it is mapped into IPv6, and what is unspecified reaches
/// this machine.
fn canonical(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    }
}

/// The port, by the scheme where it is left out.
fn port(address: &AgentAddress) -> u16 {
    let text = address.as_str();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let authority = rest.split('/').next().unwrap_or_default();
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    let given = after_host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    given.unwrap_or(if scheme == "https" { 443 } else { 80 })
}

fn path(address: &AgentAddress) -> String {
    let text = address.as_str();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split_once('/').map_or("", |(_, path)| path).trim_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(text: &str) -> Endpoint {
        let ips = ["10.0.0.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let resolved = Resolved::from([("edge.example".to_owned(), ips.to_vec())]);
        Endpoint::of(&text.parse().unwrap(), &resolved)
    }

    /// Each line is one place, spelt in every way.
    const PLACES: &[&[&str]] = &[
        &[
            "127.0.0.1:9",
            "localhost:9",
            "LocalHost.:9",
            "[::ffff:127.0.0.1]:9",
            "[::FFFF:7f00:1]:9",
            "0.0.0.0:9",
            "http://127.0.0.1:9",
            "https://127.0.0.1:9/",
            "http://localhost:9",
        ],
        &["127.0.0.1:80", "http://127.0.0.1", "http://127.0.0.1:80/", "http://localhost/"],
        &["127.0.0.1:443", "https://127.0.0.1", "https://LOCALHOST:443"],
        &["127.0.0.2:9"],
        &["127.0.0.1:10", "127.0.0.1:010"],
        &["http://127.0.0.1:9/agent", "https://localhost:9/agent/"],
        &["http://127.0.0.1:9/Agent"],
        &[
            "edge.example:9",
            "EDGE.Example.:9",
            "10.0.0.7:9",
            "[2001:db8::7]:9",
            "[2001:0DB8:0:0:0:0:0:7]:9",
        ],
        &["other.example:9", "OTHER.example:9", "other.example.:9"],
        &["other:9"],
    ];

    #[test]
    fn addresses_are_the_same_whatever_their_spelling() {
        for (n, places) in PLACES.iter().enumerate() {
            for (m, others) in PLACES.iter().enumerate() {
                // Two addresses of one name lead to the same host; each is still its own.
                for a in *places {
                    for b in *others {
                        let two_of_a_name = n == m && n == 7;
                        let same = endpoint(a).is_same(&endpoint(b));
                        assert_eq!(same, endpoint(b).is_same(&endpoint(a)), "{a} {b}");
                        assert!(two_of_a_name || same == (n == m), "{a} {b}");
                    }
                }
            }
        }
        let name = endpoint("edge.example:9");
        assert!(
            name.is_same(&endpoint("10.0.0.7:9")) && name.is_same(&endpoint("[2001:db8::7]:9"))
        );
        assert!(endpoint("localhost:9").is_same(&endpoint("[::1]:9")));
        assert!(endpoint("localhost:9").is_same(&endpoint("[::]:9")));
    }

    #[test]
    fn only_names_are_looked_up() {
        let wanted = |text: &str| endpoint(text).unresolved().map(str::to_owned);
        for known in ["10.0.0.1:1", "[::1]:1", "localhost:1", "http://LOCALHOST.", "edge.example:1"]
        {
            assert_eq!(wanted(known), None, "{known}");
        }
        assert_eq!(wanted("https://Other.Example./x"), Some("other.example".to_owned()));
    }

    proptest! {
        #[test]
        fn every_address_is_the_same_as_itself(text in "(https?://)?[A-Za-z0-9.:\\[\\]-]{1,20}(:[0-9]{1,5})?(/[a-z/]*)?") {
            if let Ok(address) = text.parse::<AgentAddress>() {
                let one = Endpoint::of(&address, &Resolved::new());
                prop_assert!(one.is_same(&one) && one.may_be_same(&one));
            }
        }
    }
}
