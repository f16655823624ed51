//! Owns a running proxy: its configuration from docs/proxies.md with the names, ports and
//! files of a test.
//!
//! Never: changes anything else of the configuration; outlives the test.

use crate::LOGIN;
use crate::support::docs::blocks;
use crate::support::{PATIENCE, eventually};
use rcgen::{CertificateParams, KeyPair};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Caddy,
    Nginx,
    Haproxy,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Caddy => "caddy",
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
        }
    }

    /// Where its program is; Debian's servers are not on every user's path.
    fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        places.map(|dir| dir.join(self.word())).find(|file| file.is_file())
    }
}

/// The first lines of its blocks.
pub(crate) fn titles(kind: Kind) -> Vec<String> {
    let title = |block: &String| block.lines().next().unwrap().trim_start_matches("# ").to_owned();
    blocks("docs/proxies.md", kind.word()).iter().map(title).collect()
}

/// A proxy that runs; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    /// With a slash at its end.
    pub(crate) url: String,
    /// What a client has to trust.
    pub(crate) ca: Option<PathBuf>,
    home: TempDir,
}

impl Proxy {
    /// The block with this title; `None`, loudly, without the program.
    pub(crate) fn start(
        kind: Kind,
        title: &str,
        path: &str,
        upstream: SocketAddr,
    ) -> Option<Proxy> {
        let Some(program) = kind.program() else {
            assert!(std::env::var_os("CI").is_none(), "there is no {}", kind.word());
            let words = format!("\nSKIPPED: {} is not here and was NOT tried\n\n", kind.word());
            let _ = std::io::stderr().write_all(words.as_bytes());
            return None;
        };
        let heading = format!("# {title}\n");
        let all = blocks("docs/proxies.md", kind.word());
        let block = all.iter().find(|block| block.starts_with(&heading)).unwrap();
        // Between the choice of a port and its use another may take it.
        Some(eventually("a proxy that runs", || {
            Proxy::try_start(kind, &program, block, path, upstream)
        }))
    }

    fn try_start(
        kind: Kind,
        program: &Path,
        block: &str,
        path: &str,
        upstream: SocketAddr,
    ) -> Option<Proxy> {
        let home = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let (text, is_tls) = configuration(kind, block, port, upstream, home.path());
        let config = home.path().join("config");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(program);
        match kind {
            Kind::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config),
            Kind::Nginx => command.args(["-e", "stderr", "-c"]).arg(&config),
            Kind::Haproxy => command.args(["-db", "-f"]).arg(&config),
        };
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        command.env("HOME", home.path()).env("XDG_DATA_HOME", home.path());
        command.env("ROOST_PASSWORD_HASH", password_hash(kind, block, program));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let host = if is_tls { "https://localhost" } else { "http://127.0.0.1" };
        let ca = is_tls.then(|| match kind {
            Kind::Caddy => home.path().join("caddy/pki/authorities/local/root.crt"),
            Kind::Nginx | Kind::Haproxy => home.path().join("roost.pem"),
        });
        let mut proxy = Proxy { child, url: format!("{host}:{port}/{path}"), ca, home };
        let ready = |ca: &Option<PathBuf>| {
            let listens = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
            listens && ca.as_ref().is_none_or(|ca| ca.is_file())
        };
        eventually("a proxy that listens or ends", || {
            let ended = proxy.child.try_wait().unwrap().is_some();
            (ended || ready(&proxy.ca)).then_some(())
        });
        if proxy.child.try_wait().unwrap().is_some() {
            let log = std::fs::read_to_string(proxy.home.path().join("log")).unwrap();
            assert!(log.to_lowercase().contains("in use"), "{kind:?} ended: {log}");
            return None;
        }
        Some(proxy)
    }

    /// What HAProxy knows of its servers.
    pub(crate) fn haproxy_state(&self) -> String {
        let mut socket = UnixStream::connect(self.home.path().join("stats")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"show stat\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The block with what a test has in the place of what a machine has; whether it is TLS.
fn configuration(
    kind: Kind,
    block: &str,
    port: u16,
    upstream: SocketAddr,
    home: &Path,
) -> (String, bool) {
    let dir = home.display();
    let mut text = block.to_owned();
    let mut put = |from: &str, to: &str, needed: bool| {
        assert!(!needed || text.contains(from), "{from:?} is not in {text}");
        text = text.replace(from, to);
    };
    // Servers: the second of two is not there.
    put("127.0.0.1:8000", &upstream.to_string(), !block.contains("10.0.0.5"));
    put("10.0.0.5:8000", &upstream.to_string(), false);
    put("10.0.0.6:8000", "127.0.0.1:1", false);
    let is_tls = kind == Kind::Caddy || block.contains(" ssl");
    match kind {
        Kind::Caddy => {
            put("roost.example.com {", &format!("https://localhost:{port} {{"), true);
            let global = "{\nadmin off\nskip_install_trust\nauto_https disable_redirects\n}\n";
            text.insert_str(0, global);
        }
        Kind::Nginx => {
            put("listen 443", &format!("listen 127.0.0.1:{port}"), is_tls);
            put("listen 80", &format!("listen 127.0.0.1:{port}"), !is_tls);
            put("/etc/ssl/", &format!("{dir}/"), is_tls);
            put("/etc/nginx/", &format!("{dir}/"), false);
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
                .concat();
            text = format!(
                "daemon off;\nmaster_process off;\npid {dir}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
            );
            let (user, password) = LOGIN.split_once(':').unwrap();
            let line = format!("{user}:{{PLAIN}}{password}\n");
            std::fs::write(home.join("roost.htpasswd"), line).unwrap();
        }
        Kind::Haproxy => {
            put("bind :443", &format!("bind 127.0.0.1:{port}"), is_tls);
            put("bind :80", &format!("bind 127.0.0.1:{port}"), !is_tls);
            put("/etc/haproxy/", &format!("{dir}/"), is_tls);
            text = format!("global\n    stats socket {dir}/stats\n\n{text}");
        }
    }
    certificate(kind, home);
    (text, is_tls)
}

/// `roost.pem` and `roost.key`, as each program wants them.
fn certificate(kind: Kind, home: &Path) {
    use base64::Engine;
    let pem = |label: &str, der: &[u8]| {
        let digits = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{digits}\n-----END {label}-----\n")
    };
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
    let key = pem("PRIVATE KEY", key.serialized_der());
    let together = if kind == Kind::Haproxy { certificate + &key } else { certificate };
    std::fs::write(home.join("roost.pem"), together).unwrap();
    std::fs::write(home.join("roost.key"), key).unwrap();
}

fn password_hash(kind: Kind, block: &str, program: &Path) -> String {
    if kind != Kind::Caddy || !block.contains("basicauth") {
        return String::new();
    }
    let (_, password) = LOGIN.split_once(':').unwrap();
    let made = Command::new(program).args(["hash-password", "--plaintext", password]).output();
    String::from_utf8(made.unwrap().stdout).unwrap().trim().to_owned()
}
