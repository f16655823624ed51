//! Owns what is promised to whoever watches Roost: the metrics, their documentation, alert
//! rules, the dashboard, and the pages that say what to do.
//!
//! Never: a figure without traffic behind it, an alarm without a section that helps.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

#[path = "metrics/operate.rs"]
mod operate;
#[path = "metrics/rules.rs"]
mod rules;
#[path = "metrics/scrape.rs"]
mod scrape;
mod support;

use expect_test::expect_file;
use roost::api::metrics::families;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn the_documentation_is_the_table() {
    expect_file!["../docs/metrics.md"].assert_eq(&families::reference());
}

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// `promtool` with these arguments and this on stdin; it must find nothing wrong. Where it
/// is not installed this is said, and is a failure in CI.
fn promtool(args: &[&str], stdin: &str) {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool: {error}; install prometheus");
            return eprintln!("SKIPPED: promtool {}: {error}", args.join(" "));
        }
    };
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let done = support::Done::of(child.wait_with_output().unwrap());
    assert_eq!(done.code, 0, "promtool {}: {}{}", args.join(" "), done.stdout, done.stderr);
}
