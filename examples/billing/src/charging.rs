//! What the leader does: charges the renewals that fall due, one after the other, for as long as it leads.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tenure::{BoxError, LeadershipHandle};
use tracing::{debug, info, warn};

use crate::{
    clock::now_ms,
    db::{Database, Renewal, WriteError},
    payment::{ChargeError, Provider, Receipt},
};

/// How many renewals are read at a time.
const BATCH: i64 = 64;
/// How many charges are under way at a time.
const IN_FLIGHT: usize = 8;
/// How often to look for renewals when none was due.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often a charge is tried before the renewal is put off.
const TRIES: u32 = 3;
/// How long a renewal is put off when the provider gave no answer, or refused it.
const NO_ANSWER: Duration = Duration::from_secs(2);
const REJECTED: Duration = Duration::from_secs(60 * 60);

/// The means of charging.
#[derive(Clone, Debug)]
pub(crate) struct Biller {
    pub(crate) name: String,
    pub(crate) database: Database,
    pub(crate) provider: Provider,
    /// How long before its period begins a renewal is charged.
    pub(crate) ahead: Duration,
}

impl Biller {
    /// Charges what falls due, until leadership is over.
    ///
    /// Safe to be dropped at any moment, and the process to be killed: see [`charge`](Self::charge).
    ///
    /// # Errors
    /// A stale token, or a database that fails: leadership is handed over then.
    pub(crate) async fn run(&self, leadership: LeadershipHandle) -> Result<(), BoxError> {
        let token = leadership.fencing_token();
        let stop = leadership.cancellation_token();
        info!(token = token.get(), "leading");
        self.database.claim(token, &self.name).await?;

        while !stop.is_cancelled() {
            let now = now_ms();
            let ahead = i64::try_from(self.ahead.as_millis()).unwrap_or(i64::MAX);
            let due = self.database.due(now.saturating_add(ahead), now, BATCH).await?;
            if due.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(LOOK_AGAIN) => continue,
                }
            }
            // Concurrent, but no tasks of their own: a task would live on when the leadership
            // drops its work at the deadline.
            stream::iter(due)
                .map(|renewal| self.charge(renewal, &leadership))
                .buffer_unordered(IN_FLIGHT)
                .try_collect::<()>()
                .await?;
        }
        info!(token = token.get(), "stopped charging");
        Ok(())
    }

    /// Charges one renewal and records it.
    ///
    /// A crash between the two leaves a charge that is not recorded. The renewal is then still
    /// due; the next leader sends the same idempotency key, hears that it has been charged, and
    /// records that.
    async fn charge(&self, renewal: Renewal, leadership: &LeadershipHandle) -> Result<(), WriteError> {
        let token = leadership.fencing_token();
        match self.ask_provider(&renewal, leadership).await {
            Asked::Charged(receipt) => {
                if receipt.made_before {
                    info!(
                        subscription = renewal.subscription,
                        charge = receipt.charge,
                        "had been charged before"
                    );
                }
                // Also after leadership was lost: the money has moved, and the fence decides.
                self.database.record(&renewal, &receipt, token).await?;
                debug!(subscription = renewal.subscription, charge = receipt.charge, "charged");
                Ok(())
            }
            Asked::PutOff(pause) => {
                let until = now_ms() + i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
                self.database.put_off(&renewal, until, token).await
            }
            Asked::Stale => Err(WriteError::Stale { token }),
            Asked::NoLongerLeading => Ok(()),
        }
    }

    async fn ask_provider(&self, renewal: &Renewal, leadership: &LeadershipHandle) -> Asked {
        let stop = leadership.cancellation_token();
        let request = renewal.request();
        for tried in 1..=TRIES {
            // Before each side effect: compares the clock, so that a process that was paused
            // stops here. What slips through carries the token.
            if leadership.ensure().is_err() {
                return Asked::NoLongerLeading;
            }
            let error = match self.provider.charge(&request, leadership.fencing_token()).await {
                Ok(receipt) => return Asked::Charged(receipt),
                Err(error) => error,
            };
            warn!(
                subscription = renewal.subscription,
                period = request.period,
                tried,
                error = &error as &dyn std::error::Error,
                "not charged"
            );
            match error {
                ChargeError::Stale { .. } => return Asked::Stale,
                ChargeError::Rejected(_) => return Asked::PutOff(REJECTED),
                ChargeError::Unclear(_) | ChargeError::Trouble(_) => {}
            }
            let pause = Duration::from_millis(50).mul_f64(f64::from(tried) * (0.5 + fastrand::f64()));
            tokio::select! {
                () = stop.cancelled() => return Asked::NoLongerLeading,
                () = tokio::time::sleep(pause) => {}
            }
        }
        Asked::PutOff(NO_ANSWER)
    }
}

