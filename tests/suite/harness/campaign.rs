//! Campaigns for the election `e` at a store's URL, with a TTL of four seconds.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Connection, Elector, Error, Leadership};
use tenure_testkit::suite::{until, within};
use tokio::task::JoinHandle;

use crate::promptly;

/// An elector of the store at `url`.
///
/// # Panics
/// When the URL cannot be used.
pub async fn connect(url: &str) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(4));
    tenure::connect_with(url, config).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Campaigns in a task of its own.
pub fn campaign(elector: &Arc<dyn Elector>) -> JoinHandle<Result<Leadership, Error>> {
    let elector = Arc::clone(elector);
    tokio::spawn(async move { elector.campaign("e").await })
}

/// Leads once.
///
/// # Panics
/// When the campaign fails.
pub async fn leads(url: &str) {
    let elector = connect(url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap_or_else(|error| panic!("{error}"));
    within("resigning", leadership.resign()).await.unwrap_or_else(|error| panic!("{error}"));
    elector.close().await;
}

/// A campaign that is refused within seconds. Returns the error.
///
/// # Panics
/// When it is not refused, or the error, the status or what `Debug` prints of the elector contains "horse", as the passwords of these tests do.
pub async fn refusal(url: &str) -> Error {
    let elector = connect(url).await;
    let refused = match promptly("the refusal", elector.campaign("e")).await {
        Err(refused) => refused,
        Ok(leadership) => panic!("{url}: {leadership:?}"),
    };
    assert_eq!(elector.status().connection, Connection::Refused);
    let text = format!("{refused} {refused:?} {:?} {elector:?}", elector.status());
    assert!(!text.contains("horse"), "{text}");
    elector.close().await;
    refused
}

/// A campaign that is retried, until the elector reports an error with `reason`.
///
/// # Panics
/// When it ends, or there is no such error in time.
pub async fn is_retried(url: &str, reason: &str) {
    let elector = connect(url).await;
    let campaign = campaign(&elector);
    until(reason, async || {
        let status = elector.status();
        status.connection == Connection::Retrying
            && status.last_error.is_some_and(|error| error.contains(reason))
    })
    .await;
    assert!(!campaign.is_finished(), "{url} ended");
    campaign.abort();
    elector.close().await;
}
