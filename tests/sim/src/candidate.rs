//! One host in one election: it campaigns, leads, works, resigns or gives up, and starts again.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tenure_core::{Elector, Error, Leadership, LeadershipHandle, SimClock, StoreElector};
use tokio::time::Instant;

use crate::history::History;

/// One host in one election.
pub(crate) struct Candidate {
    pub(crate) elector: Arc<StoreElector>,
    pub(crate) clock: SimClock,
    pub(crate) election: String,
    pub(crate) random: Rng,
    pub(crate) history: History,
    pub(crate) terms: TermLength,
}

/// The lengths of terms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TermLength {
    /// Most are at most 60 ms long.
    Short,
    /// A third of them are up to this long.
    Long(Duration),
}

impl Candidate {
    /// Campaigns again and again, with random timeouts, and leads in a random way, until the elector is closed.
    pub(crate) async fn campaign_until_closed(mut self) {
        loop {
            let timeout = Duration::from_millis(self.random.u64(1..60_000));
            let tries = self.random.u8(..6) == 0;
            let pause = Duration::from_millis(self.random.u64(1..400));
            let campaign = async {
                if !tries {
                    return self.elector.campaign(&self.election).await.map(Some);
                }
                tokio::time::sleep(pause).await;
                self.elector.try_campaign(&self.election).await
            };
            match tokio::time::timeout(timeout, campaign).await {
                Err(_) | Ok(Ok(None)) => {}
                Ok(Ok(Some(leadership))) => self.lead(leadership).await,
                Ok(Err(Error::Closed)) => return,
                // No error in this simulation is permanent.
                Ok(Err(error)) => {
                    let what = format!("{}: a campaign was refused: {error}", self.election);
                    self.history.lock().violated("L2", what);
                    return;
                }
            }
        }
    }

    async fn lead(&mut self, leadership: Leadership) {
        let most = match self.terms {
            TermLength::Long(most) if self.random.u8(..3) == 0 => most,
            TermLength::Short if self.random.u8(..25) == 0 => Duration::from_secs(20),
            _ => Duration::from_millis(60),
        };
        let length = Duration::from_millis(self.random.u64(1..most.as_millis() as u64));
        let work = Work {
            handle: leadership.handle(),
            clock: self.clock.clone(),
            election: self.election.clone(),
            work_ends: Instant::now() + length,
            stops_on_cancel: self.random.bool(),
            random: Rng::with_seed(self.random.u64(..)),
            history: self.history.clone(),
        };
        let handle = leadership.handle();
        match self.random.u8(..5) {
            0 => drop(tokio::time::timeout(length, leadership.run(work.run())).await),
            1 => {
                let working = tokio::spawn(async move { handle.run(work.run()).await });
                tokio::time::sleep(length / 2).await;
                drop((leadership.resign().await, working.await));
                return;
            }
            2 => {
                let working = tokio::spawn(async move { handle.run(work.run()).await });
                tokio::time::sleep(length / 2).await;
                drop(leadership);
                if self.random.bool() {
                    drop(working.await);
                }
                return;
            }
            3 => {
                let budget = Duration::from_millis(self.random.u64(1..3_300));
                drop(leadership.run_with_grace_period(budget, work.run()).await);
            }
            _ => drop(leadership.run(work.run()).await),
        }
        if self.random.bool() {
            let _ = leadership.resign().await;
        }
    }
}

/// The work of one term: a sequence of side effects.
struct Work {
    handle: LeadershipHandle,
    clock: SimClock,
    election: String,
    work_ends: Instant,
    /// Whether it returns when it is cancelled; otherwise the engine has to drop it.
    stops_on_cancel: bool,
    random: Rng,
    history: History,
}

impl Work {
    fn token(&self) -> u64 {
        self.handle.fencing_token().get()
    }

    async fn run(mut self) {
        use tenure_core::Clock as _;
        self.history.lock().work_begins(&self.election, self.token());
        let stop = self.handle.cancellation_token();
        loop {
            if self.clock.now() > self.handle.deadline() {
                self.history.lock().acts_past_deadline(&self.election, self.token());
            }
            if self.handle.ensure().is_ok() {
                self.history.lock().work_acts(&self.election, self.token());
                // The write may arrive at any later time. The register compares its token.
                let (history, election, token) = (self.history.clone(), self.election.clone(), self.token());
                let on_its_way = Duration::from_millis(self.random.u64(..20).pow(3));
                tokio::spawn(async move {
                    tokio::time::sleep(on_its_way).await;
                    history.lock().register_write(&election, token);
                });
            }
            tokio::time::sleep(Duration::from_millis(self.random.u64(1..120))).await;
            let over =
                if stop.is_cancelled() { self.stops_on_cancel } else { Instant::now() >= self.work_ends };
            if over {
                return;
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let token = self.token();
        self.history.lock().work_ends(&self.election, token);
    }
}
