//! The checker: whether a history of what candidates saw and did keeps the promises S1, S2 and S3.
//!
//! A history has one clock: all its candidates run on one machine. Each candidate writes down what it
//! sees as it sees it, so that a history is whole up to the moment at which its candidate was killed.
//!
//! ```
//! use tenure_testkit::history::{Event, EventKind, check};
//!
//! let event = |at, token, kind| Event { at, election: "e".to_owned(), token, kind };
//! let verdict = check(&[
//!     event(1_000, 7, EventKind::Leads { deadline: 9_000 }),
//!     event(4_000, 7, EventKind::Worked),   // and then it was killed: it may have led until 9 000
//!     event(8_000, 8, EventKind::Leads { deadline: 16_000 }),
//! ]);
//! assert_eq!((verdict.overlaps, verdict.max_overlap), (1, Some(1_000)));
//! ```

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// One thing that was seen or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in nanoseconds of the one clock; read *before* what it tells of was checked or done.
    pub at: u64,
    /// In which election.
    pub election: String,
    /// In whose term.
    pub token: u64,
    /// What it was.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What an [`Event`] tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A candidate leads: it was told so, and a check after `at` said yes.
    Leads {
        /// Until when, as things stand.
        deadline: u64,
    },
    /// The deadline has moved.
    Renewed {
        /// To here.
        deadline: u64,
    },
    /// A check after `at` said yes.
    Valid,
    /// The work acted after a check, made after `at`, had said yes.
    Worked,
    /// The work was polled although its deadline had passed.
    Outside,
    /// The work was polled although it had been told to stop: it may take its time, but only for as long as nobody
    /// else leads.
    Polled,
    /// The candidate is about to resign: from here on only what it checked counts, not its deadline.
    Resigns,
    /// The leadership is over.
    Ends {
        /// When a check said yes for the last time.
        valid_until: u64,
        /// When a check said no for the first time. Before its deadline: its successor need not wait for that.
        over_since: u64,
    },
    /// The register took a write.
    Accepted,
    /// The register refused a write.
    Refused,
}

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How many terms there were.
    pub elections: u64,
    /// S1: how many terms began while an earlier one could still be assumed.
    pub overlaps: u64,
    /// S1: the longest overlap of two terms in nanoseconds; when it is negative, the shortest time between
    /// two. `None` when no term followed another.
    pub max_overlap: Option<i64>,
    /// S2: how many terms had a token that was no higher than an earlier term's.
    pub stale_tokens: u64,
    /// S2: how many writes the register took although it had taken one with a higher token.
    pub stale_writes_accepted: u64,
    /// How many writes the register refused: leaders that were paused between their check and their write.
    pub writes_refused: u64,
    /// S3: how often work acted outside its window, or after a later term had begun.
    pub work_outside_window: u64,
    /// All that is wrong.
    pub details: Vec<Violation>,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Since when, in nanoseconds of the history's clock.
    pub at: u64,
    /// Which promise: `S1`, `S2` or `S3`.
    pub promise: &'static str,
    /// How, in words.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, since {}", self.promise, self.what, self.at)
    }
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.overlaps == 0
            && self.stale_tokens == 0
            && self.stale_writes_accepted == 0
            && self.work_outside_window == 0
    }

    fn wrong(&mut self, promise: &'static str, at: u64, what: String) {
        self.details.push(Violation { at, promise, what });
    }
}

/// One term, as its candidate saw it.
#[derive(Clone, Copy, Debug, Default)]
struct Term {
    token: u64,
    begins: u64,
    /// The last moment at which it is known to have been assumed.
    seen: u64,
    deadline: u64,
    /// Whether it could be assumed only for as long as it was seen to be.
    told: bool,
}

impl Term {
    /// When it could be assumed for the last time.
    fn end(&self) -> u64 {
        if self.told { self.seen } else { self.deadline.max(self.seen) }
    }
}

/// Checks a history: events of one term in their order, those of several in any.
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

/// The terms in the order in which they began.
fn terms(election: &str, events: &[&Event], verdict: &mut Verdict) -> Vec<Term> {
    let mut terms: Vec<Term> = Vec::new();
    let mut current: BTreeMap<u64, usize> = BTreeMap::new();
    for event in events {
        if let EventKind::Leads { deadline } = event.kind {
            if current.insert(event.token, terms.len()).is_some() {
                verdict.stale_tokens += 1;
                verdict.wrong(
                    "S2",
                    event.at,
                    format!("{election}: two terms have the token {}", event.token),
                );
            }
            let (token, at) = (event.token, event.at);
            terms.push(Term { token, begins: at, seen: at, deadline, told: false });
            continue;
        }
        let Some(term) = current.get(&event.token).map(|&index| &mut terms[index]) else { continue };
        match event.kind {
            EventKind::Renewed { deadline } => term.deadline = term.deadline.max(deadline),
            EventKind::Valid | EventKind::Worked => term.seen = term.seen.max(event.at),
            EventKind::Resigns => term.told = true,
            EventKind::Ends { valid_until, over_since } => {
                term.seen = term.seen.max(valid_until);
                term.told |= over_since < term.deadline;
            }
            _ => {}
        }
    }
    terms.sort_by_key(|term| term.begins);
    terms
}

