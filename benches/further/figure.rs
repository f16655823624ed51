//! What is asked for and what is printed: one figure a line.
//!
//! Never: measures.

use crate::stage::{Result, rounded};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// What the command line asks for.
pub(crate) struct Asked {
    /// A smoke run.
    pub(crate) quick: bool,
    only: Option<String>,
}

impl Asked {
    pub(crate) fn read(mut args: impl Iterator<Item = String>) -> Result<Asked> {
        let (mut quick, mut only, mut bench) = (false, None, false);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => bench = true,
                "--quick" => quick = true,
                "--case" => only = Some(args.next().ok_or("--case needs a name")?),
                other => return Err(format!("unknown option {other:?}").into()),
            }
        }
        // `cargo test` runs benches without being asked to measure.
        Ok(Asked { quick: quick || !bench, only })
    }

    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|part| case.contains(part.as_str()))
    }
}

/// How a bench ends, whether all was right or what went wrong.
pub(crate) fn exit(name: &str, ran: Result<bool>) -> ExitCode {
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One figure of one case.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    case: &'static str,
    what: String,
    figure: f64,
    unit: &'static str,
    /// The most that it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// Prints figures and remembers what was wrong.
pub(crate) struct Sink {
    quick: bool,
    case: &'static str,
    faults: usize,
}

impl Sink {
    /// With small fleets goals mean nothing and are left out.
    pub(crate) fn new(quick: bool) -> Sink {
        Sink { quick, case: "", faults: 0 }
    }

    /// What follows is of this case.
    pub(crate) fn begin(&mut self, case: &'static str) {
        self.case = case;
    }

    /// A figure that has no goal.
    pub(crate) fn says(&self, what: &str, figure: f64, unit: &'static str) -> Result<()> {
        self.print(what, figure, unit, None)
    }

    /// A figure that should be this at most.
    pub(crate) fn judges(
        &self,
        what: &str,
        figure: f64,
        unit: &'static str,
        goal: f64,
    ) -> Result<()> {
        self.print(what, figure, unit, Some(goal).filter(|_| !self.quick))
    }

    fn print(&self, what: &str, figure: f64, unit: &'static str, goal: Option<f64>) -> Result<()> {
        let (what, figure) = (what.to_owned(), rounded(figure));
        let met = goal.map(|goal| figure <= goal);
        let line = Figure { case: self.case, what, figure, unit, goal, met };
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &line)?;
        Ok(writeln!(out)?)
    }

    /// Says that something did what it should not, unless it is `right`.
    pub(crate) fn expects(&mut self, right: bool, what: &str) {
        if !right {
            self.faults += 1;
            let _ = writeln!(std::io::stderr(), "further: {}: {what}", self.case);
        }
    }

    /// Whether everything did what it should.
    pub(crate) fn all_right(&self) -> bool {
        self.faults == 0
    }
}
