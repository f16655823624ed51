//! Owns the tests of `plan::notify`: every course of a problem, step by step with times of
//! our own.
//!
//! Never: a clock.

use super::*;

const MINUTE: i64 = 60_000;
const BEGIN: i64 = 1_790_000_000_000;

/// Thirty machines have addresses; the others are known by their ids only.
fn names() -> BTreeMap<HostId, String> {
    (1..=30).map(|n| (host(n), format!("{} (edge-{n}.lan:50051)", host(n)))).collect()
}

/// A host as messages name it.
fn named(n: u128) -> String {
    names()[&host(n)].clone()
}

/// A course: what is known, and what was sent so far.
struct Course {
    known: Vec<Problem>,
    rules: Rules,
    maintained: BTreeMap<HostId, Wall>,
    ids: u32,
    next_at: Option<Wall>,
}

fn host(n: u128) -> HostId {
    HostId::from_u128(n)
}

fn down(n: u128) -> (Key, Sight) {
    ((NotifyKind::HostDown, Some(host(n))), Sight::Wrong(3))
}

impl Course {
    fn new() -> Course {
        let rules = Rules {
            delay: Duration::from_secs(60),
            reminder: Duration::from_secs(4 * 3600),
            mute: false,
        };
        let (known, maintained) = (Vec::new(), BTreeMap::new());
        Course { known, rules, maintained, ids: 0, next_at: None }
    }

    /// Looks so many milliseconds after the beginning; what is sent, as `state title`.
    fn look(&mut self, at: i64, seen: &[(Key, Sight)]) -> Vec<String> {
        self.messages(at, seen).iter().map(|m| format!("{} {}", m.phase, m.title)).collect()
    }

    fn messages(&mut self, at: i64, seen: &[(Key, Sight)]) -> Vec<Message> {
        let ids = &mut self.ids;
        let mut fresh = || {
            *ids += 1;
            format!("n{ids}")
        };
        let seen = seen.iter().copied().collect();
        let now = Wall(BEGIN + at);
        let (known, maintained, rules) = (&self.known, &self.maintained, &self.rules);
        let decided = decide(known, &seen, maintained, &names(), now, rules, &mut fresh);
        self.known = decided.problems;
        self.next_at = decided.next_at;
        decided.messages
    }

    fn next(&self) -> Option<i64> {
        self.next_at.map(|at| at.0 - BEGIN)
    }
}

#[test]
fn every_message_about_a_machine_says_where_it_is() {
    for kind in NotifyKind::ALL.iter().filter(|kind| **kind != NotifyKind::MassGuard) {
        let sight = if kind.is_passing() { Sight::Happened(2) } else { Sight::Wrong(2) };
        for count in [1, 2, 20] {
            let mut course = Course::new();
            let seen: Vec<(Key, Sight)> =
                (1..=count).map(|n| ((*kind, Some(host(n))), sight)).collect();
            let unwatched: Vec<(Key, Sight)> =
                seen.iter().map(|(key, _)| (*key, Sight::Unwatched)).collect();
            let mut said = course.messages(0, &seen);
            said.extend(course.messages(MINUTE, &seen));
            said.extend(
                course.messages(5 * 60 * MINUTE, if kind.is_passing() { &[] } else { &seen }),
            );
            let mut left = Course { known: course.known.clone(), ..Course::new() };
            said.extend(left.messages(6 * 60 * MINUTE, &unwatched));
            said.extend(course.messages(6 * 60 * MINUTE, &[]));
            let expected = if kind.is_passing() { 1 } else { 4 };
            assert_eq!(said.len(), expected, "{kind}: {said:?}");
            for message in &said {
                for n in 1..=count {
                    assert!(message.text.contains(&named(n)), "{kind} {count}: {}", message.text);
                }
                assert!(count > 1 || message.title.contains(&named(1)), "{}", message.title);
            }
        }
    }
}

const NOTHING: [String; 0] = [];

#[test]
fn a_host_that_is_back_within_the_delay_is_never_mentioned() {
    let mut course = Course::new();
    assert_eq!(course.look(0, &[down(1)]), NOTHING);
    assert_eq!(course.next(), Some(MINUTE));
    assert_eq!(course.look(MINUTE - 1, &[down(1)]), NOTHING);
    assert_eq!(course.look(MINUTE - 1, &[]), NOTHING);
    assert!(course.known.is_empty());
    assert_eq!(course.look(MINUTE, &[down(1)]), NOTHING, "the delay begins anew");
}

