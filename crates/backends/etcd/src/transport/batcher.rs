//! Batches concurrent requests into shared transactions.
//!
//! A request that arrives while none is in flight is sent immediately and alone. Others queue, and the next
//! transaction takes what is in the queue when it is sent.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::future::join_all;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{select, sync::oneshot, time::timeout};

use crate::transport::hedge::HedgedResponse;

/// How many requests share a transaction at most. Each has two comparisons and two operations, and etcd accepts 128
/// of either (`--max-txn-ops`).
const MAX_BATCH_SIZE: usize = 60;
/// How many transactions are in flight at a time.
const MAX_IN_FLIGHT: usize = 8;

/// An operation that can be batched: how to run one request, and how to run many in one transaction.
pub(crate) trait BatchOp: Send + Sync + 'static {
    type Request: Send + Sync + 'static;
    type Response: Send + 'static;

    /// How long a request waits in the queue. It is run by whichever task took it, which may belong to another
    /// runtime that is blocked. `None` where the caller sets a timeout.
    const QUEUE_TIMEOUT: Option<Duration>;

    /// Whether `next` may share the transaction of `batch`.
    fn can_join(&self, batch: &[QueuedRequest<Self>], next: &Self::Request) -> bool;

    /// Runs one request.
    fn run_one(&self, request: &Self::Request) -> impl Future<Output = BatchResult<Self::Response>> + Send;

    /// Runs all requests in one transaction: one response each, in the same order. `None` when they cannot be run
    /// together, and nothing was changed.
    fn run_all(
        &self,
        requests: &[Self::Request],
    ) -> impl Future<Output = BatchResult<Option<Vec<Self::Response>>>> + Send;
}

/// The outcome of a request.
pub(crate) type BatchResult<T> = Result<HedgedResponse<T>, RequestFailure>;

/// A request that was rejected, or not answered.
#[derive(Clone, Debug)]
pub(crate) struct RequestFailure {
    pub(crate) error: BackendError,
    /// Whether no attempt of the request can take effect any more.
    pub(crate) settled: bool,
}

impl RequestFailure {
    /// The error for the caller. It is retryable while an attempt may still take effect.
    pub(crate) fn into_error(self) -> BackendError {
        match self.error.is_permanent() && !self.settled {
            true => BackendError::new(BackendErrorKind::Unavailable, self.error.to_string()),
            false => self.error,
        }
    }
}

/// Queues and batches the requests of one operation.
pub(crate) struct Batcher<O: BatchOp> {
    op: O,
    queue: Mutex<Queue<O>>,
    /// How many requests share a transaction at most. Falls when this etcd rejects a transaction.
    max_batch: AtomicUsize,
}

struct Queue<O: BatchOp> {
    waiting: VecDeque<QueuedRequest<O>>,
    in_flight: usize,
}

/// A request, and where to send its result.
pub(crate) struct QueuedRequest<O: BatchOp + ?Sized> {
    pub(crate) request: O::Request,
    reply: oneshot::Sender<BatchResult<O::Response>>,
}

impl<O: BatchOp> QueuedRequest<O> {
    pub(crate) fn new(request: O::Request) -> (Self, oneshot::Receiver<BatchResult<O::Response>>) {
        let (reply, receiver) = oneshot::channel();
        (Self { request, reply }, receiver)
    }
}

