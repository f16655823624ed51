//! Owns the conversation with host agents: messages, transport, and what an answer means.
//!
//! Never: decides what an answer changes, retries, keeps connections, asks the database.
//! Called by `engine`; the simulated agents of `sim` use the messages.

pub mod client;
pub mod listing;
mod transport;
pub mod wire;
