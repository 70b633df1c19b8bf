//! The history of a run, and the violations of promises in it.

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
    elections: BTreeMap<String, ElectionHistory>,
    pub(crate) terms: u64,
    /// Writes of stale leaders that the register refused.
    pub(crate) refused: u64,
    /// Until then work may still exist after its deadline, because the whole process was stalled.
    stalled: Option<Instant>,
    /// How often the revisions of the store have restarted.
    epoch: u64,
    /// Whether an operator deletes entries, so that two candidates may lead for a moment.
    operator_interferes: bool,
    /// Violated promises.
    pub(crate) violations: Vec<String>,
}

/// One election: the running work, and a register that is fenced by its tokens.
#[derive(Debug, Default)]
struct ElectionHistory {
    working: Vec<u64>,
    /// How many terms have begun.
    terms_begun: u64,
    /// The tokens of all terms so far.
    terms: BTreeSet<u64>,
    /// The highest token of any term.
    highest: u64,
    /// The highest token that has written.
    written: u64,
}

impl History {
    /// An empty history.
    pub(crate) fn new(interferes: bool) -> Self {
        let history = Self::default();
        history.lock().operator_interferes = interferes;
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
    pub(crate) fn work_begins(&mut self, election: &str, token: u64) {
        let stalled = self.is_stalled();
        self.terms += 1;
        let history = self.elections.entry(election.to_owned()).or_default();
        let (highest, concurrent) = (history.highest, history.working.clone());
        history.terms_begun += 1;
        history.highest = highest.max(token);
        history.working.push(token);
        let fresh = history.terms.insert(token);
        // A candidate may learn late that it won with an entry that an operator has deleted meanwhile. If the revisions have
        // restarted by then, its token may also be that of a later entry.
        let late = token < highest && self.operator_interferes;
        let repeats = !fresh || token == highest;
        if (repeats && self.epoch == 0) || (token < highest && !late) {
            self.violated("S2", format!("{election}: token {token} after {highest}"));
        }
        if !concurrent.is_empty() && !stalled && !self.operator_interferes {
            self.violated("S1", format!("{election}: {token} leads beside {concurrent:?}"));
        }
    }

    /// A leader whose check has just succeeded acts. Promise S1.
    pub(crate) fn work_acts(&mut self, election: &str, token: u64) {
        let highest = self.elections.get(election).map_or(0, |history| history.highest);
        if token < highest && !self.operator_interferes {
            self.violated("S1", format!("{election}: {token} may act after {highest} began"));
        }
    }

    /// A write arrives at the register, which refuses older tokens. Promise S2.
    pub(crate) fn register_write(&mut self, election: &str, token: u64) {
        let history = self.elections.entry(election.to_owned()).or_default();
        if token < history.written {
            self.refused += 1;
        } else {
            history.written = token;
        }
    }

    /// Work acted although its deadline had passed. Promise S3.
    pub(crate) fn acts_past_deadline(&mut self, election: &str, token: u64) {
        if !self.is_stalled() {
            self.violated("S3", format!("{election}: {token} works past its deadline"));
        }
    }

    pub(crate) fn work_ends(&mut self, election: &str, token: u64) {
        if let Some(history) = self.elections.get_mut(election) {
            history.working.retain(|working| *working != token);
        }
    }

    /// The revisions of the store restart, and so do the tokens.
    pub(crate) fn tokens_restart(&mut self) {
        self.epoch += 1;
        for history in self.elections.values_mut() {
            history.terms.clear();
            (history.highest, history.written) = (0, 0);
        }
    }

    /// How often the revisions have restarted; tokens of different epochs cannot be compared.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many terms of an election have begun.
    pub(crate) fn terms_begun(&self, election: &str) -> u64 {
        self.elections.get(election).map_or(0, |history| history.terms_begun)
    }

    /// The elections and tokens of all running work.
    pub(crate) fn working(&self) -> Vec<(String, u64)> {
        let histories = self.elections.iter();
        histories
            .flat_map(|(election, history)| history.working.iter().map(|token| (election.clone(), *token)))
            .collect()
    }
}
