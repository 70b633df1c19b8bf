//! The servers of an ensemble, those first that have not failed lately.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tenure_core::failpoints::{SafetyRule, is_disabled};

/// For how long a server that failed is asked last.
const GRUDGE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Servers {
    all: Vec<String>,
    failed: Mutex<Vec<Option<Instant>>>,
    /// Those that are of another ensemble than the session.
    aside: Mutex<HashSet<String>>,
}

impl Servers {
    pub(crate) fn new(all: Vec<String>) -> Self {
        let failed = Mutex::new(vec![None; all.len()]);
        Self { all, failed, aside: Mutex::default() }
    }

    /// All servers, in the order in which to try them: at random, but those that failed lately come
    /// last, and the longest ago first among them.
    pub(crate) fn in_order(&self) -> Vec<String> {
        if is_disabled(SafetyRule::FailOver) {
            return self.all[..1].to_vec();
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        fastrand::shuffle(&mut order);
        order.sort_by_key(|&n| failed[n].filter(|at| at.elapsed() < GRUDGE));
        let aside = self.aside();
        order.into_iter().map(|n| &self.all[n]).filter(|server| !aside.contains(*server)).cloned().collect()
    }

    /// Asks `server` no more; whether that is new. The last one is kept.
    pub(crate) fn put_aside(&self, server: &str) -> bool {
        let mut aside = self.aside();
        aside.len() + 1 < self.all.len() && aside.insert(server.to_owned())
    }

    /// Asks every server again.
    pub(crate) fn take_back(&self) {
        self.aside().clear();
    }

    fn aside(&self) -> MutexGuard<'_, HashSet<String>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that `server` did not serve.
    pub(crate) fn failed(&self, server: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = self.all.iter().position(|known| known == server) {
            failed[n] = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_failed_is_tried_last() {
        let servers = Servers::new(["a", "b", "c"].map(String::from).to_vec());
        servers.failed("b");
        servers.failed("a");
        servers.failed("unknown");
        for _ in 0..20 {
            assert_eq!(servers.in_order(), ["c", "b", "a"]);
        }
    }
}
