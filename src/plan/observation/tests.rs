//! Owns the cases of one observation: rows and a listing in, a plan out.
//!
//! Never: I/O, a clock.

use super::*;
use crate::model::id::PLATFORM_TEAM;
use crate::model::probe::Details;
use proptest::prelude::*;

fn id(n: u128) -> SandboxId {
    SandboxId::from_u128(n)
}

fn row(n: u128, status: SandboxStatus) -> Row {
    Row {
        id: id(n),
        team: PLATFORM_TEAM,
        status,
        stopped_by_inference: false,
        changed_at: Wall(0),
        revision: 5,
        operation: OperationState::None,
        left_over: false,
        looking: None,
        announced: false,
        announced_since: false,
        pause_outstanding: false,
    }
}

fn entry(n: u128, state: ListedState) -> Listed {
    Listed { id: id(n), state, created_at_unix: 1, details: Details::default() }
}

fn listing(running: &[u128]) -> Listing {
    let sandboxes = running.iter().map(|&n| entry(n, ListedState::Running)).collect();
    Listing { sandboxes, auto_paused: Vec::new() }
}

/// A host that is looked at again and again.
struct Host {
    rows: Vec<Row>,
    memory: HostMemory,
    now_s: u64,
    contact_gap: bool,
    forgotten_until: Option<Wall>,
    policy: Policy,
}

impl Host {
    fn new(rows: Vec<Row>) -> Host {
        Host {
            rows,
            memory: HostMemory::default(),
            now_s: 100_000,
            contact_gap: false,
            forgotten_until: None,
            policy: Policy::default(),
        }
    }

    fn look(&mut self, after_s: u64, listing: &Listing) -> HostPlan {
        self.now_s += after_s;
        let mono = Mono(self.now_s * 1000);
        let question = Question {
            revision: 10,
            asked_at: mono,
            now: Now { mono, wall: Wall(self.now_s as i64 * 1000) },
            contact_gap: std::mem::take(&mut self.contact_gap),
            age_cap: None,
            forgotten_until: self.forgotten_until,
        };
        let strangers: Vec<Stranger> = strangers(listing, &self.rows)
            .into_iter()
            .map(|id| Stranger { id, owner: None })
            .collect();
        let plan =
            plan_host(&self.rows, listing, &strangers, &self.memory, &question, &self.policy);
        self.memory = plan.memory.clone();
        plan
    }
}

fn moves(plan: &HostPlan) -> Vec<(u128, &'static str, String)> {
    let of = |t: &Transition| (t.id.as_u128(), t.to.as_str(), t.reason.to_string());
    plan.transitions.iter().map(of).collect()
}

#[test]
fn absence_counts_at_the_second_look_and_not_before_the_delay() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running), row(2, SandboxStatus::Running)]);
    let first = host.look(0, &listing(&[2]));
    assert_eq!((moves(&first), first.ask_again), (vec![], AskAgain::After(Duration::from_secs(3))));
    let hasty = host.look(2, &listing(&[2]));
    assert_eq!((moves(&hasty), hasty.ask_again), (vec![], AskAgain::After(Duration::from_secs(1))));
    let second = host.look(1, &listing(&[2]));
    assert_eq!(moves(&second), [(1, "stopped", "vanished".to_owned())]);
    assert_eq!(second.ask_again, AskAgain::AsUsual);
}

#[test]
fn an_id_that_comes_back_between_two_looks_starts_anew() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.look(0, &listing(&[]));
    host.look(3, &listing(&[1]));
    assert_eq!(moves(&host.look(3, &listing(&[]))), vec![]);
}

#[test]
fn a_row_that_changed_between_two_looks_starts_anew() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.look(0, &listing(&[]));
    host.rows[0].revision = 7;
    assert_eq!(moves(&host.look(3, &listing(&[]))), vec![]);
    assert_eq!(moves(&host.look(3, &listing(&[]))).len(), 1);
}

#[test]
fn the_first_look_after_a_gap_decides_how_the_second_reads() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.contact_gap = true;
    host.look(0, &listing(&[]));
    let second = host.look(3, &listing(&[]));
    assert_eq!(moves(&second), [(1, "paused", "presumed_paused".to_owned())]);
}

