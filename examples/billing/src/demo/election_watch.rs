//! Observes the election, and records the leaders.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::bail;
use futures::StreamExt;
use tenure::Elector;
use tokio::{task::JoinHandle, time::timeout};

use crate::{clock::now_ms, election, serve::Leader};

/// How long the store may take for its first answer.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A change of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaderChange {
    /// In milliseconds since 1970.
    pub(crate) at: i64,
    /// `None` if there is no leader.
    pub(crate) leader: Option<Leader>,
}

/// Observes the election until it is dropped.
#[derive(Debug)]
pub(crate) struct ElectionWatch {
    elector: Arc<dyn Elector>,
    changes: Arc<Mutex<Vec<LeaderChange>>>,
    task: JoinHandle<()>,
}

impl ElectionWatch {
    pub(crate) async fn start(store: &str, election: &str) -> anyhow::Result<Self> {
        let elector = election::connect_observer(store).await?;
        let Ok(answer) = timeout(FIRST_ANSWER_TIMEOUT, elector.leader(election)).await else {
            let cause = elector.status().last_error.unwrap_or_default();
            bail!("the store has not answered within {FIRST_ANSWER_TIMEOUT:?}: {cause}");
        };
        answer?;
        let mut leaders = elector.observe(election);
        let changes = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&changes);
        let task = tokio::spawn(async move {
            while let Some(next) = leaders.next().await {
                // An error also appears in the elector's status.
                let leader = next.ok().flatten().map(Leader::from);
                recorded
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(LeaderChange { at: now_ms(), leader });
            }
        });
        Ok(Self { elector, changes, task })
    }

    /// The current leader.
    pub(crate) fn leader(&self) -> Option<Leader> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).last()?.leader.clone()
    }

    /// The first leader with a higher token than `token`, and when it was seen.
    pub(crate) fn first_leader_after(&self, token: u64) -> Option<(i64, Leader)> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(|change| {
            let leader = change.leader.as_ref()?;
            (leader.token? > token).then(|| (change.at, leader.clone()))
        })
    }

    /// The store's last error, if there is one.
    pub(crate) fn store_error(&self) -> Option<String> {
        self.elector.status().last_error
    }

    pub(crate) async fn stop(&self) {
        self.task.abort();
        // An observer has no session, so nothing is left if this times out.
        let _ = timeout(Duration::from_secs(1), self.elector.close()).await;
    }
}

impl Drop for ElectionWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
