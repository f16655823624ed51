//! Measures what proof.md asks for beside its table: ten thousand hosts, heartbeats under
//! load, connections that stay open, the start on a large database, an idle server, and the
//! size of the binary. One JSON object a figure.
//!
//! Never: fails because something was slow; wrong results are what ends it with 1. The
//! program measured is the one that ships, in a process of its own.
//!
//! `cargo bench --bench further` runs everything, `-- --quick` small fleets through the same
//! cases, `-- --case NAME` only what has NAME in it.

#[path = "../stage/mod.rs"]
mod stage;

mod beats;
mod binary;
mod connected;
mod figure;
mod idle;
mod scale;
mod server;
mod start;

use figure::{Asked, Sink};
use stage::Result;
use std::process::ExitCode;
use tempfile::TempDir;

/// What a case gets: whether it is a smoke run, where figures go, where files may be.
struct Bench {
    quick: bool,
    sink: Sink,
    dir: TempDir,
}

type Run = fn(&mut Bench) -> Result<()>;

/// In this order: a process starts out with its parent's peak of memory, so what needs much
/// of it in this process comes last.
const CASES: [(&str, Run); 6] = [
    ("binary", binary::run),
    ("scale", scale::run),
    ("start", start::run),
    ("heartbeats", connected::heartbeats),
    ("connections", connected::connections),
    ("idle", idle::run),
];

fn main() -> ExitCode {
    figure::exit("further", run())
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == beats::ARG).is_some() {
        return beats::main(args).map(|()| true);
    }
    let asked = Asked::read(args)?;
    let quick = asked.quick;
    let mut bench = Bench { quick, sink: Sink::new(quick), dir: tempfile::tempdir()? };
    for (name, run) in CASES {
        if asked.wants(name) {
            bench.sink.begin(name);
            run(&mut bench).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(bench.sink.all_right())
}
