//! Owns what a lifecycle operation is.
//!
//! Never: carries one out.

use super::vocabulary;
use std::time::Duration;

vocabulary! {
    /// What a user asked for.
    OperationKind, "operation", {
        /// Make a sandbox.
        Create = "create",
        /// Snapshot it and give up its microVM.
        Pause = "pause",
        /// Make a microVM from its snapshot.
        Resume = "resume",
        /// Give up everything.
        Destroy = "destroy",
        /// Make a template of it.
        Snapshot = "snapshot",
    }
}

impl OperationKind {
    /// How long the operation owns its sandbox. Longer and a dead operation hides what
    /// really runs; shorter and a slow but healthy one is overruled half-way.
    pub const fn deadline(self) -> Duration {
        match self {
            OperationKind::Create | OperationKind::Destroy => Duration::from_secs(120),
            OperationKind::Resume => Duration::from_secs(180),
            OperationKind::Pause | OperationKind::Snapshot => Duration::from_secs(600),
        }
    }
}
