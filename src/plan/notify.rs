//! Owns what is announced to people and when: which problems are open, what cancels one
//! before anybody hears of it, what is told together, and in which words.
//!
//! Never: knows a target, or whether a message arrived. Called by `store` inside the
//! writer's transaction with what it sees wrong; times are wall times, because a delay goes
//! on over a restart. A clock that goes back makes nothing wait for longer than its span.

use crate::model::id::HostId;
use crate::model::notify::{NotifyKind, Phase, Severity};
use crate::model::time::Wall;
use std::collections::BTreeMap;
use std::time::Duration;

/// Hosts that one message names; the rest is counted. Larger: a message that no phone
/// shows; smaller: whoever reads of a rack must look elsewhere which hosts it has.
pub const HOSTS_NAMED_MAX: usize = 20;

/// How it is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long something must be wrong before anybody hears of it.
    pub delay: Duration,
    /// Time between two reminders; zero: none.
    pub reminder: Duration,
    /// Nobody is there to be told: everything waits.
    pub mute: bool,
}

impl Rules {
    /// How long a message waits at most for others of its kind that are nearly due.
    fn gather(&self) -> Duration {
        self.delay / 2
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It is wrong, for so many sandboxes (of the mass guard: hosts).
    Wrong(u64),
    /// It happened so many times since the last look.
    Happened(u64),
    /// Nobody can say at the moment.
    Unknown,
    /// An operator took the host out of watch.
    Unwatched,
}

/// A problem's key: what, and of which host if of one.
pub type Key = (NotifyKind, Option<HostId>);

/// A problem that is open, or was announced and not yet taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub kind: NotifyKind,
    /// Of which host; `None`: of all.
    pub host: Option<HostId>,
    /// Since when we know.
    pub opened_at: Wall,
    /// How many sandboxes it concerns.
    pub sandboxes: u64,
    /// The message that announced it, with others perhaps.
    pub announced: Option<String>,
    /// When anybody last heard of it.
    pub told_at: Option<Wall>,
    /// Since when it is over; it was announced, and its end is not yet.
    pub gone_at: Option<Wall>,
    /// It is over because an operator took the host out of watch.
    pub unwatched: bool,
}

/// What shall be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its own id.
    pub id: String,
    /// The id of the message that announced the problem: the same over its whole life.
    pub problem: String,
    /// About what.
    pub kind: NotifyKind,
    /// Begin, reminder or end.
    pub phase: Phase,
    /// How grave.
    pub severity: Severity,
    /// About which hosts, sorted; none: about all.
    pub hosts: Vec<HostId>,
    /// How many sandboxes it concerns.
    pub sandboxes: u64,
    /// Since when.
    pub since: Wall,
    /// One line.
    pub title: String,
    /// The whole of it.
    pub text: String,
}

/// What one look decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decided {
    /// What is open from now on, in order of key.
    pub problems: Vec<Problem>,
    /// What shall be sent, in this order.
    pub messages: Vec<Message>,
    /// When to look again, if nothing happens before.
    pub next_at: Option<Wall>,
}

/// Decides. `maintained` says until when an operator works on a host; `names` has the
/// machines as people know them; `fresh` makes an id.
pub fn decide(
    known: &[Problem],
    seen: &BTreeMap<Key, Sight>,
    maintained: &BTreeMap<HostId, Wall>,
    names: &BTreeMap<HostId, String>,
    now: Wall,
    rules: &Rules,
    fresh: &mut dyn FnMut() -> String,
) -> Decided {
    let decided = Decided::default();
    let mut round = Round { seen, maintained, names, now, rules, fresh, decided };
    let mut problems = round.merge(known);
    if !rules.mute {
        round.announce(&mut problems);
        round.take_back(&mut problems);
        round.remind(&mut problems);
    }
    for until in maintained.values().filter(|until| **until > now) {
        round.look_at(*until);
    }
    round.decided.problems = problems;
    round.decided
}

struct Round<'a> {
    seen: &'a BTreeMap<Key, Sight>,
    maintained: &'a BTreeMap<HostId, Wall>,
    names: &'a BTreeMap<HostId, String>,
    now: Wall,
    rules: &'a Rules,
    fresh: &'a mut dyn FnMut() -> String,
    decided: Decided,
}