#[test]
fn a_wish_between_two_looks_undoes_no_gap() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.contact_gap = true;
    host.look(0, &listing(&[]));
    // A user wants it paused; the agent, which has paused it unannounced, refuses.
    let looking = Some(LookingFor { kind: OperationKind::Pause, answer: Answer::Refusal });
    let (status, operation) = (SandboxStatus::Pausing, OperationState::Live);
    host.rows[0] = Row { status, operation, revision: 17, looking, ..host.rows[0].clone() };
    let outdated = host.look(3, &listing(&[]));
    assert_eq!((moves(&outdated), outdated.newer), (vec![], 1));
    host.rows[0].revision = 7;
    assert_eq!(moves(&host.look(3, &listing(&[]))), vec![]);
    let second = host.look(5, &listing(&[]));
    assert_eq!(moves(&second), [(1, "paused", "presumed_paused".to_owned())]);

    // Without a gap it is gone.
    let mut host = Host { rows: host.rows, ..Host::new(Vec::new()) };
    host.look(0, &listing(&[]));
    let second = host.look(5, &listing(&[]));
    assert_eq!(moves(&second), [(1, "error", "operation_failed".to_owned())]);
}

#[test]
fn a_wish_during_the_first_look_undoes_no_gap_either() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.contact_gap = true;
    // A user wants it paused while the agent, which has paused it unannounced, is asked.
    let looking = Some(LookingFor { kind: OperationKind::Pause, answer: Answer::Refusal });
    let (status, operation) = (SandboxStatus::Pausing, OperationState::Live);
    host.rows[0] = Row { status, operation, revision: 17, looking, ..host.rows[0].clone() };
    assert_eq!(host.look(0, &listing(&[])).newer, 1);
    host.rows[0].revision = 7;
    assert_eq!(moves(&host.look(3, &listing(&[]))), vec![]);
    let second = host.look(3, &listing(&[]));
    assert_eq!(moves(&second), [(1, "paused", "presumed_paused".to_owned())]);
}

#[test]
fn a_gap_that_an_operation_outlives_is_remembered() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Pausing)]);
    host.rows[0].operation = OperationState::Live;
    host.contact_gap = true;
    assert_eq!(moves(&host.look(0, &listing(&[]))), vec![]);
    host.rows[0].looking = Some(LookingFor { kind: OperationKind::Pause, answer: Answer::Refusal });
    let later = host.look(60, &listing(&[]));
    assert_eq!(moves(&later), [(1, "paused", "presumed_paused".to_owned())]);
}

#[test]
fn what_a_late_pause_takes_is_paused_and_not_gone() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.rows[0].pause_outstanding = true;
    host.look(0, &listing(&[]));
    let second = host.look(3, &listing(&[]));
    assert_eq!(moves(&second), [(1, "paused", "presumed_paused".to_owned())]);
}

#[test]
fn an_operation_that_is_left_over_is_closed() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running), row(2, SandboxStatus::Running)]);
    host.rows[0].left_over = true;
    let plan = host.look(0, &listing(&[1, 2]));
    assert_eq!((moves(&plan), plan.left_over), (vec![], vec![id(1)]));
}

#[test]
fn an_announcement_after_the_first_look_wins_over_absence() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.look(0, &listing(&[]));
    host.rows[0].announced = true;
    let second = host.look(3, &listing(&[]));
    assert_eq!(moves(&second), [(1, "paused", "auto_paused".to_owned())]);
    assert_eq!(second.spent, [id(1)]);
}

#[test]
fn a_listed_id_proves_its_announcement_stale() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.rows[0].announced = true;
    let plan = host.look(0, &listing(&[1]));
    assert_eq!((moves(&plan), plan.spent), (vec![], vec![id(1)]));
}

#[test]
fn an_answer_older_than_an_announcement_does_not_prove_it_stale() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.rows[0].announced = true;
    host.rows[0].announced_since = true;
    let plan = host.look(0, &listing(&[1]));
    assert_eq!((moves(&plan), plan.spent, plan.ask_again), (vec![], vec![], AskAgain::AtOnce));
}

