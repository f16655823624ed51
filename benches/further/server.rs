//! `roost serve` as a process, seen from outside: its answers, and what the kernel says it
//! uses.
//!
//! Never: touches its database while it runs.

use crate::stage::{ROOST, Result, quiet};
use roost::api::secret::TokenKey;
use roost::api::token;
use roost::model::id::HostId;
use roost::model::time::Wall;
use roost::store::open::open_reader;
use roost::store::read;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything may take before it counts as not happening.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Ticks of `/proc` in a second, on every architecture that Roost is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Open files that a shell gives by default. A server must do with it what it promises.
const OPEN_FILES: u32 = 1024;

/// The database in a data directory.
pub(crate) const DB: &str = "roost.db";

/// A running server; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    key: String,
}

impl Server {
    /// Starts a server on this data directory; also says how long it took from exec to a 200
    /// of `/readyz`.
    pub(crate) fn start(dir: &Path) -> Result<(Server, Duration)> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -Sn {OPEN_FILES}; exec \"$0\" \"$@\"")]);
        command.args([ROOST, "serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir);
        let log = File::options().create(true).append(true).open(dir.join("serve.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let began = Instant::now();
        let mut child = quiet(&mut command).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("listening on http://") else {
            let log = std::fs::read_to_string(dir.join("serve.log"))?;
            return Err(format!("roost serve did not start: {log}").into());
        };
        let mut server = Server { child, address: address.parse()?, key: String::new() };
        eventually("readiness", || Ok(server.get("/readyz")?.0 == 200))?;
        let took = began.elapsed();
        server.key = std::fs::read_to_string(dir.join("admin.key"))?.trim().to_owned();
        Ok((server, took))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn get(&self, path: &str) -> Result<(u16, String)> {
        self.ask("GET", path, "")
    }

    /// Status and body of an answer to the operator.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (key, length) = (&self.key, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\nX-API-Key: {key}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status = text.get(9..12).and_then(|status| status.parse().ok());
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        Ok(status.zip(body).ok_or_else(|| format!("no answer: {text:?}"))?)
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?.1;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.ok_or_else(|| format!("no {name} in {text}"))?.parse()?)
    }

    /// A line of `/proc/PID/status`, in MiB.
    fn memory_mib(&self, name: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no such line")?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    }

    /// Bytes that it has had written to files, in whole pages where the file system counts
    /// them.
    pub(crate) fn written_bytes(&self) -> Result<f64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let of = |name: &str| {
            let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.and_then(|count| count.parse::<f64>().ok()).unwrap_or_default()
        };
        Ok(of("write_bytes").max(of("wchar")))
    }

    /// Resident memory now.
    pub(crate) fn rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmRSS")
    }

    /// The most resident memory so far.
    pub(crate) fn peak_rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmHWM")
    }

    /// Seconds of processor time so far, of all its threads.
    pub(crate) fn cpu_s(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name of the program, in parentheses, may hold anything.
        let fields = stat.rsplit_once(')').ok_or("no name")?.1.split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("serve ended with {status}").into()) }
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > until {
            return Err(format!("waited {PATIENCE:?} in vain for {what}").into());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The wall clock.
pub(crate) fn now() -> Result<Wall> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(Wall(i64::try_from(since.as_millis())?))
}

/// The hosts of a data directory.
pub(crate) fn hosts(dir: &Path) -> Result<Vec<HostId>> {
    let db = open_reader(&dir.join(DB))?;
    Ok(read::hosts(&db)?.iter().map(|host| host.id).collect())
}

/// Writes a file that gives each host a genuine token, one pair a line.
pub(crate) fn write_tokens(dir: &Path, hosts: &[HostId], to: &Path) -> Result<()> {
    let key = TokenKey::load_or_create(&dir.join("host-token.key"))?;
    let now = now()?;
    let mut file = std::io::BufWriter::new(File::create(to)?);
    for host in hosts {
        writeln!(file, "{host} {}", token::sign(&key, *host, 0, now))?;
    }
    Ok(file.flush()?)
}
