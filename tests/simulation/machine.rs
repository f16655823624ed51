//! Owns what becomes of an agent's process: its beats, what it obeys, its ends and starts.
//!
//! Never: what an agent has (`agent` does), or what the control plane decides.

use crate::agent::Later;
use crate::defect::Defect;
use crate::network::unknown;
use crate::plane::Told;
use crate::tally::Fault;
use crate::world::{Attention, Event, MINUTE, SECOND, TOKEN_LIFE, World};
use roost::engine::monitor::Input;
use roost::model::time::Now;
use roost::store::presence::Beat;
use roost::store::writer::Command;
use std::time::Duration;

/// How long an agent waits for the answer to a heartbeat, and to a renewal.
const HEARTBEAT_PATIENCE_MS: u64 = 10 * SECOND;
const RENEWAL_PATIENCE_MS: u64 = 15 * SECOND;

/// How long what was sent on a connection that is closed since may still arrive.
const STRAGGLES_MS: u64 = 100 * SECOND;

/// As `store::presence` takes two heartbeats for two.
const HEARTBEAT_APART: Duration = Duration::from_secs(10);

/// Longest way of a message between two sides that nothing ails.
const USUAL_WAY_MS: u64 = 21;

impl World {
    pub(crate) fn agent_acts(&mut self, host: usize, boot: u32, later: Later) {
        let now_ms = self.now_ms();
        let now_unix = self.unix_of(host);
        let machine = &mut self.machines[host];
        if machine.agent.boot != boot {
            return;
        }
        if machine.link.hung_until > now_ms {
            let at = machine.link.hung_until;
            if let Later::PausedAll = later {
                // It beats no more before that is done, also when it stands still no longer.
                machine.heart.pausing_until = machine.heart.pausing_until.max(at);
            }
            return self.at(at, Event::Agent(host, boot, later));
        }
        let before = self.trace.is_some().then(|| machine.agent.all().collect::<Vec<_>>());
        let out = machine.agent.act(later, now_unix, &mut self.chance);
        if let Some(before) = before
            && before != self.machines[host].agent.all().collect::<Vec<_>>()
        {
            self.note(|| format!("  host {host}: {later:?}"));
        }
        if let Later::Found = later {
            self.machines[host].found_ms = now_ms;
        }
        if let Later::Slept(sandbox) = later {
            self.machines[host].refused.remove(&sandbox);
        }
        if let Later::Done(sandbox, number) = later {
            self.judge_truth(host, sandbox, number);
        }
        self.comes_of(host, out);
    }

    pub(crate) fn beat(&mut self, host: usize, boot: u32, again: bool) {
        let now_ms = self.now_ms();
        let machine = &self.machines[host];
        let beats = machine.agent.up && !machine.heart.over && machine.standing.registered;
        if machine.agent.boot != boot || !beats {
            return;
        }
        let busy_until = machine.heart.pausing_until.max(machine.link.hung_until);
        if busy_until > now_ms {
            return self.at(busy_until, Event::Beat(host, boot, again));
        }
        if again {
            let jitter = self.chance.within(0, 200);
            self.after(30 * SECOND + jitter, Event::Beat(host, boot, true));
        }
        // What came due while it stood still is one beat.
        if self.machines[host].heart.beat_ms.replace(now_ms) == Some(now_ms) {
            return;
        }
        let up = self.attention != Attention::Down;
        let kept_open = self.machines[host].heart.failures == 0;
        if !self.machines[host].link.beats || !up || self.is_lost(host) {
            // What is on its way on a connection that is open arrives when the way is free.
            let straggles = up && kept_open && self.chance.permille(500);
            self.machines[host].heart.straggler_ms = straggles.then_some(now_ms);
            return self.unanswered(host);
        }
        let (there, back) = (self.one_way(host), self.one_way(host));
        let asleep_until = if self.attention == Attention::Asleep { self.awake_at } else { 0 };
        let arrives = (now_ms + there).max(asleep_until);
        let late = arrives + back > now_ms + HEARTBEAT_PATIENCE_MS;
        if late {
            self.tally.struck(Fault::HeartbeatAnsweredLate);
            self.after(HEARTBEAT_PATIENCE_MS, Event::Unanswered(host, boot));
        }
        match arrives - now_ms > USUAL_WAY_MS {
            // A new connection takes both ways before anything is sent on it.
            true if late && !kept_open => {}
            true => self.at(arrives, Event::BeatArrives(host, late)),
            false => self.beat_arrives(host, late),
        }
    }

    /// The way is free again for what was sent, and given up, before.
    pub(crate) fn straggler_arrives(&mut self, host: usize) {
        let Some(sent_ms) = self.machines[host].heart.straggler_ms.take() else { return };
        if self.now_ms() - sent_ms < STRAGGLES_MS && self.attention == Attention::Listening {
            self.tally.struck(Fault::HeartbeatStraggled);
            self.beat_arrives(host, true);
        }
    }

