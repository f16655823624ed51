//! Owns what a disk holds after a power cut: what was synced for sure, and of everything
//! else any part.
//!
//! Never: reads a real file; it is told what happened by a tape.
//!
//! A directory entry is sure once the directory was synced: SQLite does that with the first
//! sync of a log or journal that it made, and with a deletion that asks for it.

#![allow(unreachable_pub, reason = "a part of one test")]

use crate::support::random::Random;
use crate::vfs::Op;
use std::collections::BTreeMap;
use std::path::Path;

/// What a disk writes as a whole or not at all, unless a write ends in the middle.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Debug, Clone, Default)]
struct File {
    sure: Vec<u8>,
    unsynced: Vec<Change>,
    /// Its name is on the disk for sure.
    named: bool,
    /// It was deleted, and that may not be on the disk.
    deleted: bool,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Disk {
    files: BTreeMap<String, File>,
}

/// Which unsynced changes reach the disk.
#[derive(Debug, Clone, Copy)]
enum Fate {
    None,
    All,
    /// Those up to some moment.
    Some,
    /// Each sector for itself, in this many of eight cases; now and then one is torn.
    Sectors(usize),
}

impl Disk {
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Created(name) => {
                self.files.insert(name.clone(), File::default());
            }
            Op::Wrote(name, at, bytes) => {
                let at = usize::try_from(*at).unwrap();
                self.file(name).unsynced.push(Change::Write(at, bytes.clone()));
            }
            Op::Truncated(name, bytes) => {
                let bytes = usize::try_from(*bytes).unwrap();
                self.file(name).unsynced.push(Change::Truncate(bytes));
            }
            Op::Synced(name) => {
                let file = self.file(name);
                for change in std::mem::take(&mut file.unsynced) {
                    change.make(&mut file.sure);
                }
                let of_the_database = name.ends_with("-wal") || name.ends_with("-journal");
                if of_the_database && !file.named {
                    self.sync_directory();
                }
            }
            Op::Deleted(name, synced) => {
                self.file(name).deleted = true;
                if *synced {
                    self.sync_directory();
                }
            }
            Op::Mark(_) => {}
        }
    }

    fn file(&mut self, name: &str) -> &mut File {
        self.files.entry(name.to_owned()).or_default()
    }

    fn sync_directory(&mut self) {
        self.files.retain(|_, file| !file.deleted);
        self.files.values_mut().for_each(|file| file.named = true);
    }

    /// Writes one of the many things that the disk may hold when the power fails now.
    pub fn cut(&self, random: &mut Random, to: &Path) {
        let fate = match random.below(8) {
            0 => Fate::None,
            1 => Fate::All,
            2 => Fate::Some,
            _ => Fate::Sectors(1 + random.below(7)),
        };
        for (name, file) in &self.files {
            let unsure = !file.named || file.deleted;
            // A log index is made anew after a restart of the machine.
            if name.ends_with("-shm") || unsure && random.one_in(2) {
                continue;
            }
            std::fs::write(to.join(name), file.after(fate, random)).unwrap();
        }
    }
}

impl File {
    fn after(&self, fate: Fate, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.sure.clone();
        let count = match fate {
            Fate::None => 0,
            Fate::All | Fate::Sectors(_) => self.unsynced.len(),
            Fate::Some => random.below(self.unsynced.len() + 1),
        };
        for change in &self.unsynced[..count] {
            match fate {
                Fate::Sectors(of_eight) => change.make_some(&mut bytes, of_eight, random),
                Fate::None | Fate::All | Fate::Some => change.make(&mut bytes),
            }
        }
        bytes
    }
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, new) => put(bytes, *at, new),
            Change::Truncate(length) => bytes.resize(*length, 0),
        }
    }

    fn make_some(&self, bytes: &mut Vec<u8>, of_eight: usize, random: &mut Random) {
        match self {
            Change::Write(at, new) => {
                let mut from = 0;
                while from < new.len() {
                    let end = (from + SECTOR - (at + from) % SECTOR).min(new.len());
                    if random.below(8) < of_eight {
                        let torn = random.one_in(16);
                        let end = if torn { from + random.below(end - from) } else { end };
                        put(bytes, at + from, &new[from..end]);
                    }
                    from = end;
                }
            }
            Change::Truncate(_) if random.below(8) < of_eight => self.make(bytes),
            Change::Truncate(_) => {}
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}
