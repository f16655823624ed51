//! Owns the note of which commit is built, for `roost version`, and of its day, for the
//! manual page.
//!
//! Never: fails a build. Without git the commit is unknown, and so is the day.

use std::process::Command;

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    println!("cargo:rustc-env=BUILT_FROM_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let day = git(&["show", "--no-patch", "--format=%cs", "HEAD"]);
    println!("cargo:rustc-env=BUILT_FROM_DATE={}", day.as_deref().unwrap_or(""));
    println!("cargo:rerun-if-changed=src/build.rs");
    // Absent in a packaged copy; cargo then looks every time, which costs nothing there.
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
}

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok().filter(|_| out.status.success())?;
    Some(text.trim().to_owned())
}
