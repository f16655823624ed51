//! Owns stub agents: many on one server, each with a listener of its own and an answer
//! that the test gives it.
//!
//! Never: the habits of a real agent; the last answer is repeated until the test gives
//! another.

use roost::http::{Handler, Request, Response, Server, ServerConfig};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What an agent says to a probe.
#[derive(Debug, Clone)]
pub enum Says {
    /// This listing.
    Listing(Value),
    /// This Connect error.
    Error(&'static str),
}

impl Says {
    /// A listing of sandboxes with their statuses, nothing announced.
    pub fn lists(sandboxes: &[(&str, &str)]) -> Says {
        Says::listing(sandboxes, &[])
    }

    /// A listing of sandboxes with their statuses, and announced ids.
    pub fn listing(sandboxes: &[(&str, &str)], announced: &[&str]) -> Says {
        // A second in the past by any clock: old enough not to be under way.
        let entry = |(id, status): &(&str, &str)| {
            json!({"sandboxId": id, "status": status, "hostIp": "10.11.0.2",
                   "createdAtUnix": "1700000000", "metadata": {"vmm": "1.2"}})
        };
        let mut body = json!({});
        if !sandboxes.is_empty() {
            body["sandboxes"] = sandboxes.iter().map(entry).collect();
        }
        if !announced.is_empty() {
            body["autoPausedSandboxIds"] = json!(announced);
        }
        Says::Listing(body)
    }
}

struct Stub {
    /// What each says next; the last is kept.
    says: Mutex<Vec<VecDeque<Says>>>,
    calls: Mutex<Vec<usize>>,
}

impl Stub {
    fn next(&self, n: usize) -> Says {
        let says = &mut self.says.lock().unwrap()[n];
        if says.len() > 1 { says.pop_front().unwrap() } else { says[0].clone() }
    }
}

impl Handler for Stub {
    fn handle(&self, request: Request) -> Response {
        assert_eq!(request.path, "/hostagent.v1.HostAgentService/ListSandboxes");
        assert_eq!(request.body, b"{}");
        self.calls.lock().unwrap()[request.listener] += 1;
        match self.next(request.listener) {
            Says::Listing(body) => Response::json(200, body.to_string().into_bytes()),
            Says::Error(code) => {
                let body = json!({"code": code, "message": "not now"});
                Response::json(503, body.to_string().into_bytes())
            }
        }
    }
}

/// Stub agents; they end when dropped.
pub struct Agents {
    stub: Arc<Stub>,
    addresses: Vec<SocketAddr>,
    server: Option<Server>,
}

impl Agents {
    /// One agent for each answer.
    pub fn start(says: Vec<Says>) -> Agents {
        let listen = |_: &Says| TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<TcpListener> = says.iter().map(listen).collect();
        let addresses = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let calls = Mutex::new(vec![0; says.len()]);
        let says = says.into_iter().map(|says| VecDeque::from([says])).collect();
        let stub = Arc::new(Stub { says: Mutex::new(says), calls });
        let server = Server::start(listeners, stub.clone(), ServerConfig::default()).unwrap();
        Agents { stub, addresses, server: Some(server) }
    }

    /// Where agent `n` listens.
    pub fn address(&self, n: usize) -> String {
        self.addresses[n].to_string()
    }

    /// Gives agent `n` another answer.
    pub fn say(&self, n: usize, says: Says) {
        self.stub.says.lock().unwrap()[n] = VecDeque::from([says]);
    }

    /// Lets agent `n` say this after what it says until now was said once more.
    pub fn then(&self, n: usize, says: Says) {
        self.stub.says.lock().unwrap()[n].push_back(says);
    }

    /// How often agent `n` was asked.
    pub fn calls(&self, n: usize) -> usize {
        self.stub.calls.lock().unwrap()[n]
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown(Duration::from_secs(5));
        }
    }
}

/// An agent that takes connections and never says a word; it ends when dropped.
pub struct HungAgent(TcpListener);

impl HungAgent {
    pub fn start() -> HungAgent {
        HungAgent(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
}
