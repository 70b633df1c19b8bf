//! Campaigns of the elector over any store, and the values of its candidates.

use std::{future::Future, sync::Arc};

use tokio::sync::oneshot::{self, error::RecvError};
use tracing::{Level, warn};

use super::{
    elector_context::ElectorContext,
    tasks::{campaigns::Campaigns, candidate::Campaign, elections::Elections, entry_value::CandidateValue},
};
use crate::{
    CampaignOptions, ElectionName, Error, Leadership, Patience,
    config::check_value,
    spi::{BackendErrorKind, EntryRequest},
    sync::{sleep, timeout},
    telemetry,
};

/// Campaigns as a task of the engine. When the future is dropped, or `given_up` completes, the candidacy
/// withdraws.
pub(super) async fn campaign(
    shared: &Arc<ElectorContext>,
    campaigns: &Campaigns,
    elections: &Elections,
    election: &str,
    options: CampaignOptions,
    given_up: impl Future<Output = ()> + Send,
) -> Result<Option<Leadership>, Error> {
    let election = ElectionName::new(election)?;
    options.validate()?;
    if shared.fork_mark.is_forked() {
        return Err(Error::Forked);
    }
    shared.reporter.measured(|| telemetry::campaign_started(&election));
    let (sender, answer) = oneshot::channel();
    let request = EntryRequest {
        election: election.clone(),
        candidate: shared.config.id.clone(),
        value: Arc::clone(&shared.value),
        nonce: shared.request_nonce(),
    };
    let value = match options.shared_value() {
        Some(value) => elections.numbered(value),
        None => CandidateValue { value: Arc::clone(&shared.value), number: 0 },
    };
    let give_up_on_drop = campaigns.start(request, Campaign::new(shared, value, &options, sender));
    let mut answer = shared.runtime.relayed(answer);
    let patience_over = async {
        match options.patience() {
            // The engine's timer: the caller may have none.
            Patience::AtMost(limit) => {
                let closing = shared.closing.clone();
                // Ends with the elector, also when this future is not polled any more.
                let over = shared.runtime.call(async move {
                    tokio::select! {
                        biased;
                        () = closing.cancelled() => false,
                        () = sleep(limit) => true,
                    }
                });
                if !matches!(over.await, Ok(true)) {
                    std::future::pending::<()>().await;
                }
            }
            _ => std::future::pending().await,
        }
    };
    let answered = tokio::select! {
        biased;
        answered = &mut answer => Some(answered),
        () = given_up => None,
        () = patience_over => None,
    };
    let answered = match answered {
        Some(answered) => {
            give_up_on_drop.answered();
            answered
        }
        None => {
            drop(give_up_on_drop);
            return withdraw(shared, election, answer).await;
        }
    };
    match answered {
        Ok(outcome) => outcome,
        Err(_) if shared.closing.is_cancelled() => Err(Error::Closed),
        Err(_) => Err(Error::TaskEnded("the campaign's task was aborted without a result")),
    }
}

/// Waits until a candidacy that was given up has withdrawn. Waits at most for the shutdown timeout.
async fn withdraw(
    shared: &ElectorContext,
    election: ElectionName,
    answer: impl Future<Output = Result<Result<Option<Leadership>, Error>, RecvError>> + Send + 'static,
) -> Result<Option<Leadership>, Error> {
    let limit = shared.config.shutdown_timeout;
    let withdrawn = async move {
        match answer.await {
            // It was elected before it could withdraw.
            Ok(Ok(Some(leadership))) => leadership.release_and_wait().await,
            Ok(Ok(None)) => true,
            // A candidate that the store refuses has no entry.
            Ok(Err(error)) => !matches!(error, Error::NotConfirmed { .. }),
            // The elector is closing, and reports itself what is left.
            Err(_) => false,
        }
    };
    let withdrawn = shared.runtime.call(async move { timeout(limit, withdrawn).await }).await;
    if !matches!(withdrawn, Ok(Ok(true))) && !shared.closing.is_cancelled() {
        shared.reporter.log(Level::WARN, move || {
            warn!(%election, within = %humantime::format_duration(limit),
                "the store has not confirmed that the candidate's entry is gone; it is removed once the store answers, or expires with its session");
        });
    }
    Ok(None)
}

/// Sets the value of the candidates in `election`, and stores it in the entry of the one that takes part.
pub(super) async fn set_value(
    shared: &ElectorContext,
    elections: &Elections,
    election: &str,
    value: Vec<u8>,
) -> Result<(), Error> {
    let election = ElectionName::new(election)?;
    check_value(&value)?;
    if shared.fork_mark.is_forked() {
        return Err(Error::Forked);
    }
    if shared.closing.is_cancelled() {
        return Err(Error::Closed);
    }
    let Some((entry, number)) = elections.set_value(&election, value.into()) else { return Ok(()) };
    // Continues when the caller drops the future.
    entry.store_value();
    match shared.runtime.relayed(entry.registered.value().wait_stored(number)).await {
        Err(_) if shared.closing.is_cancelled() => Err(Error::Closed),
        // The next entry has the value.
        Err(error) if matches!(error.kind(), BackendErrorKind::EntryGone | BackendErrorKind::SessionGone) => {
            Ok(())
        }
        stored => stored.map_err(Error::from),
    }
}