/// What came of asking the provider.
enum Asked {
    Charged(Receipt),
    PutOff(Duration),
    Stale,
    /// Whether money has moved is unknown; the next leader finds out.
    NoLongerLeading,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tenure::Elector;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        calendar::{DAY_MS, Plan},
        db::{NewSubscription, tests::sqlite},
        payment::Outcome,
        provider::testing::Fake,
    };

    /// A leader, its database with one renewal due, and the provider it charges through.
    struct World {
        biller: Biller,
        provider: Fake,
        elector: Arc<dyn Elector>,
        _dir: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let (dir, database) = sqlite().await;
            let new = NewSubscription {
                id: 1,
                plan: Plan::Monthly,
                price_cents: 990,
                started_at: 20_000 * DAY_MS,
                periods_paid: 0,
            };
            database.sign_up(&[new]).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let provider = Fake::serve(listener, &dir.path().join("provider.db")).await;
            let biller = Biller {
                name: "server-1".into(),
                database,
                provider: Provider::new(&url).unwrap(),
                ahead: Duration::ZERO,
            };
            let elector = tenure::connect(&format!("memory:{}", dir.path().display())).await.unwrap();
            Self { biller, provider, elector, _dir: dir }
        }

        /// Leads until the renewal has moved on to `periods`, or the work fails.
        async fn lead_until_paid(&self, periods: i64) -> Result<(), String> {
            let leadership = self.elector.campaign("billing").await.unwrap();
            let paid = async {
                loop {
                    let next = self.biller.database.due(i64::MAX, i64::MAX, 1).await.unwrap();
                    if next[0].periods_paid >= periods {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let outcome = tokio::select! {
                outcome = leadership.run(self.biller.run(leadership.handle())) => outcome,
                () = paid => Ok(Ok(())),
            };
            leadership.resign().await.unwrap();
            outcome.unwrap().map_err(|error| error.to_string())
        }
    }

    #[tokio::test]
    async fn every_period_that_is_due_is_charged_once() {
        let world = World::new().await;
        world.lead_until_paid(3).await.unwrap();
        let rows = world.provider.outcomes().await;
        let mut periods: Vec<_> = rows.iter().map(|(_, period, _)| period.as_str()).collect();
        periods.truncate(3);
        assert_eq!(periods, ["2024-10-04", "2024-11-04", "2024-12-04"]);
        assert!(rows.iter().all(|(_, _, outcome)| *outcome == Outcome::Charged), "{rows:?}");
    }

    /// Hazard G24: a crash between the charge and its record.
    #[tokio::test]
    async fn what_a_dead_leader_charged_is_recorded_and_not_charged_again() {
        let world = World::new().await;
        // given: a leader that charged, and died before it could record
        let due = world.biller.database.due(i64::MAX, i64::MAX, 1).await.unwrap();
        let first = tenure::FencingToken::new(1).unwrap();
        let made = world.biller.provider.charge(&due[0].request(), first).await.unwrap();

        // when: the next one leads
        world.lead_until_paid(1).await.unwrap();

        // then: it learns of the charge and records it
        let rows = world.provider.outcomes().await;
        let same: Vec<_> = rows.iter().filter(|(_, period, _)| *period == due[0].request().period).collect();
        assert_eq!(same.len(), 2, "{rows:?}");
        assert_eq!((same[0].2, same[1].2), (Outcome::Charged, Outcome::RefusedDuplicate));
        let recorded = world.biller.database.recorded().await.unwrap();
        assert_eq!(recorded[0].amount_cents, made.amount_cents);
    }

    /// Hazard G1: a leader that does not know that another leads is refused, and stops.
    #[tokio::test]
    async fn a_stale_leader_is_refused_by_the_provider_and_stops() {
        let world = World::new().await;
        // given: a later leader that the provider has heard of, and our database has not
        let later = tenure::FencingToken::new(1 << 62).unwrap();
        let mut elsewhere = world.biller.database.due(i64::MAX, i64::MAX, 1).await.unwrap()[0].request();
        elsewhere.subscription = 99;
        world.biller.provider.charge(&elsewhere, later).await.unwrap();

        // when: the stale one charges
        let error = world.lead_until_paid(1).await.unwrap_err();

        // then
        assert!(error.contains("token"), "{error}");
        let outcomes: Vec<_> =
            world.provider.outcomes().await.into_iter().map(|row| (row.0, row.2)).collect();
        assert_eq!(outcomes, [(99, Outcome::Charged), (1, Outcome::RefusedStale)]);
        assert!(world.biller.database.recorded().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_stale_leader_that_the_database_knows_of_charges_nothing_at_all() {
        let world = World::new().await;
        let later = tenure::FencingToken::new(1 << 62).unwrap();
        world.biller.database.claim(later, "server-2").await.unwrap();
        let error = world.lead_until_paid(1).await.unwrap_err();
        assert!(error.contains("a later leader has written"), "{error}");
        assert!(world.provider.outcomes().await.is_empty());
    }
}