#[test]
fn an_announcement_waits_for_the_operation_that_owns_the_row() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Resuming)]);
    host.rows[0].announced = true;
    host.rows[0].operation = OperationState::Live;
    let plan = host.look(0, &listing(&[]));
    assert_eq!((moves(&plan), plan.spent), (vec![], vec![]));
}

#[test]
fn a_row_that_moves_leaves_no_operation_behind() {
    use SandboxStatus::{Pausing, Resuming, Starting, Stopping};
    for (status, operation, listed, ends) in [
        (Starting, OperationState::Live, true, true),
        (Resuming, OperationState::Live, true, true),
        (Starting, OperationState::None, true, false),
        (Starting, OperationState::Expired, false, true),
        (Pausing, OperationState::Expired, false, true),
        (Stopping, OperationState::Expired, false, true),
    ] {
        let mut host = Host::new(vec![Row { operation, ..row(1, status) }]);
        let plan = host.look(0, &listing(if listed { &[1] } else { &[] }));
        let [moved] = &plan.transitions[..] else { panic!("{status} {operation:?}: {plan:?}") };
        assert_eq!(moved.ends_operation, ends, "{status} {operation:?}");
    }
}

#[test]
fn newer_rows_are_left_alone_and_asked_for_at_once() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running), row(2, SandboxStatus::Missing)]);
    host.rows[0].revision = 11;
    let plan = host.look(0, &listing(&[2]));
    assert_eq!(moves(&plan), [(2, "running", "restored".to_owned())]);
    assert_eq!((plan.newer, plan.ask_again), (1, AskAgain::AtOnce));
}

#[test]
fn a_mass_vanish_is_held_for_one_interval() {
    let rows = (1..=4).map(|n| row(n, SandboxStatus::Running)).collect();
    let mut host = Host::new(rows);
    let one_left = listing(&[4]);
    host.look(0, &one_left);
    let held = host.look(3, &one_left);
    assert_eq!((moves(&held), held.held.len(), held.hold_began), (vec![], 3, true));
    assert_eq!(held.ask_again, AskAgain::After(Duration::from_secs(60)));
    let still = host.look(59, &one_left);
    assert_eq!((moves(&still), still.held.len(), still.hold_began), (vec![], 3, false));
    let gone = host.look(1, &one_left);
    assert_eq!(moves(&gone).len(), 3);
    assert_eq!(gone.memory, HostMemory::default());
}

#[test]
fn what_is_held_stays_held_although_a_user_took_some_of_it() {
    let rows = (1..=4).map(|n| row(n, SandboxStatus::Running)).collect();
    let mut host = Host::new(rows);
    let one_left = listing(&[4]);
    host.look(0, &one_left);
    assert_eq!(host.look(3, &one_left).held.len(), 3);
    host.rows[0].status = SandboxStatus::Stopped;
    let still = host.look(59, &one_left);
    assert_eq!((moves(&still), still.held.len()), (vec![], 2));
    assert_eq!(moves(&host.look(1, &one_left)).len(), 2);

    let found = host.look(60, &listing(&[2, 3, 4]));
    assert_eq!(found.memory, HostMemory::default(), "the next one that vanishes is one");
}

#[test]
fn less_than_half_is_no_mass() {
    let rows = (1..=7).map(|n| row(n, SandboxStatus::Running)).collect();
    let mut host = Host::new(rows);
    let four_left = listing(&[1, 2, 3, 4]);
    host.look(0, &four_left);
    assert_eq!(moves(&host.look(3, &four_left)).len(), 3);
}

