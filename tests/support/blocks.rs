//! Owns the `sh` blocks of the documents: found in the text, run as a reader would.
//!
//! Never: runs a block of another language; goes on after one that failed.

use std::path::Path;
use std::process::{Command, Stdio};

/// Every block of a file that is marked `sh`, with the line where it begins.
pub fn sh_blocks(file: &str) -> Vec<(usize, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if line == "```sh" {
            let block: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            blocks.push((at + 1, block.join("\n")));
        }
    }
    assert!(!blocks.is_empty(), "{file} has no sh block");
    blocks
}

/// Runs every `sh` block of a file, each in a shell of its own that ends at the first
/// command that fails. `replacements` are made in the text before.
pub fn run_sh_blocks(file: &str, env: &[(&str, &str)], replacements: &[(&str, &str)]) {
    for (line, mut block) in sh_blocks(file) {
        for (from, to) in replacements {
            block = block.replace(from, to);
        }
        let mut shell = Command::new("sh");
        shell.args(["-eu", "-c", &block]).envs(env.iter().copied()).stdin(Stdio::null());
        let done = super::Done::of(shell.output().unwrap());
        assert_eq!(done.code, 0, "{file}:{line}\n{block}\n{}{}", done.stdout, done.stderr);
    }
}
