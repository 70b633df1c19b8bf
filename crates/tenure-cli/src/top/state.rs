//! What `tenure top` shows, and what its keys do.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use tenure::{Candidate, ElectionName};
use tokio::time::Instant;

use super::keys::Key;
use crate::{
    elections::{Change, Snapshot, Term, TrackedElection, is_same_term},
    text::escaped,
};

/// How many changes of a followed election are kept.
const MAX_CHANGES: usize = 100;

/// What is shown.
#[derive(Debug)]
pub(crate) struct State {
    /// The store, for messages.
    pub(crate) store: String,
    pub(crate) prefix: String,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The index of the selected election. Its name keeps it selected when others appear.
    pub(crate) selected: usize,
    selected_name: Option<ElectionName>,
    /// The first election in sight.
    pub(crate) first_row: usize,
    /// The election that is followed, if not all are shown.
    pub(crate) followed: Option<Followed>,
    /// A question to answer with y or n.
    pub(crate) question: Option<Question>,
    pub(crate) notice: Option<Message>,
}

/// The election that is followed.
#[derive(Debug)]
pub(crate) struct Followed {
    pub(crate) name: ElectionName,
    /// The newest first.
    pub(crate) changes: VecDeque<Change>,
    /// Who led last.
    leader: Option<Term>,
}

/// Whether to ask a leader to resign.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) election: ElectionName,
    pub(crate) leader: Candidate,
}

/// What happened, for a while.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) at: Instant,
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Only what is shown has changed.
    Show,
    /// Shows everything again.
    Redraw,
    Quit,
    /// Observes the leaders of this election.
    Follow(ElectionName),
    Unfollow,
    /// Asks the leader to resign.
    Resign(ElectionName),
}

impl State {
    pub(crate) fn new(store: String, prefix: String, snapshot: Arc<Snapshot>) -> Self {
        let mut state = Self {
            store,
            prefix,
            snapshot: Arc::clone(&snapshot),
            selected: 0,
            selected_name: None,
            first_row: 0,
            followed: None,
            question: None,
            notice: None,
        };
        state.update(snapshot);
        state
    }

    /// Shows another snapshot.
    pub(crate) fn update(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        let elections = &self.snapshot.elections;
        let same =
            elections.iter().position(|tracked| Some(&tracked.election.name) == self.selected_name.as_ref());
        self.select(same.unwrap_or(self.selected));
    }

    fn select(&mut self, index: usize) {
        let elections = &self.snapshot.elections;
        self.selected = index.min(elections.len().saturating_sub(1));
        self.selected_name = elections.get(self.selected).map(|tracked| tracked.election.name.clone());
    }

    /// The selected election, or the one that is followed.
    pub(crate) fn current(&self) -> Option<&TrackedElection> {
        match &self.followed {
            Some(followed) => self.election(&followed.name),
            None => self.snapshot.elections.get(self.selected),
        }
    }

    fn election(&self, name: &ElectionName) -> Option<&TrackedElection> {
        self.snapshot.elections.iter().find(|tracked| tracked.election.name == *name)
    }

    pub(crate) fn notify(&mut self, text: String) {
        self.notice = Some(Message { text, at: Instant::now() });
    }

    /// The followed election has this leader.
    pub(crate) fn observe(&mut self, leader: Option<&Candidate>, time: SystemTime) {
        let Some(followed) = &mut self.followed else { return };
        let leader = leader.map(Term::of);
        if leader == followed.leader {
            return;
        }
        let previous = std::mem::replace(&mut followed.leader, leader.clone());
        let election = followed.name.clone();
        followed.changes.push_front(Change { time, election, leader, previous });
        followed.changes.truncate(MAX_CHANGES);
    }

