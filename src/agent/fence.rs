//! Owns whether a connection to an address may be opened for a host.
//!
//! Never: opens one, or resolves a name. `transport` asks for each address that it is about
//! to connect to, so that a name which leads elsewhere later gains nothing.

use crate::model::id::{HostId, PLATFORM_TEAM, TeamId};
use crate::model::networks::AgentNetworks;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Which addresses the hosts of teams may have.
#[derive(Clone)]
pub(super) struct Fence {
    networks: Arc<AgentNetworks>,
    team_of: Arc<dyn Fn(HostId) -> TeamId + Send + Sync>,
}

impl Fence {
    /// With the networks that are allowed although they are closed, and whose a host is.
    pub(super) fn new(
        networks: AgentNetworks,
        team_of: impl Fn(HostId) -> TeamId + Send + Sync + 'static,
    ) -> Fence {
        Fence { networks: Arc::new(networks), team_of: Arc::new(team_of) }
    }

    /// What holds for one host; `None`: it may be anywhere.
    pub(super) fn of(&self, host: HostId) -> Option<TeamFence> {
        let team = (self.team_of)(host);
        (team != PLATFORM_TEAM).then(|| TeamFence { networks: Arc::clone(&self.networks), team })
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").field("networks", &self.networks).finish_non_exhaustive()
    }
}

/// Around the hosts of one team.
#[derive(Debug, Clone)]
pub(super) struct TeamFence {
    networks: Arc<AgentNetworks>,
    team: TeamId,
}

impl TeamFence {
    /// Whether a host of the team may be there; otherwise why not, and what to do.
    pub(super) fn admit(&self, ip: IpAddr) -> Result<(), String> {
        match self.networks.admit(self.team, ip) {
            true => Ok(()),
            false => Err(format!(
                "{ip} is in a network that is closed to the hosts of teams; agent_networks allows it"
            )),
        }
    }
}