impl<O: BatchOp> Batcher<O> {
    pub(crate) fn new(op: O) -> Arc<Self> {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), in_flight: 0 });
        Arc::new(Self { op, queue, max_batch: AtomicUsize::new(MAX_BATCH_SIZE) })
    }

    /// Runs a request in a transaction of its own. For a request that is repeated, whose cause of failure could
    /// otherwise affect others.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the request may or may not take effect.
    pub(crate) async fn submit_alone(&self, request: &O::Request) -> BatchResult<O::Response> {
        Box::pin(self.op.run_one(request)).await
    }

    /// Runs a request, together with others that are submitted at the same time.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the request may or may not take effect.
    pub(crate) async fn submit(self: &Arc<Self>, request: O::Request) -> BatchResult<O::Response> {
        let is_alone = {
            let mut queue = self.queue();
            let is_alone = queue.in_flight == 0;
            queue.in_flight += usize::from(is_alone);
            is_alone
        };
        if is_alone {
            // Requests that arrive meanwhile spawn a worker.
            let _guard = WorkerGuard(Some(Arc::clone(self)));
            // Boxed, because the thousands that may wait in the queue do not need this memory.
            return Box::pin(self.op.run_one(&request)).await;
        }
        let (queued, receiver) = QueuedRequest::new(request);
        let needs_worker = {
            let mut queue = self.queue();
            queue.waiting.push_back(queued);
            let needs_worker = queue.in_flight < MAX_IN_FLIGHT;
            queue.in_flight += usize::from(needs_worker);
            needs_worker
        };
        if needs_worker {
            tokio::spawn(run_worker(WorkerGuard(Some(Arc::clone(self)))));
        }
        let received = match O::QUEUE_TIMEOUT {
            None => Ok(receiver.await),
            Some(limit) => timeout(limit, receiver).await,
        };
        let message = match received {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_)) => "etcd request failed: the task that ran it has ended",
            Err(_) => "etcd request failed: it was queued for too long",
        };
        Err(RequestFailure {
            error: BackendError::new(BackendErrorKind::Unavailable, message),
            settled: false,
        })
    }

    /// Takes the requests of the next transaction. When none is queued, returns `None` and counts the worker out.
    fn next_batch(&self) -> Option<Vec<QueuedRequest<O>>> {
        let max_batch = self.max_batch.load(Relaxed);
        let mut queue = self.queue();
        let (mut batch, mut skipped): (Vec<QueuedRequest<O>>, VecDeque<QueuedRequest<O>>) =
            Default::default();
        // A request that may not join waits for the next transaction. The search is bounded.
        while batch.len() < max_batch
            && skipped.len() < MAX_BATCH_SIZE
            && let Some(queued) = queue.waiting.pop_front()
        {
            // Its caller has dropped the future.
            if queued.reply.is_closed() {
                continue;
            }
            match batch.is_empty() || self.op.can_join(&batch, &queued.request) {
                true => batch.push(queued),
                false => skipped.push_back(queued),
            }
        }
        while let Some(queued) = skipped.pop_back() {
            queue.waiting.push_front(queued);
        }
        if queue.waiting.is_empty() {
            // The queue may have held thousands.
            queue.waiting.shrink_to(MAX_BATCH_SIZE);
        }
        if batch.is_empty() {
            queue.in_flight -= 1;
            return None;
        }
        Some(batch)
    }

    /// Runs a batch, for as long as a caller waits for it.
    async fn run_batch(&self, batch: Vec<QueuedRequest<O>>) {
        let (requests, mut replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.request, queued.reply)).unzip();
        let outcome = match &requests[..] {
            // A single request is run by itself, below.
            [_] => Ok(HedgedResponse { value: None, attempt: 0, attempts: 1 }),
            requests => select! {
                outcome = self.op.run_all(requests) => outcome,
                () = all_closed(&mut replies) => return,
            },
        };
        let settled = match outcome {
            Ok(HedgedResponse { value: Some(values), attempt, attempts }) => {
                for (reply, value) in replies.into_iter().zip(values) {
                    // A caller that dropped its future repeats the request, or withdraws it.
                    let _ = reply.send(Ok(HedgedResponse { value, attempt, attempts }));
                }
                return;
            }
            Ok(HedgedResponse { value: None, attempts, .. }) => attempts == 1,
            // Perhaps because of one of the requests, or because of their number.
            Err(RequestFailure { error, settled }) if error.is_permanent() => {
                if error.kind() == BackendErrorKind::Invalid {
                    self.max_batch.fetch_min((requests.len() / 2).max(1), Relaxed);
                }
                settled
            }
            Err(failure) => {
                for reply in replies {
                    let _ = reply.send(Err(failure.clone()));
                }
                return;
            }
        };
        let each = requests.iter().zip(replies).filter(|(_, reply)| !reply.is_closed());
        join_all(each.map(|(request, mut reply)| async move {
            select! {
                outcome = self.op.run_one(request) => drop(reply.send(after_batch(settled, outcome))),
                () = reply.closed() => {}
            }
        }))
        .await;
    }

    fn queue(&self) -> MutexGuard<'_, Queue<O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns once no caller waits for any of these replies.