#[test]
fn zombies_are_reported_once_and_only_when_old() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Stopped)]);
    let both = listing(&[1, 9]);
    let first = host.look(0, &both);
    assert_eq!(
        (first.zombies.len(), first.ask_again),
        (0, AskAgain::After(Duration::from_secs(3)))
    );
    let second = host.look(3, &both);
    let (status, forgotten) = (Some(SandboxStatus::Stopped), false);
    let stopped = Zombie { id: id(1), status, forgotten, new: true };
    let unknown = Zombie { id: id(9), status: None, forgotten, new: true };
    assert_eq!(second.zombies, [stopped, unknown]);
    let third = host.look(60, &both);
    assert_eq!(third.zombies.iter().filter(|z| z.new).count(), 0);
    assert_eq!(third.zombies.len(), 2, "still there");

    let mut host = Host::new(vec![]);
    let mut young = listing(&[9]);
    young.sandboxes[0].created_at_unix = host.now_s as i64;
    host.look(0, &young);
    assert_eq!(host.look(3, &young).zombies, []);
    assert_eq!(host.look(120, &young).zombies.len(), 1);

    // Our clock was set back by a day: what is made now is of tomorrow.
    let mut host = Host::new(Vec::new());
    let mut ahead = listing(&[1]);
    ahead.sandboxes[0].created_at_unix = host.now_s as i64 + 86_400;
    assert_eq!(host.look(0, &ahead).zombies, []);
    assert_eq!(host.look(120, &ahead).zombies, []);
    assert_eq!(host.look(1, &ahead).zombies.len(), 1);
}

/// What a second look at this listing reports: ids that are forgotten, and that are destroyed.
fn fate(host: &mut Host, listing: &Listing) -> [Vec<u128>; 2] {
    host.look(0, listing);
    let plan = host.look(200, listing);
    assert_eq!(plan.zombies.len(), listing.sandboxes.len(), "all are reported");
    let forgotten = plan.zombies.iter().filter(|zombie| zombie.forgotten);
    let forgotten = forgotten.map(|zombie| zombie.id.as_u128()).collect();
    [forgotten, plan.destroy.iter().map(|id| id.as_u128()).collect()]
}

#[test]
fn what_a_restore_may_have_forgotten_is_never_destroyed() {
    // 1 was stopped, 2 to 5 have no row: made before, at and after the acceptance, and
    // nobody says when.
    let mut seen = listing(&[1, 2, 3, 4, 5]);
    for (entry, created) in seen.sandboxes.iter_mut().zip([99_000, 99_000, 99_500, 99_501, 0]) {
        entry.created_at_unix = created;
    }
    let host = |zombies, forgotten_until| {
        let policy = Policy { zombies, ..Policy::default() };
        Host { policy, forgotten_until, ..Host::new(vec![row(1, SandboxStatus::Stopped)]) }
    };
    let accepted = Some(Wall(99_500_000));
    let all = vec![1, 2, 3, 4, 5];
    use ZombiePolicy::{Destroy, Report};
    for (zombies, until, expected) in [
        (Report, None, [vec![], vec![]]),
        (Report, accepted, [vec![2, 3, 5], vec![]]),
        (Destroy, None, [vec![], all]),
        (Destroy, accepted, [vec![2, 3, 5], vec![1, 4]]),
        (Destroy, Some(Wall(i64::MAX)), [vec![2, 3, 4, 5], vec![1]]),
    ] {
        assert_eq!(fate(&mut host(zombies, until), &seen), expected, "{zombies} {until:?}");
    }
}

#[test]
fn most_ids_of_another_host_mean_the_wrong_host() {
    let other = Some(HostId::from_u128(2));
    let stranger = |n, owner| Stranger { id: id(n), owner };
    let answer = listing(&[1, 2, 3]);
    assert!(!is_wrong_host(&answer, &[stranger(1, other)]));
    assert!(is_wrong_host(&answer, &[stranger(1, other), stranger(2, other)]));
    assert!(
        !is_wrong_host(&answer, &[stranger(1, None), stranger(2, None)]),
        "unknown, not foreign"
    );
    assert!(!is_wrong_host(&listing(&[]), &[]), "an empty answer says nothing of whose it is");
    let announced = Listing { sandboxes: vec![], auto_paused: vec![id(1)] };
    assert!(is_wrong_host(&announced, &[stranger(1, other)]));
}

