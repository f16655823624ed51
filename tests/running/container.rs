//! Owns what can be known of the image without building it: the program runs in an empty
//! root, as the user, with the variables and by the commands that the Dockerfile names.
//!
//! Never: builds the image; there is no Docker here. That step is not tested.

use crate::support::server::Serving;
use crate::support::{Done, eventually};
use crate::{is_root, program, skipped};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What the Dockerfile says of the last stage, and of the directories made for it.
struct Image {
    variables: BTreeMap<String, String>,
    user: (u32, u32),
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    health: Vec<String>,
    volume: String,
    port: String,
    /// Path, mode and owner.
    dirs: Vec<(String, u32, u32)>,
}

impl Image {
    fn read() -> Image {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/Dockerfile");
        let text = std::fs::read_to_string(path).unwrap();
        let (build, image) = text.split_once("FROM scratch\n").unwrap();
        let all = |word: &str| -> Vec<&str> {
            let start = format!("{word} ");
            image.lines().filter_map(|line| line.strip_prefix(&start)).collect()
        };
        let words = |json: &str| serde_json::from_str::<Vec<String>>(json).unwrap();
        let one = |word: &str| {
            assert_eq!(all(word).len(), 1, "{word}");
            all(word)[0]
        };
        let (user, group) = one("USER").split_once(':').unwrap();
        let variables = all("ENV").into_iter().map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        });
        let mut dirs = Vec::new();
        for line in build.lines().filter_map(|line| line.strip_prefix("RUN install -d -m ")) {
            let (mode, made) = line.split_once(' ').unwrap();
            let copied = all("COPY").into_iter().find_map(|copy| {
                let parts: Vec<&str> = copy.split(' ').collect();
                let owner = parts.iter().find_map(|part| part.strip_prefix("--chown="));
                let owner = owner.map_or(0, |o| o.split(':').next().unwrap().parse().unwrap());
                let [from, to] = parts[parts.len() - 2..] else { panic!("{copy}") };
                Some((format!("{to}{}", made.strip_prefix(from)?), owner))
            });
            let (path, owner) = copied.unwrap_or_else(|| panic!("{made} is not copied"));
            dirs.push((path, u32::from_str_radix(mode, 8).unwrap(), owner));
        }
        Image {
            variables: variables.collect(),
            user: (user.parse().unwrap(), group.parse().unwrap()),
            entrypoint: words(one("ENTRYPOINT")),
            cmd: words(one("CMD")),
            health: words(one("HEALTHCHECK").split_once("CMD ").unwrap().1),
            volume: words(one("VOLUME")).remove(0),
            port: one("EXPOSE").to_owned(),
            dirs,
        }
    }
}

/// The image as a directory, with a network of its own.
struct Container {
    image: Image,
    root: TempDir,
}

impl Container {
    fn new() -> Container {
        let (image, root) = (Image::read(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(root.path().join("usr/local/bin")).unwrap();
        let program = root.path().join("usr/local/bin/roost");
        std::fs::copy(env!("CARGO_BIN_EXE_roost"), &program).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o555)).unwrap();
        for (path, mode, owner) in &image.dirs {
            let path = root.path().join(path.trim_start_matches('/'));
            builder.create(&path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode)).unwrap();
            chown(&path, Some(*owner), Some(*owner)).unwrap();
        }
        Container { image, root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// `args` in the root, as its user, with its variables; `enter` brings the network.
    fn run(&self, enter: &[&str], args: &[String]) -> Command {
        let (user, group) = self.image.user;
        let script = "[ $1 = . ] || \"$1\" link set lo up; shift; exec \"$@\"";
        let mut command = Command::new(program(enter[0]).unwrap());
        command.args(&enter[1..]).args(["/bin/sh", "-c", script, "sh"]);
        let ip = program("ip").filter(|_| enter[0] == "unshare");
        command.arg(ip.unwrap_or_else(|| PathBuf::from(".")));
        command.arg(program("chroot").unwrap()).arg(format!("--userspec={user}:{group}"));
        command.arg(format!("--groups={group}")).arg(self.root.path()).args(args);
        command.env_clear().envs(&self.image.variables);
        command
    }

    /// As `docker exec` runs it.
    fn exec(&self, serving: &Serving, args: &[&str]) -> Done {
        let net = format!("--net=/proc/{}/ns/net", serving.pid());
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Done::of(self.run(&["nsenter", &net], &args).output().unwrap())
    }
}

fn mode(path: &Path) -> (u32, u32) {
    let found = std::fs::metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid())
}

#[test]
fn the_dockerfile_fits_together() {
    let image = Image::read();
    assert!(image.user.0 > 0 && image.user.1 > 0, "not root");
    assert_eq!(image.variables["ROOST_LISTEN"], format!("0.0.0.0:{}", image.port));
    assert_eq!(image.variables["ROOST_DATA_DIR"], image.volume);
    assert_eq!(image.health, ["roost", "health"]);
    assert_eq!([image.entrypoint, image.cmd].concat(), ["roost", "serve"]);
    let owned = (image.volume, 0o700, image.user.0);
    assert!(image.dirs.contains(&owned), "{:?}", image.dirs);
    assert!(image.dirs.contains(&("/tmp".to_owned(), 0o1777, 0)), "{:?}", image.dirs);
}

#[test]
fn it_runs_in_an_empty_root_as_nobody_in_particular() {
    let tools = ["unshare", "nsenter", "ip", "chroot"];
    if !is_root() || tools.iter().any(|tool| program(tool).is_none()) {
        return skipped("needs root, and util-linux, iproute2 and coreutils");
    }
    let container = Container::new();
    let image = &container.image;
    let start = [image.entrypoint.clone(), image.cmd.clone()].concat();
    let mut serving = Serving::start(container.run(&["unshare", "--net"], &start));
    let health: Vec<&str> = image.health.iter().map(String::as_str).collect();
    eventually("health", || (container.exec(&serving, &health).code == 0).then_some(()));
    let said = container.exec(&serving, &health).ok();
    assert_eq!(said, format!("ready at http://127.0.0.1:{}\n", image.port));
    serving.logged(&["without TLS"]);

    // What people run inside, a temporary copy included.
    container.exec(&serving, &["roost", "hosts", "add"]).ok();
    let text = container.exec(&serving, &["roost", "hosts"]).ok();
    assert!(text.contains("pending"), "{text}");
    container.exec(&serving, &["roost", "check", "--dry-run"]).ok();
    container.exec(&serving, &["roost", "db", "verify"]).ok();
    container.exec(&serving, &["roost", "db", "dump"]).ok();
    let left = std::fs::read_dir(container.path("/tmp")).unwrap().count();
    assert_eq!(left, 0, "temporary files are gone");

    // Docker brings /etc/hosts; there is no nsswitch.conf.
    std::fs::create_dir(container.path("/etc")).unwrap();
    std::fs::write(container.path("/etc/hosts"), "127.0.0.1 control.example\n").unwrap();
    let url = format!("http://control.example:{}", image.port);
    container.exec(&serving, &["roost", "health", "--url", &url]).ok();

    let uid = image.user.0;
    assert_eq!(mode(&container.path(&image.volume)), (0o700, uid));
    for secret in ["admin.key", "host-token.key"] {
        let path = container.path(&format!("{}/{secret}", image.volume));
        assert_eq!(mode(&path), (0o600, uid), "{secret}");
    }
    assert_eq!(
        container.exec(&serving, &["roost", "health", "--url", "http://127.0.0.1:1"]).code,
        1
    );
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait(), 0);
}
