//! Owns trust from outside: the CA's files, certificates at registration and refresh, TLS
//! between the real server and simulated agents, HTTPS for the API, secrets that stay
//! secret.
//!
//! Never: the handshakes one by one, which `agent_tls` shows.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[path = "trust/agents.rs"]
mod agents;
#[path = "trust/authority.rs"]
mod authority;
#[path = "trust/clock.rs"]
mod clock;
#[path = "trust/https.rs"]
mod https;
