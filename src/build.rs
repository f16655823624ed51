//! Owns the note of which commit is built, for `roost version`, and how the program is
//! linked.
//!
//! Never: fails a build. Without git the commit is unknown.

use std::process::Command;

fn main() {
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = git.ok().filter(|out| out.status.success());
    let commit = commit.and_then(|out| String::from_utf8(out.stdout).ok());
    println!("cargo:rustc-env=BUILT_FROM_COMMIT={}", commit.as_deref().unwrap_or("unknown").trim());
    pack_relocations();
    println!("cargo:rerun-if-changed=src/build.rs");
    // Absent in a packaged copy; cargo then looks every time, which costs nothing there.
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
}

/// A static program moves itself to its address by a list of 24 bytes for every pointer it
/// holds; packed, these are bits, and the binary is 190 KB smaller. glibc 2.36 reads them
/// (2022); an older one to build with makes a program that dies at once.
fn pack_relocations() {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    if is_static && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo:rustc-link-arg-bin=roost=-Wl,-z,pack-relative-relocs");
    }
}