async fn all_closed<T>(replies: &mut [oneshot::Sender<T>]) {
    for reply in replies {
        reply.closed().await;
    }
}

/// The outcome of a request that was first part of a batch. Unless the batch is `settled`, one of its attempts may
/// still take effect, which counts as another attempt of the request.
fn after_batch<T>(settled: bool, outcome: BatchResult<T>) -> BatchResult<T> {
    match outcome {
        outcome if settled => outcome,
        Ok(response) => Ok(HedgedResponse { attempts: response.attempts + 1, ..response }),
        Err(failure) => Err(RequestFailure { settled: false, ..failure }),
    }
}

/// Runs batches until the queue is empty.
async fn run_worker<O: BatchOp>(guard: WorkerGuard<O>) {
    while let Some(batcher) = &guard.0
        && let Some(batch) = batcher.next_batch()
    {
        batcher.run_batch(batch).await;
    }
    guard.disarm();
}

/// Counts a worker out when it ends before [`Batcher::next_batch`] did so, for example because its runtime shut down.
struct WorkerGuard<O: BatchOp>(Option<Arc<Batcher<O>>>);

impl<O: BatchOp> WorkerGuard<O> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl<O: BatchOp> Drop for WorkerGuard<O> {
    fn drop(&mut self) {
        let Some(batcher) = &self.0 else { return };
        let mut queue = batcher.queue();
        queue.in_flight -= 1;
        let abandoned = if queue.in_flight == 0 { mem::take(&mut queue.waiting) } else { VecDeque::new() };
        drop(queue);
        // No worker is left to run them. Dropping them closes their reply channels.
        drop(abandoned);
    }
}

