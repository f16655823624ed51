//! Owns what the tests of simulated hosts share: a fleet, and the control plane's own client.
//!
//! Never: judges what a host does.

use roost::agent::client::{AgentClient, CallError, ClientConfig};
use roost::agent::wire::{ConnectCode, CreateSandboxRequest, ResumeSandboxRequest};
use roost::clock::ManualClock;
use roost::model::id::SandboxId;
use roost::model::probe::{FailureKind, ListedState, Listing, Probe};
use roost::model::time::Wall;
use roost::sim::{FleetOptions, Habits, Initially, SimFleet, SimHost};
use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any test may take: what waits for it does not end by itself.
pub const FOREVER: Duration = Duration::from_secs(3600);

/// Longer than anything takes that is expected to happen.
pub const LONG: Duration = Duration::from_secs(30);

pub const NOW: Wall = Wall(1_779_000_000_000);

/// A fleet and a client of it, on a clock that the test moves.
pub struct World {
    pub fleet: SimFleet,
    pub clock: Arc<ManualClock>,
    pub client: AgentClient,
}

pub fn world(hosts: usize, sandboxes: usize) -> World {
    world_with(hosts, sandboxes, Initially::Running, Habits::default())
}

pub fn world_with(hosts: usize, sandboxes: usize, initially: Initially, habits: Habits) -> World {
    let clock = Arc::new(ManualClock::new(NOW));
    let options = FleetOptions {
        hosts,
        sandboxes,
        base_port: 0,
        initially,
        habits,
        seed: 7,
        clock: clock.clone(),
    };
    let fleet = SimFleet::start(&options).unwrap();
    let client = AgentClient::new(ClientConfig { probe_timeout: LONG, ..ClientConfig::default() });
    World { fleet, clock, client }
}

impl World {
    pub fn host(&self, number: usize) -> &Arc<SimHost> {
        &self.fleet.hosts()[number]
    }

    pub fn probe(&self, number: usize) -> Probe {
        self.client.list_sandboxes(self.host(number).id(), self.host(number).agent_address())
    }

    pub fn list(&self, number: usize) -> Listing {
        match self.probe(number) {
            Probe::Listed(listing) => listing,
            Probe::Failed(failure) => panic!("{failure}"),
        }
    }

    pub fn running(&self, number: usize) -> Vec<SandboxId> {
        let running = |state| state == ListedState::Running;
        self.list(number).sandboxes.iter().filter(|s| running(s.state)).map(|s| s.id).collect()
    }

    pub fn failure(&self, number: usize) -> FailureKind {
        match self.probe(number) {
            Probe::Listed(listing) => panic!("{listing:?}"),
            Probe::Failed(failure) => failure.kind,
        }
    }

    /// Status and body of a call to the first host.
    pub fn post(&self, method: &str, body: &str) -> (u16, String) {
        post(self.host(0).agent_address().as_str(), method, body)
    }

    pub fn first(&self, number: usize) -> SandboxId {
        self.host(number).sandboxes()[0].0
    }

    pub fn create(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        let sandbox_id = Cow::Owned(id.to_string());
        let request = CreateSandboxRequest { sandbox_id, ..CreateSandboxRequest::default() };
        let (host, at) = (self.host(number).id(), self.host(number).agent_address());
        self.client.create(host, at, &request, LONG).map(|details| {
            assert!(details.host_ip.unwrap().starts_with("10.11."));
            assert!(details.metadata.unwrap().contains("kernel_version"));
        })
    }

    pub fn resume(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        let sandbox_id = Cow::Owned(id.to_string());
        let request = ResumeSandboxRequest { sandbox_id, ..ResumeSandboxRequest::default() };
        let (host, at) = (self.host(number).id(), self.host(number).agent_address());
        self.client.resume(host, at, &request, LONG).map(|_| ())
    }

    pub fn pause(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        self.client.pause(self.host(number).id(), self.host(number).agent_address(), id, LONG)
    }

    pub fn destroy(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        self.client.destroy(self.host(number).id(), self.host(number).agent_address(), id, LONG)
    }

    pub fn ping(&self, number: usize, id: SandboxId) -> Result<(), CallError> {
        self.client.ping(self.host(number).id(), self.host(number).agent_address(), id, LONG)
    }
}

pub fn code(result: Result<(), CallError>) -> ConnectCode {
    match result {
        Err(CallError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

pub fn new_id() -> SandboxId {
    SandboxId::from_u128(1)
}

/// One call over a bare socket, not answered yet.
pub fn begin(address: &str, method: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /hostagent.v1.HostAgentService/{method} HTTP/1.1\r\nHost: {address}\r\n\
         Content-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

/// Status and body of an answer; `None` when the connection closes without one.
pub fn answer(mut stream: TcpStream) -> Option<(u16, String)> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

/// One call and its answer.
pub fn post(address: &str, method: &str, body: &str) -> (u16, String) {
    answer(begin(address, method, body)).unwrap()
}

/// The habits of a newer agent.
pub fn newer() -> Habits {
    Habits { lists_paused: true, reports: true, keeps_after_snapshot: true, ..Habits::default() }
}

/// A team and a template that no host has unless it is put there.
pub const TEAM: &str = "ee000000-0000-0000-0000-000000000001";
pub const TEMPLATE: &str = "0ddba11c-0000-4000-8000-00000000000a";
