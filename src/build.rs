//! Owns the note of which commit is built, for `roost version`.
//!
//! Never: fails a build. Without git the commit is unknown.

use std::process::Command;

fn main() {
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = git.ok().filter(|out| out.status.success());
    let commit = commit.and_then(|out| String::from_utf8(out.stdout).ok());
    println!("cargo:rustc-env=BUILT_FROM_COMMIT={}", commit.as_deref().unwrap_or("unknown").trim());
    println!("cargo:rerun-if-changed=src/build.rs");
    // Absent in a packaged copy; cargo then looks every time, which costs nothing there.
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
}
