//! Owns what goes wrong: which fault strikes when, and when it ends.
//!
//! Never: a fault that Roost could not know of and is not said to survive; those are named
//! where they are left out.

use crate::agent::{Later, Truth};
use crate::history::Row;
use crate::tally::Fault;
use crate::world::{
    Attention, End, Event, Heal, Link, MINUTE, Machine, SECOND, UNNOTICED_MS, World,
};
use roost::clock::Reading;
use roost::model::id::{HostId, SandboxId};
use roost::model::sandbox::SandboxStatus;
use roost::model::time::Wall;
use roost::store::Connection;

/// What ends while a call is in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Disturbance {
    StopPlane,
    KillPlane,
    DrainAgent,
}

impl Disturbance {
    const ALL: &[Disturbance] =
        &[Disturbance::StopPlane, Disturbance::KillPlane, Disturbance::DrainAgent];
}

impl World {
    pub(crate) fn strike(&mut self) {
        if !self.stormy {
            return;
        }
        let after = self.chance.within(10 * SECOND, 8 * MINUTE) * self.pace.min(6);
        self.after(after, Event::Strike);
        let host = self.chance.within(0, self.machines.len() as u64) as usize;
        let lasts = match self.chance.within(0, 10) {
            0..5 => self.chance.within(5 * SECOND, 3 * MINUTE),
            5..9 => self.chance.within(MINUTE, 8 * MINUTE),
            _ => self.chance.within(5 * MINUTE, 25 * MINUTE),
        };
        let link = self.machines[host].link;
        match self.chance.within(0, 41) {
            0 => {
                self.tally.struck(Fault::AllCut);
                self.change(host, lasts, link.cut());
            }
            1 => {
                self.tally.struck(Fault::BeatsCut);
                self.change(host, lasts, Link { beats: false, ..link });
            }
            2 => {
                self.tally.struck(Fault::BeatsCut);
                let delay_ms = self.chance.within(500, 7_000);
                self.change(host, lasts, Link { beats: false, delay_ms, ..link });
            }
            3 => {
                self.tally.struck(Fault::CallsCut);
                self.change(host, lasts, Link { calls: false, ..link });
            }
            26 | 27 => {
                self.note(|| format!("host {host} will not be heard when it announces something"));
                self.machines[host].link.deaf = true;
                self.tire(host, MINUTE);
            }
            4 | 5 => {
                self.tally.struck(Fault::AnswersCut);
                self.change(host, lasts, Link { answers: false, ..link });
                self.tire(host, lasts);
            }
            6 | 7 => {
                self.tally.struck(Fault::Hung);
                let hung_until = self.now_ms() + lasts.min(6 * MINUTE);
                self.change(host, lasts, Link { hung_until, ..link });
            }
            8 => {
                self.tally.struck(Fault::Slow);
                let delay_ms = self.chance.within(500, 12_000);
                self.change(host, lasts, Link { delay_ms, ..link });
            }
            9 | 10 => {
                let lost = self.chance.within(50, 500);
                self.change(host, lasts, Link { lost, ..link });
            }
            11 => {
                let away = self.chance.within(SECOND, MINUTE);
                self.end_agent(host, false, away);
            }
            12 | 24 | 25 => {
                let count = self.machines.len();
                let mut all = (host..host + count).map(|at| at % count);
                if let Some(host) = all.find(|host| self.may_lose_sight(*host)) {
                    self.machines[host].sighted_ms = self.now_ms() + 5 * MINUTE;
                    let away = self.chance.within(100, 5 * SECOND);
                    self.end_agent(host, true, away);
                }
            }
            36..39 => self.back_up(),
            39 | 40 => self.restore(),
            32 | 33 => self.agent_drains(host),
            13 => {
                let away = self.chance.within(MINUTE, 10 * MINUTE);
                self.end_agent(host, false, away);
            }
            30 => {
                // Nobody refuses a connection, and what was under way is never answered.
                let away = self.chance.within(30 * SECOND, 10 * MINUTE);
                self.tally.struck(Fault::HostPowerLost);
                self.change(host, away, link.cut());
                self.end_agent(host, false, away);
            }
            14..17 => {
                let how = match self.chance.within(0, 3) {
                    0 => End::InOrder,
                    1 => End::Killed,
                    _ => End::PowerLost,
                };
                let away = if self.chance.permille(600) { 50 * SECOND } else { 10 * MINUTE };
                let away = self.chance.within(500, away);
                match how {
                    _ if self.attention != Attention::Listening => {}
                    End::InOrder => self.stop_plane(away),
                    End::Killed | End::PowerLost => {
                        self.end_plane(how);
                        self.after(away, Event::PlaneStarts);
                    }
                }
            }
            17 => {
                if self.attention == Attention::Listening {
                    let lasts = match self.chance.permille(300) {
                        true => self.chance.within(SECOND, UNNOTICED_MS),
                        false => self.chance.within(SECOND, lasts + 2 * SECOND),
                    };
                    self.note(|| format!("the control plane's machine sleeps {lasts} ms"));
                    let dozed = lasts <= UNNOTICED_MS;
                    self.tally.struck(if dozed { Fault::Dozed } else { Fault::Slept });
                    self.attention = Attention::Asleep;
                    self.asleep_since = self.now_ms();
                    self.awake_at = self.now_ms() + lasts;
                    self.at(self.awake_at, Event::Wakes);
                }
            }
            18 | 31 => self.move_clock(),
            19 | 28 | 29 => {
                self.lock_database(lasts.min(3 * MINUTE));
                for host in 0..self.machines.len() {
                    self.machines[host].link.deaf |= self.chance.permille(300);
                    self.tire(host, lasts);
                }
            }
            20 => {
                let stall = self.chance.within(100, 20 * SECOND);
                self.stalled_until = self.now_ms() + stall;
                self.tally.struck(Fault::DiskStalled);
                self.note(|| format!("the disk stalls for {stall} ms"));
            }
            21 => {
                self.note(|| "the uplink is lost".to_owned());
                self.tally.struck(Fault::UplinkCut);
                for host in 0..self.machines.len() {
                    let link = self.machines[host].link;
                    self.change(host, lasts, link.cut());
                }
            }
            22 => {
                // One with nothing to list would be taken for this host without its sandboxes.
                let runs = |m: &Machine| m.agent.all().any(|(_, t)| t == Truth::Running);
                let some: Vec<usize> = (0..self.machines.len())
                    .filter(|at| *at != host && runs(&self.machines[*at]))
                    .collect();
                let other = self.chance.within(0, some.len().max(1) as u64) as usize;
                if let Some(other) = some.get(other).copied() {
                    self.note(|| format!("host {other} has the address of host {host}"));
                    self.machines[host].link.taken_by = Some(other);
                    self.after(lasts, Event::Heal(host, Heal::Address));
                }
            }
            _ => self.crash_one(host),
        }
    }

