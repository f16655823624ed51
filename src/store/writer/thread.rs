//! Owns the writer's life: it waits for commands, takes them in batches, and tries a database
//! in trouble again.
//!
//! Never: looks into a command.

use super::{BATCH_MAX, Command, Envelope, Writer};
use crate::store::StoreError;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How soon a database that could not be written to is tried again. Larger: trouble is told
/// for longer than it lasts; smaller: a full disk is kept busy.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

impl Writer {
    /// Takes commands until [`Command::Stop`] or until every sender is gone.
    pub fn run(mut self, commands: &Receiver<Envelope>) {
        let mut stop = false;
        while !stop {
            let Some(first) = self.next(commands) else { break };
            let more = commands.try_iter().take(BATCH_MAX - 1);
            let mut batch: Vec<Envelope> = std::iter::once(first).chain(more).collect();
            let last = batch.iter().position(|e| matches!(e.command, Command::Stop));
            if let Some(at) = last {
                batch.truncate(at);
                stop = true;
            }
            self.execute(batch);
        }
        // The log itself goes when the last connection does. Cutting it off here would take
        // from a program that replicates it what was not read yet.
        if let Err(error) = self.conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)") {
            log::debug!("could not fold the write-ahead log in: {error}");
        }
    }

    /// The next command. While the database cannot be relied on it is tried without one, so
    /// that what ended is not told for as long as nothing is to be written.
    fn next(&mut self, commands: &Receiver<Envelope>) -> Option<Envelope> {
        loop {
            match self.figures.trouble() {
                None | Some(StoreError::Damaged(_)) => return commands.recv().ok(),
                Some(_) => match commands.recv_timeout(TRY_AGAIN_AFTER) {
                    Err(RecvTimeoutError::Timeout) => self.try_again(),
                    received => return received.ok(),
                },
            }
        }
    }

    /// Writes what changes nothing.
    fn try_again(&mut self) {
        let (before, rows_before) = (self.revision, self.rows_written());
        let result = self.begin(true).and_then(|()| {
            self.conn
                .prepare_cached("UPDATE state SET listened_until = listened_until")?
                .execute([])?;
            self.commit(before)
        });
        let rows = self.rows_written() - rows_before;
        self.settle(before, result.err().as_ref(), rows);
    }
}
