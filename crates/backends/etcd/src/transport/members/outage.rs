//! Logs a member that does not answer while others do. When none does, the engine logs the outage of the store.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tenure_core::spi::BackendError;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Member, Members};

/// The minimum time between two warnings of one member.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Whether a member answers. Shared by all requests to it, so that an outage is logged once. A stream that
/// ends is no outage: proxies cut idle ones.
#[derive(Debug, Default)]
pub(super) struct MemberOutage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The first error since the last answer.
    error: Option<String>,
    logged_at: Option<Instant>,
    /// Whether this outage was logged.
    is_logged: bool,
}

impl MemberOutage {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The error to warn of, if it is time to.
    fn take_warning(&self) -> Option<String> {
        self.with(|state| {
            let is_due =
                !state.is_logged && state.logged_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL);
            let error = state.error.clone().filter(|_| is_due)?;
            (state.is_logged, state.logged_at) = (true, Some(Instant::now()));
            Some(error)
        })
    }
}

impl Member {
    /// Records that it did not answer.
    fn record_outage(&self, error: &str) {
        self.outage.with(|state| _ = state.error.get_or_insert_with(|| error.to_owned()));
    }

    /// Records the error of an attempt. Errors that the member itself answers, for example that the cluster has no leader, are no
    /// outage of it.
    pub(crate) fn record_error(&self, error: &BackendError) {
        let text = error.to_string();
        let is_foreign = self.is_foreign.load(std::sync::atomic::Ordering::Relaxed);
        if !is_foreign && !text.contains("etcdserver: ") {
            self.record_outage(&text);
        }
    }

    /// Records that it has answered.
    pub(crate) fn record_answer(&self) {
        let was_logged = self.outage.with(|state| {
            state.error = None;
            std::mem::take(&mut state.is_logged)
        });
        if was_logged {
            info!(member = %self.endpoint, "the etcd member answers again");
        }
    }
}

impl Members {
    /// Warns of the members that do not answer, now that another one has answered.
    pub(super) fn warn_of_outages(&self) {
        for member in self.all().iter() {
            if let Some(error) = member.outage.take_warning() {
                warn!(member = %member.endpoint, error, "an etcd member does not answer; using the others");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EtcdConfig;

    /// Case 50.
    #[tokio::test(start_paused = true)]
    async fn a_dead_member_is_logged_of_once_and_again_after_it_has_answered() {
        let members = Members::new(EtcdConfig::new(["a", "b"]), "/t/~probe".to_owned());
        let all = members.all();
        let member = &all[0];
        assert_eq!(member.outage.take_warning(), None);
        member.record_outage("connection refused");
        member.record_outage("no answer");
        assert_eq!(member.outage.take_warning().as_deref(), Some("connection refused"));
        tokio::time::advance(WARNING_INTERVAL * 2).await;
        member.record_outage("no answer");
        assert_eq!(member.outage.take_warning(), None, "one outage");
        member.record_answer();
        member.record_outage("no answer");
        assert_eq!(member.outage.take_warning().as_deref(), Some("no answer"));
        member.record_answer();
        member.record_outage("no answer");
        assert_eq!(member.outage.take_warning(), None, "it alternates");
        tokio::time::advance(WARNING_INTERVAL).await;
        assert!(member.outage.take_warning().is_some());
    }
}
