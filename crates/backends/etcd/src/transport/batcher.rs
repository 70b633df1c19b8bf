//! Batches concurrent requests into shared transactions.
//!
//! A request that arrives while fewer than eight transactions are in flight is sent immediately. Others queue, and the next
//! transaction takes what is in the queue when it is sent. Repeated requests queue like first ones: under overload there are as many of
//! them, and a transaction for each would multiply the load (hazard E19).

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures::future::join_all;
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};

/// How many requests share a transaction at most. Each has two comparisons and two operations, and etcd accepts 128
/// of either (`--max-txn-ops`).
const MAX_BATCH_SIZE: usize = 60;
/// How many transactions are in flight at a time.
const MAX_IN_FLIGHT: usize = 8;

/// An operation that can be batched.
pub(crate) trait BatchOp: Send + Sync + 'static {
    type Request: Send + Sync + 'static;
    type Response: Send + 'static;

    /// Whether `next` may share the transaction of `batch`.
    fn can_join(&self, batch: &[Self::Request], next: &Self::Request) -> bool;

    /// Runs all requests in one transaction, at least one: a response for each, in the same order. `None` for one that
    /// has to be run by itself.
    fn run(
        &self,
        requests: &[Self::Request],
    ) -> impl Future<Output = Result<Vec<Option<Self::Response>>, BackendError>> + Send;
}

/// Queues and batches the requests of one operation.
pub(crate) struct Batcher<O: BatchOp> {
    op: O,
    queue: Mutex<Queue<O>>,
    /// A permit for each transaction that may be in flight.
    workers: Arc<Semaphore>,
    /// How many requests share a transaction at most. Falls when this etcd rejects a transaction.
    max_batch: AtomicUsize,
}

type Queue<O> = VecDeque<(<O as BatchOp>::Request, Reply<O>)>;

/// Where to send the result of a request. Closed when its caller has dropped the future.
type Reply<O> = oneshot::Sender<Result<<O as BatchOp>::Response, BackendError>>;

/// The requests of one transaction, and their replies.
type Batch<O> = (Vec<<O as BatchOp>::Request>, Vec<Reply<O>>);

impl<O: BatchOp> Batcher<O> {
    pub(crate) fn new(op: O) -> Arc<Self> {
        let (queue, workers) = (Mutex::default(), Arc::new(Semaphore::new(MAX_IN_FLIGHT)));
        Arc::new(Self { op, queue, workers, max_batch: AtomicUsize::new(MAX_BATCH_SIZE) })
    }

    /// Runs a request, together with others that are submitted at the same time. The request is dropped before this
    /// returns.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the request may or may not take effect.
    pub(crate) async fn submit(self: &Arc<Self>, request: O::Request) -> Result<O::Response, BackendError> {
        let (reply, receiver) = oneshot::channel();
        let worker = {
            let mut queue = lock(&self.queue);
            queue.push_back((request, reply));
            Arc::clone(&self.workers).try_acquire_owned()
        };
        if let Ok(permit) = worker {
            tokio::spawn(Arc::clone(self).run_worker(permit));
        }
        receiver.await.unwrap_or_else(|_| {
            let message = "etcd request failed: the task that ran it has ended";
            Err(BackendError::new(BackendErrorKind::Unavailable, message))
        })
    }

    /// Runs batches until the queue is empty.
    async fn run_worker(self: Arc<Self>, permit: OwnedSemaphorePermit) {
        let mut permit = Some(permit);
        while let Some((requests, replies)) = self.next_batch(&mut permit) {
            self.run_batch(requests, replies).await;
        }
    }

