//! Owns the conversation with host agents: messages, transport, mutual trust, and what an
//! answer means.
//!
//! Never: decides what an answer changes, retries, keeps connections, asks the database.
//! Called by `engine`; the simulated agents of `sim` use the messages.

pub mod authority;
mod body;
pub mod certificate;
pub mod client;
mod fence;
pub mod listing;
mod tcp;
pub mod transport;
pub mod trust;
pub mod wire;
