//! One election, one who leads, and one who waits for its turn.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use tenure::{Config, Elector, Leadership};
use tenure_testkit::history::{Event, EventKind};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    line::Line,
    rig::record::Record,
    sampler::{Sampler, Term, now},
};

const PACE: Duration = Duration::from_millis(20);
/// How long the loser is asked on when the other leads: it must say no.
const AFTERWARDS: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

/// Whoever stands in elections here, and the history of it.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    pub(super) record: Record,
    pub(super) sampler: Sampler,
    pub(super) ttl: Duration,
}

impl Stand {
    pub(super) fn new(record: &Record, ttl: Duration) -> Self {
        let told = record.clone();
        let sampler = Sampler::start(move |event| told.take(0, Line::Saw(event)));
        Self { record: record.clone(), sampler, ttl }
    }

    pub(super) async fn connect(&self, url: &str) -> Result<Arc<dyn Elector>> {
        Ok(tenure::connect_with(url, Config::new().with_ttl(self.ttl)).await?)
    }

    /// Leads, and is watched from now on.
    pub(super) async fn lead(
        &self,
        elector: &dyn Elector,
        election: &str,
    ) -> Result<(Leadership, Arc<Term>)> {
        for _ in 0..5 {
            let campaign = timeout(PATIENCE, elector.campaign(election)).await;
            let leadership = campaign.context("nobody is elected")??;
            if let Some((term, leads)) = self.sampler.watch(leadership.handle()) {
                self.record.take(0, Line::Saw(leads));
                return Ok((leadership, term));
            }
        }
        bail!("whoever is elected is so too late, again and again")
    }

    /// Waits for a turn, in the background.
    pub(super) fn wait(&self, elector: &Arc<dyn Elector>, election: &str) -> JoinHandle<Result<u64>> {
        let (stand, elector, election) = (self.clone(), Arc::clone(elector), election.to_owned());
        tokio::spawn(async move {
            let leadership = elector.campaign(&election).await?;
            let at = now();
            let Some((term, leads)) = stand.sampler.watch(leadership.handle()) else {
                bail!("elected too late");
            };
            stand.record.take(0, Line::Saw(leads));
            sleep(AFTERWARDS).await;
            stand.over(&leadership, &term);
            Ok(at)
        })
    }

    /// Writes down that a leadership is over, or ends now.
    pub(super) fn over(&self, leadership: &Leadership, term: &Term) {
        let kind = EventKind::Ends { valid_until: term.last_yes(), over_since: term.over_since() };
        let (election, token) = (leadership.election().to_string(), leadership.fencing_token().get());
        self.record.take(0, Line::Saw(Event { at: now(), election, token, kind }));
    }

    /// Waits until a heartbeat has moved the deadline.
    pub(super) async fn renewed(&self, leadership: &Leadership) -> Result<()> {
        let deadline = leadership.deadline();
        let moved = async {
            while leadership.deadline() <= deadline {
                sleep(PACE).await;
            }
        };
        timeout(PATIENCE, moved).await.context("no heartbeat is confirmed")
    }
}

/// An election in which one leads and another waits.
pub(super) struct Duel {
    stand: Stand,
    first: Arc<dyn Elector>,
    second: Arc<dyn Elector>,
    leadership: Leadership,
    term: Arc<Term>,
    next: JoinHandle<Result<u64>>,
}

impl Duel {
    /// Begins one: a heartbeat of the leader's has been confirmed, and the other stands behind it.
    pub(super) async fn begin(stand: &Stand, election: &str, first: &str, second: &str) -> Result<Self> {
        let (first, second) = (stand.connect(first).await?, stand.connect(second).await?);
        let (leadership, term) = stand.lead(&*first, election).await?;
        let next = stand.wait(&second, election);
        let both = async {
            while second.candidates(election).await?.len() < 2 {
                sleep(PACE).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, both).await.context("the second does not enter")??;
        stand.renewed(&leadership).await?;
        Ok(Self { stand: stand.clone(), first, second, leadership, term, next })
    }

    /// Waits until the other leads, and tells for how long nobody did, in nanoseconds. `None` when it never does.
    pub(super) async fn end(self, mend: impl FnOnce()) -> Result<Option<u64>> {
        let Self { stand, first, second, leadership, term, next } = self;
        let patience = stand.ttl * 3 + Duration::from_secs(5);
        let won = match timeout(patience, next).await {
            Ok(won) => Some(won??),
            Err(_) => None,
        };
        stand.over(&leadership, &term);
        mend();
        drop(leadership);
        for elector in [first, second] {
            // A broken rule may keep it.
            let _ = timeout(patience, elector.close()).await;
        }
        Ok(won.map(|won| won.saturating_sub(term.last_yes())))
    }
}