    pub(crate) fn cut(&mut self, host: usize, lasts: u64) {
        if self.stormy {
            self.tally.struck(Fault::AllCut);
            let link = self.machines[host].link;
            self.change(host, lasts, link.cut());
        }
    }

    /// Something ends while a call of a user's is in flight.
    pub(crate) fn perhaps_disturb(&mut self, host: HostId) {
        if !self.stormy || !self.chance.permille(50) {
            return;
        }
        let host = self.machine_of(host);
        let disturbance = self.chance.pick(Disturbance::ALL).copied();
        let after = self.chance.within(0, 3 * SECOND);
        self.after(after, Event::Disturb(host, disturbance.unwrap_or(Disturbance::StopPlane)));
    }

    pub(crate) fn disturb(&mut self, host: usize, disturbance: Disturbance) {
        let away = self.chance.within(500, 50 * SECOND);
        match disturbance {
            Disturbance::DrainAgent => self.agent_drains(host),
            _ if self.attention != Attention::Listening => {}
            Disturbance::StopPlane => self.stop_plane(away),
            Disturbance::KillPlane => {
                self.end_plane(End::Killed);
                self.after(away, Event::PlaneStarts);
            }
        }
    }

    pub(crate) fn change(&mut self, host: usize, lasts: u64, link: Link) {
        self.note(|| format!("host {host} for {lasts} ms: {link:?}"));
        self.machines[host].link = link;
        self.after(lasts, Event::Heal(host, Heal::Link));
    }