impl<O: BatchOp> fmt::Debug for Batcher<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("waiting", &self.queue().waiting.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// Doubles numbers. Equal numbers cannot share a batch, 13 is rejected, 14 cannot be run in a batch, and a batch
    /// of more than `limit` is rejected.
    struct Numbers {
        requests_sent: AtomicUsize,
        limit: usize,
    }

    impl Numbers {
        fn new(limit: usize) -> Arc<Batcher<Self>> {
            Batcher::new(Self { requests_sent: AtomicUsize::new(0), limit })
        }
    }

    fn failure(kind: BackendErrorKind) -> RequestFailure {
        RequestFailure { error: BackendError::new(kind, "rejected"), settled: true }
    }

    impl BatchOp for Numbers {
        type Request = u64;
        type Response = u64;

        const QUEUE_TIMEOUT: Option<Duration> = None;

        fn can_join(&self, batch: &[QueuedRequest<Self>], next: &u64) -> bool {
            batch.iter().all(|queued| queued.request != *next)
        }

        async fn run_one(&self, request: &u64) -> BatchResult<u64> {
            self.requests_sent.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(1)).await;
            match request {
                13 => Err(failure(BackendErrorKind::Unauthorized)),
                number => Ok(HedgedResponse { value: number * 2, attempt: 0, attempts: 1 }),
            }
        }

        async fn run_all(&self, requests: &[u64]) -> BatchResult<Option<Vec<u64>>> {
            self.requests_sent.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(1)).await;
            if requests.len() > self.limit {
                return Err(failure(BackendErrorKind::Invalid));
            }
            if requests.contains(&13) {
                return Err(failure(BackendErrorKind::Unauthorized));
            }
            let value = (!requests.contains(&14)).then(|| requests.iter().map(|number| number * 2).collect());
            Ok(HedgedResponse { value, attempt: 0, attempts: 2 })
        }
    }

    /// Submits all numbers below `count` at the same time, and returns how many requests were sent for them.
    async fn submit_all_below(count: u64, numbers: &Arc<Batcher<Numbers>>) -> usize {
        let submitted = (0..count).map(|n| {
            let numbers = Arc::clone(numbers);
            tokio::spawn(async move { (n, numbers.submit(n).await) })
        });
        for answered in join_all(submitted).await {
            match answered.unwrap() {
                (13, outcome) => assert!(outcome.is_err_and(|failure| failure.settled)),
                (n, outcome) => assert_eq!(outcome.unwrap().value, n * 2),
            }
        }
        assert_eq!(numbers.queue().in_flight, 0);
        numbers.op.requests_sent.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_together_share_a_transaction() {
        let numbers = Numbers::new(MAX_BATCH_SIZE);
        let sent = submit_all_below(1_000, &numbers).await;
        // The batches with 13 and 14 are repeated, each request by itself.
        assert!(sent <= 1_000 / MAX_BATCH_SIZE + 2 * MAX_BATCH_SIZE + MAX_IN_FLIGHT, "{sent}");
    }

    /// Hazard G10: an attempt of the transaction that it was part of may still take effect.
    #[tokio::test(start_paused = true)]
    async fn a_request_repeated_alone_after_two_attempts_is_not_settled() {
        let numbers = Numbers::new(MAX_BATCH_SIZE);
        let (alone, other) = (QueuedRequest::new(14), QueuedRequest::new(15));
        numbers.run_batch(vec![alone.0, other.0]).await;
        assert_eq!(alone.1.await.unwrap().unwrap(), HedgedResponse { value: 28, attempt: 0, attempts: 2 });
        let (rejected, other) = (QueuedRequest::new(13), QueuedRequest::new(14));
        numbers.run_batch(vec![rejected.0, other.0]).await;
        assert!(
            rejected.1.await.unwrap().is_err_and(|failure| failure.settled),
            "the store rejected the whole batch"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn batches_shrink_when_etcd_rejects_them() {
        let numbers = Numbers::new(20);
        submit_all_below(1_000, &numbers).await;
        assert_eq!(numbers.max_batch.load(Relaxed), 15);
        let before = numbers.op.requests_sent.load(Relaxed);
        let sent = submit_all_below(1_000, &numbers).await - before;
        assert!(sent <= 1_000 / 15 + 2 * 15 + MAX_IN_FLIGHT, "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_requests_are_skipped_and_equal_ones_do_not_share_a_batch() {
        let numbers = Numbers::new(MAX_BATCH_SIZE);
        let (abandoned, abandoned_receiver) = QueuedRequest::new(1);
        let (same, mut answered) = QueuedRequest::new(2);
        let (again, mut answered_again) = QueuedRequest::new(2);
        {
            let mut queue = numbers.queue();
            queue.in_flight = 1;
            queue.waiting.extend([abandoned, same, again]);
        }
        drop(abandoned_receiver);
        let numbers_in = |batch: &Option<Vec<QueuedRequest<Numbers>>>| {
            batch.iter().flatten().map(|queued| queued.request).collect::<Vec<_>>()
        };
        let first = numbers.next_batch();
        assert_eq!(numbers_in(&first), [2]);
        let second = numbers.next_batch();
        assert_eq!(numbers_in(&second), [2]);
        assert!(numbers.next_batch().is_none() && numbers.queue().in_flight == 0);
        numbers.run_batch(first.unwrap()).await;
        numbers.run_batch(second.unwrap()).await;
        assert!(answered.try_recv().unwrap().is_ok() && answered_again.try_recv().unwrap().is_ok());
    }

    /// Hazard G10: requests fail when the task that should run them has ended, and later ones are run.
    #[tokio::test(start_paused = true)]
    async fn no_request_waits_for_a_task_that_has_ended() {
        let numbers = Numbers::new(MAX_BATCH_SIZE);
        let stopped =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let submitted: Vec<_> = (0..100)
            .map(|n| {
                let numbers = Arc::clone(&numbers);
                stopped.spawn(async move { numbers.submit(n).await })
            })
            .collect();
        std::thread::spawn(move || {
            stopped.block_on(tokio::task::yield_now());
            drop(stopped);
        })
        .join()
        .unwrap();
        drop(submitted);
        assert_eq!(numbers.queue().in_flight, 0);
        let answered = timeout(Duration::from_secs(1), numbers.submit(7)).await.unwrap();
        assert_eq!(answered.unwrap().value, 14);
    }
}
