//! The options of one campaign.

use std::{sync::Arc, time::Duration};

use crate::{Error, InvalidConfig, config::check_value};

/// The options of one campaign, for [`Elector::campaign_with`](crate::Elector::campaign_with). Options that are not set are
/// as in the elector's [`Config`](crate::Config).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// # use std::sync::Arc;
/// # use tenure_core::{Config, StoreElector, memory::MemoryStore};
/// use std::time::Duration;
/// use tenure_core::{CampaignOptions, Elector, Patience};
///
/// # let elector = StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new())?;
/// let options = CampaignOptions::new()
///     .with_value("10.0.0.7:8080")
///     .with_grace_period(Duration::from_secs(2))
///     .with_patience(Patience::AtMost(Duration::from_secs(30)));
/// match elector.campaign_with("billing", options).await? {
///     Some(leadership) => println!("leads with token {}", leadership.fencing_token()),
///     None => println!("another candidate leads, or the store cannot be reached"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct CampaignOptions {
    value: Option<Arc<[u8]>>,
    grace_period: Option<Duration>,
    patience: Patience,
}

/// How long a campaign waits for leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Patience {
    /// Until the candidate leads.
    #[default]
    Forever,
    /// For at most this time, an outage of the store included. Then the candidate withdraws.
    AtMost(Duration),
    /// Not while another candidate leads. An outage of the store is waited for, as by
    /// [`try_campaign`](crate::Elector::try_campaign).
    NoWait,
}

impl CampaignOptions {
    /// The options of a campaign that does not differ from [`campaign`](crate::Elector::campaign).
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value that others can read, for example an address, in place of the elector's. At most 64 KiB.
    ///
    /// It can be changed while the candidate waits or leads: [`Elector::set_value`](crate::Elector::set_value).
    pub fn with_value(mut self, value: impl Into<Vec<u8>>) -> Self {
        self.value = Some(value.into().into());
        self
    }

    /// Sets the grace period of the leadership: the time before the deadline in which its work must stop.
    ///
    /// More than 0, and at most a third of the TTL that the store grants, or less where heartbeats need more. A grace
    /// period that is shorter than the elector's has no effect.
    pub fn with_grace_period(mut self, grace_period: Duration) -> Self {
        self.grace_period = Some(grace_period);
        self
    }

    /// Sets how long to wait for leadership. [`Patience::Forever`] by default.
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The value, if it is set.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// The grace period, if it is set.
    pub fn grace_period(&self) -> Option<Duration> {
        self.grace_period
    }

    /// How long to wait for leadership.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    pub(crate) fn shared_value(&self) -> Option<Arc<[u8]>> {
        self.value.clone()
    }

    /// The options for a candidate on which this one depends.
    pub(crate) fn without_grace_period(mut self) -> Self {
        self.grace_period = None;
        self
    }

    /// The options for the rest of a campaign that has waited for this time.
    pub(crate) fn after_waiting(mut self, waited: Duration) -> Self {
        if let Patience::AtMost(limit) = self.patience {
            self.patience = Patience::AtMost(limit.saturating_sub(waited));
        }
        self
    }

    /// Checks what can be checked before the store has granted a TTL.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] or [`Error::ValueTooLarge`], which say what is wrong and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        if let Some(given) = self.grace_period.filter(Duration::is_zero) {
            let allowed = "more than 0 and at most a third of the TTL";
            return Err(InvalidConfig::Time { setting: "grace period", given, allowed }.into());
        }
        self.value.as_deref().map_or(Ok(()), check_value)
    }
}