    pub(crate) fn heal(&mut self, host: usize, heal: Heal) {
        let link = &mut self.machines[host].link;
        match heal {
            Heal::Link => *link = Link { taken_by: link.taken_by, ..Link::GOOD },
            Heal::Address => link.taken_by = None,
        }
        self.note(|| format!("host {host}: {heal:?} is in order"));
        if self.machines[host].agent.up && self.machines[host].standing.registered {
            self.straggler_arrives(host);
        }
    }

    /// An agent may find its microVMs again later, and only the hold on many that vanish at
    /// once keeps them: it does so only where that hold applies.
    pub(crate) fn may_lose_sight(&self, host: usize) -> bool {
        let Machine { id, agent, .. } = &self.machines[host];
        let Some(history) = &self.history else { return false };
        let running = |row: &Row| row.host == *id && row.status == SandboxStatus::Running;
        let all = history.rows.iter().filter(|(_, row)| running(row));
        let (mut rows, mut seen) = (0, 0);
        for (sandbox, _) in all {
            rows += 1;
            seen += usize::from(agent.truth(*sandbox) == Truth::Running);
        }
        // Nor twice in a row: the first hold would be over before the second loss is.
        let again = self.now_ms() < self.machines[host].sighted_ms;
        seen == rows && rows > 3 && agent.up && !agent.blind && !again
    }

    /// Some of its sandboxes pause by themselves soon: what they announce falls into the
    /// fault that strikes now.
    fn tire(&mut self, host: usize, within_ms: u64) {
        let agent = &self.machines[host].agent;
        let boot = agent.boot;
        let unused: Vec<Later> = agent.all().filter_map(|(id, _)| agent.unused(id)).collect();
        for later in unused {
            if self.chance.permille(300) {
                let after = self.chance.within(0, within_ms.min(MINUTE));
                self.after(after, Event::Agent(host, boot, later));
            }
        }
    }

    pub(crate) fn crash_one(&mut self, host: usize) {
        let running = |(id, truth): (SandboxId, Truth)| (truth == Truth::Running).then_some(id);
        let all: Vec<SandboxId> = self.machines[host].agent.all().filter_map(running).collect();
        let Some(sandbox) = self.chance.pick(&all).copied() else { return };
        if let Some(report) = self.machines[host].agent.crash(sandbox) {
            self.note(|| format!("the microVM of {sandbox} dies"));
            self.tally.struck(Fault::MicroVmDied);
            self.send_report(host, report, sandbox);
        }
    }

    pub(crate) fn move_clock(&mut self) {
        // By a clock that is a day ahead what a restore has forgotten is not forgotten any more.
        let far = if self.chance.permille(300) && !self.restores.any {
            40 * 24 * 60 * MINUTE
        } else {
            20 * MINUTE
        };
        let by = self.chance.within(SECOND, far) as i64;
        let by = if self.chance.permille(500) { by } else { -by };
        self.tally.struck(if by < 0 { Fault::ClockBack } else { Fault::ClockForward });
        if by.unsigned_abs() > 24 * 60 * MINUTE {
            self.tally.struck(Fault::ClockFarOff);
        }
        self.note(|| format!("the clock is moved by {by} ms"));
        let wall = Wall(self.now().wall.0 + by);
        self.clock.set_wall(wall);
        self.reading = Reading::of(&self.clock);
        self.clock_moved = true;
        if by.unsigned_abs() > UNNOTICED_MS {
            self.listening_ms = self.now_ms();
        }
    }

    pub(crate) fn lock_database(&mut self, lasts: u64) {
        let Some(plane) = &mut self.plane else { return };
        if self.locker.is_some() {
            return;
        }
        let conn = Connection::open(&self.db).expect("the database opens");
        conn.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        self.locker = Some(conn);
        plane.failing = true;
        let life = self.life;
        self.tally.struck(Fault::DiskFailed);
        self.note(|| format!("the disk cannot be written for {lasts} ms"));
        self.after(lasts, Event::Unlock(life));
    }
}
