//! Owns a number of simulated hosts and the one server that answers for all of them.
//!
//! Never: shares state between hosts beyond the server's threads. Started by `agent-sim`,
//! `demo`, tests and benches.

use super::agent::SimState;
use super::answer::Agents;
use super::fault::Faults;
use super::fixture;
use super::hold::Holds;
use super::host::{Habits, SimHost};
use super::tls::HostTls;
use crate::clock::Clock;
use crate::http::{Server, ServerConfig, TlsSource};
use crate::model::id::{HostId, SandboxId};
use crate::model::sandbox::SandboxStatus;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most threads of the server, those included that wait on purpose. Larger: more stacks;
/// smaller: a control plane that asks many slow hosts at once is answered one by one.
const WORKERS_MAX: usize = 128;

/// Fewest threads of the server. Larger: more stacks in every test; smaller: the few calls
/// of a small fleet that wait on purpose make the others wait too.
const WORKERS_MIN: usize = 16;

/// Threads of the server for each host between these bounds, as many as calls of one host
/// may well wait at a time. Larger or smaller: as above.
const WORKERS_PER_HOST: usize = 8;

/// Calls that wait on purpose may take all threads but one in this many. Larger: hosts that
/// are well answer late while others hang; smaller: fewer hosts can hang at a time.
const FREE_ONE_IN: usize = 4;

/// Age of the sandboxes that a host starts with. Larger or smaller: as long as it is more
/// than every grace of the control plane, it makes no difference.
const INITIAL_AGE: Duration = Duration::from_secs(600);

/// Connections that wait to be accepted, for a host that was closed and opened again.
/// Larger: buys nothing; smaller: a burst of callers sees connections time out.
const BACKLOG: i32 = 128;

/// How long copies of a closed socket may live on. Larger: a port that is really taken is
/// told late; smaller: a busy machine starts a process too slowly.
const COPIES_GONE_AFTER: Duration = Duration::from_secs(5);

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
    holds: Arc<Holds>,
    server: Option<Server>,
    /// For each host whose port is closed: what keeps the system from giving it away.
    reserved: Mutex<Vec<Option<OwnedFd>>>,
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
        let workers = (options.hosts * WORKERS_PER_HOST).clamp(WORKERS_MIN, WORKERS_MAX);
        let holds = Arc::new(Holds::new(workers - workers / FREE_ONE_IN));
        let tls = TlsSource::by_listener();
        let mut listeners = Vec::with_capacity(options.hosts);
        let mut hosts = Vec::with_capacity(options.hosts);
        for number in 0..options.hosts {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port(options, number)?))?;
            let address = listener.local_addr()?;
            let (clock, holds) = (Arc::clone(&options.clock), Arc::clone(&holds));
            let tls = HostTls::new(tls.clone(), number, Arc::clone(&clock));
            let host = SimHost::new(host_id(number), address, options.habits, clock, holds, tls);
            let host = host.map_err(io::Error::other)?;
            populate(&host, number, options);
            hosts.push(Arc::new(host));
            listeners.push(listener);
        }
        let config = ServerConfig { workers, tls: Some(tls), ..ServerConfig::default() };
        let agents = Arc::new(Agents { hosts: hosts.clone() });
        let server = Server::start(listeners, agents, config)?;
        let reserved = Mutex::new(hosts.iter().map(|_| None).collect());
        Ok(SimFleet { hosts, holds, server: Some(server), reserved })
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Arc<SimHost>] {
        &self.hosts
    }

    /// Changes what is wrong with one host. Fails when a port that is to be opened again
    /// cannot be; a host that is not there is not changed.
    pub fn set_faults(&self, number: usize, faults: Faults) -> io::Result<()> {
        let (Some(host), Some(server)) = (self.hosts.get(number), &self.server) else {
            return Ok(());
        };
        let mut reserved = super::lock(&self.reserved);
        let Some(place) = reserved.get_mut(number) else { return Ok(()) };
        match (faults.closed, place.take()) {
            (true, None) => {
                server.close_listener(number);
                *place = Some(patiently(|| reserve(host.address()))?);
            }
            (false, Some(socket)) => {
                patiently(|| Ok(rustix::net::listen(&socket, BACKLOG)?))?;
                server.reopen_listener(number, TcpListener::from(socket))?;
            }
            (_, unchanged) => *place = unchanged,
        }
        host.set_faults(faults);
        Ok(())
    }

    /// Writes the fixture that matches these hosts (interfaces.md section 6), with every
    /// sandbox in `status`.
    pub fn write_fixture(&self, status: SandboxStatus, to: &mut impl Write) -> io::Result<()> {
        fixture::write(&self.hosts, status, to)
    }

    /// Ends the hosts. False when a call was still under way after `deadline`.
    pub fn shutdown(mut self, deadline: Duration) -> bool {
        self.holds.end();
        self.server.take().is_none_or(|server| server.shutdown(deadline))
    }
}

impl Drop for SimFleet {
    fn drop(&mut self) {
        self.holds.end();
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

/// A socket that has the address and does not listen. The system gives the port to nobody
/// who just asks for any.
fn reserve(address: SocketAddr) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Tries again while the address is in use: a process that is being started has copies of
/// all sockets for a moment, those included that were just closed.
fn patiently<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + COPIES_GONE_AFTER;
    loop {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
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