/// S1, and the order of tokens.
fn check_windows(election: &str, terms: &[Term], verdict: &mut Verdict) {
    let mut before: Option<Term> = None;
    let mut highest = 0;
    for term in terms {
        verdict.elections += 1;
        if term.token < highest {
            verdict.stale_tokens += 1;
            verdict.wrong("S2", term.begins, format!("{election}: token {} after {highest}", term.token));
        }
        highest = highest.max(term.token);
        if let Some(last) = before {
            let overlap = last.end().cast_signed().saturating_sub(term.begins.cast_signed());
            verdict.max_overlap = verdict.max_overlap.max(Some(overlap));
            if overlap > 0 {
                verdict.overlaps += 1;
                let (token, other) = (last.token, term.token);
                let what = format!("{election}: {token} could lead for {overlap} ns more when {other} led");
                verdict.wrong("S1", term.begins, what);
            }
        }
        if before.is_none_or(|last| term.end() > last.end()) {
            before = Some(*term);
        }
    }
}

/// Where the store itself ended a term, its candidate may notice that as late as the next, in nanoseconds.
const NOTICE: u64 = 50_000_000;

/// S3.
fn check_work(election: &str, events: &[&Event], terms: &[Term], verdict: &mut Verdict) {
    for event in events {
        let after = |term: &&Term| term.token > event.token && term.begins < event.at;
        let (since, what) = match event.kind {
            EventKind::Outside => (event.at, "was polled past its deadline".to_owned()),
            EventKind::Polled => {
                match terms.iter().find(|term| after(term) && term.begins + NOTICE < event.at) {
                    Some(later) => (later.begins, format!("went on after {} led", later.token)),
                    None => continue,
                }
            }
            EventKind::Worked => match terms.iter().find(after) {
                Some(later) => (later.begins, format!("acted after {} led", later.token)),
                None => continue,
            },
            _ => continue,
        };
        verdict.work_outside_window += 1;
        verdict.wrong("S3", since, format!("{election}: the work of {} {what}", event.token));
    }
}

/// S2, as the register saw it: its events are in the order in which it took them.
fn check_writes(election: &str, events: &[&Event], verdict: &mut Verdict) {
    let mut highest = 0;
    for event in events {
        match event.kind {
            EventKind::Accepted if event.token < highest => {
                verdict.stale_writes_accepted += 1;
                let what = format!("{election}: {} has written after {highest}", event.token);
                verdict.wrong("S2", event.at, what);
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
    fn terms_that_follow_each_other_are_clean_and_their_gap_is_told() {
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
    fn who_was_killed_may_have_led_until_its_deadline() {
        let verdict =
            check(&[leads(10, 1, 50), event(20, 1, EventKind::Renewed { deadline: 60 }), leads(55, 2, 90)]);
        assert_eq!((verdict.overlaps, verdict.max_overlap), (1, Some(5)));
    }

    /// Work is told to stop before the deadline, and the entry is left as soon as it has stopped.
    #[test]
    fn who_was_told_before_its_deadline_leads_no_longer_than_that() {
        let ends = |over_since| event(45, 1, EventKind::Ends { valid_until: 30, over_since });
        let of = |over_since| check(&[leads(10, 1, 50), leads(40, 2, 90), ends(over_since)]).max_overlap;
        assert_eq!((of(31), of(50)), (Some(-10), Some(10)));
    }

    #[test]
    fn a_check_that_says_yes_beside_another_leader_is_an_overlap() {
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
    fn tokens_that_repeat_or_fall_are_stale() {
        let verdict = check(&[leads(10, 5, 11), leads(20, 5, 21), leads(30, 4, 31)]);
        assert_eq!(verdict.stale_tokens, 2);
    }

    #[test]
    fn work_outside_its_window_is_found() {
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
    fn work_that_goes_on_beside_the_next_leader_is_found() {
        let ends = event(15, 1, EventKind::Ends { valid_until: 12, over_since: 13 });
        let polled = |at| event(at, 1, EventKind::Polled);
        let verdict =
            check(&[leads(10, 1, 900_000_000), ends, polled(19), leads(20, 2, 30), polled(100_000_000)]);
        assert_eq!((verdict.work_outside_window, verdict.overlaps), (1, 0));
    }

    #[test]
    fn a_register_that_takes_an_older_write_is_found() {
        let wrote = |token| event(0, token, EventKind::Accepted);
        let verdict = check(&[wrote(1), wrote(3), wrote(2), wrote(3), event(0, 2, EventKind::Refused)]);
        assert_eq!((verdict.stale_writes_accepted, verdict.writes_refused), (1, 1));
    }
}