    /// Handles a key. `page` is the number of elections in sight.
    pub(crate) fn press(&mut self, key: Key, page: usize) -> Action {
        match key {
            Key::Redraw => Action::Redraw,
            key if self.question.is_some() => self.answer(key),
            Key::Letter('q') => Action::Quit,
            Key::Letter('r') => self.ask(),
            Key::Escape if self.followed.is_some() => {
                self.followed = None;
                Action::Unfollow
            }
            Key::Enter | Key::Letter('f') if self.followed.is_none() => self.follow(),
            key if self.followed.is_none() => {
                self.select_by(key, page);
                Action::Show
            }
            _ => Action::Show,
        }
    }

    fn select_by(&mut self, key: Key, page: usize) {
        let page = page.max(1);
        self.select(match key {
            Key::Up => self.selected.saturating_sub(1),
            Key::Down => self.selected.saturating_add(1),
            Key::PageUp => self.selected.saturating_sub(page),
            Key::PageDown => self.selected.saturating_add(page),
            Key::Home | Key::Letter('g') => 0,
            Key::End | Key::Letter('G') => usize::MAX,
            _ => return,
        });
    }

    fn follow(&mut self) -> Action {
        let Some(current) = self.current() else { return Action::Show };
        let name = current.election.name.clone();
        let leader = current.election.leader().map(Term::of);
        let changes =
            self.snapshot.changes.iter().filter(|change| change.election == name).cloned().collect();
        self.followed = Some(Followed { name: name.clone(), changes, leader });
        Action::Follow(name)
    }

    fn ask(&mut self) -> Action {
        let Some(current) = self.current() else { return Action::Show };
        let election = current.election.name.clone();
        match current.election.leader().cloned() {
            Some(leader) => {
                self.notice = None;
                self.question = Some(Question { election, leader });
            }
            None => self.notify(format!("nobody leads {election}")),
        }
        Action::Show
    }

