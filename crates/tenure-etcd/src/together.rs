//! Requests that come together share a transaction.
//!
//! Whoever comes alone does not wait for others: a transaction takes whatever is in the queue when it is sent.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::sync::oneshot;

use crate::hedge::Won;

/// How many requests share a transaction at most. etcd takes 128 operations in one (`--max-txn-ops`), nested ones counted.
const AT_MOST: usize = 60;
/// How many transactions are under way at a time.
const UNDER_WAY: usize = 8;

/// What a request of this kind is, and how many of them are made at once.
pub(crate) trait Kind: Send + Sync + 'static {
    type Ask: Send + Sync + 'static;
    type Answer: Send + 'static;

    /// Whether `next` may share the transaction of `chosen`.
    fn goes_with(&self, chosen: &[&Self::Ask], next: &Self::Ask) -> bool;

    /// Makes all of them in one transaction: an answer for each, in their order.
    fn make(&self, asks: &[Self::Ask]) -> impl Future<Output = Made<Self::Answer>> + Send;
}

/// What came of one transaction.
pub(crate) type Made<T> = Result<Won<Vec<T>>, Refused>;

/// What came of one request.
pub(crate) type Answered<T> = Result<Won<T>, Refused>;

/// A request that was not answered, or refused.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) error: BackendError,
    /// Whether etcd has refused it for good, with nothing under way that could yet be carried out.
    pub(crate) settled: bool,
}

/// Requests of one kind.
pub(crate) struct Together<K: Kind> {
    kind: K,
    queue: Mutex<Queue<K>>,
}

struct Queue<K: Kind> {
    waiting: VecDeque<Waiting<K>>,
    under_way: usize,
}

struct Waiting<K: Kind> {
    ask: K::Ask,
    answer: oneshot::Sender<Answered<K::Answer>>,
}

impl<K: Kind> Together<K> {
    pub(crate) fn new(kind: K) -> Arc<Self> {
        Arc::new(Self { kind, queue: Mutex::new(Queue { waiting: VecDeque::new(), under_way: 0 }) })
    }

