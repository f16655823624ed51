//! Owns the database: schema, the one writer, read-only readers, and what is kept in
//! memory between flushes. The only room that knows SQL.
//!
//! Never: decides what a probe means (`plan` does, called from here inside the writer's
//! transaction), talks to an agent or a client.

pub mod acceptance;
pub mod activity;
pub mod apply;
pub mod audit;
pub mod backup;
pub mod deletion;
pub mod error;
pub mod export;
pub mod fixture;
pub mod idempotency;
pub mod identity;
pub mod journal;
pub mod keys;
pub mod lifecycle;
pub mod notify;
pub mod open;
mod owed;
mod place;
pub mod presence;
pub mod read;
pub mod reports;
pub mod restore;
pub mod retention;
mod rows;
pub mod snapshots;
pub mod strangers;
pub mod tally;
pub mod templates;
mod ticket;
pub mod timeline;
mod transition;
pub mod unknown;
pub mod verify;
pub mod writer;

pub use error::StoreError;
/// An open database, for those who only pass it on.
pub use rusqlite::Connection;
