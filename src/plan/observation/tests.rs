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
        ended_by_user: status == SandboxStatus::Stopped,
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
    recorded: Vec<(SandboxId, StrangerKind)>,
    /// Ids that belong to another host.
    foreign: Vec<u128>,
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
            recorded: Vec::new(),
            foreign: Vec::new(),
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
        let other = HostId::from_u128(2);
        let owner = |id: SandboxId| self.foreign.contains(&id.as_u128()).then_some(other);
        let unplaced: Vec<Unplaced> = unplaced(listing, &self.rows)
            .into_iter()
            .map(|id| Unplaced { id, owner: owner(id), destroying: false })
            .collect();
        let (recorded, memory) = (&self.recorded, &self.memory);
        let plan =
            plan_host(&self.rows, listing, &unplaced, recorded, memory, &question, &self.policy);
        self.memory = plan.memory.clone();
        self.recorded.retain(|(id, _)| !plan.departed.contains(id));
        for stranger in plan.strangers.iter().filter(|stranger| stranger.new) {
            self.recorded.retain(|(id, _)| *id != stranger.id);
            self.recorded.push((stranger.id, stranger.kind));
        }
        self.recorded.sort_unstable_by_key(|(id, _)| *id);
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
    let looking =
        Some(LookingFor { kind: OperationKind::Pause, answer: Answer::Refusal, from: None });
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
    let looking =
        Some(LookingFor { kind: OperationKind::Pause, answer: Answer::Refusal, from: None });
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
    host.rows[0].looking =
        Some(LookingFor { kind: OperationKind::Pause, answer: Answer::Refusal, from: None });
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

/// Sandboxes by kind that an observation reports, with those that are new.
fn reported(plan: &HostPlan) -> Vec<(u128, &'static str, bool)> {
    plan.strangers.iter().map(|s| (s.id.as_u128(), s.kind.as_str(), s.new)).collect()
}

#[test]
fn zombies_are_reported_once_and_only_when_seen_for_long() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Stopped)]);
    let both = listing(&[1, 9]);
    let first = host.look(0, &both);
    assert_eq!(
        (reported(&first), first.ask_again),
        (vec![], AskAgain::After(Duration::from_secs(3)))
    );
    assert_eq!(reported(&host.look(120, &both)), []);
    let old = host.look(1, &both);
    assert_eq!(reported(&old), [(1, "zombie", true), (9, "zombie", true)]);
    assert_eq!(old.strangers[0].status, Some(SandboxStatus::Stopped));
    let later = host.look(60, &both);
    assert_eq!(reported(&later), [(1, "zombie", false), (9, "zombie", false)]);
    let gone = host.look(60, &listing(&[1]));
    assert_eq!((reported(&gone).len(), gone.departed), (1, vec![id(9)]));

    // A restart forgets what was seen, but not what was recorded.
    host.memory = HostMemory::default();
    assert_eq!(reported(&host.look(60, &listing(&[1]))), [(1, "zombie", false)]);
}

/// The clock of a host is compared with none but itself.
#[test]
fn when_a_host_says_that_it_made_a_sandbox_means_nothing_here() {
    for made_s in [0, 1, 99_999, 100_000, 100_000 + 86_400, i64::MAX / 2000] {
        let mut host = Host { forgotten_until: Some(Wall(1)), ..Host::new(Vec::new()) };
        let mut seen = listing(&[9]);
        seen.sandboxes[0].created_at_unix = made_s;
        assert_eq!(reported(&host.look(0, &seen)), [], "{made_s}");
        assert_eq!(reported(&host.look(120, &seen)), [], "{made_s}");
        assert_eq!(reported(&host.look(1, &seen)), [(9, "zombie", true)], "{made_s}");
    }
}

#[test]
fn only_a_users_destroy_makes_a_zombie_of_a_row() {
    for status in [SandboxStatus::Stopped, SandboxStatus::Error] {
        let mut host = Host::new(vec![Row { ended_by_user: false, ..row(1, status) }]);
        let plan = host.look(0, &listing(&[1]));
        assert_eq!(moves(&plan), [(1, "running", "adopted".to_owned())]);
        let mut host = Host::new(vec![Row { ended_by_user: false, ..row(1, status) }]);
        host.rows[0].announced = true;
        let plan = host.look(0, &listing(&[]));
        assert_eq!(moves(&plan), [(1, "paused", "auto_paused".to_owned())]);
        assert_eq!(plan.spent, [id(1)]);
    }
}

#[test]
fn a_sandbox_that_is_listed_as_failed_has_failed() {
    for status in [SandboxStatus::Running, SandboxStatus::Paused, SandboxStatus::Missing] {
        let mut host = Host::new(vec![row(1, status)]);
        let mut seen = listing(&[1]);
        seen.sandboxes[0].state = ListedState::Error;
        assert_eq!(moves(&host.look(0, &seen)), [(1, "error", "listed_error".to_owned())]);
    }
}

