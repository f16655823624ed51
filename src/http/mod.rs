//! Owns the transport of our HTTP server: sockets, deadlines, limits, HTTP/1.1, TLS.
//!
//! Never: routes, authentication, JSON of the API, the database; header values and bodies in
//! logs. Called by `api` (handlers), `engine` (start and stop) and `sim` (simulated agents).
//!
//! A connection is a state machine (`connection`) that is advanced when its socket is ready
//! and never waits; between turns it is parked (`table`) and holds neither a thread nor a
//! buffer. Workers wait together on one epoll (`worker`); the `reaper` deals with those whose
//! deadline is due. Only streams and deferred responses, on threads of their own, may take
//! time; a handler returns soon.

mod buffer;
mod chunked;
mod client;
mod connection;
mod deferred;
mod ears;
mod figures;
mod lane;
mod limits;
mod parse;
mod reaper;
mod reject;
mod request;
mod response;
mod server;
mod service;
mod stop;
mod stream;
mod table;
#[cfg(test)]
mod testing;
mod timer;
mod tls;
mod token;
#[doc(hidden)]
pub mod transcript;
mod transport;
mod watch;
mod worker;

pub use client::trust_in;
pub use deferred::{Caller, Claim};
pub use ears::Hearing;
pub use figures::HttpFigures;
pub use lane::{Holder, Lane, LaneLimits, Slot};
pub use limits::{BODY_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX, ServerConfig, TARGET_BYTES_MAX};
pub use request::{Headers, Method, Request};
pub use response::{Body, Response};
pub use server::Server;
pub use service::Handler;
pub use stream::StreamWriter;
pub use tls::TlsSource;
pub use watch::Waited;