    /// `late`: the agent gives up before the answer reaches it.
    pub(crate) fn beat_arrives(&mut self, host: usize, late: bool) {
        let now = self.now();
        let Some(plane) = &mut self.plane else {
            if !late {
                self.unanswered(host);
            }
            return;
        };
        if plane.held {
            // As the API: it waits, and goes on.
            return;
        }
        let id = self.machines[host].id;
        let known = matches!(plane.presence.lookup(id), Beat::Known { .. });
        let expired = known && now.wall >= self.machines[host].heart.token_expires_at;
        // As the API: of two machines only the one that registered last is the host.
        let registration = self.machines[host].heart.registration;
        let outdated = known
            && plane.presence.is_superseded(id, registration)
            && self.defect != Some(Defect::OldRegistrationCounts);
        if outdated || expired && !plane.presence.clock_is_suspect(now.mono) {
            if outdated {
                self.tally.struck(Fault::OldMachineRefused);
            }
            // As the API: a renewal is asked for only when it could be served.
            if !plane.is_failing() && !plane.failing && !plane.stopping && !late {
                self.refresh(host);
            }
            return;
        }
        let forgets =
            self.defect == Some(Defect::BeatsForgotten) && now.mono.0 % 1_200_000 < 200_000;
        let beat = match forgets {
            true => plane.presence.lookup(id),
            false => plane.presence.heartbeat(id, now),
        };
        if self.defect == Some(Defect::SilenceOverAtOnce) {
            let later = Now { mono: now.mono.after(HEARTBEAT_APART), ..now };
            plane.presence.heartbeat(id, later);
        }
        match beat {
            Beat::Known { wake } => {
                if wake && self.defect != Some(Defect::ReturnIgnored) {
                    plane.tell(now, Input::Heard(id));
                }
                if !self.machines[host].standing.superseded {
                    self.judge_beat(host);
                    self.machines[host].heard_ms = Some(self.now_ms());
                }
                // Only on a connection from the last beat: a new one needs both ways.
                let lost = self.is_lost(host) && self.machines[host].heart.failures == 0;
                match lost {
                    _ if late => {}
                    true => self.unanswered(host),
                    false => self.machines[host].heart.failures = 0,
                }
            }
            Beat::Deleted if self.defect == Some(Defect::TombstoneForgotten) || late => {}
            Beat::Deleted if self.is_lost(host) => self.unanswered(host),
            Beat::Deleted => self.obey_end(host),
            Beat::Unknown if self.machines[host].standing.deleted => {}
            Beat::Unknown if self.machines[host].standing.lost => {}
            Beat::Unknown => self.wrong(format!("{id} is not known any more")),
        }
    }

    pub(crate) fn gave_up_on_beat(&mut self, host: usize, boot: u32) {
        if self.machines[host].agent.boot == boot && !self.machines[host].heart.over {
            self.unanswered(host);
        }
    }

    /// Three beats without an answer: everything is paused, and nothing announced.
    pub(crate) fn unanswered(&mut self, host: usize) {
        self.machines[host].heart.failures += 1;
        let failures = self.machines[host].heart.failures;
        let now = self.now();
        if self.defect == Some(Defect::SilenceIsNoGap)
            && let Some(plane) = &mut self.plane
        {
            plane.presence.heartbeat(self.machines[host].id, now);
        }
        if failures >= 3 {
            self.pause_all(host);
        }
    }

    pub(crate) fn pause_all(&mut self, host: usize) {
        let takes = self.chance.duration_ms(6 * SECOND).min(2 * MINUTE);
        self.note(|| format!("  host {host} pauses everything"));
        self.machines[host].heart.pausing_until = self.now_ms() + takes;
        let boot = self.machines[host].agent.boot;
        self.after(takes, Event::Agent(host, boot, Later::PausedAll));
    }

    pub(crate) fn refresh(&mut self, host: usize) {
        let now = self.now();
        let fresh = self.secret();
        self.ask_renewal(host, fresh);
        let heart = &mut self.machines[host].heart;
        (heart.renewing, heart.asked_at) = (Some(fresh), now.wall);
        if self.stormy && self.chance.permille(20) {
            let stall = self.chance.within(RENEWAL_PATIENCE_MS, 2 * RENEWAL_PATIENCE_MS);
            self.stalled_until = self.stalled_until.max(self.now_ms() + stall);
        }
        self.after(RENEWAL_PATIENCE_MS, Event::RenewalOver(host, fresh));
    }

    pub(crate) fn ask_renewal(&mut self, host: usize, fresh: [u8; 32]) {
        let now = self.now();
        let shown = self.machines[host].heart.refresh_token;
        let Some(plane) = &mut self.plane else { return };
        let lenient = plane.presence.clock_is_suspect(now.mono);
        plane.ask_all(
            now,
            move |result| Told::Refreshed(host, fresh, result),
            |reply| Command::Refresh { shown, fresh, lenient, reply },
        );
    }

    /// An agent waits for the answer to a renewal no longer.
    pub(crate) fn renewal_over(&mut self, host: usize, fresh: [u8; 32]) {
        if self.machines[host].heart.renewing == Some(fresh) {
            self.tally.struck(Fault::RenewalAnsweredLate);
            self.gives_up_beating(host);
        }
    }

