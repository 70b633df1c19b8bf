//! Checks whether the recorded history of an election keeps the guarantees S1, S2 and S3.
//!
//! All events of a history have timestamps of one clock, because all candidates run on one machine. Each candidate records
//! an event when it happens, so that the history of a candidate is complete until it was killed.
//!
//! ```
//! use tenure_testkit::history::{Event, EventKind, check};
//!
//! let event = |at, token, kind| Event { at, election: "e".to_owned(), token, kind };
//! let verdict = check(&[
//!     event(1_000, 7, EventKind::Leads { deadline: 9_000 }),
//!     event(4_000, 7, EventKind::Worked),   // then it was killed; it may have led until 9 000
//!     event(8_000, 8, EventKind::Leads { deadline: 16_000 }),
//! ]);
//! assert_eq!((verdict.overlaps, verdict.max_overlap), (1, Some(1_000)));
//! ```

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// One recorded event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The time in nanoseconds, read *before* the check or the action that it records.
    pub at: u64,
    /// The election.
    pub election: String,
    /// The fencing token of the term.
    pub token: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What an [`Event`] records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A candidate became leader, and a check after `at` confirmed it.
    Leads {
        /// The deadline at that time.
        deadline: u64,
    },
    /// The deadline was extended.
    Renewed {
        /// The new deadline.
        deadline: u64,
    },
    /// A check after `at` confirmed the leadership.
    Valid,
    /// The work acted after a check, made after `at`, that confirmed the leadership.
    Worked,
    /// The work was polled after its deadline.
    Outside,
    /// The work was polled after it had been cancelled. That is allowed until another candidate leads.
    Polled,
    /// The candidate is about to resign. After this its checks count, and its deadline does not.
    Resigns,
    /// The leadership is over.
    Ends {
        /// The time of the last check that confirmed the leadership.
        valid_until: u64,
        /// The time of the first check that denied the leadership. If it is before the deadline, the successor does not have to
        /// wait for the deadline.
        over_since: u64,
    },
    /// The fenced register accepted a write.
    Accepted,
    /// The fenced register refused a write.
    Refused,
}

/// The result of [`check`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The number of terms.
    pub elections: u64,
    /// S1: the number of terms that began while an earlier one could still be assumed.
    pub overlaps: u64,
    /// S1: the longest overlap of two terms in nanoseconds. A negative value is the shortest time between two terms. `None`
    /// if no term followed another.
    pub max_overlap: Option<i64>,
    /// S2: the number of terms whose token was not higher than the token of an earlier term.
    pub stale_tokens: u64,
    /// S2: the number of writes that the register accepted after a write with a higher token.
    pub stale_writes_accepted: u64,
    /// The number of writes that the register refused. Their leaders were paused between the check and the write.
    pub writes_refused: u64,
    /// S3: how often work acted after its deadline, or after a later term had begun.
    pub work_outside_window: u64,
    /// A description of each violation.
    pub details: Vec<Violation>,
}

/// A violated guarantee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The time at which the violation began, in nanoseconds of the history's clock.
    pub at: u64,
    /// The violated guarantee: `S1`, `S2` or `S3`.
    pub promise: &'static str,
    /// A description of the violation.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, since {}", self.promise, self.what, self.at)
    }
}

impl Verdict {
    /// Whether no guarantee was violated.
    pub fn is_clean(&self) -> bool {
        self.overlaps == 0
            && self.stale_tokens == 0
            && self.stale_writes_accepted == 0
            && self.work_outside_window == 0
    }

    fn add_violation(&mut self, promise: &'static str, at: u64, what: String) {
        self.details.push(Violation { at, promise, what });
    }
}

/// One term, as its candidate recorded it.
#[derive(Clone, Copy, Debug, Default)]
struct Term {
    token: u64,
    start: u64,
    /// The time of the last check that confirmed the leadership.
    last_confirmed: u64,
    deadline: u64,
    /// Whether the term ended before its deadline, at the last check that confirmed it.
    ended_early: bool,
}

impl Term {
    /// The last time at which leadership could be assumed.
    fn end(&self) -> u64 {
        if self.ended_early { self.last_confirmed } else { self.deadline.max(self.last_confirmed) }
    }
}

