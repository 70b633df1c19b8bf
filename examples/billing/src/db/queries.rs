//! Reads from the database. They need no fencing token: only writes must not be stale.

use sqlx::{Row, any::AnyRow};

use super::Database;
use crate::{
    calendar::{Plan, period_name},
    payment_api::ChargeRequest,
};

/// A period of a subscription that has to be paid. Times are in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) subscription: i64,
    pub(crate) price_cents: i64,
    /// How many periods have been paid before this one.
    pub(crate) periods_paid: i64,
    /// When this period begins.
    pub(crate) renews_at: i64,
    /// When the next period begins.
    pub(crate) next_renewal_at: i64,
}

impl Renewal {
    /// The request to charge this renewal.
    pub(crate) fn request(&self) -> ChargeRequest {
        ChargeRequest {
            subscription: self.subscription,
            period: period_name(self.renews_at),
            amount_cents: self.price_cents,
        }
    }
}

/// A renewal that is recorded as paid in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordedRenewal {
    pub(crate) subscription: i64,
    pub(crate) period: String,
    pub(crate) amount_cents: i64,
}

/// A term of leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) token: i64,
    pub(crate) leader: String,
    /// When the leader first wrote to the database, in milliseconds since 1970.
    pub(crate) claimed_at: i64,
}

impl Database {
    /// The renewals whose period begins by `until`, the earliest first, without those that are postponed beyond `now`.
    pub(crate) async fn due(&self, until: i64, now: i64, limit: i64) -> Result<Vec<Renewal>, sqlx::Error> {
        sqlx::query(
            "SELECT id, plan, price_cents, started_at, periods_paid, renews_at FROM subscriptions
             WHERE renews_at <= $1 AND not_before <= $2 ORDER BY renews_at, id LIMIT $3",
        )
        .bind(until)
        .bind(now)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(renewal)
        .collect()
    }

    /// All renewals that are recorded as paid.
    pub(crate) async fn recorded(&self) -> Result<Vec<RecordedRenewal>, sqlx::Error> {
        sqlx::query("SELECT subscription, period, amount_cents FROM renewals")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| {
                Ok(RecordedRenewal {
                    subscription: row.try_get(0)?,
                    period: row.try_get(1)?,
                    amount_cents: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// The number of renewals that are recorded as paid.
    pub(crate) async fn count_recorded(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM renewals").fetch_one(&self.pool).await
    }

    /// The number of subscriptions.
    pub(crate) async fn count_subscriptions(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM subscriptions").fetch_one(&self.pool).await
    }

    /// All terms of leadership, in order.
    pub(crate) async fn terms(&self) -> Result<Vec<Term>, sqlx::Error> {
        sqlx::query("SELECT token, leader, claimed_at FROM terms ORDER BY token")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| {
                Ok(Term { token: row.try_get(0)?, leader: row.try_get(1)?, claimed_at: row.try_get(2)? })
            })
            .collect()
    }
}

fn renewal(row: &AnyRow) -> Result<Renewal, sqlx::Error> {
    let plan: Plan =
        row.try_get::<String, _>(1)?.parse().map_err(|e: String| sqlx::Error::Decode(e.into()))?;
    let (started_at, periods_paid) = (row.try_get(3)?, row.try_get::<i64, _>(4)?);
    Ok(Renewal {
        subscription: row.try_get(0)?,
        price_cents: row.try_get(2)?,
        periods_paid,
        renews_at: row.try_get(5)?,
        next_renewal_at: plan.renews_at(started_at, periods_paid + 1),
    })
}
