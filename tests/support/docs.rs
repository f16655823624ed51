//! Owns how the documentation is held to what it says: its `sh` blocks, run from the first
//! to the last in one shell, with stand-ins for programs that a test cannot have.
//!
//! Never: a block that is left out. What must not be run is no `sh` block.

use super::Done;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The blocks of a file between three backticks with this word and the closing ones.
pub fn blocks(file: &str, word: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let opening = format!("```{word}");
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match open.take() {
            Some(block) if line.trim() == "```" => blocks.push(block),
            Some(block) => open = Some(format!("{block}{line}\n")),
            None => open = (line.trim() == opening).then(String::new),
        }
    }
    assert!(open.is_none(), "{file}: a block does not end");
    assert!(!blocks.is_empty(), "{file} has no {word} block");
    blocks
}

/// A shell in a directory of its own in which `roost` is ours.
pub struct Shell {
    dir: TempDir,
    variables: BTreeMap<String, String>,
}

impl Shell {
    pub fn new() -> Shell {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::create_dir(dir.path().join("here")).unwrap();
        let shell = Shell { dir, variables: BTreeMap::new() };
        let roost = env!("CARGO_BIN_EXE_roost");
        std::os::unix::fs::symlink(roost, shell.dir.path().join("bin/roost")).unwrap();
        shell
    }

    /// Where the commands are run.
    pub fn here(&self) -> PathBuf {
        self.dir.path().join("here")
    }

    /// Sets a variable for every command.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// A program of this name, as a shell script.
    pub fn stand_in(&self, name: &str, script: &str) {
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\nset -eu\n{script}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script; it ends at the first command that fails, and says which.
    pub fn run(&self, script: &str) -> Done {
        let bin = self.dir.path().join("bin");
        let mut command = Command::new("/bin/sh");
        command.args(["-eu", "-c", script]).current_dir(self.here()).stdin(Stdio::null());
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        command.env("TMPDIR", self.dir.path()).envs(&self.variables);
        Done::of(command.output().unwrap())
    }

    /// Runs all `sh` blocks of a file; gives what they printed.
    pub fn follow(&self, file: &str) -> String {
        let done = self.run(&blocks(file, "sh").join("\n"));
        assert_eq!(done.code, 0, "{file}: {}\n{}", done.stdout, done.stderr);
        done.stdout
    }
}
