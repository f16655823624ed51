//! Owns the note of which commit is built, for `roost version`, the packing of large texts,
//! and how the program is linked.
//!
//! Never: fails a build for want of git: the commit is unknown then.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::path::Path;
use std::process::Command;

fn main() {
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = git.ok().filter(|out| out.status.success());
    let commit = commit.and_then(|out| String::from_utf8(out.stdout).ok());
    println!("cargo:rustc-env=BUILT_FROM_COMMIT={}", commit.as_deref().unwrap_or("unknown").trim());
    for text in ["src/api/page/index.html", "contrib/roost.1"] {
        pack(Path::new(text)).unwrap_or_else(|error| panic!("could not pack {text}: {error}"));
        println!("cargo:rerun-if-changed={text}");
    }
    pack_relocations();
    println!("cargo:rerun-if-changed=src/build.rs");
    // Absent in a packaged copy; cargo then looks every time, which costs nothing there.
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
}

/// Texts that are longer than their code: the binary is 100 KB smaller, and browsers get the
/// page as it is here.
fn pack(text: &Path) -> std::io::Result<()> {
    let dir = std::env::var_os("OUT_DIR").unwrap_or_default();
    let mut name = text.file_name().unwrap_or_default().to_owned();
    name.push(".gz");
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&std::fs::read(text)?)?;
    std::fs::write(Path::new(&dir).join(name), packed.finish()?)
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
