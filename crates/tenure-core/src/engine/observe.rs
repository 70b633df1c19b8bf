//! Watching an election, as a task of the engine.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{
    Shared,
    retry::{Retry, timed},
};
use crate::{Candidate, ElectionName, Error, Leaders};

/// The leaders of `election`, from now on.
pub(crate) fn leaders(shared: &Arc<Shared>, election: ElectionName) -> Leaders {
    // The task stands from now on, so that the engine outlives its elector; the store is asked once somebody listens.
    let (sender, mut leaders) = mpsc::channel(1);
    let (poll, polled) = oneshot::channel();
    shared.runtime.spawn(observe(Arc::clone(shared), election, polled, sender));
    let mut poll = Some(poll);
    let (mut over, closing) = (false, shared.closing.clone());
    let leaders = stream::poll_fn(move |context| {
        if let Some(poll) = poll.take() {
            let _ = poll.send(());
        }
        let next = std::task::ready!(leaders.poll_recv(context));
        // It ends after an error, or with its elector: otherwise its task has.
        let silent = next.is_none() && !over && !closing.is_cancelled();
        over |= next.as_ref().is_none_or(Result::is_err);
        let ended = || Err(Error::TaskEnded("its runtime was shut down, or a backend has panicked"));
        std::task::Poll::Ready(if silent { Some(ended()) } else { next })
    });
    shared.runtime.relayed(leaders).boxed()
}

/// Observes an election as a task of the engine, until nobody listens or the elector closes.
async fn observe(
    shared: Arc<Shared>,
    election: ElectionName,
    polled: oneshot::Receiver<()>,
    leaders: mpsc::Sender<Result<Option<Candidate>, Error>>,
) {
    let gone = async {
        let begun = tokio::select! {
            begun = polled => begun.is_ok(),
            () = leaders.closed() => false,
        };
        if begun {
            follow(&shared, &election, &leaders).await;
        }
    };
    tokio::select! {
        biased;
        () = shared.closing.cancelled() => {}
        () = leaders.closed() => {}
        () = gone => {}
    }
}

async fn follow(
    shared: &Shared,
    election: &ElectionName,
    listener: &mpsc::Sender<Result<Option<Candidate>, Error>>,
) {
    let mut retry = Retry::new(shared.config.retry);
    let mut last: Option<Option<Candidate>> = None;
    loop {
        let observing = shared.backend.observe(election);
        let error = match timed("observing", shared.config.request_timeout, observing).await {
            Err(error) => Some(error),
            Ok(mut leaders) => loop {
                match leaders.next().await {
                    None => break None,
                    Some(Err(error)) => break Some(error),
                    Some(Ok(leader)) => {
                        shared.status.answered();
                        retry.reset();
                        if !last.as_ref().is_some_and(|last| same(last.as_ref(), leader.as_ref())) {
                            last = Some(leader.clone());
                            if listener.send(Ok(leader)).await.is_err() {
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
                let _ = listener.send(Err(error.into())).await;
                return;
            }
            debug!(%election, %error, "observing again");
        }
        retry.pause().await;
    }
}

/// Whether two observations show the same term and value.
fn same(a: Option<&Candidate>, b: Option<&Candidate>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            (&a.id, &a.value, a.token, &a.session) == (&b.id, &b.value, b.token, &b.session)
        }
        _ => false,
    }
}
