//! Owns which addresses a team's host may have: Roost connects to what a team names, from
//! inside the operator's network.
//!
//! Never: looks a name up, or knows whose host it is. The operator's own hosts may be
//! anywhere.

use super::id::{PLATFORM_TEAM, TeamId};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Networks in which no team's host may be unless they are allowed: this machine, links,
/// multicast, reserved ones, and where clouds serve the credentials of their machines.
const CLOSED: &[(IpAddr, u8)] = &[
    (v4(0, 0, 0, 0), 8),
    (v4(127, 0, 0, 0), 8),
    (v4(169, 254, 0, 0), 16),
    (v4(100, 100, 100, 200), 32),
    (v4(168, 63, 129, 16), 32),
    (v4(192, 0, 0, 192), 32),
    (v4(224, 0, 0, 0), 4),
    (v4(240, 0, 0, 0), 4),
    (v6([0, 0, 0, 0, 0, 0, 0, 0]), 96),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), 128),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), 128),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

/// Networks that are allowed to the hosts of teams although they are closed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentNetworks(Vec<(IpAddr, u8)>);

impl AgentNetworks {
    /// Whether a host of this team may be at this address.
    pub fn admit(&self, team: TeamId, ip: IpAddr) -> bool {
        team == PLATFORM_TEAM || !is_closed(ip) || self.0.iter().any(|net| contains(*net, ip))
    }
}

/// An IPv4 address is judged as one however IPv6 wraps it.
fn is_closed(ip: IpAddr) -> bool {
    let wrapped = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => wrapped(ip).map(IpAddr::V4),
    };
    let within = |ip: IpAddr| CLOSED.iter().any(|net| contains(*net, ip));
    within(ip) || wrapped.is_some_and(within)
}

/// The IPv4 address in one of IPv6: mapped, behind a translator (64:ff9b::/96), or of 6to4.
fn wrapped(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = ip.octets();
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            Some(Ipv4Addr::new(a, b, c, d))
        }
        [0x2002, high, low, ..] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    }
}

fn contains((network, bits): (IpAddr, u8), ip: IpAddr) -> bool {
    match (network, ip.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            (u32::from(network) ^ u32::from(ip)) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            (u128::from(network) ^ u128::from(ip)) & mask == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Why a text is no list of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworksError;

impl fmt::Display for NetworksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("networks are written like 127.0.0.0/8, fe80::/10 with commas between")
    }
}

impl std::error::Error for NetworksError {}

impl FromStr for AgentNetworks {
    type Err = NetworksError;

    /// Networks with commas between; none in an empty text.
    fn from_str(text: &str) -> Result<AgentNetworks, NetworksError> {
        let parts = text.split(',').map(str::trim);
        let nets = parts.filter(|_| !text.trim().is_empty()).map(network);
        nets.collect::<Option<_>>().map(AgentNetworks).ok_or(NetworksError)
    }
}

/// `ADDRESS` or `ADDRESS/BITS`, without bits that are not the network's.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address = address.parse::<IpAddr>().ok()?.to_canonical();
    let most: u8 = if address.is_ipv4() { 32 } else { 128 };
    let bits = if text.contains('/') { bits.parse().ok()? } else { most };
    let whole: u128 = match address {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let rest = u32::from(most.checked_sub(bits)?);
    (whole == 0 || whole.trailing_zeros() >= rest).then_some((address, bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOSED_TO_TEAMS: &[&str] = &[
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "240.0.0.1",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
    ];

    const OPEN_TO_TEAMS: &[&str] = &[
        "10.0.0.5",
        "192.168.1.1",
        "172.16.0.1",
        "100.100.100.201",
        "100.64.0.1",
        "203.0.113.9",
        "192.0.0.193",
        "169.253.0.1",
        "::ffff:10.0.0.5",
        "64:ff9b::a00:5",
        "2002:a00:5::1",
        "2001:db8::1",
        "fd00:ec2::255",
        "fec0::1",
    ];

    fn team() -> TeamId {
        TeamId::from_u128(7)
    }

    #[test]
    fn where_the_hosts_of_teams_may_be() {
        let none = AgentNetworks::default();
        for (ips, open) in [(CLOSED_TO_TEAMS, false), (OPEN_TO_TEAMS, true)] {
            for ip in ips.iter().map(|ip| ip.parse().unwrap()) {
                assert_eq!(none.admit(team(), ip), open, "{ip}");
                assert!(none.admit(PLATFORM_TEAM, ip), "{ip} of the operator");
                let all: AgentNetworks = "0.0.0.0/0, ::/0".parse().unwrap();
                assert!(all.admit(team(), ip), "{ip}, allowed");
            }
        }
    }

    #[test]
    fn what_is_allowed_is_no_more_than_was_written() {
        let some: AgentNetworks = " 127.0.0.0/8,fe80::/10 , 169.254.7.7".parse().unwrap();
        for (ip, open) in [
            ("127.1.2.3", true),
            ("::ffff:127.1.2.3", true),
            ("fe80::1", true),
            ("169.254.7.7", true),
            ("169.254.7.8", false),
            ("::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(some.admit(team(), ip.parse().unwrap()), open, "{ip}");
        }
    }

    #[test]
    fn networks_are_written_in_one_way() {
        for right in ["", " ", "127.0.0.1", "::1", "0.0.0.0/0", "10.0.0.0/8,fe80::/10", "::/0"] {
            assert!(right.parse::<AgentNetworks>().is_ok(), "{right:?}");
        }
        for wrong in [
            ",",
            "any",
            "127.0.0.1/8",
            "127.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/8,",
            "10.0.0.0/8 fe80::/10",
            "fe80::1/10",
            "10/8",
            "example.org",
        ] {
            assert_eq!(wrong.parse::<AgentNetworks>(), Err(NetworksError), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-f:./, ]{0,40}") {
            let _ = text.parse::<AgentNetworks>();
        }
    }
}
