//! Calls whose attempts may reach the store late.
//!
//! A hedged call makes several attempts. Each runs in a task of its own: where another attempt was answered first, or the
//! caller has given up, its answer still shows that it can have no effect any more.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{sync::oneshot, task::AbortHandle, time::timeout};

use crate::{
    election::withdrawal::LeaseWithdrawals,
    transport::{error::Failure, hedge::max_in_flight, members::Members},
};

/// How long one attempt may take, counted from its start. A later answer counts as unknown.
const LATE_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A call that creates an entry or its withdrawal marker. Its request is unsettled until this is dropped, or for ever
/// if an attempt ended without an answer.
pub(crate) struct Call {
    pub(crate) withdrawals: Arc<LeaseWithdrawals>,
    pub(crate) nonce: u128,
    /// Whether an attempt ended without an answer, so that it may still reach the store.
    is_unknown: AtomicBool,
    settled: Option<oneshot::Sender<()>>,
}

impl Call {
    /// A call of the request with `nonce`. The receiver gets a message once every attempt of this call was answered, and
    /// is closed without one if that will never be known.
    pub(crate) fn begin(
        withdrawals: Arc<LeaseWithdrawals>,
        nonce: u128,
    ) -> (Arc<Self>, oneshot::Receiver<()>) {
        withdrawals.begin(nonce);
        let (settled, receiver) = oneshot::channel();
        let is_unknown = AtomicBool::new(false);
        (Arc::new(Self { withdrawals, nonce, is_unknown, settled: Some(settled) }), receiver)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !*self.is_unknown.get_mut() {
            self.withdrawals.settle(self.nonce);
            self.settled.take().map(|settled| settled.send(()));
        }
    }
}

/// The attempts of one transaction that are in flight.
pub(crate) struct Attempts {
    tasks: Mutex<VecDeque<AbortHandle>>,
    max: usize,
}

impl Attempts {
    pub(crate) fn new(members: &Members) -> Self {
        Self { tasks: Mutex::default(), max: max_in_flight(members.all().len()) }
    }

    /// Makes an attempt for all of `calls`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        calls: Vec<Arc<Call>>,
        op: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let task = tokio::spawn(Attempt { calls, is_decided: false }.run(op));
        self.add(task.abort_handle());
        task.await.map_err(|_| BackendError::new(BackendErrorKind::Unavailable, "the attempt was stopped"))?
    }

    /// Stops the oldest attempt if there are too many. Its call does not wait for it any more.
    fn add(&self, task: AbortHandle) {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push_back(task);
        if tasks.len() > self.max {
            tasks.pop_front().iter().for_each(AbortHandle::abort);
        }
    }
}

/// An attempt in flight.
struct Attempt {
    calls: Vec<Arc<Call>>,
    is_decided: bool,
}

impl Attempt {
    async fn run<T>(mut self, op: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = |_| Err(BackendError::new(BackendErrorKind::Unavailable, "no answer").into());
        let outcome = timeout(LATE_ANSWER_TIMEOUT, op).await.unwrap_or_else(late);
        self.is_decided = !outcome.as_ref().is_err_and(|failure| failure.error.is_retryable());
        outcome
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_decided {
            self.calls.iter().for_each(|call| call.is_unknown.store(true, SeqCst));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::{FutureExt as _, future::join_all};

    use super::*;
    use crate::{config::EtcdConfig, election::store::ElectionStore};

    fn withdrawals() -> Arc<LeaseWithdrawals> {
        let store = ElectionStore::new(EtcdConfig::new(["a"]));
        LeaseWithdrawals::new(Arc::new(store), 7, Duration::from_secs(1))
    }

    /// An attempt without an answer.
    async fn lose(call: &Arc<Call>) {
        let lost = async { Err::<(), _>(BackendError::new(BackendErrorKind::Unavailable, "reset").into()) };
        Attempts { tasks: Mutex::default(), max: 3 }.run(vec![Arc::clone(call)], lost).await.unwrap_err();
    }

    /// Hazard G8: a call that was refused does not wait for the attempts of earlier calls, which are never answered.
    #[tokio::test]
    async fn a_call_is_settled_whatever_became_of_earlier_ones() {
        let withdrawals = withdrawals();
        let (earlier, unknown) = Call::begin(Arc::clone(&withdrawals), 1);
        lose(&earlier).await;
        drop(earlier);
        assert!(unknown.await.is_err(), "it may still reach the store");
        let (call, settled) = Call::begin(Arc::clone(&withdrawals), 1);
        let attempts = Attempts { tasks: Mutex::default(), max: 3 };
        attempts.run(vec![call], async { Ok(()) }).await.unwrap();
        settled.await.unwrap();
        assert!(withdrawals.is_unsettled(1), "because of the earlier one");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_attempt_is_stopped_when_there_are_too_many() {
        let withdrawals = withdrawals();
        let attempts = Attempts { tasks: Mutex::default(), max: 3 };
        let (call, _settled) = Call::begin(withdrawals, 1);
        let mut running: Vec<_> = (0..4)
            .map(|_| Box::pin(attempts.run(vec![Arc::clone(&call)], pending::<Result<(), Failure>>())))
            .collect();
        for attempt in &mut running {
            assert!(attempt.now_or_never().is_none());
        }
        let first = running.remove(0).await.unwrap_err();
        assert!(first.error.to_string().contains("stopped"), "{}", first.error);
        assert_eq!(attempts.tasks.lock().unwrap().len(), 3);
        for late in join_all(running).await {
            assert!(late.unwrap_err().error.to_string().contains("no answer"));
        }
    }
}
