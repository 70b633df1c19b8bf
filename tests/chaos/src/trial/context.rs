//! What all trials do with candidates in this process: connect, lead while being sampled, and wait for a turn.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use tenure::{Config, Elector, Leadership};
use tenure_testkit::history::{Event, EventKind};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    history::History,
    message::Message,
    sampler::{SampledTerm, Sampler, now},
};

pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long an election or a heartbeat may take.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the former leader is sampled after the next one leads.
const SAMPLE_AFTER_TAKEOVER: Duration = Duration::from_millis(500);
/// How often a candidate campaigns again when it was elected after its term was over.
const MAX_CAMPAIGNS: usize = 5;

/// The history of a trial, and how its candidates connect.
#[derive(Clone, Debug)]
pub(super) struct TrialContext {
    pub(super) history: History,
    pub(super) sampler: Sampler,
    pub(super) ttl: Duration,
}

impl TrialContext {
    pub(super) fn new(history: &History, ttl: Duration) -> Self {
        let sampled = history.clone();
        let sampler = Sampler::start(move |event| sampled.record(0, Message::Event(event)));
        Self { history: history.clone(), sampler, ttl }
    }

    pub(super) async fn connect(&self, url: &str) -> Result<Arc<dyn Elector>> {
        Ok(tenure::connect_with(url, Config::new().with_ttl(self.ttl)).await?)
    }

    /// Campaigns, and starts to sample the leadership.
    pub(super) async fn lead(
        &self,
        elector: &dyn Elector,
        election: &str,
    ) -> Result<(Leadership, Arc<SampledTerm>)> {
        for _ in 0..MAX_CAMPAIGNS {
            let campaign = timeout(STEP_TIMEOUT, elector.campaign(election)).await;
            let leadership = campaign.context("nobody is elected")??;
            if let Some((term, leads)) = self.sampler.watch(leadership.handle()) {
                self.history.record(0, Message::Event(leads));
                return Ok((leadership, term));
            }
        }
        bail!("{MAX_CAMPAIGNS} candidates in turn were elected after their term was over")
    }

    /// Campaigns in the background. Returns when the candidate was elected, in nanoseconds.
    pub(super) fn campaign_in_background(
        &self,
        elector: &Arc<dyn Elector>,
        election: &str,
    ) -> JoinHandle<Result<u64>> {
        let (context, elector, election) = (self.clone(), Arc::clone(elector), election.to_owned());
        tokio::spawn(async move {
            let leadership = elector.campaign(&election).await?;
            let at = now();
            let Some((term, leads)) = context.sampler.watch(leadership.handle()) else {
                bail!("the candidate was elected after its term was over");
            };
            context.history.record(0, Message::Event(leads));
            sleep(SAMPLE_AFTER_TAKEOVER).await;
            context.record_end(&leadership, &term);
            Ok(at)
        })
    }

    /// Records that a leadership is over, or that it ends now.
    pub(super) fn record_end(&self, leadership: &Leadership, term: &SampledTerm) {
        let what =
            EventKind::Ends { valid_until: term.last_valid(), over_since: term.first_invalid_or_now() };
        let (election, token) = (leadership.election().to_string(), leadership.fencing_token().get());
        self.history.record(0, Message::Event(Event { at: now(), election, token, kind: what }));
    }

    /// Waits until a confirmed heartbeat extends the deadline.
    pub(super) async fn wait_for_heartbeat(&self, leadership: &Leadership) -> Result<()> {
        let deadline = leadership.deadline();
        let extended = async {
            while leadership.deadline() <= deadline {
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(STEP_TIMEOUT, extended).await.context("no heartbeat is confirmed")
    }
}
