//! Python with the packages of a requirements file, installed once beside the build.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A virtual environment.
pub struct Python {
    /// Directory with its programs.
    bin: PathBuf,
    /// Where the modules of the test are.
    modules: PathBuf,
}

impl Python {
    /// The packages of this file of the repository. `None`, loudly, on a machine without
    /// them: `unchecked` then says what was not checked. With `CI` set that is a failure.
    pub fn with(requirements: &str, unchecked: &str) -> Option<Python> {
        let file = root().join(requirements);
        let why = match install(&file) {
            Ok(bin) => return Some(Python { bin, modules: file.parent().unwrap().to_owned() }),
            Err(why) => why,
        };
        assert!(std::env::var_os("CI").is_none(), "{unchecked}: {why}");
        // Not by the macro, whose words a test that succeeds keeps for itself.
        let words = format!("\nSKIPPED: {unchecked}: {why}\n\n");
        let _ = std::io::stderr().write_all(words.as_bytes());
        None
    }

    /// Where a program of one of the packages is.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Runs a script of the repository, which must succeed.
    pub fn run(&self, script: &str, args: &[&str], env: &[(&str, &str)]) {
        let script = root().join(script);
        self.start("python", &[&[script.to_str().unwrap()], args].concat(), env);
    }

    /// Runs a program of one of the packages, which must succeed.
    pub fn start(&self, program: &str, args: &[&str], env: &[(&str, &str)]) {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new(self.bin.join(program));
        command.args(args).envs(env.iter().copied()).current_dir(scratch.path());
        command.env("PYTHONPATH", &self.modules);
        command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HYPOTHESIS_STORAGE_DIRECTORY", scratch.path());
        let done = command.output().unwrap();
        let told =
            [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(done.status.success(), "{program}:\n{}", told.concat());
    }
}

fn install(requirements: &Path) -> Result<PathBuf, String> {
    let wanted = std::fs::read(requirements).unwrap();
    // One for each file: `openapi-requirements`.
    let parts = [requirements.parent().unwrap().file_name(), requirements.file_stem()];
    let name = parts.map(|part| part.unwrap().to_str().unwrap()).join("-");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&to).unwrap();
    let lock = File::create(to.join("installing")).unwrap();
    lock.lock().unwrap();
    let (mark, bin) = (to.join("installed"), to.join("venv/bin"));
    if std::fs::read(&mark).ok().as_ref() != Some(&wanted) {
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(to.join("venv")))?;
        let mut pip = Command::new(bin.join("pip"));
        // What a package says of the interpreter that it needs is for the test to find out.
        pip.args(["install", "--quiet", "--no-deps", "--ignore-requires-python", "-r"]);
        succeed(pip.arg(requirements))?;
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
