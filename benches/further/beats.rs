//! The load generator: heartbeats at a fixed pace over connections that stay open. It runs in
//! a process of its own.
//!
//! Never: waits for an answer before the next beat is sent. Every beat is due at a moment
//! that is fixed beforehand, and its time counts from that moment: a server that stalls is
//! charged for everything that came due meanwhile (no coordinated omission).

use crate::stage::Result;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What makes this program the generator.
pub(crate) const ARG: &str = "--generate-beats";

/// How long answers may come after the last beat was sent.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Longest sleep while nothing is due.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// What one run of the generator saw. Times are from the moment a beat was due.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Heard {
    pub(crate) sent: usize,
    /// Answered with 204.
    pub(crate) acknowledged: usize,
    /// Answered with anything else.
    pub(crate) otherwise: usize,
    /// Connections that could not be opened.
    pub(crate) refused: usize,
    /// Connections that the server closed.
    pub(crate) closed: usize,
    pub(crate) seconds: f64,
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) worst_ms: f64,
    /// 99 % of the beats due in the worst second were answered within this.
    pub(crate) worst_second_p99_ms: f64,
}

/// Beats with these tokens, each over a connection of its own, so many times a second in all.
pub(crate) fn beat(
    server: SocketAddr,
    tokens: &Path,
    per_second: f64,
    seconds: f64,
) -> Result<Heard> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ARG, &server.to_string()]).arg(tokens);
    command.args([per_second.to_string(), seconds.to_string()]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout)?),
        false => Err(format!("the generator ended with {}", output.status).into()),
    }
}

/// The generator itself.
pub(crate) fn main(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || args.next().ok_or("the generator needs four arguments");
    let (server, tokens) = (next()?.parse()?, std::fs::read_to_string(next()?)?);
    let (per_second, seconds) = (next()?.parse()?, next()?.parse()?);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let heard = Generator::connect(server, &tokens)?.run(per_second, seconds)?;
    Ok(serde_json::to_writer(std::io::stdout(), &heard)?)
}

/// One agent's connection.
struct Agent {
    stream: Option<TcpStream>,
    request: Vec<u8>,
    /// When the beats were due that are not answered, as their numbers.
    open: VecDeque<usize>,
    input: Vec<u8>,
}

struct Generator {
    agents: Vec<Agent>,
    poll: OwnedFd,
    heard: Heard,
    /// Number of each acknowledged beat, and its time.
    times: Vec<(usize, Duration)>,
}

impl Generator {
    fn connect(server: SocketAddr, tokens: &str) -> Result<Generator> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let (mut agents, mut heard) = (Vec::new(), Heard::default());
        for line in tokens.lines() {
            let (host, token) = line.split_once(' ').ok_or("a line is no host and token")?;
            let request = format!(
                "POST /v1/hosts/{host}/heartbeat HTTP/1.1\r\nHost: {server}\r\n\
                 X-Host-Token: {token}\r\nContent-Length: 0\r\n\r\n"
            );
            let stream = TcpStream::connect(server).ok();
            heard.refused += usize::from(stream.is_none());
            if let Some(stream) = &stream {
                stream.set_nodelay(true)?;
                let data = EventData::new_u64(agents.len() as u64);
                epoll::add(&poll, stream, data, EventFlags::IN)?;
            }
            let (open, input) = (VecDeque::new(), Vec::new());
            agents.push(Agent { stream, request: request.into_bytes(), open, input });
        }
        Ok(Generator { agents, poll, heard, times: Vec::new() })
    }

    fn run(mut self, per_second: f64, seconds: f64) -> Result<Heard> {
        let count = (per_second * seconds) as usize;
        let began = Instant::now();
        let due = |beat: usize| began + Duration::from_secs_f64(beat as f64 / per_second);
        let end = due(count) + LAST_ANSWERS;
        let mut next = 0;
        while next < count || (self.agents.iter().any(|a| !a.open.is_empty()) && now() < end) {
            while next < count && due(next) <= now() {
                self.send(next);
                next += 1;
            }
            let until = if next < count { due(next) } else { end };
            self.receive(until.saturating_duration_since(now()).min(SLEEP_MAX), due)?;
        }
        self.heard.seconds = began.elapsed().as_secs_f64();
        Ok(self.summarized(per_second))
    }

    fn send(&mut self, beat: usize) {
        let at = beat % self.agents.len();
        let agent = &mut self.agents[at];
        self.heard.sent += 1;
        let sent = agent.stream.as_mut().map(|stream| stream.write_all(&agent.request));
        match sent {
            Some(Ok(())) => agent.open.push_back(beat),
            Some(Err(_)) => self.close(at),
            None => {}
        }
    }

    fn close(&mut self, at: usize) {
        self.heard.closed += 1;
        self.agents[at].stream = None;
        self.agents[at].open.clear();
    }

    fn receive(&mut self, wait: Duration, due: impl Fn(usize) -> Instant) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&wait.try_into()?)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            let at = event.data.u64() as usize;
            let agent = &mut self.agents[at];
            let Some(stream) = &mut agent.stream else { continue };
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => self.close(at),
                Ok(read) => {
                    agent.input.extend_from_slice(&bytes[..read]);
                    self.take_answers(at, &due)?;
                }
            }
        }
        Ok(())
    }

    fn take_answers(&mut self, at: usize, due: &impl Fn(usize) -> Instant) -> Result<()> {
        let agent = &mut self.agents[at];
        while let Some((status, length)) = answer(&agent.input)? {
            agent.input.drain(..length);
            let beat = agent.open.pop_front().ok_or("an answer that nobody asked for")?;
            if status == 204 {
                self.heard.acknowledged += 1;
                self.times.push((beat, due(beat).elapsed()));
            } else {
                self.heard.otherwise += 1;
            }
        }
        Ok(())
    }

    fn summarized(mut self, per_second: f64) -> Heard {
        let mut seconds: Vec<Vec<Duration>> = Vec::new();
        for &(beat, time) in &self.times {
            let second = (beat as f64 / per_second) as usize;
            seconds.resize_with(seconds.len().max(second + 1), Vec::new);
            seconds[second].push(time);
        }
        let worst = seconds.iter_mut().map(|times| part(times, 0.99)).max();
        let mut all: Vec<Duration> = self.times.iter().map(|&(_, time)| time).collect();
        let ms = |span: Duration| span.as_secs_f64() * 1000.0;
        self.heard.median_ms = ms(part(&mut all, 0.5));
        self.heard.p99_ms = ms(part(&mut all, 0.99));
        self.heard.worst_ms = ms(part(&mut all, 1.0));
        self.heard.worst_second_p99_ms = ms(worst.unwrap_or_default());
        self.heard
    }
}

fn now() -> Instant {
    Instant::now()
}

/// The time within which this part of them were.
fn part(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    let rank = (times.len() as f64 * part).ceil() as usize;
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Status and length of the first answer, when it is whole.
fn answer(input: &[u8]) -> Result<Option<(u16, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(input)? else { return Ok(None) };
    let status = response.code.ok_or("an answer without a status")?;
    let named = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("content-length");
    let body = match response.headers.iter().find(named) {
        Some(header) => std::str::from_utf8(header.value)?.trim().parse()?,
        None => 0,
    };
    Ok((input.len() >= head + body).then_some((status, head + body)))
}
