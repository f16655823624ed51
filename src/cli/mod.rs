//! Owns the command line: what can be asked, and how answers are printed.
//!
//! Never: decides about hosts or sandboxes; it asks the rooms below. Called by `main`.

pub mod args;
pub mod output;
