//! The servers of an ensemble, and the order in which they are tried.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tenure_core::failpoints::{SafetyRule, is_disabled};

/// For how long a server that failed is tried after the others.
const FAILURE_COOLDOWN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Servers {
    all: Vec<String>,
    last_failures: Mutex<Vec<Option<Instant>>>,
}

impl Servers {
    pub(crate) fn new(all: Vec<String>) -> Self {
        let last_failures = Mutex::new(vec![None; all.len()]);
        Self { all, last_failures }
    }

    /// All servers of the configuration, in its order.
    pub(crate) fn all(&self) -> &[String] {
        &self.all
    }

    /// The servers in the order in which to try them: shuffled, with those that failed within [`FAILURE_COOLDOWN`]
    /// at the end, the earliest failure first.
    pub(crate) fn in_order(&self) -> Vec<String> {
        if is_disabled(SafetyRule::FailOver) {
            return self.all[..1].to_vec();
        }
        let failures = self.last_failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        fastrand::shuffle(&mut order);
        order.sort_by_key(|&n| failures[n].filter(|at| at.elapsed() < FAILURE_COOLDOWN));
        order.into_iter().map(|n| self.all[n].clone()).collect()
    }

    /// Records that `server` failed now.
    pub(crate) fn record_failure(&self, server: &str) {
        let mut failures = self.last_failures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = self.all.iter().position(|known| known == server) {
            failures[n] = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_failed_is_tried_last() {
        let servers = Servers::new(["a", "b", "c"].map(String::from).to_vec());
        servers.record_failure("b");
        servers.record_failure("a");
        servers.record_failure("unknown");
        for _ in 0..20 {
            assert_eq!(servers.in_order(), ["c", "b", "a"]);
        }
    }
}
