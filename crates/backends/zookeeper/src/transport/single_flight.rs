//! Runs an operation for many callers at once, in a task of its own, at a limited rate.

use std::{sync::Mutex, time::Duration};

use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::lock;

/// At most one run of an operation is in progress. Runs begin at least an interval apart, and are never cancelled.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight(Mutex<Option<Run>>);

#[derive(Clone, Debug)]
struct Run {
    began: Instant,
    task: AbortHandle,
    /// When the operation reported its success.
    succeeded: watch::Receiver<Option<Instant>>,
}

/// Reports the success of an operation to its callers.
#[derive(Debug)]
pub(crate) struct Success(watch::Sender<Option<Instant>>);

impl Success {
    pub(crate) fn report(&self) {
        self.0.send_replace(Some(Instant::now()));
    }

    pub(crate) fn is_reported(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl SingleFlight {
    /// Waits until a run has reported its success at `since` or later. Joins the run in progress; otherwise `start` makes another
    /// one, at least `interval` after the last one began.
    pub(crate) async fn until_success<F>(
        &self,
        since: Instant,
        interval: Duration,
        start: impl Fn(Success) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let mut run = self.join_or_start(interval, &start);
            let succeeded = run.succeeded.wait_for(|at| at.is_some_and(|at| at >= since)).await.is_ok();
            if succeeded {
                return;
            }
            sleep_until(run.began + interval).await;
        }
    }

    fn join_or_start<F>(&self, interval: Duration, start: impl Fn(Success) -> F) -> Run
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut last = lock(&self.0);
        if let Some(run) = &*last
            && (run.began.elapsed() < interval || !run.task.is_finished())
        {
            return run.clone();
        }
        let (success, succeeded) = watch::channel(None);
        let task = tokio::spawn(start(Success(success))).abort_handle();
        last.insert(Run { began: Instant::now(), task, succeeded }).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use futures::future::join_all;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// Hazard Z21: callers share a run. An earlier success counts for those who wait for one since then, and for no others.
    #[tokio::test(start_paused = true)]
    async fn callers_share_a_run() {
        let flight = SingleFlight::default();
        let runs = AtomicUsize::new(0);
        let succeeds = |success: Success| {
            runs.fetch_add(1, SeqCst);
            async move { success.report() }
        };
        let began = Instant::now();
        join_all((0..5).map(|_| flight.until_success(began, INTERVAL, succeeds))).await;
        assert_eq!((runs.load(SeqCst), began.elapsed()), (1, Duration::ZERO));
        tokio::time::advance(INTERVAL / 4).await;
        flight.until_success(began, INTERVAL, succeeds).await;
        assert_eq!((runs.load(SeqCst), began.elapsed()), (1, INTERVAL / 4));
        let later = Instant::now();
        join_all((0..5).map(|_| flight.until_success(later, INTERVAL, succeeds))).await;
        assert_eq!(runs.load(SeqCst), 2);
        assert!(began.elapsed() >= INTERVAL);
    }

    /// Hazard Z21: a run whose callers have gone continues, and what fails is repeated at the limited rate.
    #[tokio::test(start_paused = true)]
    async fn a_run_is_not_cancelled() {
        let flight = SingleFlight::default();
        let (began, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let fails = |_success| {
            began.fetch_add(1, SeqCst);
            let ended = Arc::clone(&ended);
            async move {
                tokio::time::sleep(INTERVAL / 2).await;
                ended.fetch_add(1, SeqCst);
            }
        };
        let limit = INTERVAL * 9 / 4;
        let succeeded = flight.until_success(Instant::now(), INTERVAL, fails);
        tokio::time::timeout(limit, succeeded).await.unwrap_err();
        assert_eq!((began.load(SeqCst), ended.load(SeqCst)), (3, 2));
        tokio::time::sleep(INTERVAL / 2).await;
        assert_eq!(ended.load(SeqCst), 3);
    }
}
