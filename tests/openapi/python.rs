//! Python with the packages of requirements.txt, installed once beside the build.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) struct Python {
    /// Directory with its programs.
    bin: PathBuf,
}

/// `None`, loudly, on a machine without it.
pub(crate) fn with_packages() -> Option<Python> {
    let why = match install() {
        Ok(bin) => return Some(Python { bin }),
        Err(why) => why,
    };
    assert!(std::env::var_os("CI").is_none(), "the API cannot be compared here: {why}");
    // Not by the macro, whose words a test that succeeds keeps for itself.
    let words = format!("\nSKIPPED: docs/openapi.yaml was NOT held against the server: {why}\n\n");
    let _ = std::io::stderr().write_all(words.as_bytes());
    None
}

fn install() -> Result<PathBuf, String> {
    let wanted = std::fs::read(root().join("tests/openapi/requirements.txt")).unwrap();
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi");
    std::fs::create_dir_all(&to).unwrap();
    let lock = File::create(to.join("installing")).unwrap();
    lock.lock().unwrap();
    let (mark, bin) = (to.join("installed"), to.join("venv/bin"));
    if std::fs::read(&mark).ok().as_ref() != Some(&wanted) {
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(to.join("venv")))?;
        let mut pip = Command::new(bin.join("pip"));
        pip.args(["install", "--quiet", "--no-deps", "-r", "tests/openapi/requirements.txt"]);
        succeed(pip.current_dir(root()))?;
        std::fs::write(&mark, &wanted).unwrap();
    }
    Ok(bin)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr))),
    }
}

impl Python {
    /// Runs a script of the repository, which must succeed.
    pub(crate) fn run(&self, script: &str, args: &[&str], env: &[(&str, &str)]) {
        let script = root().join(script);
        self.start("python", &[&[script.to_str().unwrap()], args].concat(), env);
    }

    /// Runs schemathesis, which must find nothing.
    pub(crate) fn st(&self, args: &[&str], env: &[(&str, &str)]) {
        self.start("st", args, env);
    }

    fn start(&self, program: &str, args: &[&str], env: &[(&str, &str)]) {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new(self.bin.join(program));
        command.args(args).envs(env.iter().copied()).current_dir(scratch.path());
        command.env("PYTHONPATH", root().join("tests/openapi"));
        command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HYPOTHESIS_STORAGE_DIRECTORY", scratch.path());
        let done = command.output().unwrap();
        let told =
            [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(done.status.success(), "{program}:\n{}", told.concat());
    }
}
