//! Owns what a test remembers of its own requests: what was asked, and what was said to be
//! done.
//!
//! Never: looks at a server or a database.

#![allow(unreachable_pub, reason = "a part of one test")]

use roost::model::id::SandboxId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// What a client wants done with a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Create,
    Pause,
    Resume,
    Destroy,
}

impl Verb {
    /// The status that a request leaves when it was accepted.
    pub fn status(self) -> &'static str {
        match self {
            Verb::Create => "starting",
            Verb::Pause => "pausing",
            Verb::Resume => "resuming",
            Verb::Destroy => "stopping",
        }
    }
}

/// One request for a capsule.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub verb: Verb,
    /// It was said to be done; otherwise nobody knows.
    pub accepted: bool,
}

/// One capsule.
#[derive(Debug, Default)]
pub struct Capsule {
    /// In order; one client asks for it at a time.
    pub asked: Vec<Asked>,
    /// Its agent reported that it paused it by itself, this was accepted, and nothing was
    /// asked of it since.
    pub announced: bool,
}

/// One host that was added.
#[derive(Debug, Default)]
pub struct Host {
    pub registered: bool,
    /// The newest refresh token that was given out.
    pub refresh_token: String,
    /// The newest intent that was accepted, and one that nobody knows of.
    pub intent: &'static str,
    pub intent_asked: Option<&'static str>,
}

#[derive(Debug, Default)]
pub struct Notes {
    pub capsules: BTreeMap<SandboxId, Capsule>,
    pub hosts: BTreeMap<String, Host>,
    /// How often something was said to be done.
    pub accepted: usize,
}

/// What all clients write into.
#[derive(Debug, Default)]
pub struct Journal(Mutex<Notes>);

impl Journal {
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap()
    }

    /// Notes a request before it is sent; whatever was announced before may be overtaken.
    pub fn ask(&self, id: SandboxId, verb: Verb) {
        let mut notes = self.notes();
        let capsule = notes.capsules.entry(id).or_default();
        capsule.asked.push(Asked { verb, accepted: false });
        capsule.announced = false;
    }

    /// Notes what became of the newest request for a capsule.
    pub fn answered(&self, id: SandboxId, accepted: bool) {
        let mut notes = self.notes();
        notes.accepted += usize::from(accepted);
        let asked = &mut notes.capsules.entry(id).or_default().asked;
        match accepted {
            true => asked.last_mut().unwrap().accepted = true,
            false => drop(asked.pop()),
        }
    }

    /// Notes a capsule that was made.
    pub fn created(&self, id: SandboxId) {
        self.ask(id, Verb::Create);
        self.answered(id, true);
    }

    /// Notes that a report of an agent was accepted.
    pub fn announced(&self, id: SandboxId) {
        let mut notes = self.notes();
        notes.accepted += 1;
        notes.capsules.entry(id).or_default().announced = true;
    }

    /// Changes what is known of a host because something was said to be done.
    pub fn host(&self, id: &str, note: impl FnOnce(&mut Host)) {
        let mut notes = self.notes();
        notes.accepted += 1;
        note(notes.hosts.entry(id.to_owned()).or_default());
    }
}
