//! Owns the end of connections whose deadline is due, and of listeners' rests.
//!
//! Never: runs a handler, wakes when nothing is due. Started by `server`.

use super::buffer::Buffer;
use super::server::Shared;
use super::table::lock;
use super::worker;
use std::sync::Arc;

/// The reaper's life.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut input = Buffer::default();
    while shared.timer.sleep() {
        let resting = std::mem::take(&mut *lock(&shared.resting));
        resting.into_iter().for_each(|index| shared.rearm_listener(index));

        let (due, next_ms) = shared.table.take_due(shared.timer.now_ms());
        for (place, mut connection) in due {
            shared.unhold(&connection);
            let next = connection.expire(&mut input, &shared.service);
            worker::follow(shared, place, connection, next);
        }
        if let Some(next_ms) = next_ms {
            shared.timer.look_at(next_ms);
        }
    }
}
