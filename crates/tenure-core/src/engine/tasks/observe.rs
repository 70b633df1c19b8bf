//! The task of an observer.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::tokens;
use crate::{
    Candidate, ElectionName, Error, FencingToken, Leaders,
    engine::{
        elector_context::ElectorContext,
        runtime::retry::{Retry, with_timeout},
    },
};

/// The leaders of `election`, from now on.
pub(crate) fn leaders(shared: &Arc<ElectorContext>, election: ElectionName) -> Leaders {
    // The task exists from now on, so that the engine outlives its elector. The store is asked once the stream
    // is polled.
    let (sender, mut leaders) = mpsc::channel(1);
    let (start, started) = oneshot::channel();
    shared.runtime.spawn(observe(Arc::clone(shared), election, started, sender));
    let mut start = Some(start);
    let (mut finished, closing) = (false, shared.closing.clone());
    let leaders = stream::poll_fn(move |context| {
        if let Some(start) = start.take() {
            let _ = start.send(());
        }
        let next = std::task::ready!(leaders.poll_recv(context));
        // The stream ends after an error or when the elector is closed. Otherwise its task was aborted.
        let aborted = next.is_none() && !finished && !closing.is_cancelled();
        finished |= next.as_ref().is_none_or(Result::is_err);
        let error = || Err(Error::TaskEnded("its runtime was shut down, or a backend has panicked"));
        std::task::Poll::Ready(if aborted { Some(error()) } else { next })
    });
    shared.runtime.relayed(leaders).boxed()
}

/// Observes an election as a task of the engine, until the stream is dropped or the elector closes.
async fn observe(
    shared: Arc<ElectorContext>,
    election: ElectionName,
    started: oneshot::Receiver<()>,
    leaders: mpsc::Sender<Result<Option<Candidate>, Error>>,
) {
    let forwarding = async {
        let is_polled = tokio::select! {
            started = started => started.is_ok(),
            () = leaders.closed() => false,
        };
        if is_polled {
            forward(&shared, &election, &leaders).await;
        }
    };
    tokio::select! {
        biased;
        () = shared.closing.cancelled() => {}
        () = leaders.closed() => {}
        () = forwarding => {}
    }
}

/// Sends every change of the leader to `leaders`, until a permanent error.
async fn forward(
    shared: &Arc<ElectorContext>,
    election: &ElectionName,
    leaders: &mpsc::Sender<Result<Option<Candidate>, Error>>,
) {
    let mut retry = Retry::new(shared.config.retry);
    let mut last: Option<Option<Candidate>> = None;
    let mut last_token: Option<FencingToken> = None;
    loop {
        // As of now: what the store shows next is not older.
        last_token = last_token.max(shared.token_marks().mark(election));
        let observing = shared.backend.observe(election);
        let error = match with_timeout("observing", shared.config.request_timeout, observing).await {
            Err(error) => Some(error),
            Ok(mut observation) => loop {
                match observation.next().await {
                    None => break None,
                    Some(Err(error)) => break Some(error),
                    Some(Ok(leader)) => {
                        shared.status.answered();
                        retry.reset();
                        if let Some(token) = leader.as_ref().and_then(|leader| leader.token) {
                            tokens::seen(shared, election, token, last_token.replace(token));
                        }
                        if !last.as_ref().is_some_and(|last| is_same(last.as_ref(), leader.as_ref())) {
                            last = Some(leader.clone());
                            if leaders.send(Ok(leader)).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            },
        };
        if let Some(error) = error {
            shared.status.failed(&error);
            if error.is_permanent() {
                let _ = leaders.send(Err(error.into())).await;
                return;
            }
            debug!(%election, %error, "observing again");
        }
        retry.pause().await;
    }
}

/// Whether two observations show the same term and value.
fn is_same(a: Option<&Candidate>, b: Option<&Candidate>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            (&a.id, &a.value, a.token, &a.session) == (&b.id, &b.value, b.token, &b.session)
        }
        _ => false,
    }
}
