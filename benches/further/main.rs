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

use figure::Sink;
use stage::Result;
use std::io::Write;
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
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "further: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    let (mut quick, mut only, mut bench) = (false, None, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            beats::ARG => return beats::main(args).map(|()| true),
            "--bench" => bench = true,
            "--quick" => quick = true,
            "--case" => only = Some(args.next().ok_or("--case needs a name")?),
            other => return Err(format!("unknown option {other:?}").into()),
        }
    }
    // `cargo test` runs benches without being asked to measure.
    let quick = quick || !bench;
    let mut bench = Bench { quick, sink: Sink::new(quick), dir: tempfile::tempdir()? };
    for (name, run) in CASES {
        if only.as_ref().is_none_or(|part| name.contains(part.as_str())) {
            bench.sink.begin(name);
            run(&mut bench).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(bench.sink.all_right())
}
