//! The leader's work: charges the renewals that fall due, while it is the leader.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tenure::{BoxError, LeadershipHandle};
use tracing::{debug, info, warn};

use crate::{
    clock::now_ms,
    db::{Database, Renewal, WriteError},
    payment_api::{ChargeError, PaymentClient, Receipt},
};

/// How many renewals are read at a time.
const BATCH_SIZE: i64 = 64;
/// How many charges are in flight at a time.
const MAX_IN_FLIGHT: usize = 8;
/// How often the database is polled while no renewal is due.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often a charge is tried before the renewal is postponed.
const MAX_TRIES: u32 = 3;
/// How long a renewal is postponed if the provider did not answer.
const NO_ANSWER_DELAY: Duration = Duration::from_secs(2);
/// How long a renewal is postponed if the provider rejected it.
const REJECTED_DELAY: Duration = Duration::from_secs(60 * 60);

/// Charges renewals through the payment provider, and records them in the database.
#[derive(Clone, Debug)]
pub(crate) struct Biller {
    /// The server's name, for the table of terms.
    pub(crate) name: String,
    pub(crate) database: Database,
    pub(crate) provider: PaymentClient,
    /// How long before the beginning of its period a renewal is charged.
    pub(crate) ahead: Duration,
}

impl Biller {
    /// Charges what falls due, until leadership is over.
    ///
    /// # Errors
    /// If the token is stale or the database fails. The server then resigns.
    ///
    /// # Cancellation safety
    /// This may be dropped, and the process killed, at any time: see [`charge`](Self::charge).
    pub(crate) async fn run(&self, leadership: LeadershipHandle) -> Result<(), BoxError> {
        let token = leadership.fencing_token();
        let stop = leadership.cancellation_token();
        info!(token = token.get(), "leading");
        self.database.begin_term(self.database.proof(&leadership), &self.name).await?;

        while !stop.is_cancelled() {
            let now = now_ms();
            let ahead = i64::try_from(self.ahead.as_millis()).unwrap_or(i64::MAX);
            let due = self.database.due(now.saturating_add(ahead), now, BATCH_SIZE).await?;
            if due.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(POLL_INTERVAL) => continue,
                }
            }
            // Concurrent, but not as spawned tasks: these would continue when the leadership drops its work at the
            // deadline.
            stream::iter(due)
                .map(|renewal| self.charge(renewal, &leadership))
                .buffer_unordered(MAX_IN_FLIGHT)
                .try_collect::<()>()
                .await?;
        }
        info!(token = token.get(), "stopped charging");
        Ok(())
    }

    /// Charges one renewal and records it.
    ///
    /// A crash between the two leaves a charge that is not recorded. The renewal is then still due. The next leader
    /// sends the same idempotency key, gets the earlier charge in the answer, and records it.
    async fn charge(&self, renewal: Renewal, leadership: &LeadershipHandle) -> Result<(), WriteError> {
        let proof = self.database.proof(leadership);
        match self.request_charge(&renewal, leadership).await {
            ChargeOutcome::Charged(receipt) => {
                if receipt.was_duplicate {
                    info!(
                        subscription = renewal.subscription,
                        charge = receipt.charge,
                        "charged before, by a request without an answer"
                    );
                }
                // Also after leadership was lost: the charge was made. The fence refuses the write if there is a
                // newer leader.
                self.database.record(&renewal, &receipt, proof).await?;
                debug!(subscription = renewal.subscription, charge = receipt.charge, "charged");
                Ok(())
            }
            ChargeOutcome::Postponed(delay) => {
                let until = now_ms() + i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
                self.database.postpone(&renewal, until, proof).await
            }
            ChargeOutcome::Stale => Err(WriteError::Stale { token: leadership.fencing_token() }),
            ChargeOutcome::NoLongerLeading => Ok(()),
        }
    }

    async fn request_charge(&self, renewal: &Renewal, leadership: &LeadershipHandle) -> ChargeOutcome {
        let stop = leadership.cancellation_token();
        let request = renewal.request();
        for attempt in 1..=MAX_TRIES {
            // Before each side effect. `ensure` compares the clock, so that a process that was paused stops here. A
            // request that is sent nevertheless carries the token.
            if leadership.ensure().is_err() {
                return ChargeOutcome::NoLongerLeading;
            }
            let error = match self.provider.charge(&request, leadership.fencing_token()).await {
                Ok(receipt) => return ChargeOutcome::Charged(receipt),
                Err(error) => error,
            };
            warn!(
                subscription = renewal.subscription,
                period = request.period,
                attempt,
                error = &error as &dyn std::error::Error,
                "not charged"
            );
            match error {
                ChargeError::Stale { .. } => return ChargeOutcome::Stale,
                ChargeError::Rejected(_) => return ChargeOutcome::Postponed(REJECTED_DELAY),
                ChargeError::NoAnswer(_) | ChargeError::ServerError(_) => {}
            }
            let delay = Duration::from_millis(50).mul_f64(f64::from(attempt) * (0.5 + fastrand::f64()));
            tokio::select! {
                () = stop.cancelled() => return ChargeOutcome::NoLongerLeading,
                () = tokio::time::sleep(delay) => {}
            }
        }
        ChargeOutcome::Postponed(NO_ANSWER_DELAY)
    }
}

