//! Owns the proof that docs/running.md tells the truth: every command in it is run.
//!
//! Never: runs a command of the machine's own; only those of `roost`.
