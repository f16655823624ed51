//! Owns the `roost` program: parses its arguments and hands over to the library.
//!
//! Never: does anything else itself.

use clap::Parser;
use roost::cli::{self, args::Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    keep_name_lookup_static();
    match cli::run(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

/// A static glibc that loads the machine's name-service modules crashes when they were
/// built for another glibc. These two are compiled in.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn keep_name_lookup_static() {
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const libc::c_char,
            services: *const libc::c_char,
        ) -> libc::c_int;
    }
    // SAFETY: both strings end with a zero byte and live for ever; no other thread runs.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}

#[cfg(not(target_env = "gnu"))]
fn keep_name_lookup_static() {}