#[test]
fn a_host_that_stays_down_is_announced_reminded_of_and_taken_back() {
    let mut course = Course::new();
    course.look(0, &[down(1)]);
    let opened = course.messages(MINUTE, &[down(1)]);
    assert_eq!(opened.len(), 1);
    assert_eq!(opened[0].title, format!("{} unreachable", named(1)));
    assert_eq!(
        opened[0].text,
        format!("{} unreachable since 2026-09-21 14:13 UTC; 3 sandboxes missing", named(1))
    );
    assert_eq!((opened[0].severity, opened[0].sandboxes), (Severity::Critical, 3));
    assert_eq!(opened[0].id, opened[0].problem);
    let four = 4 * 60 * MINUTE;
    assert_eq!(course.next(), Some(MINUTE + four));
    assert_eq!(course.look(MINUTE + four - 1, &[down(1)]), NOTHING);
    let reminded = course.messages(MINUTE + four, &[down(1)]);
    assert_eq!((reminded[0].phase, &reminded[0].problem), (Phase::Reminder, &opened[0].id));
    assert_ne!(reminded[0].id, opened[0].id);
    assert_eq!(course.next(), Some(MINUTE + 2 * four));
    let resolved = course.messages(MINUTE + four + 5, &[]);
    assert_eq!(resolved[0].title, format!("{} is back", named(1)));
    assert_eq!((resolved[0].severity, &resolved[0].problem), (Severity::Info, &opened[0].id));
    assert_eq!(course.look(MINUTE + four + 6, &[]), NOTHING);
    assert!(course.known.is_empty());
}

#[test]
fn without_reminders_nobody_is_reminded() {
    let mut course = Course::new();
    course.rules.reminder = Duration::ZERO;
    course.look(0, &[down(1)]);
    assert_eq!(course.look(MINUTE, &[down(1)]).len(), 1);
    assert_eq!((course.look(9999 * MINUTE, &[down(1)]), course.next()), (vec![], None));
}

#[test]
fn a_rack_is_one_message_and_comes_back_in_one() {
    let mut course = Course::new();
    let rack: Vec<(Key, Sight)> = (1..=30).map(down).collect();
    assert_eq!(course.look(0, &rack[..10]), NOTHING);
    assert_eq!(course.look(20_000, &rack), NOTHING);
    assert_eq!(course.look(MINUTE, &rack), NOTHING, "the others are nearly due");
    assert_eq!(course.next(), Some(MINUTE + 20_000));
    let said = course.messages(MINUTE + 20_000, &rack);
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].title.as_str(), said[0].hosts.len()), ("30 hosts unreachable", 30));
    assert_eq!(said[0].sandboxes, 90);
    assert!(said[0].text.contains(&named(20)), "{}", said[0].text);
    assert!(said[0].text.ends_with("and 10 more"), "{}", said[0].text);
    assert_eq!(course.look(5 * MINUTE, &rack[25..]), NOTHING, "the rest may follow");
    assert_eq!(course.look(5 * MINUTE + 10_000, &[]), ["resolved 30 hosts are back"]);
    assert!(course.known.is_empty());
}

#[test]
fn of_a_rack_whose_one_host_stays_down_the_others_are_taken_back() {
    let mut course = Course::new();
    let rack: Vec<(Key, Sight)> = (1..=3).map(down).collect();
    course.look(0, &rack);
    assert_eq!(course.look(MINUTE, &rack), ["open 3 hosts unreachable"]);
    assert_eq!(course.look(2 * MINUTE, &rack[..1]), NOTHING);
    assert_eq!(course.next(), Some(2 * MINUTE + 30_000));
    assert_eq!(course.look(2 * MINUTE + 30_000, &rack[..1]), ["resolved 2 hosts are back"]);
    assert_eq!(course.look(3 * MINUTE, &[]), [format!("resolved {} is back", named(1))]);
}

#[test]
fn a_late_host_makes_nobody_wait_for_longer_than_half_the_delay() {
    let mut course = Course::new();
    course.look(0, &[down(1)]);
    course.look(40_000, &[down(1), down(2)]);
    assert_eq!(course.look(MINUTE, &[down(1), down(2)]).len(), 1);
    assert_eq!(course.next(), Some(MINUTE + 40_000));
    assert_eq!(course.look(MINUTE + 40_000, &[down(1), down(2)]).len(), 1);
}

#[test]
fn maintenance_hides_a_host_until_it_ends() {
    let mut course = Course::new();
    course.maintained.insert(host(1), Wall(BEGIN + 60 * MINUTE));
    assert_eq!(course.look(0, &[down(1)]), NOTHING);
    assert_eq!(course.look(30 * MINUTE, &[down(1)]), NOTHING);
    assert_eq!(course.next(), Some(60 * MINUTE));
    assert_eq!(course.look(60 * MINUTE, &[down(1)]).len(), 1, "it is still wrong");
    course.maintained.insert(host(1), Wall(BEGIN + 120 * MINUTE));
    assert_eq!(course.look(70 * MINUTE, &[]), NOTHING, "nothing about it, not even this");
    assert_eq!(course.look(120 * MINUTE, &[]), [format!("resolved {} is back", named(1))]);
}