#[test]
fn what_belongs_to_another_host_is_reported_and_left_where_it_is() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    (host.foreign, host.policy.zombies) = (vec![7], ZombiePolicy::Destroy);
    let both = listing(&[1, 7]);
    assert_eq!(reported(&host.look(0, &both)), []);
    let second = host.look(3, &both);
    assert_eq!(reported(&second), [(7, "misplaced", true)]);
    assert_eq!(reported(&host.look(500, &both)), [(7, "misplaced", false)]);
    let last = host.look(500, &both);
    assert_eq!((moves(&last), last.destroy), (vec![], vec![]), "it is not ours to destroy");
    assert_eq!(host.look(5, &listing(&[1])).departed, [id(7)]);
}

#[test]
fn notices_about_sandboxes_of_others_are_counted_and_ignored() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Running)]);
    host.foreign = vec![7];
    let seen = Listing { auto_paused: vec![id(1), id(7), id(9)], ..listing(&[1]) };
    let plan = host.look(0, &seen);
    assert_eq!((plan.foreign_notices, plan.newer, plan.ask_again), (2, 0, AskAgain::AsUsual));
    assert_eq!((moves(&plan), reported(&plan)), (vec![], vec![]));
}

/// Ids that a look at this listing records as forgotten, and those that are destroyed later.
fn fate(host: &mut Host, listing: &Listing) -> [Vec<u128>; 2] {
    let first = host.look(0, listing);
    let is_forgotten = |s: &&Stranger| s.kind == StrangerKind::Forgotten && s.new;
    let forgotten = first.strangers.iter().filter(is_forgotten).map(|s| s.id.as_u128()).collect();
    // Long after the day in which unknown sandboxes count as forgotten.
    host.forgotten_until = host.forgotten_until.map(|_| Wall(0));
    let plan = host.look(200, listing);
    assert_eq!(plan.strangers.len(), listing.sandboxes.len(), "all are reported");
    [forgotten, plan.destroy.iter().map(|id| id.as_u128()).collect()]
}

#[test]
fn what_a_restore_may_have_forgotten_is_never_destroyed() {
    // 1 was destroyed by a user, 2 and 3 have no row.
    let seen = listing(&[1, 2, 3]);
    let host = |zombies, forgotten_until| {
        let policy = Policy { zombies, ..Policy::default() };
        Host { policy, forgotten_until, ..Host::new(vec![row(1, SandboxStatus::Stopped)]) }
    };
    let (before, after) = (Some(Wall(99_999_000)), Some(Wall(100_001_000)));
    use ZombiePolicy::{Destroy, Report};
    for (zombies, until, expected) in [
        (Report, None, [vec![], vec![]]),
        (Report, after, [vec![2, 3], vec![]]),
        (Destroy, None, [vec![], vec![1, 2, 3]]),
        (Destroy, before, [vec![], vec![1, 2, 3]]),
        (Destroy, after, [vec![2, 3], vec![1]]),
    ] {
        assert_eq!(fate(&mut host(zombies, until), &seen), expected, "{zombies} {until:?}");
    }
}

#[test]
fn a_hostile_host_fills_no_more_than_its_part_of_the_database() {
    let ids: Vec<u128> = (1..=3_000).collect();
    let mut host = Host { forgotten_until: Some(Wall(i64::MAX)), ..Host::new(Vec::new()) };
    for at_s in 0..5 {
        host.look(at_s * 100, &listing(&ids));
        assert!(host.recorded.len() <= STRANGERS_MAX);
    }
    assert_eq!(host.recorded.len(), STRANGERS_MAX);
}

#[test]
fn a_host_that_lists_none_of_its_own_but_those_of_others_is_the_wrong_one() {
    let other = HostId::from_u128(2);
    let answer = listing(&[1, 2, 3]);
    let unplaced = [1, 2, 3].map(|n| Unplaced { id: id(n), owner: None, destroying: false });
    let wrong = |unplaced: &[Unplaced], others: &[HostId]| {
        lists_others(&answer, unplaced, others) && wrong_host(others, |_| 0) == Some(other)
    };
    assert!(wrong(&unplaced, &[other; 3]));
    assert!(wrong(&unplaced, &[other; 2]), "one is unknown");
    assert!(!wrong(&unplaced[..2], &[other; 2]), "the third is its own");
    assert!(!wrong(&unplaced, &[other]), "most are unknown");
    assert!(!lists_others(&listing(&[]), &[], &[]), "an empty answer says nothing of whose it is");
}

/// A create that a host declined and made all the same is all that it has.
#[test]
fn a_few_foreign_sandboxes_do_not_make_a_host_the_wrong_one() {
    let (other, third) = (HostId::from_u128(2), HostId::from_u128(3));
    for (lists, expected) in [(0, true), (1, true), (2, true), (3, false), (9, false)] {
        let found = wrong_host(&[other], |_| lists);
        assert_eq!(found.is_some(), expected, "the other one lists {lists}");
    }
    let lists = |host| if host == other { 4 } else { 9 };
    assert_eq!(wrong_host(&[other, third, other], lists), Some(other));
}

