//! Compares readings: since when somebody leads, and which leaders have changed.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use tenure::ElectionName;
use tokio::time::Instant;

use super::{Change, Election, Reading, Snapshot, Term, TrackedElection, is_same_term};

/// How many changes are kept.
const MAX_CHANGES: usize = 100;
/// A change between two readings further apart than this was not seen when it happened.
const MAX_GAP: Duration = Duration::from_secs(15);

/// What several readings have shown.
#[derive(Debug, Default)]
pub(crate) struct History {
    elections: BTreeMap<ElectionName, TrackedElection>,
    /// The newest first.
    changes: VecDeque<Change>,
    last: Option<Instant>,
    total: usize,
    is_truncated: bool,
    /// The last election that was read, if there were more.
    read_up_to: Option<ElectionName>,
    /// The largest number of elections without a candidate that are kept.
    max_vacant: usize,
}

impl History {
    pub(crate) fn new(max_vacant: usize) -> Self {
        Self { max_vacant, ..Self::default() }
    }

    /// Adds a reading that ended `now`, at `time`.
    pub(crate) fn add(&mut self, reading: Reading, now: Instant, time: SystemTime) {
        let is_first = self.last.is_none();
        let start_observed = self.last.is_some_and(|last| now.duration_since(last) <= MAX_GAP);
        let Reading { elections, total, is_truncated } = reading;
        (self.last, self.total, self.is_truncated) = (Some(now), total, is_truncated);
        let last_read = elections.last().map(|election| election.name.clone());
        let read_up_to = std::mem::replace(&mut self.read_up_to, last_read.clone().filter(|_| is_truncated));
        let mut left = std::mem::take(&mut self.elections);
        for election in elections {
            let before = left.remove(&election.name);
            let leader_before = before.as_ref().and_then(|before| before.election.leader());
            let tracked = match &before {
                Some(before) if is_same_term(leader_before, election.leader()) => {
                    TrackedElection { election, ..*before }
                }
                _ => {
                    // Whether it had a candidate before is not known.
                    let is_new =
                        before.is_none() && read_up_to.as_ref().is_some_and(|last| election.name > *last);
                    if !is_first && !is_new {
                        self.changes.push_front(Change {
                            time,
                            election: election.name.clone(),
                            leader: election.leader().map(Term::of),
                            previous: leader_before.map(Term::of),
                        });
                    }
                    let start_observed = start_observed && !is_new;
                    TrackedElection { election, since: now, since_time: time, start_observed }
                }
            };
            self.elections.insert(tracked.election.name.clone(), tracked);
        }
        for (name, before) in left {
            // Whether it has a candidate is not known.
            if is_truncated && last_read.as_ref().is_none_or(|last| name > *last) {
                continue;
            }
            let tracked = match before.election.leader() {
                None => before,
                Some(leader) => {
                    let previous = Some(Term::of(leader));
                    self.changes.push_front(Change { time, election: name.clone(), leader: None, previous });
                    let election =
                        Election { name: name.clone(), candidates: Vec::new(), candidate_count: 0 };
                    TrackedElection { election, since: now, since_time: time, start_observed }
                }
            };
            self.elections.insert(name, tracked);
        }
        self.changes.truncate(MAX_CHANGES);
        self.forget_oldest_vacant();
    }

    fn forget_oldest_vacant(&mut self) {
        let is_vacant = |tracked: &&TrackedElection| tracked.election.candidate_count == 0;
        let mut vacant: Vec<_> = self.elections.values().filter(is_vacant).collect();
        if vacant.len() <= self.max_vacant {
            return;
        }
        vacant.sort_by_key(|tracked| tracked.since);
        let excess = vacant.len() - self.max_vacant;
        let names: Vec<_> = vacant[..excess].iter().map(|tracked| tracked.election.name.clone()).collect();
        for name in names {
            self.elections.remove(&name);
        }
    }

