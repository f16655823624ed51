//! Owns many streams that are read by one thread.
//!
//! Never: judges what they show.

use super::PATIENCE;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// One stream.
pub(crate) struct Member {
    pub(crate) socket: TcpStream,
    /// Revisions of the events, as they came.
    pub(crate) seen: Vec<u64>,
    /// What has come: the beginning of a line; all of it when that is short.
    pub(crate) text: String,
    ended: bool,
}

/// Streams of one kind.
pub(crate) struct Crowd {
    pub(crate) members: Vec<Member>,
    epoll: OwnedFd,
}

/// Lets this process have as many files as it may.
pub(crate) fn allow_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Time that a process has spent on processors.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// What asks for a stream.
pub(crate) fn request(key: &str, query: &str) -> String {
    format!(
        "GET /v1/events{query} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\n\
         X-API-Key: {key}\r\n\r\n"
    )
}

impl Crowd {
    /// Opens `count` streams; all of them are listening.
    pub(crate) fn open(address: SocketAddr, key: &str, query: &str, count: usize) -> Crowd {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let request = request(key, query);
        let members = (0..count).map(|number| {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(request.as_bytes()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let data = EventData::new_u64(number as u64);
            epoll::add(&epoll, &socket, data, EventFlags::IN).unwrap();
            Member { socket, seen: Vec::new(), text: String::new(), ended: false }
        });
        let mut crowd = Crowd { members: members.collect(), epoll };
        crowd.wait("streams that listen", |member| {
            assert!(!member.ended, "refused: {}", member.text);
            !member.seen.is_empty() || member.text.contains(": listening\n")
        });
        crowd
    }

    /// Reads until every member's revisions are as wanted.
    pub(crate) fn gather(&mut self, what: &str, wanted: impl Fn(&[u64]) -> bool) {
        self.wait(what, |member| wanted(&member.seen));
    }

    /// Reads until all have ended.
    pub(crate) fn read_out(&mut self) {
        self.wait("the end of all streams", |member| member.ended);
    }

    fn wait(&mut self, what: &str, wanted: impl Fn(&Member) -> bool) {
        let until = Instant::now() + 2 * PATIENCE;
        let mut missing: Vec<bool> = self.members.iter().map(|member| !wanted(member)).collect();
        let mut left = missing.iter().filter(|missing| **missing).count();
        let mut events = Vec::with_capacity(256);
        while left > 0 {
            assert!(Instant::now() < until, "{what}: {left} of {} lack it", missing.len());
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&second)).unwrap();
            for event in events.drain(..) {
                let at = event.data.u64() as usize;
                let member = &mut self.members[at];
                member.read();
                if member.ended {
                    epoll::delete(&self.epoll, &member.socket).unwrap();
                }
                if missing[at] && wanted(member) {
                    missing[at] = false;
                    left -= 1;
                }
            }
        }
    }
}

impl Member {
    fn read(&mut self) {
        let mut bytes = [0; 16 * 1024];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.ended = true,
            Ok(count) => self.text.push_str(std::str::from_utf8(&bytes[..count]).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
        if self.ended || !self.text.contains("\nid: ") {
            return;
        }
        let whole = self.text.rfind('\n').map_or(0, |at| at + 1);
        let ids = self.text[..whole].lines().filter_map(|line| line.strip_prefix("id: "));
        self.seen.extend(ids.map(|id| id.parse::<u64>().unwrap()));
        // The line before stays, for what begins a line.
        self.text.drain(..whole - 1);
    }
}
