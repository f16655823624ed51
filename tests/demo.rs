//! The demo as people run it: it ends by itself, says that all is well, and leaves nothing
//! behind.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

/// A demo whose directories lie in `temporary`, and which no setting of this machine reaches.
fn demo(temporary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("ROOST_")) {
        command.env_remove(name);
    }
    command.arg("demo").args(arguments).current_dir(temporary).env("TMPDIR", temporary);
    command
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn a_demo_ends_by_itself_and_all_is_well() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(temporary.path(), &["--for", "8s", "--seed", "7"]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{complaints}");
    assert!(told.contains("listening on http://127.0.0.1:"), "{told}");
    assert!(told.contains("FAULT     1  "), "{told}");
    let (_, table) = told.split_once("REPAIRED AFTER\n").unwrap();
    let rows: Vec<&str> = table.lines().collect();
    let (verdict, faults) = rows.split_last().unwrap();
    assert!(!faults.is_empty(), "{table}");
    let plural = if faults.len() == 1 { "" } else { "s" };
    let expected = format!("{} fault{plural}, all noticed and repaired; ", faults.len());
    assert!(verdict.contains(&expected), "{table}");
    assert!(verdict.ends_with("on 20 sandboxes, and is whole"), "{table}");
    assert!(is_empty(temporary.path()), "something is left behind");
}

#[test]
fn an_interrupted_demo_says_how_it_went_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let arguments = ["--hosts", "2", "--sandboxes", "1", "--seed", "7"];
    let mut child = demo(temporary.path(), &arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("  FAULT  ") {
        line.clear();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended before any fault");
    }
    assert!(!is_empty(temporary.path()));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("all noticed and repaired"), "{rest}");
    assert!(is_empty(temporary.path()), "something is left behind");
}

#[test]
fn a_fault_that_nobody_noticed_is_a_failure() {
    let temporary = tempfile::tempdir().unwrap();
    // Nobody looks often enough to notice before the second interrupt.
    let slow = ["--hosts", "1", "--sandboxes", "0", "--seed", "7"];
    let slow = slow.into_iter().chain(["--unreachable-after", "1h", "--probe-interval", "1h"]);
    let arguments: Vec<&str> = slow.collect();
    let mut command = demo(temporary.path(), &arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for (awaited, signal) in [("  FAULT  ", Signal::INT), ("  ending  ", Signal::TERM)] {
        while !line.contains(awaited) {
            line.clear();
            assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended before {awaited:?}");
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest}");
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains(") was not noticed"), "{complaint}");
    assert!(rest.contains("never"), "{rest}");
    assert!(is_empty(temporary.path()), "something is left behind");
}