/// Checks a history. The events of one term must be in order; events of different terms can be in any order.
pub fn check(events: &[Event]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut elections: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        elections.entry(&event.election).or_default().push(event);
    }
    for (election, events) in elections {
        let terms = terms(election, &events, &mut verdict);
        check_windows(election, &terms, &mut verdict);
        check_work(election, &events, &terms, &mut verdict);
        check_writes(election, &events, &mut verdict);
    }
    verdict
}

/// The terms of one election, ordered by their start.
fn terms(election: &str, events: &[&Event], verdict: &mut Verdict) -> Vec<Term> {
    let mut terms: Vec<Term> = Vec::new();
    let mut current: BTreeMap<u64, usize> = BTreeMap::new();
    for event in events {
        if let EventKind::Leads { deadline } = event.kind {
            if current.insert(event.token, terms.len()).is_some() {
                verdict.stale_tokens += 1;
                verdict.add_violation(
                    "S2",
                    event.at,
                    format!("{election}: two terms have the token {}", event.token),
                );
            }
            let (token, at) = (event.token, event.at);
            terms.push(Term { token, start: at, last_confirmed: at, deadline, ended_early: false });
            continue;
        }
        let Some(term) = current.get(&event.token).map(|&index| &mut terms[index]) else { continue };
        match event.kind {
            EventKind::Renewed { deadline } => term.deadline = term.deadline.max(deadline),
            EventKind::Valid | EventKind::Worked => term.last_confirmed = term.last_confirmed.max(event.at),
            EventKind::Resigns => term.ended_early = true,
            EventKind::Ends { valid_until, over_since } => {
                term.last_confirmed = term.last_confirmed.max(valid_until);
                term.ended_early |= over_since < term.deadline;
            }
            _ => {}
        }
    }
    terms.sort_by_key(|term| term.start);
    terms
}

/// Checks S1, and the order of tokens.
fn check_windows(election: &str, terms: &[Term], verdict: &mut Verdict) {
    let mut previous: Option<Term> = None;
    let mut highest = 0;
    for term in terms {
        verdict.elections += 1;
        if term.token < highest {
            verdict.stale_tokens += 1;
            verdict.add_violation(
                "S2",
                term.start,
                format!("{election}: token {} after {highest}", term.token),
            );
        }
        highest = highest.max(term.token);
        if let Some(last) = previous {
            let overlap = last.end().cast_signed().saturating_sub(term.start.cast_signed());
            verdict.max_overlap = verdict.max_overlap.max(Some(overlap));
            if overlap > 0 {
                verdict.overlaps += 1;
                let (token, other) = (last.token, term.token);
                let what = format!("{election}: {token} could lead for {overlap} ns more when {other} led");
                verdict.add_violation("S1", term.start, what);
            }
        }
        if previous.is_none_or(|last| term.end() > last.end()) {
            previous = Some(*term);
        }
    }
}

/// If the store itself ended a term, its candidate and the next leader can notice that at the same time. Work may continue
/// for this long after the next term has begun.
const LOSS_NOTICE_NANOS: u64 = 50_000_000;

/// Checks S3.
fn check_work(election: &str, events: &[&Event], terms: &[Term], verdict: &mut Verdict) {
    for event in events {
        let is_later = |term: &&Term| term.token > event.token && term.start < event.at;
        let (since, what) = match event.kind {
            EventKind::Outside => (event.at, "was polled past its deadline".to_owned()),
            EventKind::Polled => {
                match terms.iter().find(|term| is_later(term) && term.start + LOSS_NOTICE_NANOS < event.at) {
                    Some(later) => (later.start, format!("continued after {} led", later.token)),
                    None => continue,
                }
            }
            EventKind::Worked => match terms.iter().find(is_later) {
                Some(later) => (later.start, format!("acted after {} led", later.token)),
                None => continue,
            },
            _ => continue,
        };
        verdict.work_outside_window += 1;
        verdict.add_violation("S3", since, format!("{election}: the work of {} {what}", event.token));
    }
}

