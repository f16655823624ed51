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
use roost::store::presence::Beat;
use roost::store::writer::Command;

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
        if let Later::Done(sandbox) = later {
            self.judge_truth(host, sandbox);
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
        let reached = self.machines[host].link.beats
            && self.attention == Attention::Listening
            && !self.is_lost(host);
        match reached {
            true => self.beat_arrives(host),
            false => self.unanswered(host),
        }
    }

    pub(crate) fn beat_arrives(&mut self, host: usize) {
        let now = self.now();
        let Some(plane) = &mut self.plane else { return self.unanswered(host) };
        let id = self.machines[host].id;
        let known = matches!(plane.presence.lookup(id), Beat::Known { .. });
        let expired = known && now.wall >= self.machines[host].heart.token_expires_at;
        if expired && !plane.presence.clock_is_suspect(now.mono) {
            // As the API: a renewal is asked for only when it could be served.
            if !plane.is_failing() && !plane.failing {
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
        match beat {
            Beat::Known { wake } => {
                if wake && self.defect != Some(Defect::ReturnIgnored) {
                    plane.tell(now, Input::Heard(id));
                }
                self.judge_beat(host);
                self.machines[host].heard_ms = Some(self.now_ms());
                // Only on a connection from the last beat: a new one needs both ways.
                let lost = self.is_lost(host) && self.machines[host].heart.failures == 0;
                match lost {
                    true => self.unanswered(host),
                    false => self.machines[host].heart.failures = 0,
                }
            }
            Beat::Deleted if self.defect == Some(Defect::TombstoneForgotten) => {}
            Beat::Deleted if self.is_lost(host) => self.unanswered(host),
            Beat::Deleted => self.obey_end(host),
            Beat::Unknown if self.machines[host].standing.deleted => {}
            Beat::Unknown => self.wrong(format!("{id} is not known any more")),
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
        let shown = self.machines[host].heart.refresh_token;
        let fresh = self.secret();
        let Some(plane) = &mut self.plane else { return };
        let lenient = plane.presence.clock_is_suspect(now.mono);
        plane.ask_all(
            now,
            move |result| Told::Refreshed(host, fresh, result),
            |reply| Command::Refresh { shown, fresh, lenient, reply },
        );
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
        let deleted = self.machines[host].standing.deleted;
        if matches!(result, Ok(None)) && !deleted {
            self.wrong(format!("the genuine refresh token of host {host} was refused"));
        }
        let unlucky = self.stormy && self.chance.permille(60);
        let lost = !self.machines[host].link.beats || self.is_lost(host) || unlucky;
        let heart = &mut self.machines[host].heart;
        if matches!(result, Ok(Some(_))) && !lost {
            heart.refresh_token = fresh;
            heart.token_expires_at = now.wall.after(TOKEN_LIFE);
            heart.failures = 0;
            return;
        }
        // A refresh that fails in any way is the end of all beating.
        heart.over = true;
        self.tally.struck(Fault::AgentGaveUp);
        self.note(|| format!("host {host} gives up after a failed refresh"));
        self.pause_all(host);
        let walks = self.chance.within(3 * MINUTE, 15 * MINUTE);
        self.end_agent(host, false, walks);
    }

    /// The agent's process ends, and comes back after a while.
    pub(crate) fn end_agent(&mut self, host: usize, found: bool, away_ms: u64) {
        self.note(|| format!("the agent of host {host} ends (found again: {found})"));
        let over = self.machines[host].heart.over;
        let agent = &mut self.machines[host].agent;
        // What gave up paused everything before somebody came to start it again.
        let mut broken = Vec::new();
        if over {
            agent.act(Later::PausedAll, 0, &mut self.chance);
        }
        broken.extend(self.machines[host].agent.end(found));
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

    pub(crate) fn agent_starts(&mut self, host: usize, boot: u32) {
        let machine = &mut self.machines[host];
        if machine.agent.boot != boot || machine.agent.up || machine.standing.ended {
            return;
        }
        machine.agent.up = true;
        (machine.heart.failures, machine.heart.over, machine.heart.pausing_until) = (0, false, 0);
        let blind = machine.agent.blind;
        if blind {
            // Shorter than the hold on many that vanish at once.
            let after = self.chance.within(5 * SECOND, 40 * SECOND);
            self.after(after, Event::Agent(host, boot, Later::Found));
        }
        self.note(|| format!("the agent of host {host} starts"));
        self.after(10, Event::Beat(host, boot, true));
    }
}