impl Round<'_> {
    fn look_at(&mut self, at: Wall) {
        let next = self.decided.next_at.map_or(at, |next| next.min(at));
        self.decided.next_at = Some(next);
    }

    fn is_quiet(&self, problem: &Problem) -> bool {
        let until = problem.host.and_then(|host| self.maintained.get(&host));
        until.is_some_and(|until| *until > self.now)
    }

    /// Whether this very look saw it wrong: what nobody can say is not announced.
    fn is_wrong(&self, problem: &Problem) -> bool {
        match self.seen.get(&(problem.kind, problem.host)) {
            Some(Sight::Wrong(_) | Sight::Happened(_)) => true,
            None => problem.kind.is_passing(),
            Some(Sight::Unknown | Sight::Unwatched) => false,
        }
    }

    /// What is open after this look.
    fn merge(&mut self, known: &[Problem]) -> Vec<Problem> {
        let mut open: BTreeMap<Key, Problem> = BTreeMap::new();
        for problem in known {
            if let Some(problem) = self.go_on(problem.clone()) {
                open.insert((problem.kind, problem.host), problem);
            }
        }
        for (key, sight) in self.seen {
            let (Sight::Wrong(sandboxes) | Sight::Happened(sandboxes)) = *sight else { continue };
            let problem = open.entry(*key).or_insert_with(|| Problem {
                kind: key.0,
                host: key.1,
                opened_at: self.now,
                sandboxes: 0,
                announced: None,
                told_at: None,
                gone_at: None,
                unwatched: false,
            });
            problem.sandboxes = match sight {
                Sight::Happened(times) => problem.sandboxes.saturating_add(*times),
                Sight::Wrong(_) | Sight::Unknown | Sight::Unwatched => sandboxes,
            };
            (problem.gone_at, problem.unwatched) = (None, false);
        }
        // What fails while somebody works on a host is what they are there for.
        open.into_values().filter(|p| !(p.kind.is_passing() && self.is_quiet(p))).collect()
    }

    fn go_on(&self, mut problem: Problem) -> Option<Problem> {
        problem.opened_at = problem.opened_at.min(self.now);
        problem.told_at = problem.told_at.map(|at| at.min(self.now));
        problem.gone_at = problem.gone_at.map(|at| at.min(self.now));
        let sight = self.seen.get(&(problem.kind, problem.host));
        let unwatched = sight == Some(&Sight::Unwatched);
        let over = match sight {
            Some(Sight::Wrong(_) | Sight::Happened(_) | Sight::Unknown) => false,
            Some(Sight::Unwatched) => true,
            None => !problem.kind.is_passing(),
        };
        if over {
            problem.announced.as_ref()?;
            problem.gone_at = problem.gone_at.or(Some(self.now));
            problem.unwatched = unwatched;
        }
        Some(problem)
    }

    /// Announces what has been wrong for long enough; what is nearly so is waited for.
    fn announce(&mut self, problems: &mut Vec<Problem>) {
        for kind in NotifyKind::ALL {
            let due = |p: &Problem| p.opened_at.after(self.rules.delay);
            let pending: Vec<usize> = (0..problems.len())
                .filter(|&at| {
                    let p = &problems[at];
                    let waits = p.kind == *kind && p.announced.is_none();
                    waits && !self.is_quiet(p) && self.is_wrong(p)
                })
                .collect();
            let Some(first) = pending.iter().map(|&at| due(&problems[at])).min() else { continue };
            let latest = first.after(self.rules.gather());
            let near = pending.iter().map(|&at| due(&problems[at])).filter(|at| *at <= latest);
            let when = near.max().unwrap_or(first);
            if when > self.now {
                self.look_at(when);
                continue;
            }
            let (ready, later): (Vec<usize>, Vec<usize>) =
                pending.into_iter().partition(|&at| due(&problems[at]) <= self.now);
            for at in later {
                self.look_at(due(&problems[at]));
            }
            let id = (self.fresh)();
            self.say(problems, &ready, id.clone(), id, Phase::Open);
        }
        problems.retain(|p| !(p.kind.is_passing() && p.announced.is_some()));
    }

    /// Says that what was announced is over; the rest of its message is waited for.
    fn take_back(&mut self, problems: &mut Vec<Problem>) {
        let mut told = vec![false; problems.len()];
        for (id, members) in by_message(problems) {
            let heard: Vec<usize> =
                members.into_iter().filter(|&at| !self.is_quiet(&problems[at])).collect();
            let (gone, left): (Vec<usize>, Vec<usize>) =
                heard.into_iter().partition(|&at| problems[at].gone_at.is_some());
            let Some(first) = gone.iter().filter_map(|&at| problems[at].gone_at).min() else {
                continue;
            };
            let until = first.after(self.rules.gather());
            if !left.is_empty() && until > self.now {
                self.look_at(until);
                continue;
            }
            let (away, over): (Vec<usize>, Vec<usize>) =
                gone.iter().copied().partition(|&at| problems[at].unwatched);
            for some in [over, away].iter().filter(|some| !some.is_empty()) {
                let own = (self.fresh)();
                self.say(problems, some, own, id.clone(), Phase::Resolved);
            }
            gone.into_iter().for_each(|at| told[at] = true);
        }
        let mut told = told.into_iter();
        problems.retain(|_| !told.next().unwrap_or_default());
    }

    fn remind(&mut self, problems: &mut [Problem]) {
        if self.rules.reminder.is_zero() {
            return;
        }
        for (id, members) in by_message(problems) {
            let open: Vec<usize> = members
                .into_iter()
                .filter(|&at| problems[at].gone_at.is_none() && !self.is_quiet(&problems[at]))
                .collect();
            let told = open.iter().filter_map(|&at| problems[at].told_at).max();
            let Some(due) = told.map(|at| at.after(self.rules.reminder)) else { continue };
            if due > self.now {
                self.look_at(due);
                continue;
            }
            let own = (self.fresh)();
            self.say(problems, &open, own, id, Phase::Reminder);
            self.look_at(self.now.after(self.rules.reminder));
        }
    }

    fn say(
        &mut self,
        problems: &mut [Problem],
        which: &[usize],
        id: String,
        problem: String,
        phase: Phase,
    ) {
        let of: Vec<&Problem> = which.iter().map(|&at| &problems[at]).collect();
        let Some(first) = of.first() else { return };
        let (title, text) = words(&of, self.names, phase);
        let message = Message {
            kind: first.kind,
            phase,
            severity: if phase == Phase::Resolved { Severity::Info } else { first.kind.severity() },
            hosts: of.iter().filter_map(|p| p.host).collect(),
            sandboxes: of.iter().map(|p| p.sandboxes).sum(),
            since: of.iter().map(|p| p.opened_at).min().unwrap_or(self.now),
            title,
            text,
            id,
            problem: problem.clone(),
        };
        self.decided.messages.push(message);
        for &at in which {
            problems[at].announced = Some(problem.clone());
            problems[at].told_at = Some(self.now);
            if phase == Phase::Open && !self.rules.reminder.is_zero() {
                self.look_at(self.now.after(self.rules.reminder));
            }
        }
    }
}