    fn answer(&mut self, key: Key) -> Action {
        let is_yes = match key {
            Key::Letter('y' | 'Y') => true,
            Key::Letter('n' | 'N' | 'q') | Key::Escape => false,
            _ => return Action::Show,
        };
        let Some(Question { election, leader }) = self.question.take() else { return Action::Show };
        if !is_yes {
            self.notify("nobody was asked to resign".to_owned());
            return Action::Show;
        }
        let leads = self.election(&election).and_then(|tracked| tracked.election.leader());
        if is_same_term(leads, Some(&leader)) {
            self.notify(format!("asking {} to resign from {election}", escaped(&leader.id)));
            return Action::Resign(election);
        }
        self.notify(format!(
            "{} does not lead {election} any more; nobody was asked to resign",
            escaped(&leader.id)
        ));
        Action::Show
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tenure::FencingToken;

    use super::*;
    use crate::elections::{Election, History, Reading};

    /// A reading of elections, each with its candidates.
    pub(in crate::top) fn reading(elections: &[(&str, &[(&str, u64)])]) -> Reading {
        let elections: Vec<_> = elections
            .iter()
            .map(|(name, candidates)| {
                let decode = |(id, token): &(&str, u64)| {
                    Candidate::decode(id, "7587a3b1c2d4e5f6", b"10.0.0.1:80", FencingToken::new(*token))
                };
                let candidates: Vec<_> = candidates.iter().map(decode).collect();
                let name = ElectionName::new(name).unwrap();
                Election { name, candidate_count: candidates.len(), candidates }
            })
            .collect();
        Reading { total: elections.len(), is_truncated: false, elections }
    }

    /// What is known after these readings, which are a second apart. The last one was just now.
    pub(in crate::top) fn snapshot(readings: &[Reading]) -> Arc<Snapshot> {
        let (mut history, now) = (History::new(100), Instant::now());
        for (reading, ago) in readings.iter().zip((0..readings.len() as u64).rev()) {
            history.add(reading.clone(), now - Duration::from_secs(ago), SystemTime::UNIX_EPOCH);
        }
        Arc::new(history.snapshot(Some(SystemTime::UNIX_EPOCH)))
    }

    pub(in crate::top) fn state(readings: &[Reading]) -> State {
        State::new("etcd 10.0.0.1:2379".to_owned(), String::new(), snapshot(readings))
    }

    fn name(name: &str) -> ElectionName {
        ElectionName::new(name).unwrap()
    }

    #[test]
    fn the_selected_election_stays_selected_when_others_appear() {
        let mut state = state(&[reading(&[("b", &[("x", 1)]), ("d", &[("y", 1)])])]);
        state.press(Key::Down, 10);
        state.press(Key::Down, 10);
        assert_eq!(state.current().unwrap().election.name, name("d"), "the last one");
        let more = [("a", &[("x", 1)][..]), ("b", &[("x", 1)]), ("c", &[("x", 1)]), ("d", &[("y", 1)])];
        state.update(snapshot(&[reading(&more)]));
        assert_eq!((state.selected, &state.current().unwrap().election.name), (3, &name("d")));
        state.update(snapshot(&[reading(&more[..2])]));
        assert_eq!(state.current().unwrap().election.name, name("b"), "the nearest one");
        state.update(snapshot(&[reading(&[])]));
        assert!(state.current().is_none());
        assert_eq!(state.press(Key::Enter, 10), Action::Show);
        assert_eq!(state.press(Key::Letter('r'), 10), Action::Show);
    }

    #[test]
    fn a_leader_is_asked_to_resign_only_after_a_yes() {
        let mut state = state(&[reading(&[("a", &[("x", 1)])])]);
        for no in [Key::Letter('n'), Key::Letter('q'), Key::Escape] {
            state.press(Key::Letter('r'), 10);
            assert!(state.question.is_some());
            assert_eq!(state.press(Key::Letter('x'), 10), Action::Show);
            assert_eq!(state.press(Key::Enter, 10), Action::Show, "no answer");
            assert!(state.question.is_some());
            assert_eq!(state.press(no, 10), Action::Show);
            assert!(state.question.is_none());
        }
        state.press(Key::Letter('r'), 10);
        assert_eq!(state.press(Key::Letter('y'), 10), Action::Resign(name("a")));
        assert_eq!(state.press(Key::Letter('y'), 10), Action::Show, "only once");
    }

    /// The next leader must not be asked in place of the one that was shown in the question.
    #[test]
    fn nobody_is_asked_to_resign_when_the_leader_has_changed_meanwhile() {
        let mut state = state(&[reading(&[("a", &[("x", 1)])])]);
        state.press(Key::Letter('r'), 10);
        state.update(snapshot(&[reading(&[("a", &[("y", 2)])])]));
        assert_eq!(state.press(Key::Letter('y'), 10), Action::Show);
        assert!(state.notice.unwrap().text.starts_with("x does not lead a any more"));
    }

    #[test]
    fn a_followed_election_has_each_change_once() {
        let mut state = state(&[reading(&[("a", &[("x", 1)])]), reading(&[("a", &[("y", 2)])])]);
        assert_eq!(state.press(Key::Letter('f'), 10), Action::Follow(name("a")));
        let leader = |id: &str, token| Candidate::decode(id, "s", b"", FencingToken::new(token));
        let count = |state: &State| state.followed.as_ref().unwrap().changes.len();
        assert_eq!(count(&state), 1, "that was seen before");
        state.observe(Some(&leader("y", 2)), SystemTime::UNIX_EPOCH);
        assert_eq!(count(&state), 1);
        state.observe(None, SystemTime::UNIX_EPOCH);
        state.observe(Some(&leader("y", 3)), SystemTime::UNIX_EPOCH);
        assert_eq!(count(&state), 3);
        assert_eq!(state.press(Key::Letter('f'), 10), Action::Show, "it is followed already");
        assert_eq!(state.press(Key::Escape, 10), Action::Unfollow);
        assert_eq!(state.press(Key::Letter('q'), 10), Action::Quit);
    }
}