    pub(crate) fn secret(&mut self) -> [u8; 32] {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&self.chance.within(0, u64::MAX).to_le_bytes());
        secret
    }

    pub(crate) fn refreshed(
        &mut self,
        host: usize,
        fresh: [u8; 32],
        result: Result<Option<roost::model::host::Host>, roost::store::StoreError>,
    ) {
        let now = self.now();
        if self.defect == Some(Defect::RefreshNotRepeatable) {
            let shown = fresh;
            let fresh = self.secret();
            if let Some(plane) = &mut self.plane {
                let lenient = true;
                let reply = Box::new(|_| {});
                plane.order(now, Command::Refresh { shown, fresh, lenient, reply });
            }
        }
        let machine = &self.machines[host];
        let newest = self.registrations.get(&machine.id).copied().unwrap_or(0);
        let ended = machine.standing.deleted || machine.heart.registration < newest;
        if matches!(result, Ok(None)) && !ended && self.restores.any {
            return self.take_back(host, fresh);
        }
        if matches!(result, Ok(None)) && !ended {
            self.wrong(format!("the genuine refresh token of host {host} was refused"));
        }
        let unlucky = self.stormy && self.chance.permille(60);
        let lost = !self.machines[host].link.beats || self.is_lost(host) || unlucky;
        let heart = &mut self.machines[host].heart;
        if heart.renewing != Some(fresh) {
            return;
        }
        if matches!(result, Ok(Some(_))) && !lost {
            heart.renewing = None;
            heart.refresh_token = fresh;
            heart.issued_at = heart.asked_at;
            heart.token_expires_at = now.wall.after(TOKEN_LIFE);
            heart.failures = 0;
            return;
        }
        self.gives_up_beating(host);
    }

    /// A renewal that fails in any way is the end of all heartbeats.
    pub(crate) fn gives_up_beating(&mut self, host: usize) {
        let heart = &mut self.machines[host].heart;
        (heart.over, heart.renewing) = (true, None);
        self.tally.struck(Fault::AgentGaveUp);
        self.note(|| format!("host {host} gives up after a failed refresh"));
        self.pause_all(host);
        let walks = self.chance.within(3 * MINUTE, 15 * MINUTE);
        self.end_agent(host, false, walks);
    }

    /// The agent's process ends, and comes back after a while.
    pub(crate) fn end_agent(&mut self, host: usize, found: bool, away_ms: u64) {
        self.note(|| format!("the agent of host {host} ends (found again: {found})"));
        let (over, now_unix) = (self.machines[host].heart.over, self.unix_of(host));
        let reading = !found && self.stormy && self.chance.permille(400);
        let agent = &mut self.machines[host].agent;
        // What gave up paused everything before somebody came to start it again.
        if over {
            agent.act(Later::PausedAll, now_unix, &mut self.chance);
        }
        let broken = agent.end(found, reading);
        self.machines[host].heart.renewing = None;
        self.tally.struck(if found { Fault::AgentLostSight } else { Fault::AgentRestarted });
        if !broken.is_empty() {
            self.tally.struck(Fault::CallBrokenOff);
        }
        for number in broken {
            self.answer(host, number, Err(unknown()));
        }
        let boot = self.machines[host].agent.boot;
        self.after(away_ms, Event::AgentStarts(host, boot));
    }

    /// It dies of what it was asked to do.
    pub(crate) fn agent_dies(&mut self, host: usize, boot: u32) {
        if self.machines[host].agent.boot == boot {
            let away = self.chance.within(SECOND, 5 * MINUTE);
            self.end_agent(host, false, away);
        }
    }

    /// An orderly end of an agent begins: it takes no calls any more.
    pub(crate) fn agent_drains(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        if machine.agent.up && !machine.agent.draining {
            machine.agent.draining = true;
            self.tally.struck(Fault::AgentDrained);
            let (boot, after) = (machine.agent.boot, self.chance.within(SECOND, 10 * SECOND));
            self.note(|| format!("the agent of host {host} begins to shut down"));
            self.after(after, Event::AgentDies(host, boot));
        }
    }

    pub(crate) fn agent_starts(&mut self, host: usize, boot: u32) {
        let machine = &mut self.machines[host];
        let superseded = machine.standing.superseded;
        if machine.agent.boot != boot || machine.agent.up || machine.standing.ended || superseded {
            return;
        }
        machine.agent.up = true;
        let moves = machine.standing.moves;
        (machine.heart.failures, machine.heart.over, machine.heart.pausing_until) = (0, false, 0);
        let blind = machine.agent.blind;
        if blind {
            // Shorter than the hold on many that vanish at once.
            let after = self.chance.within(5 * SECOND, 40 * SECOND);
            self.after(after, Event::Agent(host, boot, Later::Found));
        }
        if self.machines[host].agent.reading {
            self.tally.struck(Fault::DiskReadSlowly);
            let after = self.chance.within(SECOND, 45 * SECOND);
            self.after(after, Event::Agent(host, boot, Later::Read));
        }
        self.note(|| format!("the agent of host {host} starts"));
        if moves {
            return self.arrive_elsewhere(host);
        }
        self.after(10, Event::Beat(host, boot, true));
    }
}