fn any_row() -> impl Strategy<Value = Row> {
    let status = proptest::sample::select(SandboxStatus::ALL);
    let operation = proptest::sample::select(vec![
        OperationState::None,
        OperationState::Live,
        OperationState::Expired,
    ]);
    (0u128..12, status, any::<bool>(), 0u64..300, 0u64..20, operation, any::<bool>()).prop_map(
        |(n, status, stopped_by_inference, age_s, revision, operation, announced)| Row {
            id: id(n),
            team: PLATFORM_TEAM,
            status,
            stopped_by_inference,
            changed_at: Wall((100_000 - age_s as i64) * 1000),
            revision,
            operation,
            left_over: false,
            looking: None,
            announced,
            announced_since: false,
            pause_outstanding: false,
        },
    )
}

fn any_rows() -> impl Strategy<Value = Vec<Row>> {
    proptest::collection::vec(any_row(), 0..12).prop_map(|mut rows| {
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        rows
    })
}

fn any_listing() -> impl Strategy<Value = Listing> {
    let state = proptest::sample::select(vec![ListedState::Running, ListedState::Paused]);
    proptest::collection::btree_map(0u128..16, state, 0..12).prop_map(|entries| Listing {
        sandboxes: entries.into_iter().map(|(n, state)| entry(n, state)).collect(),
        auto_paused: Vec::new(),
    })
}

/// Moves the monitor may make; every other one is a bug.
fn allowed(from: SandboxStatus, to: SandboxStatus) -> bool {
    use SandboxStatus as S;
    match from {
        S::Running => matches!(to, S::Paused | S::Stopped),
        S::Missing => matches!(to, S::Running | S::Paused | S::Stopped),
        S::Starting => matches!(to, S::Running | S::Paused | S::Error),
        S::Resuming => matches!(to, S::Running | S::Paused | S::Error),
        S::Pausing => to == S::Paused,
        S::Stopping => to == S::Stopped,
        S::Paused => to == S::Running,
        S::Stopped => matches!(to, S::Running | S::Paused),
        S::Pending | S::Error | S::Hibernated => false,
    }
}

proptest! {
    #[test]
    fn plans_are_allowed_and_leave_newer_rows_alone(
        rows in any_rows(),
        answers in proptest::collection::vec((any_listing(), 0u64..100), 1..5),
        strict: bool,
        contact_gap: bool,
    ) {
        let mut host = Host::new(rows);
        host.contact_gap = contact_gap;
        if strict {
            host.policy = Policy::strict();
        }
        for (listing, after_s) in answers {
            let plan = host.look(after_s, &listing);
            for t in &plan.transitions {
                let row = host.rows.iter().find(|row| row.id == t.id).unwrap();
                prop_assert_eq!(row.status, t.from);
                prop_assert!(allowed(t.from, t.to), "{:?}", t);
                prop_assert!(row.revision <= 10, "newer than the question: {:?}", t);
                let listed_running = listing
                    .sandboxes
                    .iter()
                    .any(|l| l.id == t.id && l.state == ListedState::Running);
                prop_assert!(!listed_running || t.to == SandboxStatus::Running, "{:?}", t);
            }
            prop_assert!(plan.transitions.is_sorted_by_key(|t| t.id));
            prop_assert!(plan.memory.sightings.is_sorted_by_key(|s| s.id));
        }
    }

    /// Applying a plan and looking at the same answer again changes nothing more, once
    /// every look that waited for another one has had it.
    #[test]
    fn the_same_answer_settles(rows in any_rows(), listing in any_listing(), strict: bool) {
        let mut host = Host::new(rows);
        if strict {
            host.policy = Policy::strict();
        }
        for row in &mut host.rows {
            row.revision = row.revision.min(10);
        }
        for _ in 0..4 {
            let plan = host.look(61, &listing);
            for t in &plan.transitions {
                let row = host.rows.iter_mut().find(|row| row.id == t.id).unwrap();
                row.status = t.to;
                row.stopped_by_inference = t.reason == Reason::Vanished;
                row.operation = OperationState::None;
            }
            for id in &plan.spent {
                host.rows.iter_mut().find(|row| row.id == *id).unwrap().announced = false;
            }
        }
        let settled = host.look(61, &listing);
        prop_assert_eq!(settled.transitions, vec![]);
        prop_assert_eq!(settled.held, vec![]);
    }
}
