//! Owns the `roost` program: parses its arguments and hands over to the library.
//!
//! Never: does anything else itself.

use clap::Parser;
use roost::cli::{self, args::Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    prepare_glibc();
    match cli::run(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

/// A static glibc that loads the machine's name-service modules crashes when they were
/// built for another glibc; these two are compiled in. And memory that many threads free
/// goes back into two pools instead of eight for each core, which keeps it small.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn prepare_glibc() {
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const libc::c_char,
            services: *const libc::c_char,
        ) -> libc::c_int;
    }
    // SAFETY: both strings end with a zero byte and live for ever; no other thread runs.
    unsafe {
        __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr());
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(not(target_env = "gnu"))]
fn prepare_glibc() {}
