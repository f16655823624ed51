//! Owns what a service manager such as systemd is told: starting, ready, reloading,
//! stopping, and that scheduler and writer go on. Datagrams as sd_notify(3) has them.
//!
//! Never: fails a caller because nobody listens; says "alive" for a thread that has not
//! just answered. The variables stay in the environment: there are no children to hide
//! them from.

use crossbeam_channel::{RecvTimeoutError, Sender};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// How much longer a start may take, from each time we say so. Larger: a start that ended
/// without a word is noticed later; smaller: a machine under load misses its own word.
const START_MAY_TAKE: Duration = Duration::from_secs(60);

/// How often that is said. Larger and one lost datagram fails a start; smaller is noise.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// How long a datagram waits for room in the manager's socket. Larger: a manager that hangs
/// holds us up; smaller: a busy one misses that we are ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to whoever started us; silent when nobody asked to be told.
#[derive(Debug, Clone, Default)]
pub struct Notify {
    to: Option<Arc<Place>>,
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Place {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Notify {
    /// By the environment of this process: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_process() -> Notify {
        Notify::from_variables(&|name| std::env::var_os(name), std::process::id())
    }

    /// The same by any environment. What cannot be used is logged and left out.
    fn from_variables(get: &dyn Fn(&str) -> Option<OsString>, pid: u32) -> Notify {
        let Some(name) = get("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Notify::default();
        };
        let place = match Place::of(&name) {
            Ok(place) => place,
            Err(error) => {
                log::warn!("could not use NOTIFY_SOCKET: {error}; nobody hears that we run");
                return Notify::default();
            }
        };
        let number = |name: &str| -> Option<u64> { get(name)?.to_str()?.parse().ok() };
        // The variables may have been meant for a process before us.
        let ours = get("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(pid.into());
        let watchdog = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        Notify { to: Some(Arc::new(place)), watchdog: watchdog.map(Duration::from_micros) }
    }

    /// How often the watchdog wants to hear of us; `None`: there is none.
    pub fn feed_every(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The start takes longer than usual, and why; until the answer is dropped it is said
    /// again and again, or a long migration would be taken for a failed start.
    pub fn starting(&self, status: &str) -> Extended {
        self.extend("starting", &status_line(status))
    }

    /// Asks for more time, with this first, and again and again until the answer is dropped.
    fn extend(&self, thread: &'static str, first: &str) -> Extended {
        self.say(&format!("{first}\n{}", may_take()));
        let (keep, kept) = crossbeam_channel::bounded::<()>(0);
        let notify = self.clone();
        if notify.to.is_some() {
            let go_on = move || {
                while kept.recv_timeout(SAY_EVERY) == Err(RecvTimeoutError::Timeout) {
                    notify.say(&may_take());
                }
            };
            spawn(thread, go_on);
        }
        Extended { _keep: keep }
    }

    /// What goes on, for people.
    pub fn status(&self, status: &str) {
        self.say(&status_line(status));
    }

    /// We listen and the monitor runs; also said after a reload.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\n{}", status_line(status)));
    }

    /// Other settings are being taken over.
    pub fn reloading(&self) {
        // Compared with the manager's own clock; nothing here is decided by it.
        let at = clock_gettime(ClockId::Monotonic);
        let micros = at.tv_sec * 1_000_000 + at.tv_nsec / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// We are about to end in order; calls in flight may take their time.
    pub fn stopping(&self) -> Extended {
        self.extend("stopping", "STOPPING=1\nSTATUS=stopping: what is in flight ends first")
    }

    /// Feeds the watchdog, if there is one, each time `alive` has found that everybody goes
    /// on. `alive` waits for as long as it takes, and is false when somebody has ended.
    pub(super) fn feed(&self, mut alive: impl FnMut() -> bool + Send + 'static) {
        let Some(every) = self.feed_every() else { return };
        let notify = self.clone();
        spawn("watchdog", move || {
            while alive() {
                notify.say("WATCHDOG=1");
                std::thread::sleep(every);
            }
        });
    }

    fn say(&self, what: &str) {
        let Some(place) = &self.to else { return };
        // Not to be told is the manager's choice; a log line each time would help nobody.
        if let Err(error) = place.socket.send_to_addr(what.as_bytes(), &place.address) {
            log::debug!("could not tell the service manager: {error}");
        }
    }
}

impl Place {
    /// A path, or the name of an abstract socket after `@`.
    fn of(name: &OsStr) -> std::io::Result<Place> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(std::io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Place { socket, address })
    }
}

/// A start that takes its time; over when dropped.
#[derive(Debug)]
pub struct Extended {
    _keep: Sender<()>,
}

fn may_take() -> String {
    format!("EXTEND_TIMEOUT_USEC={}", START_MAY_TAKE.as_micros())
}

/// One line, whatever is in it.
fn status_line(status: &str) -> String {
    format!("STATUS={}", crate::logging::one_line(status))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    if let Err(error) = thread.spawn(run) {
        log::error!("could not tell the service manager that we go on: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn of(pairs: &[(&str, &str)]) -> Notify {
        let get = |name: &str| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Notify::from_variables(&get, 7)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn paths_and_abstract_names_are_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        of(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).ready("listening\non\u{1b}");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=listening\\non\\u{1b}");

        let name = format!("roost-test-{}", path.display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        of(&[("NOTIFY_SOCKET", &format!("@{name}"))]).stopping();
        assert!(heard(&socket).starts_with("STOPPING=1\n"));
    }

    #[test]
    fn nobody_there_is_no_trouble() {
        for name in ["", "vsock:2:9", "relative", "/nowhere/notify", "@nobody"] {
            let notify = of(&[("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "10")]);
            notify.ready("x");
            drop(notify.starting("x"));
        }
    }

    #[test]
    fn the_watchdog_may_be_meant_for_another() {
        let every = |pid: Option<&str>, micros: &str| {
            let pid = pid.map(|pid| ("WATCHDOG_PID", pid));
            let pairs = [("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", micros)];
            of(&pairs.into_iter().chain(pid).collect::<Vec<_>>()).feed_every()
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(every(None, "2000000"), second);
        assert_eq!(every(Some("7"), "2000000"), second);
        assert_eq!(every(Some("8"), "2000000"), None);
        assert_eq!(every(Some("x"), "2000000"), None);
        assert_eq!(every(None, "0"), None);
        assert_eq!(every(None, "soon"), None);
        assert_eq!(of(&[("WATCHDOG_USEC", "2000000")]).feed_every(), None);
    }

    #[test]
    fn it_is_fed_only_after_a_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notify = of(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "2000")]);
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        notify.feed(move || count.fetch_add(1, Ordering::Relaxed) < 3);
        for _ in 0..3 {
            assert_eq!(heard(&socket), "WATCHDOG=1");
        }
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err(), "somebody has ended");
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }
}
