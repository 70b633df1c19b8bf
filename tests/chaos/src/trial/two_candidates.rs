//! One election with a leader and a candidate that waits for its turn.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tenure::{Elector, Leadership};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::context::{POLL_INTERVAL, STEP_TIMEOUT, TrialContext};
use crate::sampler::SampledTerm;

/// An election in which one candidate leads and another waits.
pub(super) struct TwoCandidates {
    context: TrialContext,
    leader: Arc<dyn Elector>,
    waiter: Arc<dyn Elector>,
    leadership: Leadership,
    term: Arc<SampledTerm>,
    takeover: JoinHandle<Result<u64>>,
}

impl TwoCandidates {
    /// Returns once a heartbeat of the leader is confirmed and the other candidate waits behind it.
    pub(super) async fn start(
        context: &TrialContext,
        election: &str,
        leader_url: &str,
        waiter_url: &str,
    ) -> Result<Self> {
        let (leader, waiter) = (context.connect(leader_url).await?, context.connect(waiter_url).await?);
        let (leadership, term) = context.lead(&*leader, election).await?;
        let takeover = context.campaign_in_background(&waiter, election);
        // A Lease names its holder only.
        let visible = if waiter_url.starts_with("kubernetes:") { 1 } else { 2 };
        let both_entered = async {
            while waiter.candidates(election).await?.len() < visible {
                sleep(POLL_INTERVAL).await;
            }
            anyhow::Ok(())
        };
        timeout(STEP_TIMEOUT, both_entered).await.context("the second candidate does not enter")??;
        context.wait_for_heartbeat(&leadership).await?;
        Ok(Self { context: context.clone(), leader, waiter, leadership, term, takeover })
    }

    /// Waits until the other candidate leads, and calls `heal`. Returns the time without a leader in nanoseconds, or `None` if
    /// the other candidate never led.
    pub(super) async fn wait_for_takeover(self, heal: impl FnOnce()) -> Result<Option<u64>> {
        let Self { context, leader, waiter, leadership, term, takeover } = self;
        let takeover_timeout = context.ttl * 3 + Duration::from_secs(5);
        let elected_at = match timeout(takeover_timeout, takeover).await {
            Ok(elected_at) => Some(elected_at??),
            Err(_) => None,
        };
        context.record_end(&leadership, &term);
        heal();
        drop(leadership);
        for elector in [leader, waiter] {
            // With a safety rule disabled it may not close.
            let _ = timeout(takeover_timeout, elector.close()).await;
        }
        Ok(elected_at.map(|elected_at| elected_at.saturating_sub(term.last_valid())))
    }
}
