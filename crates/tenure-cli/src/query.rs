//! `tenure leader`, `candidates` and `observe`.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};
use futures::StreamExt as _;
use tenure::Config;

use crate::{
    args::Query,
    exit,
    output::{candidate_line, leader_line, print_line},
    signals, store,
};

/// Prints the leader.
pub(crate) async fn leader(options: &Query) -> Result<u8> {
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    let leader = with_timeout(options.timeout, elector.leader(&options.store.election)).await?;
    let Some(leader) = leader else { return Ok(exit::NO_LEADER) };
    print_line(&candidate_line(options, &leader)?)
}

/// Prints all candidates, in queue order.
pub(crate) async fn candidates(options: &Query) -> Result<u8> {
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    for candidate in with_timeout(options.timeout, elector.candidates(&options.store.election)).await? {
        print_line(&candidate_line(options, &candidate)?)?;
    }
    Ok(0)
}

/// Prints the leader, now and at every change.
pub(crate) async fn observe(options: &Query) -> Result<u8> {
    let mut signals = signals::subscribe()?;
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    let mut leaders = elector.observe(&options.store.election);
    // The timeout is for the first answer only.
    let mut timeout = options.timeout;
    loop {
        let next = async { leaders.next().await.transpose() };
        let next = tokio::select! {
            next = with_timeout(timeout.take(), next) => next?,
            Some(signal) = signals.recv() => match signal.is_termination() {
                true => return Ok(exit::from_signal(signal.number)),
                false => continue,
            },
        };
        let Some(leader) = next else { return Ok(0) };
        print_line(&leader_line(options, leader.as_ref())?)?;
    }
}

/// Runs a request, with an error if it takes longer than `limit`.
pub(crate) async fn with_timeout<T, E>(
    limit: Option<Duration>,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T>
where
    anyhow::Error: From<E>,
{
    let Some(limit) = limit else { return Ok(request.await?) };
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!("there was no answer within {}", humantime::format_duration(limit)),
    }
}
