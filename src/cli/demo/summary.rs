//! Owns the end of a demo: what was wrong, and what is missing of all being well again.
//!
//! Never: reads the database or asks a host; it judges what it is given. Called by `demo`
//! and `play`.

use super::fault::FaultKind;
use super::show::tenths;
use crate::cli::output::{Cell, Column, Screen, Table, Tone};
use crate::model::id::{HostId, SandboxId};
use crate::model::sandbox::SandboxStatus;
use crate::sim::SimState;
use std::time::Duration;

/// What became of one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Counted from one.
    pub(super) number: usize,
    /// What went wrong.
    pub(super) kind: FaultKind,
    /// Where.
    pub(super) host: HostId,
    /// How long it was there before Roost noticed.
    pub(super) noticed: Option<Duration>,
    /// How long it took from its end until everything was as before.
    pub(super) repaired: Option<Duration>,
    /// What stood in the way last.
    pub(super) trouble: Option<String>,
}

/// A row for each fault.
pub(super) fn table(records: &[Record], screen: Screen) -> String {
    let mut table = Table::new(&[
        Column::right("FAULT"),
        Column::flexible("WHAT"),
        Column::other_id("HOST").leaves(1),
        Column::right("NOTICED AFTER"),
        Column::right("REPAIRED AFTER"),
    ]);
    let after = |span: Option<Duration>| match span {
        Some(span) => Cell::toned(tenths(span), Tone::Good),
        None => Cell::toned("never", Tone::Bad),
    };
    for record in records {
        table.row([
            Cell::from(record.number.to_string()),
            Cell::from(record.kind.words()),
            Cell::from(record.host.to_string()),
            after(record.noticed),
            after(record.repaired),
        ]);
    }
    table.render(screen)
}

/// Everything that is not as it should be, a phrase each; empty when all is well.
pub(super) fn missing(
    records: &[Record],
    disagreements: &[String],
    broken: &[String],
) -> Vec<String> {
    let mut missing = Vec::new();
    for record in records {
        let name = format!("fault {} ({})", record.number, record.kind.words());
        if record.noticed.is_none() {
            missing.push(format!("{name} was not noticed"));
        }
        if record.repaired.is_none() {
            let why = record.trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            missing.push(format!("{name} was not repaired{why}"));
        }
    }
    missing.extend(disagreements.iter().cloned());
    missing.extend(broken.iter().map(|what| format!("the database is broken: {what}")));
    missing
}

/// The last line when nothing is missing.
pub(super) fn verdict(records: &[Record], sandboxes: usize) -> String {
    let faults = match records.len() {
        1 => "1 fault".to_owned(),
        count => format!("{count} faults"),
    };
    format!(
        "{faults}, all noticed and repaired; the database agrees with the hosts on {sandboxes} \
         sandboxes, and is whole"
    )
}

/// Whether the database and a host agree on one sandbox; if not, in which words.
pub(super) fn disagreement(
    id: SandboxId,
    host: HostId,
    known: Option<SandboxStatus>,
    truth: Option<SimState>,
) -> Option<String> {
    let agrees = match known {
        Some(SandboxStatus::Running) => truth == Some(SimState::Running),
        Some(SandboxStatus::Paused) => {
            matches!(truth, Some(SimState::Paused | SimState::Shelved))
        }
        Some(SandboxStatus::Error) => matches!(truth, None | Some(SimState::Error)),
        Some(SandboxStatus::Stopped) | None => truth.is_none(),
        Some(
            SandboxStatus::Pending
            | SandboxStatus::Starting
            | SandboxStatus::Pausing
            | SandboxStatus::Resuming
            | SandboxStatus::Stopping
            | SandboxStatus::Missing
            | SandboxStatus::Hibernated,
        ) => false,
    };
    let known = known.map_or("no row", |status| status.as_str());
    let truth = match truth {
        Some(SimState::Creating) => "is making it",
        Some(SimState::Resuming) => "is resuming it",
        Some(SimState::Running) => "runs it",
        Some(SimState::Pausing) => "is pausing it",
        Some(SimState::Paused | SimState::Shelved) => "has its snapshot",
        Some(SimState::Error) => "lists it as error",
        None => "has nothing of it",
    };
    (!agrees).then(|| format!("the database says {known} of {id}, {host} {truth}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn record(number: usize, noticed_ms: Option<u64>, repaired_ms: Option<u64>) -> Record {
        Record {
            number,
            kind: FaultKind::Silent,
            host: HostId::from_u128(1),
            noticed: noticed_ms.map(Duration::from_millis),
            repaired: repaired_ms.map(Duration::from_millis),
            trouble: None,
        }
    }

    #[test]
    fn nothing_is_missing_when_all_was_noticed_and_repaired() {
        assert_eq!(missing(&[record(1, Some(3200), Some(900))], &[], &[]), Vec::<String>::new());
        assert_eq!(missing(&[], &[], &[]), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_named() {
        let records = [
            record(1, Some(3200), Some(900)),
            record(2, None, Some(0)),
            Record { trouble: Some("no host".to_owned()), ..record(3, Some(1), None) },
        ];
        let found = missing(&records, &["they differ".to_owned()], &["a gap".to_owned()]);
        expect![[r#"
            fault 2 (host falls silent) was not noticed
            fault 3 (host falls silent) was not repaired: no host
            they differ
            the database is broken: a gap"#]]
        .assert_eq(&found.join("\n"));
    }

    #[test]
    fn the_table() {
        let records = [record(1, Some(3200), Some(900)), record(2, None, None)];
        expect![[r#"
            FAULT  WHAT               HOST                            NOTICED AFTER  REPAIRED AFTER
                1  host falls silent  host-0000000000000000000000001           3.2s            0.9s
                2  host falls silent  host-0000000000000000000000001          never           never
        "#]]
        .assert_eq(&table(&records, Screen::default()));
    }

    #[test]
    fn the_database_agrees_with_the_truth_only() {
        use SandboxStatus as S;
        let states = [
            None,
            Some(SimState::Creating),
            Some(SimState::Resuming),
            Some(SimState::Running),
            Some(SimState::Pausing),
            Some(SimState::Paused),
            Some(SimState::Shelved),
            Some(SimState::Error),
        ];
        let (id, host) = (SandboxId::from_u128(1), HostId::from_u128(1));
        let known = S::ALL.iter().map(|status| Some(*status)).chain([None]);
        let pairs = known.flat_map(|known| states.map(|truth| (known, truth)));
        let agreeing: Vec<_> = pairs
            .filter(|(known, truth)| disagreement(id, host, *known, *truth).is_none())
            .collect();
        assert_eq!(
            agreeing,
            [
                (Some(S::Running), Some(SimState::Running)),
                (Some(S::Paused), Some(SimState::Paused)),
                (Some(S::Paused), Some(SimState::Shelved)),
                (Some(S::Stopped), None),
                (Some(S::Error), None),
                (Some(S::Error), Some(SimState::Error)),
                (None, None),
            ]
        );
    }
}