/// Checks S2 for the writes of the register. Their events are in the order in which the register processed them.
fn check_writes(election: &str, events: &[&Event], verdict: &mut Verdict) {
    let mut highest = 0;
    for event in events {
        match event.kind {
            EventKind::Accepted if event.token < highest => {
                verdict.stale_writes_accepted += 1;
                let what = format!("{election}: {} has written after {highest}", event.token);
                verdict.add_violation("S2", event.at, what);
            }
            EventKind::Accepted => highest = event.token,
            EventKind::Refused => verdict.writes_refused += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, token: u64, kind: EventKind) -> Event {
        Event { at, election: "e".to_owned(), token, kind }
    }

    fn leads(at: u64, token: u64, deadline: u64) -> Event {
        event(at, token, EventKind::Leads { deadline })
    }

    #[test]
    fn consecutive_terms_are_clean_and_their_gap_is_reported() {
        let verdict = check(&[
            leads(10, 1, 50),
            event(30, 1, EventKind::Resigns),
            event(35, 1, EventKind::Ends { valid_until: 29, over_since: 30 }),
            leads(34, 2, 90),
            event(40, 2, EventKind::Renewed { deadline: 95 }),
            leads(100, 3, 150),
        ]);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.elections, verdict.max_overlap), (3, Some(-5)));
    }

    #[test]
    fn a_killed_candidate_may_have_led_until_its_deadline() {
        let verdict =
            check(&[leads(10, 1, 50), event(20, 1, EventKind::Renewed { deadline: 60 }), leads(55, 2, 90)]);
        assert_eq!((verdict.overlaps, verdict.max_overlap), (1, Some(5)));
    }

    /// Work is cancelled before the deadline, and the entry is removed as soon as the work has stopped.
    #[test]
    fn a_term_that_ended_before_its_deadline_ends_at_the_last_check() {
        let ends = |over_since| event(45, 1, EventKind::Ends { valid_until: 30, over_since });
        let overlap = |over_since| check(&[leads(10, 1, 50), leads(40, 2, 90), ends(over_since)]).max_overlap;
        assert_eq!((overlap(31), overlap(50)), (Some(-10), Some(10)));
    }

    #[test]
    fn a_check_that_succeeds_beside_another_leader_is_an_overlap() {
        let late = event(70, 1, EventKind::Valid);
        let verdict = check(&[leads(10, 1, 50), leads(55, 2, 90), late, leads(95, 3, 99)]);
        assert_eq!((verdict.overlaps, verdict.max_overlap), (1, Some(15)));
    }

    #[test]
    fn a_long_term_overlaps_more_than_the_next() {
        let verdict = check(&[leads(10, 1, 100), leads(20, 2, 30), leads(40, 3, 50)]);
        assert_eq!((verdict.overlaps, verdict.max_overlap), (2, Some(80)));
    }

    #[test]
    fn repeated_and_lower_tokens_are_stale() {
        let verdict = check(&[leads(10, 5, 11), leads(20, 5, 21), leads(30, 4, 31)]);
        assert_eq!(verdict.stale_tokens, 2);
    }

    #[test]
    fn work_after_its_deadline_is_found() {
        let verdict = check(&[
            leads(10, 1, 15),
            event(16, 1, EventKind::Outside),
            leads(20, 2, 30),
            event(22, 1, EventKind::Worked),
        ]);
        assert_eq!(verdict.work_outside_window, 2);
        assert_eq!(verdict.overlaps, 1);
    }

    #[test]
    fn work_that_continues_beside_the_next_leader_is_found() {
        let ends = event(15, 1, EventKind::Ends { valid_until: 12, over_since: 13 });
        let polled = |at| event(at, 1, EventKind::Polled);
        let verdict =
            check(&[leads(10, 1, 900_000_000), ends, polled(19), leads(20, 2, 30), polled(100_000_000)]);
        assert_eq!((verdict.work_outside_window, verdict.overlaps), (1, 0));
    }

    #[test]
    fn a_register_that_accepts_an_older_write_is_found() {
        let wrote = |token| event(0, token, EventKind::Accepted);
        let verdict = check(&[wrote(1), wrote(3), wrote(2), wrote(3), event(0, 2, EventKind::Refused)]);
        assert_eq!((verdict.stale_writes_accepted, verdict.writes_refused), (1, 1));
    }
}