/// Positions of what was announced, by the message that did.
fn by_message(problems: &[Problem]) -> BTreeMap<String, Vec<usize>> {
    let mut by: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, problem) in problems.iter().enumerate() {
        if let Some(id) = &problem.announced {
            by.entry(id.clone()).or_default().push(at);
        }
    }
    by
}

/// A count with its noun.
fn many(count: u64, one: &str, more: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {more}") }
}

/// A host as people know it.
fn name(host: HostId, names: &BTreeMap<HostId, String>) -> String {
    names.get(&host).cloned().unwrap_or_else(|| host.to_string())
}

/// Who: one host by name, several by number.
fn who(problems: &[&Problem], names: &BTreeMap<HostId, String>) -> String {
    match problems {
        [Problem { host: Some(host), .. }] => name(*host, names),
        several => many(several.len() as u64, "host", "hosts"),
    }
}

fn words(
    problems: &[&Problem],
    names: &BTreeMap<HostId, String>,
    phase: Phase,
) -> (String, String) {
    let Some(first) = problems.first() else { return Default::default() };
    let sum: u64 = problems.iter().map(|p| p.sandboxes).sum();
    let who = who(problems, names);
    let are = if problems.len() == 1 { "is" } else { "are" };
    let (what, detail) = match first.kind {
        NotifyKind::HostDown => {
            (format!("{who} unreachable"), format!("{} missing", many(sum, "sandbox", "sandboxes")))
        }
        NotifyKind::HostDegraded => {
            (format!("{who} degraded"), "heartbeats arrive, but probes fail".to_owned())
        }
        NotifyKind::MassGuard => (
            format!("{} silent together", many(sum, "host", "hosts")),
            "verdicts are held; look at the network of the machine that runs roost".to_owned(),
        ),
        NotifyKind::MassVanish => (
            format!("{who} lost most of its sandboxes at once"),
            format!("the stop of {} is held for another look", many(sum, "sandbox", "sandboxes")),
        ),
        NotifyKind::Zombies => (
            format!("{who} with zombies"),
            format!("{} running that should not exist", many(sum, "sandbox", "sandboxes")),
        ),
        NotifyKind::OperationFailed => (
            format!("{} failed on {who}", many(sum, "operation", "operations")),
            "`roost audit` says which and why".to_owned(),
        ),
    };
    let over = match first.kind {
        NotifyKind::HostDown => format!("{who} {are} back"),
        NotifyKind::HostDegraded => format!("{who} {are} no longer degraded"),
        NotifyKind::MassGuard => "verdicts on silent hosts are no longer held".to_owned(),
        NotifyKind::MassVanish => format!("nothing is held any more on {who}"),
        NotifyKind::Zombies => format!("no zombies any more on {who}"),
        NotifyKind::OperationFailed => what.clone(),
    };
    let title = match (phase, first.unwatched) {
        (Phase::Open, _) => what,
        (Phase::Reminder, _) => format!("still: {what}"),
        (Phase::Resolved, false) => over,
        (Phase::Resolved, true) => format!("{who} {are} no longer watched"),
    };
    let since = problems.iter().map(|p| p.opened_at).min().map(minute).unwrap_or_default();
    let mut text = match phase {
        Phase::Open | Phase::Reminder => format!("{title} since {since}; {detail}"),
        Phase::Resolved => format!("{title}; the trouble began {since}"),
    };
    if problems.len() > 1 {
        let named: Vec<String> =
            problems.iter().filter_map(|p| p.host).map(|host| name(host, names)).collect();
        let rest = named.len().saturating_sub(HOSTS_NAMED_MAX);
        text += &format!(": {}", named[..named.len() - rest].join(", "));
        if rest > 0 {
            text += &format!(" and {rest} more");
        }
    }
    (title, text)
}

/// `2026-05-17 06:40 UTC`
fn minute(at: Wall) -> String {
    let text = at.to_string();
    format!("{} {} UTC", &text[..10], &text[11..16])
}

#[cfg(test)]
mod tests;