    /// What is known. `read_at` is when the last reading ended, if there was one.
    pub(crate) fn snapshot(&self, read_at: Option<SystemTime>) -> Snapshot {
        Snapshot {
            read_at,
            elections: self.elections.values().cloned().collect(),
            total: self.total,
            is_truncated: self.is_truncated,
            changes: self.changes.iter().cloned().collect(),
            outage: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tenure::{Candidate, FencingToken};

    use super::*;

    fn election(name: &str, leader: &str, token: u64) -> Election {
        let leader = Candidate::decode(leader, "session", b"", FencingToken::new(token));
        Election { name: ElectionName::new(name).unwrap(), candidates: vec![leader], candidate_count: 1 }
    }

    fn reading(elections: &[(&str, &str, u64)]) -> Reading {
        let elections: Vec<_> =
            elections.iter().map(|(name, leader, token)| election(name, leader, *token)).collect();
        Reading { total: elections.len(), is_truncated: false, elections }
    }

    /// Adds readings that are so many seconds apart.
    fn history(readings: Vec<(u64, Reading)>) -> (History, Instant) {
        let (mut history, began) = (History::new(2), Instant::now());
        for (at, reading) in readings {
            history.add(reading, began + Duration::from_secs(at), SystemTime::UNIX_EPOCH);
        }
        (history, began)
    }

    /// The name, the leader, the seconds since the beginning, and whether its beginning was seen.
    fn shown(history: &History, began: Instant) -> Vec<(String, Option<String>, u64, bool)> {
        let snapshot = history.snapshot(None);
        let shown = snapshot.elections.iter().map(|tracked| {
            let leader = tracked.election.leader().map(|leader| leader.id.clone());
            let since = tracked.since.duration_since(began).as_secs();
            (tracked.election.name.to_string(), leader, since, tracked.start_observed)
        });
        shown.collect()
    }

    fn changes(history: &History) -> Vec<String> {
        let name = |term: &Option<Term>| term.as_ref().map_or("-", |term| &term.id).to_owned();
        let text = |change: &Change| {
            format!("{} {}>{}", change.election, name(&change.previous), name(&change.leader))
        };
        history.changes.iter().map(text).collect()
    }

    #[test]
    fn it_is_known_since_when_somebody_leads_and_nobody_does() {
        let (history, began) = history(vec![
            (0, reading(&[("a", "x", 1), ("b", "y", 1)])),
            (1, reading(&[("a", "x", 1), ("c", "z", 1)])),
            (2, reading(&[("a", "x", 2), ("c", "z", 1)])),
        ]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            shown(&history, began),
            [
                ("a".to_owned(), some("x"), 2, true),
                ("b".to_owned(), None, 1, true),
                ("c".to_owned(), some("z"), 1, true)
            ]
        );
        assert_eq!(changes(&history), ["a x>x", "b y>-", "c ->z"], "a new token is a new term");
    }

    #[test]
    fn a_leader_of_the_first_reading_may_have_led_for_long() {
        let readings = vec![(0, reading(&[("a", "x", 1)])), (3, reading(&[("a", "x", 1)]))];
        let (history, began) = history(readings);
        assert_eq!(shown(&history, began), [("a".to_owned(), Some("x".to_owned()), 0, false)]);
        assert_eq!(changes(&history), [""; 0]);
    }

    #[test]
    fn a_change_during_an_outage_was_not_seen() {
        let readings = vec![(0, reading(&[("a", "x", 1)])), (60, reading(&[("a", "y", 2)]))];
        let (history, began) = history(readings);
        assert_eq!(shown(&history, began), [("a".to_owned(), Some("y".to_owned()), 60, false)]);
        assert_eq!(changes(&history), ["a x>y"]);
    }

    #[test]
    fn elections_that_were_not_read_are_not_vacant() {
        let all = reading(&[("a", "x", 1), ("b", "y", 1)]);
        let part = Reading { is_truncated: true, total: 2, ..reading(&[("a", "x", 1)]) };
        let (history, began) = history(vec![(0, all), (1, part)]);
        assert_eq!(shown(&history, began).len(), 1);
        assert_eq!(changes(&history), [""; 0]);
    }

    #[test]
    fn elections_that_were_not_read_before_have_not_changed() {
        let part = |elections| Reading { is_truncated: true, total: 3, ..reading(elections) };
        let (history, began) = history(vec![
            (0, part(&[("a", "x", 1), ("c", "z", 1)])),
            (1, part(&[("b", "y", 1), ("c", "z", 1)])),
            (2, part(&[("c", "z", 1), ("d", "w", 1)])),
        ]);
        let shown = shown(&history, began);
        let read: Vec<_> =
            shown.iter().map(|(name, _, since, seen)| (name.as_str(), *since, *seen)).collect();
        assert_eq!(read, [("a", 1, true), ("b", 2, true), ("c", 0, false), ("d", 2, false)]);
        assert_eq!(changes(&history), ["b y>-", "a x>-", "b ->y"]);
    }

    #[test]
    fn the_oldest_vacancies_are_forgotten() {
        let names = ["a", "b", "c", "d"];
        let without = |count: usize| {
            let left: Vec<_> = names[count..].iter().map(|name| (*name, "x", 1)).collect();
            reading(&left)
        };
        let (history, began) = history((0..=4).map(|count| (count as u64, without(count))).collect());
        let shown: Vec<_> = shown(&history, began).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(shown, ["c", "d"]);
    }
}
