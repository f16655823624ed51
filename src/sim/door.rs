//! Owns the port of one host: whether anything listens there.
//!
//! Never: gives the port away while nothing listens. Called by `host` and `fleet`.

use super::lock;
use crate::http::Server;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connections that wait to be accepted, for a host that was closed and opened again.
/// Larger: buys nothing; smaller: a burst of callers sees connections time out.
const BACKLOG: i32 = 128;

/// How long copies of a closed socket may live on. Larger: a port that is really taken is
/// reported late; smaller: a busy machine starts a process too slowly.
const COPIES_GONE_AFTER: Duration = Duration::from_secs(5);

/// The one server that listens for all hosts; none before it starts and after it ends.
pub(super) type SharedServer = Arc<Mutex<Option<Server>>>;

/// One host's port.
pub(super) struct Door {
    server: SharedServer,
    listener: usize,
    address: SocketAddr,
    /// While the port is closed: what keeps the system from giving it away.
    reserved: Mutex<Option<OwnedFd>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({})", self.address)
    }
}

impl Door {
    /// Open once the server runs.
    pub(super) fn new(server: SharedServer, listener: usize, address: SocketAddr) -> Door {
        Door { server, listener, address, reserved: Mutex::new(None) }
    }

    /// Opens or closes the port as `open` says, which is asked while no one else does. Fails
    /// when a port that is to be opened cannot be.
    pub(super) fn settle(&self, open: impl FnOnce() -> bool) -> io::Result<()> {
        let mut reserved = lock(&self.reserved);
        let server = lock(&self.server);
        let Some(server) = &*server else { return Ok(()) };
        match (open(), reserved.take()) {
            (false, None) => {
                server.close_listener(self.listener);
                *reserved = Some(patiently(|| reserve(self.address))?);
            }
            (true, Some(socket)) => {
                patiently(|| Ok(rustix::net::listen(&socket, BACKLOG)?))?;
                server.reopen_listener(self.listener, TcpListener::from(socket))?;
            }
            (_, unchanged) => *reserved = unchanged,
        }
        Ok(())
    }
}

/// A socket that has the address and does not listen. The system gives the port to no
/// process that asks for any free one.
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
