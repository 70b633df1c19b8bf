//! What happened in a run, and what must not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

/// The history of one run; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(Arc<Mutex<Record>>);

#[derive(Debug, Default)]
pub(crate) struct Record {
    elections: BTreeMap<String, Contest>,
    pub(crate) terms: u64,
    /// Writes of stale leaders that the register refused.
    pub(crate) refused: u64,
    /// Until when work that nobody could poll may not have been dropped yet.
    stalled: Option<Instant>,
    /// How often the store began to count from the start.
    epoch: u64,
    /// Whether an operator deletes entries, so that two may lead for a moment.
    operated: bool,
    /// What must not have happened.
    pub(crate) violations: Vec<String>,
}

/// One election: who works in it, and a register that is fenced by its tokens.
#[derive(Debug, Default)]
struct Contest {
    working: Vec<u64>,
    /// How many terms have begun.
    begun: u64,
    /// The tokens of all terms so far.
    terms: BTreeSet<u64>,
    /// The highest token of any term.
    highest: u64,
    /// The highest token that has written.
    written: u64,
}

impl History {
    /// A history in which, or in which not, an operator `interferes`.
    pub(crate) fn new(interferes: bool) -> Self {
        let history = Self::default();
        history.lock().operated = interferes;
        history
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    pub(crate) fn stalled_until(&mut self, moment: Instant) {
        self.stalled = Some(moment);
    }

    fn is_stalled(&self) -> bool {
        self.stalled.is_some_and(|until| Instant::now() <= until)
    }

    pub(crate) fn violated(&mut self, promise: &str, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(format!("{promise}: {what}"));
        }
    }

    /// A term's work begins. Promises S1 and S2.
    pub(crate) fn begins(&mut self, election: &str, token: u64) {
        let stalled = self.is_stalled();
        self.terms += 1;
        let contest = self.elections.entry(election.to_owned()).or_default();
        let (highest, beside) = (contest.highest, contest.working.clone());
        contest.begun += 1;
        contest.highest = highest.max(token);
        contest.working.push(token);
        let fresh = contest.terms.insert(token);
        // Whoever hears late that it leads, of an entry that was deleted meanwhile, comes late.
        let late = token < highest && self.operated;
        if !fresh || (token <= highest && !late) {
            self.violated("S2", format!("{election}: token {token} after {highest}"));
        }
        if !beside.is_empty() && !stalled && !self.operated {
            self.violated("S1", format!("{election}: {token} leads beside {beside:?}"));
        }
    }

    /// A leader that has just checked its leadership acts. Promise S1.
    pub(crate) fn acts(&mut self, election: &str, token: u64) {
        let highest = self.elections.get(election).map_or(0, |contest| contest.highest);
        if token < highest && !self.operated {
            self.violated("S1", format!("{election}: {token} may act after {highest} began"));
        }
    }

    /// A write arrives at the register. Promise S2: it takes none that is older than what it has.
    pub(crate) fn writes(&mut self, election: &str, token: u64) {
        let contest = self.elections.entry(election.to_owned()).or_default();
        if token < contest.written {
            self.refused += 1;
        } else {
            contest.written = token;
        }
    }

    /// Work acted although its deadline had passed. Promise S3.
    pub(crate) fn too_late(&mut self, election: &str, token: u64) {
        if !self.is_stalled() {
            self.violated("S3", format!("{election}: {token} works past its deadline"));
        }
    }

    pub(crate) fn ends(&mut self, election: &str, token: u64) {
        if let Some(contest) = self.elections.get_mut(election) {
            contest.working.retain(|working| *working != token);
        }
    }

    /// The store counts from the start again, and so do those who compare its tokens.
    pub(crate) fn tokens_begin_anew(&mut self) {
        self.epoch += 1;
        for contest in self.elections.values_mut() {
            contest.terms.clear();
            (contest.highest, contest.written) = (0, 0);
        }
    }

    /// How often the store began to count from the start: tokens of other epochs say nothing.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many terms of an election have begun.
    pub(crate) fn begun(&self, election: &str) -> u64 {
        self.elections.get(election).map_or(0, |contest| contest.begun)
    }

    /// Whose work goes on, when none should.
    pub(crate) fn working(&self) -> Vec<(String, u64)> {
        let contests = self.elections.iter();
        contests
            .flat_map(|(election, contest)| contest.working.iter().map(|token| (election.clone(), *token)))
            .collect()
    }
}