    /// Takes the requests of the next transaction. When none is queued, drops the permit and returns `None`.
    fn next_batch(&self, permit: &mut Option<OwnedSemaphorePermit>) -> Option<Batch<O>> {
        let max_batch = self.max_batch.load(Relaxed);
        let mut queue = lock(&self.queue);
        let (mut requests, mut replies, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        // A request that may not join waits for the next transaction. The search is bounded.
        while requests.len() < max_batch
            && skipped.len() < MAX_BATCH_SIZE
            && let Some((request, reply)) = queue.pop_front()
        {
            if reply.is_closed() {
                continue;
            }
            if requests.is_empty() || self.op.can_join(&requests, &request) {
                requests.push(request);
                replies.push(reply);
            } else {
                skipped.push((request, reply));
            }
        }
        skipped.into_iter().rev().for_each(|queued| queue.push_front(queued));
        if requests.is_empty() {
            // The queue may have held thousands.
            queue.shrink_to(MAX_BATCH_SIZE);
            // Under the lock, so that a request that is queued next starts another worker.
            *permit = None;
            return None;
        }
        Some((requests, replies))
    }

    /// Runs a batch, for as long as a caller waits for it.
    async fn run_batch(&self, requests: Vec<O::Request>, mut replies: Vec<Reply<O>>) {
        let outcome = select! {
            outcome = self.op.run(&requests) => outcome,
            () = all_closed(&mut replies) => return,
        };
        let responses = match outcome {
            Ok(responses) => responses,
            // Perhaps because of one of the requests, or because of their number.
            Err(error) if error.is_permanent() && requests.len() > 1 => {
                if error.kind() == BackendErrorKind::Invalid {
                    self.max_batch.fetch_min(requests.len() / 2, Relaxed);
                }
                requests.iter().map(|_| None).collect()
            }
            Err(error) => {
                drop(requests);
                replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
                return;
            }
        };
        let mut alone = Vec::new();
        for ((request, reply), response) in requests.into_iter().zip(replies).zip(responses) {
            match response {
                Some(response) => {
                    drop(request);
                    let _ = reply.send(Ok(response));
                }
                None => alone.push(self.run_alone(request, reply)),
            }
        }
        join_all(alone).await;
    }

    async fn run_alone(&self, request: O::Request, mut reply: Reply<O>) {
        let outcome = select! {
            outcome = self.op.run(std::slice::from_ref(&request)) => outcome,
            () = reply.closed() => return,
        };
        drop(request);
        let no_response =
            || BackendError::new(BackendErrorKind::Unavailable, "etcd did not answer a request");
        let _ =
            reply.send(outcome.and_then(|mut responses| responses.pop().flatten().ok_or_else(no_response)));
    }
}

/// Returns once no caller waits for any of these replies.
async fn all_closed<T>(replies: &mut [oneshot::Sender<T>]) {
    for reply in replies {
        reply.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

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

    fn rejected(kind: BackendErrorKind) -> BackendError {
        BackendError::new(kind, "rejected")
    }

    impl BatchOp for Numbers {
        type Request = u64;
        type Response = u64;

        fn can_join(&self, batch: &[u64], next: &u64) -> bool {
            !batch.contains(next)
        }

        async fn run(&self, requests: &[u64]) -> Result<Vec<Option<u64>>, BackendError> {
            self.requests_sent.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(1)).await;
            if requests.len() > self.limit {
                return Err(rejected(BackendErrorKind::Invalid));
            }
            if requests.contains(&13) {
                return Err(rejected(BackendErrorKind::Unauthorized));
            }
            let is_batch = requests.len() > 1;
            Ok(requests.iter().map(|number| (*number != 14 || !is_batch).then_some(number * 2)).collect())
        }
    }

    /// Submits all numbers below `count` at the same time, and returns how many transactions were sent for them.
    async fn submit_all_below(count: u64, numbers: &Arc<Batcher<Numbers>>) -> usize {
        let submitted = (0..count).map(|n| {
            let numbers = Arc::clone(numbers);
            tokio::spawn(async move { (n, numbers.submit(n).await) })
        });
        for answered in join_all(submitted).await {
            match answered.unwrap() {
                (13, outcome) => assert_eq!(outcome.unwrap_err().kind(), BackendErrorKind::Unauthorized),
                (n, outcome) => assert_eq!(outcome.unwrap(), n * 2),
            }
        }
        assert_eq!(numbers.workers.available_permits(), MAX_IN_FLIGHT);
        numbers.op.requests_sent.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_together_share_a_transaction() {
        let numbers = Numbers::new(MAX_BATCH_SIZE);
        let sent = submit_all_below(1_000, &numbers).await;
        // The requests of the batch with 13 are repeated, each by itself, and 14.
        assert!(sent <= 1_000 / MAX_BATCH_SIZE + MAX_BATCH_SIZE + 1 + MAX_IN_FLIGHT, "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn batches_shrink_when_etcd_rejects_them() {
        let numbers = Numbers::new(20);
        submit_all_below(1_000, &numbers).await;
        let max_batch = numbers.max_batch.load(Relaxed);
        assert!((1..=20).contains(&max_batch), "{max_batch}");
        let before = numbers.op.requests_sent.load(Relaxed);
        let sent = submit_all_below(1_000, &numbers).await - before;
        assert!(sent <= 1_000 / max_batch + 2 * max_batch + MAX_IN_FLIGHT, "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_requests_are_skipped_and_equal_ones_do_not_share_a_batch() {
        let numbers = Numbers::new(MAX_BATCH_SIZE);
        let (abandoned, same, again) = (oneshot::channel(), oneshot::channel(), oneshot::channel());
        let permit = &mut Arc::clone(&numbers.workers).try_acquire_owned().ok();
        lock(&numbers.queue).extend([(1, abandoned.0), (2, same.0), (2, again.0), (3, oneshot::channel().0)]);
        drop(abandoned.1);
        let (requests, replies) = numbers.next_batch(permit).unwrap();
        assert_eq!(requests, [2]);
        numbers.run_batch(requests, replies).await;
        let (requests, replies) = numbers.next_batch(permit).unwrap();
        assert_eq!(requests, [2]);
        numbers.run_batch(requests, replies).await;
        assert!(numbers.next_batch(permit).is_none());
        assert_eq!(numbers.workers.available_permits(), MAX_IN_FLIGHT);
        assert_eq!((same.1.await.unwrap().unwrap(), again.1.await.unwrap().unwrap()), (4, 4));
    }

    /// Hazard G10: later requests are run when the tasks that ran earlier ones were dropped with their runtime.
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
        assert_eq!(numbers.workers.available_permits(), MAX_IN_FLIGHT);
        let answered = timeout(Duration::from_secs(1), numbers.submit(7)).await.unwrap();
        assert_eq!(answered.unwrap(), 14);
    }
}
