//! The wait after a failover (rule 7).
//!
//! A failover may lose the entry of a leader whose window is still open. Its election then looks empty, and nobody is timed. So nobody leads in a
//! new epoch before the longest window of earlier ones has closed. That costs one wait per epoch and store: who has waited says so in the
//! record of the store.

use std::time::Duration;

use tenure_core::{BootInstant, Clock, spi::BackendError};

use crate::{
    client::epoch_refused,
    probe::store_record,
    record::{SESSIONS, STORE_KEY, Session, State, StoreRecord},
    rules::{CasRule, is_disabled},
    shared::Shared,
    store::{CasStore, Epoch, Swap},
};

/// What an elector knows of the epoch.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// The last epoch that is known to have settled.
    epoch: Epoch,
    /// Until then, that a later one has not settled.
    look_again: Option<(Epoch, BootInstant)>,
}

impl<S: CasStore> Shared<S> {
    /// Whether candidates may lead in this epoch: `None` if so, otherwise when to ask again. Does not wait.
    ///
    /// `ttl` is the candidate's own. Sessions of a longer one are waited for if their records are in the store.
    pub(crate) async fn settle(
        &self,
        epoch: Epoch,
        ttl: Duration,
        clock: &dyn Clock,
    ) -> Result<Option<BootInstant>, BackendError> {
        // Nothing was before the first epoch. A store that loses no writes has no other.
        if epoch == Epoch::default() || is_disabled(CasRule::SettleEpoch) {
            return Ok(None);
        }
        // One candidate of the elector at a time looks.
        let mut settled = self.settled.lock().await;
        loop {
            if settled.epoch >= epoch {
                return Ok(None);
            }
            let now = clock.now();
            if let Some((_, at)) = settled.look_again.filter(|(of, at)| *of == epoch && now < *at) {
                return Ok(Some(at));
            }
            let (version, record) = store_record(&self.client).await?;
            if record.settled >= epoch {
                settled.epoch = record.settled;
                continue;
            }
            let mut settles = self.settles_at(epoch, ttl)?;
            if now >= settles && !is_disabled(CasRule::SettleLongestTtl) {
                settles = self.settles_at(epoch, ttl.max(self.longest_ttl().await?))?;
            }
            if now < settles {
                // Another elector may have seen the epoch earlier.
                let at = settles.min(now + ttl / 4);
                settled.look_again = Some((epoch, at));
                return Ok(Some(at));
            }
            let body = StoreRecord { settled: epoch, ..record }.encode();
            let swap = self.client.swap("settling an epoch", STORE_KEY, Some(&version), epoch, &body);
            match swap.await? {
                Swap::Done(_) => settled.epoch = epoch,
                // By another elector.
                Swap::Conflict => {}
                Swap::EpochChanged => return Err(self.epoch_changed(epoch).await),
            }
        }
    }

    fn settles_at(&self, epoch: Epoch, ttl: Duration) -> Result<BootInstant, BackendError> {
        self.with_timers(epoch, |timers| timers.epoch_settles(ttl)).ok_or_else(|| epoch_refused(epoch))
    }

    /// The longest TTL of the sessions in the store.
    async fn longest_ttl(&self) -> Result<Duration, BackendError> {
        let listed = self.client.bounded("listing sessions", self.client.store().list(SESSIONS)).await?;
        let ttls =
            listed.iter().filter_map(|record| match Session::decode(&record.key, &record.body).ok()?.state {
                State::Active { ttl, .. } => Some(ttl),
                State::Ended => None,
            });
        Ok(ttls.max().unwrap_or_default())
    }
}
