//! Who leads, as the demo sees it: one more reader of the election.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::bail;
use futures::StreamExt;
use tenure::Elector;
use tokio::{task::JoinHandle, time::timeout};

use crate::{clock::now_ms, election, serve::Leader};

/// How long the store has to answer at first.
const ANSWER: Duration = Duration::from_secs(10);

/// A leader was seen, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// In milliseconds since 1970.
    pub(crate) at: i64,
    pub(crate) leader: Option<Leader>,
}

/// Follows the election until dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    elector: Arc<dyn Elector>,
    seen: Arc<Mutex<Vec<Sighting>>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) async fn start(store: &str, election: &str) -> anyhow::Result<Self> {
        let elector = election::watch(store).await?;
        let Ok(answer) = timeout(ANSWER, elector.leader(election)).await else {
            let trouble = elector.status().last_error.unwrap_or_default();
            bail!("the store does not answer within {ANSWER:?}: {trouble}");
        };
        answer?;
        let mut leaders = elector.observe(election);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sightings = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Some(next) = leaders.next().await {
                // An error is told by the elector's status.
                let leader = next.ok().flatten().map(Leader::from);
                sightings
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Sighting { at: now_ms(), leader });
            }
        });
        Ok(Self { elector, seen, task })
    }

    /// Who leads.
    pub(crate) fn leader(&self) -> Option<Leader> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last()?.leader.clone()
    }

    /// When a leader with a higher token than `token` was first seen.
    pub(crate) fn first_after(&self, token: u64) -> Option<(i64, Leader)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(|sighting| {
            let leader = sighting.leader.as_ref()?;
            (leader.token? > token).then(|| (sighting.at, leader.clone()))
        })
    }

    /// What troubles the store, if anything.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.elector.status().last_error
    }

    pub(crate) async fn stop(&self) {
        self.task.abort();
        // A reader has no session to give back; nothing is lost when this takes too long.
        let _ = timeout(Duration::from_secs(1), self.elector.close()).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