/// The outcome of requesting a charge.
enum ChargeOutcome {
    Charged(Receipt),
    /// Not charged: try again after this time.
    Postponed(Duration),
    /// There is a newer leader.
    Stale,
    /// Leadership is over. It may be unknown whether the charge was made; the next leader finds out.
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
        payment_api::Outcome,
        payment_provider::testing::TestProvider,
    };

    /// A server, its database with one renewal due, and its payment provider.
    struct Fixture {
        biller: Biller,
        provider: TestProvider,
        elector: Arc<dyn Elector>,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            let (dir, database) = sqlite().await;
            let new = NewSubscription {
                id: 1,
                plan: Plan::Monthly,
                price_cents: 990,
                started_at: 20_000 * DAY_MS,
                periods_paid: 0,
            };
            database.add_subscriptions(&[new]).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let provider = TestProvider::serve(listener, &dir.path().join("provider.db")).await;
            let biller = Biller {
                name: "server-1".into(),
                database,
                provider: PaymentClient::new(&url).unwrap(),
                ahead: Duration::ZERO,
            };
            let elector = tenure::connect(&format!("memory:{}", dir.path().display())).await.unwrap();
            Self { biller, provider, elector, _dir: dir }
        }

        /// Leads until `periods` periods are paid, or the work fails.
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
        let fixture = Fixture::new().await;
        fixture.lead_until_paid(3).await.unwrap();
        let rows = fixture.provider.outcomes().await;
        let mut periods: Vec<_> = rows.iter().map(|(_, period, _)| period.as_str()).collect();
        periods.truncate(3);
        assert_eq!(periods, ["2024-10-04", "2024-11-04", "2024-12-04"]);
        assert!(rows.iter().all(|(_, _, outcome)| *outcome == Outcome::Charged), "{rows:?}");
    }

    /// Hazard G24: a crash between the charge and its record.
    #[tokio::test]
    async fn what_a_dead_leader_charged_is_recorded_and_not_charged_again() {
        let fixture = Fixture::new().await;
        // given: a leader that charged and crashed before recording it
        let due = fixture.biller.database.due(i64::MAX, i64::MAX, 1).await.unwrap();
        let first = tenure::FencingToken::new(1).unwrap();
        let receipt = fixture.biller.provider.charge(&due[0].request(), first).await.unwrap();

        // when: the next server leads
        fixture.lead_until_paid(1).await.unwrap();

        // then: it gets the earlier charge and records it
        let rows = fixture.provider.outcomes().await;
        let same: Vec<_> = rows.iter().filter(|(_, period, _)| *period == due[0].request().period).collect();
        assert_eq!(same.len(), 2, "{rows:?}");
        assert_eq!((same[0].2, same[1].2), (Outcome::Charged, Outcome::RefusedDuplicate));
        let recorded = fixture.biller.database.recorded().await.unwrap();
        assert_eq!(recorded[0].amount_cents, receipt.amount_cents);
    }

    /// Hazard G1: the provider refuses a leader that does not know of a newer one, and that leader stops.
    #[tokio::test]
    async fn a_stale_leader_is_refused_by_the_provider_and_stops() {
        let fixture = Fixture::new().await;
        // given: a newer leader, which has written to the provider and not to the database
        let newer_token = tenure::FencingToken::new(1 << 62).unwrap();
        let mut other_request =
            fixture.biller.database.due(i64::MAX, i64::MAX, 1).await.unwrap()[0].request();
        other_request.subscription = 99;
        fixture.biller.provider.charge(&other_request, newer_token).await.unwrap();

        // when: the stale leader charges
        let error = fixture.lead_until_paid(1).await.unwrap_err();

        // then
        assert!(error.contains("token"), "{error}");
        let outcomes: Vec<_> =
            fixture.provider.outcomes().await.into_iter().map(|row| (row.0, row.2)).collect();
        assert_eq!(outcomes, [(99, Outcome::Charged), (1, Outcome::RefusedStale)]);
        assert!(fixture.biller.database.recorded().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_leader_that_is_stale_in_the_database_charges_nothing() {
        let fixture = Fixture::new().await;
        let newer_token = tenure::FencingToken::new(1 << 62).unwrap();
        fixture.biller.database.begin_term(newer_token, "server-2").await.unwrap();
        let error = fixture.lead_until_paid(1).await.unwrap_err();
        assert!(error.contains("a newer leader has written"), "{error}");
        assert!(fixture.provider.outcomes().await.is_empty());
    }
}
