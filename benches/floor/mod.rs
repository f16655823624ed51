//! The floor of a pass: one thread that asks every host over epoll, unpacks, finds the ids
//! in the bytes, compares them with the rows and writes what changed, and nothing else. It
//! runs in a process of its own, so that its start and its end count as Roost's do.
//!
//! Never: a lower bound by leaving work out. Every listed id is compared with its row, and
//! every row that a pass changes is written with its event and its audit entry. What a floor
//! may leave out is everything that makes an answer safe to believe.

mod rows;

use crate::stage::Result;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use memchr::memmem::Finder;
use rows::Rows;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wait4::Wait4;

/// What makes the bench this program.
pub(crate) const ARG: &str = "--floor";

/// Hosts that are asked at a time.
const IN_FLIGHT: usize = 128;

/// Most bytes of one answer's JSON; more than any fleet of the bench sends.
const PLAIN_BYTES_MAX: usize = 1 << 20;

/// Bytes of a gzip member before and after what is packed.
const GZIP_HEAD_BYTES: usize = 10;
const GZIP_TAIL_BYTES: usize = 8;

/// Wall and processor time of one pass over a database, which is written in so many
/// transactions.
pub(crate) fn pass(db: &Path, transactions: usize) -> Result<(Duration, Duration)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ARG).arg(db).arg(transactions.to_string()).stdin(Stdio::null());
    let began = Instant::now();
    let used = command.spawn()?.wait4()?;
    let wall = began.elapsed();
    if !used.status.success() {
        return Err(format!("the floor ended with {}", used.status).into());
    }
    Ok((wall, used.rusage.utime + used.rusage.stime))
}

/// The program itself.
pub(crate) fn main(mut args: impl Iterator<Item = String>) -> Result<()> {
    let db = args.next().ok_or("which database?")?;
    let transactions = args.next().ok_or("how many transactions?")?.parse()?;
    let mut rows = Rows::open(Path::new(&db), transactions)?;
    let mut fleet = Fleet::new(rows.addresses()?)?;
    let mut scan = Scan::new();
    while let Some((host, answer)) = fleet.next_answer()? {
        let json = scan.unpack(&answer)?;
        rows.host_answered(host, json)?;
        fleet.give_back(answer);
    }
    rows.finish()
}

/// The hosts, and the connections that are open to them.
struct Fleet {
    addresses: Vec<SocketAddr>,
    epoll: OwnedFd,
    open: Vec<Option<(OwnedFd, Vec<u8>)>>,
    asked: usize,
    in_flight: usize,
    ready: Vec<epoll::Event>,
    buffers: Vec<Vec<u8>>,
}

impl Fleet {
    fn new(addresses: Vec<SocketAddr>) -> Result<Fleet> {
        Ok(Fleet {
            open: addresses.iter().map(|_| None).collect(),
            addresses,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            asked: 0,
            in_flight: 0,
            ready: Vec::with_capacity(IN_FLIGHT),
            buffers: Vec::new(),
        })
    }

    /// The next host that has answered whole, by its number, and the answer. `None`: all have.
    fn next_answer(&mut self) -> Result<Option<(usize, Vec<u8>)>> {
        loop {
            while self.in_flight < IN_FLIGHT && self.asked < self.addresses.len() {
                self.connect(self.asked)?;
            }
            if self.in_flight == 0 {
                return Ok(None);
            }
            let Some(event) = self.ready.pop() else {
                let room = rustix::buffer::spare_capacity(&mut self.ready);
                epoll::wait(&self.epoll, room, None)?;
                continue;
            };
            let host = usize::try_from(event.data.u64())?;
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                self.ask(host)?;
            } else if self.receive(host)? {
                let (_, answer) = self.open[host].take().ok_or("answered twice")?;
                self.in_flight -= 1;
                return Ok(Some((host, answer)));
            }
        }
    }

    fn connect(&mut self, host: usize) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match net::connect(&socket, &self.addresses[host]) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        epoll::add(&self.epoll, &socket, EventData::new_u64(host as u64), EventFlags::OUT)?;
        self.open[host] = Some((socket, self.buffers.pop().unwrap_or_default()));
        (self.asked, self.in_flight) = (self.asked + 1, self.in_flight + 1);
        Ok(())
    }

    fn ask(&mut self, host: usize) -> Result<()> {
        let (socket, _) = self.open[host].as_ref().ok_or("not open")?;
        let request = format!(
            "POST /hostagent.v1.HostAgentService/ListSandboxes HTTP/1.1\r\nHost: {}\r\n\
             Content-Type: application/json\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\
             Content-Length: 2\r\n\r\n{{}}",
            self.addresses[host]
        );
        if net::send(socket, request.as_bytes(), SendFlags::NOSIGNAL)? != request.len() {
            return Err("a request was sent in part".into());
        }
        let data = EventData::new_u64(host as u64);
        Ok(epoll::modify(&self.epoll, socket, data, EventFlags::IN)?)
    }

    /// Takes what has come; true when that was the end.
    fn receive(&mut self, host: usize) -> Result<bool> {
        let (socket, answer) = self.open[host].as_mut().ok_or("not open")?;
        loop {
            answer.reserve(4096);
            let room = rustix::buffer::spare_capacity(answer);
            match net::recv(&*socket, room, RecvFlags::empty()) {
                Ok((_, 0)) => return Ok(true),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn give_back(&mut self, mut answer: Vec<u8>) {
        answer.clear();
        self.buffers.push(answer);
    }
}

/// Unpacks answers, always in the same memory.
struct Scan {
    inflate: Decompress,
    plain: Vec<u8>,
    head_end: Finder<'static>,
    gzip: Finder<'static>,
}

impl Scan {
    fn new() -> Scan {
        Scan {
            inflate: Decompress::new(false),
            plain: Vec::with_capacity(PLAIN_BYTES_MAX),
            head_end: Finder::new("\r\n\r\n"),
            gzip: Finder::new("content-encoding: gzip"),
        }
    }

    /// The JSON in an answer.
    fn unpack(&mut self, answer: &[u8]) -> Result<&[u8]> {
        let end = self.head_end.find(answer).ok_or("an answer without a head")?;
        let (head, body) = (&answer[..end], &answer[end + 4..]);
        if !head.starts_with(b"HTTP/1.1 200 ") || self.gzip.find(head).is_none() {
            return Err(format!("answered {}", String::from_utf8_lossy(head)).into());
        }
        let packed_end = body.len().checked_sub(GZIP_TAIL_BYTES).ok_or("no body")?;
        let packed = body.get(GZIP_HEAD_BYTES..packed_end).ok_or("no body")?;
        self.inflate.reset(false);
        self.plain.clear();
        let ended =
            self.inflate.decompress_vec(packed, &mut self.plain, FlushDecompress::Finish)?;
        let mut sum = Crc::new();
        sum.update(&self.plain);
        if ended != Status::StreamEnd || body[packed_end..packed_end + 4] != sum.sum().to_le_bytes()
        {
            return Err("an answer that cannot be unpacked".into());
        }
        Ok(&self.plain)
    }
}
