//! The browser: found, given its package, started for one scene, and spoken with. A scene
//! asks for what happens behind the page with a line `want …` and hears `done`.

use crate::support::server::Serving;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Where everything is that a scene needs; `None`, loudly, on a machine without it.
pub(crate) struct Tools {
    chromium: PathBuf,
    /// Directory with the package that drives it.
    package: PathBuf,
}

pub(crate) fn tools() -> Option<Tools> {
    let why = match (BROWSERS.iter().find_map(|name| on_path(name)), on_path("npm")) {
        (Some(chromium), Some(npm)) => match package(&npm) {
            Ok(package) => return Some(Tools { chromium, package }),
            Err(why) => why,
        },
        (None, _) => "no chromium".to_owned(),
        (Some(_), None) => "no npm".to_owned(),
    };
    assert!(std::env::var_os("CI").is_none(), "the page cannot be tested here: {why}");
    // Not by the macro, whose words a test that succeeds keeps for itself.
    let words = format!("\nSKIPPED: the page was NOT tested in a browser: {why}\n\n");
    let _ = std::io::stderr().write_all(words.as_bytes());
    None
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Installs what the lock file says, once for all tests, beside the build.
fn package(npm: &Path) -> Result<PathBuf, String> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&to).unwrap();
    let lock = File::create(to.join("installing")).unwrap();
    lock.lock().unwrap();
    let wanted = std::fs::read(from.join("package-lock.json")).unwrap();
    let mark = to.join("installed");
    if std::fs::read(&mark).ok().as_ref() != Some(&wanted) {
        for name in ["package.json", "package-lock.json"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
        let install = ["ci", "--no-audit", "--no-fund"];
        let done = Command::new(npm).args(install).current_dir(&to).output().unwrap();
        if !done.status.success() {
            return Err(format!("npm ci: {}", String::from_utf8_lossy(&done.stderr)));
        }
        std::fs::write(&mark, &wanted).unwrap();
    }
    Ok(to)
}

/// Where a page is, and the key to it; outlives the server.
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
}

impl Place {
    pub(crate) fn of(serving: &Serving) -> Place {
        Place { address: serving.address(), key: serving.key().to_owned() }
    }
}

impl Tools {
    /// Plays one scene; `want` does what it asks for.
    pub(crate) fn play(&self, scene: &str, place: &Place, want: impl FnMut(&str)) {
        self.play_at(&format!("http://{}/", place.address), "", scene, place, want);
    }

    /// The same with the page at another URL, where `login` (user:password) is needed.
    pub(crate) fn play_at(
        &self,
        url: &str,
        login: &str,
        scene: &str,
        place: &Place,
        mut want: impl FnMut(&str),
    ) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/scenes.mjs");
        let mut node = Command::new("node")
            .arg(script)
            .arg(scene)
            .env("PAGE_URL", url)
            .env("PAGE_LOGIN", login)
            .env("PAGE_KEY", &place.key)
            .env("PAGE_CHROMIUM", &self.chromium)
            .env("PAGE_PACKAGE", &self.package)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut answers = node.stdin.take().unwrap();
        let mut told = Vec::new();
        for line in BufReader::new(node.stdout.take().unwrap()).lines().map_while(Result::ok) {
            match line.strip_prefix("want ") {
                Some(what) => {
                    want(what);
                    // A scene that has failed meanwhile says so itself.
                    let _ = answers.write_all(b"done\n");
                }
                None => told.push(line),
            }
        }
        assert!(node.wait().unwrap().success(), "scene {scene}:\n{}", told.join("\n"));
    }
}
