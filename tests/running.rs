//! Owns the proof that Roost is pleasant to run: under systemd, in a container, on a
//! terminal, with logs and warnings that people can use, and as docs/running.md says.
//!
//! Never: skips in silence. What needs root or a tool says so where it is missing, and
//! fails when `CI` is set.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "running/container.rs"]
mod container;
#[path = "running/documents.rs"]
mod documents;
#[path = "running/logs.rs"]
mod logs;
#[path = "running/manual.rs"]
mod manual;
mod support;
#[path = "running/systemd.rs"]
mod systemd;
#[path = "running/terminal.rs"]
mod terminal;

use std::io::Write;
use std::path::PathBuf;

/// Where a program is.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/sbin"]);
    places.map(|dir| PathBuf::from(dir).join(name)).find(|path| path.is_file())
}

/// Says that a test could not be run, past the capture of tests that pass.
fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}; CI must have it");
    let thread = std::thread::current();
    let text = format!("\nSKIPPED {}: {why}\n", thread.name().unwrap_or_default());
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