#[test]
fn what_fails_in_maintenance_is_no_news_and_other_hosts_are() {
    let mut course = Course::new();
    let failed = |n| ((NotifyKind::OperationFailed, Some(host(n))), Sight::Happened(1));
    course.maintained.insert(host(1), Wall(BEGIN + 60 * MINUTE));
    course.look(0, &[failed(1), failed(2), down(1), down(2)]);
    assert_eq!(
        course.look(MINUTE, &[down(1), down(2)]),
        [
            format!("open {} unreachable", named(2)),
            format!("open 1 operation failed on {}", named(2))
        ]
    );
}

#[test]
fn failures_are_counted_told_once_and_never_taken_back() {
    let mut course = Course::new();
    let failed = |times| ((NotifyKind::OperationFailed, Some(host(1))), Sight::Happened(times));
    course.look(0, &[failed(2)]);
    course.look(1000, &[]);
    course.look(2000, &[failed(1)]);
    assert_eq!(course.look(MINUTE, &[]), [format!("open 3 operations failed on {}", named(1))]);
    assert!(course.known.is_empty());
    assert_eq!(course.look(2 * MINUTE, &[]), NOTHING);
}

#[test]
fn what_nobody_can_say_is_neither_announced_nor_taken_back() {
    let mut course = Course::new();
    let zombies = |sight| [((NotifyKind::Zombies, Some(host(1))), sight)];
    course.look(0, &zombies(Sight::Wrong(2)));
    assert_eq!(course.look(2 * MINUTE, &zombies(Sight::Unknown)), NOTHING);
    assert_eq!(course.look(3 * MINUTE, &zombies(Sight::Wrong(1))).len(), 1, "its delay is over");
    assert_eq!(course.look(4 * MINUTE, &zombies(Sight::Unknown)), NOTHING);
    assert_eq!(
        course.look(5 * MINUTE, &[]),
        [format!("resolved no zombies any more on {}", named(1))]
    );
}

#[test]
fn an_operator_who_takes_a_host_out_of_watch_ends_its_problems() {
    let mut course = Course::new();
    let away = [((NotifyKind::HostDown, Some(host(1))), Sight::Unwatched)];
    course.look(0, &[down(1)]);
    assert_eq!(course.look(1, &away), NOTHING);
    assert!(course.known.is_empty(), "not announced: forgotten");
    course.look(2, &[down(1)]);
    course.look(2 + MINUTE, &[down(1)]);
    assert_eq!(
        course.look(3 + MINUTE, &away),
        [format!("resolved {} is no longer watched", named(1))]
    );
}

#[test]
fn nobody_there_to_be_told_hears_when_somebody_is() {
    let mut course = Course::new();
    course.rules.mute = true;
    course.look(0, &[down(1)]);
    assert_eq!(course.look(10 * MINUTE, &[down(1)]), NOTHING);
    course.rules.mute = false;
    assert_eq!(course.look(11 * MINUTE, &[down(1)]).len(), 1);
}

#[test]
fn a_clock_that_goes_back_delays_by_no_more_than_the_delay() {
    let mut course = Course::new();
    course.look(0, &[down(1)]);
    assert_eq!(course.look(-500 * MINUTE, &[down(1)]), NOTHING);
    assert_eq!(course.look(-499 * MINUTE, &[down(1)]).len(), 1);
}

#[test]
fn every_kind_has_words_for_every_phase() {
    for kind in NotifyKind::ALL {
        let of = if *kind == NotifyKind::MassGuard { None } else { Some(host(1)) };
        let mut course = Course::new();
        let sight = if kind.is_passing() { Sight::Happened(1) } else { Sight::Wrong(4) };
        let seen = [((*kind, of), sight)];
        course.look(0, &seen);
        let mut said = course.messages(MINUTE, if kind.is_passing() { &[] } else { &seen });
        if !kind.is_passing() {
            said.extend(course.messages(300 * MINUTE, &seen));
            said.extend(course.messages(301 * MINUTE, &[]));
            assert_eq!(said.len(), 3, "{kind}");
        }
        for message in said {
            assert!(message.text.starts_with(&message.title), "{message:?}");
            assert!(message.title.is_ascii(), "a header takes it: {message:?}");
        }
    }
}