/// Behind the gap an agent may have made the sandbox and paused it with all others; then it
/// refuses to make it twice, and older agents list it no more.
#[test]
fn a_create_that_is_refused_the_second_time_may_have_been_paused_behind_the_gap() {
    let waits_for = |answer| Some(LookingFor { kind: OperationKind::Create, answer, from: None });
    for (gap, expected) in [(true, "presumed_paused"), (false, "operation_failed")] {
        let mut host = Host::new(vec![row(1, SandboxStatus::Starting)]);
        host.contact_gap = gap;
        host.rows[0].operation = OperationState::Live;
        host.rows[0].looking = waits_for(Answer::Ended);
        host.look(0, &listing(&[]));
        assert_eq!(host.look(3, &listing(&[])).call_again.len(), 1);
        // The call is in progress, then its refusal is recorded.
        host.rows[0].looking = None;
        host.look(15, &listing(&[]));
        host.memory.count_anew(id(1));
        host.rows[0].looking = waits_for(Answer::LateRefusal);
        assert_eq!(moves(&host.look(1, &listing(&[]))), vec![], "once is not enough");
        let reasons: Vec<String> =
            moves(&host.look(3, &listing(&[]))).into_iter().map(|(.., reason)| reason).collect();
        assert_eq!(reasons, [expected]);
    }
}

/// It may be older than the destroy, and nothing takes it back.
#[test]
fn a_notice_has_a_destroy_sent_again_once() {
    let mut host = Host::new(vec![row(1, SandboxStatus::Stopping)]);
    let (kind, answer, from) = (OperationKind::Destroy, Answer::Done, None);
    host.rows[0].operation = OperationState::Live;
    host.rows[0].looking = Some(LookingFor { kind, answer, from });
    host.rows[0].announced = true;
    let first = host.look(0, &listing(&[]));
    assert_eq!((first.call_again.len(), &first.spent[..]), (1, &[id(1)][..]));
    host.rows[0].announced = false;
    host.look(1, &listing(&[]));
    let last = host.look(3, &listing(&[]));
    assert_eq!(moves(&last), [(1, "stopped", "operation_succeeded".to_owned())]);
}

/// After a restart two observations that agree give the outcome of a call.
#[test]
fn a_call_that_ended_with_its_connection_is_made_again_after_two_observations() {
    let ended = |kind| Some(LookingFor { kind, answer: Answer::Ended, from: None });
    use OperationKind::{Create, Pause, Resume};
    for (kind, listed) in [(Create, vec![]), (Pause, vec![1]), (Resume, vec![])] {
        let mut host = Host::new(vec![row(1, transient(kind))]);
        (host.rows[0].operation, host.rows[0].looking) = (OperationState::Live, ended(kind));
        let first = host.look(0, &listing(&listed));
        assert_eq!((moves(&first), &first.call_again[..]), (vec![], &[][..]), "{kind}");
        assert_eq!(first.ask_again, AskAgain::After(Duration::from_secs(3)));
        let second = host.look(3, &listing(&listed));
        assert_eq!(second.call_again, [(id(1), Earlier::Unknown)], "{kind}");
        assert_eq!(moves(&second), vec![]);
    }
}

fn any_row() -> impl Strategy<Value = Row> {
    let status = proptest::sample::select(SandboxStatus::ALL);
    let operation = proptest::sample::select(vec![
        OperationState::None,
        OperationState::Live,
        OperationState::Expired,
    ]);
    (0u128..12, status, any::<bool>(), 0u64..300, 0u64..20, operation, any::<bool>()).prop_map(
        |(n, status, ended_by_user, age_s, revision, operation, announced)| Row {
            id: id(n),
            team: PLATFORM_TEAM,
            status,
            ended_by_user,
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
    let state = proptest::sample::select(vec![
        ListedState::Running,
        ListedState::Paused,
        ListedState::Error,
    ]);
    proptest::collection::btree_map(0u128..16, state, 0..12).prop_map(|entries| Listing {
        sandboxes: entries.into_iter().map(|(n, state)| entry(n, state)).collect(),
        auto_paused: Vec::new(),
    })
}

/// Moves the monitor may make; every other one is a bug.
fn allowed(from: SandboxStatus, to: SandboxStatus) -> bool {
    use SandboxStatus as S;
    match from {
        S::Running => matches!(to, S::Paused | S::Stopped | S::Error),
        S::Missing => matches!(to, S::Running | S::Paused | S::Stopped | S::Error),
        S::Starting => matches!(to, S::Running | S::Paused | S::Error),
        S::Resuming => matches!(to, S::Running | S::Paused | S::Error),
        S::Pausing => matches!(to, S::Paused | S::Error),
        S::Stopping => to == S::Stopped,
        S::Paused => matches!(to, S::Running | S::Error),
        S::Stopped => matches!(to, S::Running | S::Paused | S::Error),
        S::Error => matches!(to, S::Running | S::Paused),
        S::Pending | S::Hibernated => false,
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
                row.ended_by_user = t.reason.is_users_destroy();
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