    /// Makes a request, together with others that are wanted at the same time.
    ///
    /// When the future is dropped, it may be made or not.
    pub(crate) async fn ask(self: &Arc<Self>, ask: K::Ask) -> Answered<K::Answer> {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue();
            queue.waiting.push_back(Waiting { ask, answer });
            if queue.under_way < UNDER_WAY {
                queue.under_way += 1;
                tokio::spawn(work(Working(Some(Arc::clone(self)))));
            }
        }
        answered.await.unwrap_or_else(|_| {
            let message = "a request to etcd: its task ended before its time";
            Err(Refused { error: BackendError::new(BackendErrorKind::Unavailable, message), settled: false })
        })
    }

    /// What goes into the next transaction; `None` when nothing waits, and whoever asks is to end.
    fn take(&self) -> Option<Vec<Waiting<K>>> {
        let mut queue = self.queue();
        let (mut together, mut later): (Vec<Waiting<K>>, VecDeque<Waiting<K>>) = Default::default();
        while together.len() < AT_MOST
            && let Some(waiting) = queue.waiting.pop_front()
        {
            // Whoever has gone wants nothing any more.
            if waiting.answer.is_closed() {
                continue;
            }
            let chosen: Vec<_> = together.iter().map(|chosen| &chosen.ask).collect();
            match chosen.is_empty() || self.kind.goes_with(&chosen, &waiting.ask) {
                true => together.push(waiting),
                false => later.push_back(waiting),
            }
        }
        later.append(&mut queue.waiting);
        queue.waiting = later;
        if together.is_empty() {
            queue.under_way -= 1;
            return None;
        }
        Some(together)
    }

    async fn make(&self, together: Vec<Waiting<K>>) {
        let (asks, answers): (Vec<_>, Vec<_>) =
            together.into_iter().map(|waiting| (waiting.ask, waiting.answer)).unzip();
        match self.kind.make(&asks).await {
            Ok(won) => {
                let (attempt, attempts) = (won.attempt, won.attempts);
                for (answer, value) in answers.into_iter().zip(won.value) {
                    // Who has gone leaves it to its next request, or its withdrawal.
                    let _ = answer.send(Ok(Won { value, attempt, attempts }));
                }
            }
            // For the sake of one of them, perhaps: each for itself.
            Err(refused) if refused.settled && asks.len() > 1 => {
                for (ask, answer) in asks.iter().zip(answers) {
                    let made = self.kind.make(std::slice::from_ref(ask)).await;
                    let one = made.map(|won| {
                        let (attempt, attempts) = (won.attempt, won.attempts);
                        won.value.into_iter().next().map(|value| Won { value, attempt, attempts })
                    });
                    // Without one its task has ended, for whoever waits.
                    if let Some(one) = one.transpose() {
                        let _ = answer.send(one);
                    }
                }
            }
            Err(refused) => {
                for answer in answers {
                    let _ = answer.send(Err(refused.clone()));
                }
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<K>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes what waits, until nothing does.
async fn work<K: Kind>(mut working: Working<K>) {
    while let Some(together) = working.0.as_ref().and_then(|together| together.take()) {
        if let Some(requests) = &working.0 {
            requests.make(together).await;
        }
    }
    // `take` has counted this one off, under the lock under which it found nothing.
    working.0 = None;
}

/// Counts a task off that ends before its time, with its runtime say.
struct Working<K: Kind>(Option<Arc<Together<K>>>);

impl<K: Kind> Drop for Working<K> {
    fn drop(&mut self) {
        if let Some(requests) = &self.0 {
            requests.queue().under_way -= 1;
        }
    }
}

impl<K: Kind> fmt::Debug for Together<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Together").field("waiting", &self.queue().waiting.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    /// Numbers, of which none goes with itself, and 13 is refused.
    #[derive(Default)]
    struct Numbers {
        made: AtomicUsize,
    }

    impl Kind for Numbers {
        type Ask = u64;
        type Answer = u64;

        fn goes_with(&self, chosen: &[&u64], next: &u64) -> bool {
            !chosen.contains(&next)
        }

        async fn make(&self, asks: &[u64]) -> Made<u64> {
            self.made.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
            if asks.contains(&13) {
                let error = BackendError::new(BackendErrorKind::Unauthorized, "thirteen");
                return Err(Refused { error, settled: true });
            }
            Ok(Won { value: asks.iter().map(|ask| ask * 2).collect(), attempt: 0, attempts: 1 })
        }
    }

    #[tokio::test]
    async fn requests_that_come_together_share_a_transaction() {
        let numbers = Together::new(Numbers::default());
        let asks = (0..1_000).map(|n| {
            let numbers = Arc::clone(&numbers);
            tokio::spawn(async move { (n, numbers.ask(n).await) })
        });
        let mut refused = 0;
        for answered in futures::future::join_all(asks).await {
            match answered.unwrap() {
                (n, Ok(won)) => assert_eq!(won.value, n * 2),
                (n, Err(error)) => {
                    assert!(n == 13 && error.settled, "only that one is refused: {n}");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 1);
        let made = numbers.kind.made.load(Relaxed);
        assert!(made < 1_000 / AT_MOST + AT_MOST + UNDER_WAY + 5, "{made}");
        assert_eq!(numbers.queue().under_way, 0);
    }

    #[tokio::test]
    async fn who_has_gone_is_left_out_and_the_same_is_not_asked_twice_in_one() {
        let numbers = Together::new(Numbers::default());
        let (answer, gone) = oneshot::channel();
        let (same, mut answered) = oneshot::channel();
        let (again, mut answered_again) = oneshot::channel();
        {
            let mut queue = numbers.queue();
            queue.under_way = 1;
            for (ask, answer) in [(1, answer), (2, same), (2, again)] {
                queue.waiting.push_back(Waiting { ask, answer });
            }
        }
        drop(gone);
        let asks = |together: &Option<Vec<Waiting<Numbers>>>| {
            together.iter().flatten().map(|waiting| waiting.ask).collect::<Vec<_>>()
        };
        let first = numbers.take();
        assert_eq!(asks(&first), [2]);
        let second = numbers.take();
        assert_eq!(asks(&second), [2]);
        assert!(numbers.take().is_none() && numbers.queue().under_way == 0);
        numbers.make(first.unwrap()).await;
        numbers.make(second.unwrap()).await;
        assert!(answered.try_recv().unwrap().is_ok() && answered_again.try_recv().unwrap().is_ok());
    }
}
