//! Owns what the unit tests of this room share.
//!
//! Never: compiled outside tests.

use super::connection::Connection;
use super::limits::BODY_BYTES_MAX;
use super::request::Request;
use super::response::Response;
use super::service::{Handler, Service};
use super::stop::StopSignal;
use super::transport::Transport;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Answers with the path.
pub(super) struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Response {
        Response::bytes(200, "text/plain", request.path.into_bytes())
    }
}

/// A service that answers with the path, and its stop.
pub(super) fn service() -> (Service, Arc<StopSignal>) {
    let stop = Arc::new(StopSignal::new().expect("made"));
    (Service::new(Arc::new(Echo), Arc::clone(&stop), Arc::default()), stop)
}

/// A connection as if just accepted, and its other end.
pub(super) fn connected() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (socket, peer) = listener.accept().expect("accepts");
    socket.set_nonblocking(true).expect("settable");
    (Connection::new(Transport::plain(socket), peer, 0, BODY_BYTES_MAX), client)
}
