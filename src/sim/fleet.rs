//! Owns a number of simulated hosts and the one server that answers for all of them.
//!
//! Never: shares state between hosts beyond the server's threads. Started by `agent-sim`,
//! `demo`, tests and benches.

use super::answer::Agents;
use super::door::{Door, SharedServer};
use super::fault::Faults;
use super::host::{Habits, SimHost};
use super::sandbox::SimState;
use super::tls::HostTls;
use super::{fixture, lock};
use crate::clock::Clock;
use crate::http::{Server, ServerConfig, TlsSource};
use crate::model::id::{HostId, SandboxId};
use crate::model::sandbox::SandboxStatus;
use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// Threads of the server; none of them waits on purpose. Larger: more stacks in every test;
/// smaller: listings of a large fleet are answered one by one.
const WORKERS: usize = 8;

/// Calls that wait on purpose at a time, each on a thread of its own. Larger: a flood of calls
/// to hanging hosts takes more threads; smaller: they are refused in words that no agent has.
const WAITING_MAX: usize = 4096;

/// Age of the sandboxes that a host starts with. Larger or smaller: as long as it is more
/// than every grace of the control plane, it makes no difference.
const INITIAL_AGE: Duration = Duration::from_secs(600);

/// What the sandboxes of a new fleet are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Initially {
    /// They run.
    #[default]
    Running,
    /// They were paused long ago.
    Paused,
    /// The agent has just paused all of them by itself: the first listing announces them.
    AutoPaused,
}

/// Which hosts to start.
#[derive(Clone)]
pub struct FleetOptions {
    /// How many hosts.
    pub hosts: usize,
    /// How many sandboxes each of them has.
    pub sandboxes: usize,
    /// Port of the first host, on loopback; the next ones follow. 0: the system chooses a
    /// free one for each.
    pub base_port: u16,
    /// What the sandboxes do.
    pub initially: Initially,
    /// How the agents go about their work.
    pub habits: Habits,
    /// Another seed gives other sandbox ids.
    pub seed: u64,
    /// What time the agents think it is.
    pub clock: Arc<dyn Clock>,
}

/// Simulated hosts that are listening.
pub struct SimFleet {
    hosts: Vec<Arc<SimHost>>,
    server: SharedServer,
}

impl fmt::Debug for SimFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.hosts).finish()
    }
}

impl SimFleet {
    /// Starts the hosts; they answer when this returns. Fails when a port is taken, or the
    /// system gives no more file descriptors or threads.
    pub fn start(options: &FleetOptions) -> io::Result<SimFleet> {
        let tls = TlsSource::by_listener();
        let shared = SharedServer::default();
        let mut listeners = Vec::with_capacity(options.hosts);
        let mut hosts = Vec::with_capacity(options.hosts);
        for number in 0..options.hosts {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port(options, number)?))?;
            let address = listener.local_addr()?;
            let clock = Arc::clone(&options.clock);
            let tls = HostTls::new(tls.clone(), number, Arc::clone(&clock));
            let door = Door::new(Arc::clone(&shared), number, address);
            let host = SimHost::new(host_id(number), address, options.habits, clock, door, tls);
            let host = host.map_err(io::Error::other)?;
            populate(&host, number, options);
            hosts.push(host);
            listeners.push(listener);
        }
        let config = ServerConfig {
            workers: WORKERS,
            feeds: false,
            deferred_max: WAITING_MAX,
            tls: Some(tls),
            ..ServerConfig::default()
        };
        let agents = Arc::new(Agents { hosts: hosts.clone() });
        *lock(&shared) = Some(Server::start(listeners, agents, config)?);
        Ok(SimFleet { hosts, server: shared })
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Arc<SimHost>] {
        &self.hosts
    }

    /// Changes what is wrong with one host. Fails when a port that is to be opened again
    /// cannot be; a host that is not there is not changed.
    pub fn set_faults(&self, number: usize, faults: Faults) -> io::Result<()> {
        self.hosts.get(number).map_or(Ok(()), |host| host.set_faults(faults))
    }

    /// Writes the fixture that matches these hosts (interfaces.md section 6), with every
    /// sandbox in `status`.
    pub fn write_fixture(&self, status: SandboxStatus, to: &mut impl Write) -> io::Result<()> {
        fixture::write(&self.hosts, status, to)
    }

    /// Ends the hosts; calls in progress are cut. False when one did not end within
    /// `deadline`.
    pub fn shutdown(self, deadline: Duration) -> bool {
        self.end().is_none_or(|server| server.shutdown(deadline))
    }

    /// Takes the server away from the hosts, which it keeps alive.
    fn end(&self) -> Option<Server> {
        self.hosts.iter().for_each(|host| host.end());
        lock(&self.server).take()
    }
}

impl Drop for SimFleet {
    fn drop(&mut self) {
        drop(self.end());
    }
}

fn port(options: &FleetOptions, number: usize) -> io::Result<u16> {
    if options.base_port == 0 {
        return Ok(0);
    }
    let port = u16::try_from(number).ok().and_then(|number| options.base_port.checked_add(number));
    port.ok_or_else(|| io::Error::other("there are no ports above 65535"))
}

fn populate(host: &SimHost, number: usize, options: &FleetOptions) {
    for sandbox in 0..options.sandboxes {
        let id = sandbox_id(options.seed, number, sandbox);
        let state = match options.initially {
            Initially::Running => SimState::Running,
            Initially::Paused | Initially::AutoPaused => SimState::Paused,
        };
        host.put(id, state, INITIAL_AGE);
        if options.initially == Initially::AutoPaused {
            host.announce(id);
        }
    }
    if options.initially != Initially::AutoPaused {
        // Made now and kept, so that the first probe costs no more than the next.
        host.list();
    }
}

/// Hosts are counted from one: their ids are easy to type.
fn host_id(number: usize) -> HostId {
    HostId::from_u128(number as u128 + 1)
}

/// Sandboxes have ids that look as random as real ones: databases care.
fn sandbox_id(seed: u64, host: usize, sandbox: usize) -> SandboxId {
    let place = ((host as u64) << 32) | sandbox as u64;
    let high = mix(mix(seed).wrapping_add(place));
    let low = mix(high ^ place);
    let random = (u128::from(high) << 64) | u128::from(low);
    SandboxId::from_random(random.to_be_bytes())
}

/// The finalizer of SplitMix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
