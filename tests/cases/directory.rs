//! Owns how a case lies on the disk: three files in one directory under `fixtures/`.
//!
//! Never: accepts a directory in part.

use crate::outcome::Outcome;
use crate::script::Script;
use std::path::{Path, PathBuf};

/// Directories under `fixtures/` that hold something else: what was recorded from a real agent and
/// from a real control plane.
const NO_CASES: &[&str] = &["wire", "reference"];

/// One case.
pub(crate) struct Case {
    pub(crate) fleet: String,
    pub(crate) script: Script,
    pub(crate) expected: Outcome,
    expected_at: PathBuf,
}

/// The name of every case directory and what it holds, or why that cannot be read.
pub(crate) fn all() -> Vec<(String, Result<Case, String>)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let entries = std::fs::read_dir(fixtures).expect("fixtures/ can be read");
    let mut dirs: Vec<PathBuf> = entries
        .map(|entry| entry.expect("fixtures/ can be read").path())
        .filter(|path| path.is_dir() && !NO_CASES.iter().any(|name| path.ends_with(name)))
        .collect();
    dirs.sort();
    dirs.iter().map(|dir| (name(dir), Case::read(dir))).collect()
}

fn name(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Case {
    fn read(dir: &Path) -> Result<Case, String> {
        let text = |file: &str| {
            std::fs::read_to_string(dir.join(file)).map_err(|e| format!("{file}: {e}"))
        };
        let script =
            Script::read(&text("agents.json")?).map_err(|e| format!("agents.json: {e}"))?;
        let expected = serde_json::from_str(&text("expected.json")?);
        Ok(Case {
            fleet: text("fleet.json")?,
            script,
            expected: expected.map_err(|e| format!("expected.json: {e}"))?,
            expected_at: dir.join("expected.json"),
        })
    }

    /// Writes down that this is how the case is to end.
    pub(crate) fn expect_from_now_on(&self, outcome: &Outcome) {
        std::fs::write(&self.expected_at, outcome.text()).expect("expected.json can be written");
    }
}
