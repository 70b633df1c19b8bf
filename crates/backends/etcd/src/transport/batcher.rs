//! Requests that come together share a transaction.
//!
//! Whoever comes alone does not wait for others: a transaction takes whatever is in the queue when it is sent, and
//! while nothing is under way each request goes at once.

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

use crate::transport::hedge::Won;

/// How many requests share a transaction at most. Each is two comparisons and two operations, and
/// etcd takes 128 of either (`--max-txn-ops`).
const AT_MOST: usize = 60;
/// How many transactions are under way at a time.
const UNDER_WAY: usize = 8;

/// What a request of this kind is, and how one or many of them are made.
pub(crate) trait Kind: Send + Sync + 'static {
    type Ask: Send + Sync + 'static;
    type Answer: Send + 'static;

    /// How long a request waits in the queue for others to make it: whoever does may be another's task, whose runtime stands
    /// still. `None` where the caller bounds it.
    const PATIENCE: Option<Duration>;

    /// Whether `next` may share the transaction of `chosen`.
    fn goes_with(&self, chosen: &[Waiting<Self>], next: &Self::Ask) -> bool;

    /// Makes one request.
    fn make_one(&self, ask: &Self::Ask) -> impl Future<Output = Answered<Self::Answer>> + Send;

    /// Makes all of them in one transaction: an answer for each, in their order. `None` when they cannot be made together,
    /// and nothing was done.
    fn make_all(
        &self,
        asks: &[Self::Ask],
    ) -> impl Future<Output = Answered<Option<Vec<Self::Answer>>>> + Send;
}

/// What came of a request.
pub(crate) type Answered<T> = Result<Won<T>, Refused>;

/// A request that was not answered, or refused.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) error: BackendError,
    /// Whether nothing is under way that could yet be carried out.
    pub(crate) settled: bool,
}

/// Requests of one kind.
pub(crate) struct Together<K: Kind> {
    kind: K,
    queue: Mutex<Queue<K>>,
    /// How many share a transaction at most, by what this etcd has refused.
    most: AtomicUsize,
}

struct Queue<K: Kind> {
    waiting: VecDeque<Waiting<K>>,
    under_way: usize,
}

/// A request, and who waits for its answer.
pub(crate) struct Waiting<K: Kind + ?Sized> {
    pub(crate) ask: K::Ask,
    answer: oneshot::Sender<Answered<K::Answer>>,
}

impl<K: Kind> Waiting<K> {
    pub(crate) fn of(ask: K::Ask) -> (Self, oneshot::Receiver<Answered<K::Answer>>) {
        let (answer, answered) = oneshot::channel();
        (Self { ask, answer }, answered)
    }
}

impl<K: Kind> Together<K> {
    pub(crate) fn new(kind: K) -> Arc<Self> {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), under_way: 0 });
        Arc::new(Self { kind, queue, most: AtomicUsize::new(AT_MOST) })
    }

    /// Makes a request by itself: for whoever asks again, and would perhaps hurt others with whatever was the matter.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the request may be made or not.
    pub(crate) async fn ask_alone(&self, ask: &K::Ask) -> Answered<K::Answer> {
        Box::pin(self.kind.make_one(ask)).await
    }

    /// Makes a request, together with others that are wanted at the same time.
    ///
    /// # Cancellation safety
    /// When the future is dropped, the request may be made or not.
    pub(crate) async fn ask(self: &Arc<Self>, ask: K::Ask) -> Answered<K::Answer> {
        let alone = {
            let mut queue = self.queue();
            let alone = queue.under_way == 0;
            queue.under_way += usize::from(alone);
            alone
        };
        if alone {
            // Whoever comes meanwhile starts a task.
            let _working = Working(Some(Arc::clone(self)));
            // Boxed, as what is not needed by whoever waits in the queue: there may be thousands.
            return Box::pin(self.kind.make_one(&ask)).await;
        }
        let (waiting, answered) = Waiting::of(ask);
        let starts = {
            let mut queue = self.queue();
            queue.waiting.push_back(waiting);
            let starts = queue.under_way < UNDER_WAY;
            queue.under_way += usize::from(starts);
            starts
        };
        if starts {
            tokio::spawn(work(Working(Some(Arc::clone(self)))));
        }
        let answered = match K::PATIENCE {
            None => Ok(answered.await),
            Some(patience) => timeout(patience, answered).await,
        };
        let message = match answered {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_)) => "a request to etcd: its task ended before its time",
            Err(_) => "a request to etcd: not made by those who make all of them",
        };
        Err(Refused { error: BackendError::new(BackendErrorKind::Unavailable, message), settled: false })
    }

    /// What goes into the next transaction; `None` when nothing waits, and whoever asks is counted off.
    fn take(&self) -> Option<Vec<Waiting<K>>> {
        let most = self.most.load(Relaxed);
        let mut queue = self.queue();
        let (mut together, mut later): (Vec<Waiting<K>>, VecDeque<Waiting<K>>) = Default::default();
        // What may not go with the others waits for the next: looking far for more is not worth it.
        while together.len() < most
            && later.len() < AT_MOST
            && let Some(waiting) = queue.waiting.pop_front()
        {
            // Whoever has gone wants nothing any more.
            if waiting.answer.is_closed() {
                continue;
            }
            match together.is_empty() || self.kind.goes_with(&together, &waiting.ask) {
                true => together.push(waiting),
                false => later.push_back(waiting),
            }
        }
        while let Some(waiting) = later.pop_back() {
            queue.waiting.push_front(waiting);
        }
        if queue.waiting.is_empty() {
            // There may have been thousands.
            queue.waiting.shrink_to(AT_MOST);
        }
        if together.is_empty() {
            queue.under_way -= 1;
            return None;
        }
        Some(together)
    }

    /// Makes what was taken, for as long as somebody waits for it.
    async fn make(&self, together: Vec<Waiting<K>>) {
        let (asks, mut answers): (Vec<_>, Vec<_>) =
            together.into_iter().map(|waiting| (waiting.ask, waiting.answer)).unzip();
        let made = match &asks[..] {
            // Each for itself.
            [_] => Ok(Won { value: None, attempt: 0, attempts: 1 }),
            asks => select! {
                made = self.kind.make_all(asks) => made,
                () = all_gone(&mut answers) => return,
            },
        };
        let settled = match made {
            Ok(Won { value: Some(values), attempt, attempts }) => {
                for (answer, value) in answers.into_iter().zip(values) {
                    // Who has gone leaves it to its next request, or its withdrawal.
                    let _ = answer.send(Ok(Won { value, attempt, attempts }));
                }
                return;
            }
            Ok(Won { value: None, attempts, .. }) => attempts == 1,
            // For the sake of one of them, perhaps; or of their number.
            Err(Refused { error, settled }) if error.is_permanent() => {
                if error.kind() == BackendErrorKind::Invalid {
                    self.most.fetch_min((asks.len() / 2).max(1), Relaxed);
                }
                settled
            }
            Err(refused) => {
                for answer in answers {
                    let _ = answer.send(Err(refused.clone()));
                }
                return;
            }
        };
        let each = asks.iter().zip(answers).filter(|(_, answer)| !answer.is_closed());
        join_all(each.map(|(ask, mut answer)| async move {
            select! {
                made = self.kind.make_one(ask) => drop(answer.send(after(settled, made))),
                () = answer.closed() => {}
            }
        }))
        .await;
    }

    fn queue(&self) -> MutexGuard<'_, Queue<K>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns once nobody waits for any of these answers.
async fn all_gone<T>(answers: &mut [oneshot::Sender<T>]) {
    for answer in answers {
        answer.closed().await;
    }
}

/// The outcome of a request that had been part of another, of which nothing can be carried out any more if it is `settled`.
fn after<T>(settled: bool, outcome: Answered<T>) -> Answered<T> {
    match outcome {
        outcome if settled => outcome,
        Ok(won) => Ok(Won { attempts: won.attempts + 1, ..won }),
        Err(refused) => Err(Refused { settled: false, ..refused }),
    }
}

/// Makes what waits, until nothing does.
async fn work<K: Kind>(working: Working<K>) {
    while let Some(requests) = &working.0
        && let Some(together) = requests.take()
    {
        requests.make(together).await;
    }
    working.disarm();
}

/// Counts whoever makes requests off when it ends before [`Together::take`] did, with its runtime say.
struct Working<K: Kind>(Option<Arc<Together<K>>>);

impl<K: Kind> Working<K> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl<K: Kind> Drop for Working<K> {
    fn drop(&mut self) {
        let Some(requests) = &self.0 else { return };
        let mut queue = requests.queue();
        queue.under_way -= 1;
        let orphans = if queue.under_way == 0 { mem::take(&mut queue.waiting) } else { VecDeque::new() };
        drop(queue);
        // Nobody is left to make them, which is what their dropping says.
        drop(orphans);
    }
}

impl<K: Kind> fmt::Debug for Together<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Together").field("waiting", &self.queue().waiting.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// Numbers, of which none goes with itself: 13 is refused, 14 cannot be made with others, and more
    /// than `limit` are too many.
    struct Numbers {
        made: AtomicUsize,
        limit: usize,
    }

    impl Numbers {
        fn new(limit: usize) -> Arc<Together<Self>> {
            Together::new(Self { made: AtomicUsize::new(0), limit })
        }
    }

    fn refused(kind: BackendErrorKind) -> Refused {
        Refused { error: BackendError::new(kind, "refused"), settled: true }
    }

    impl Kind for Numbers {
        type Ask = u64;
        type Answer = u64;

        const PATIENCE: Option<Duration> = None;

        fn goes_with(&self, chosen: &[Waiting<Self>], next: &u64) -> bool {
            chosen.iter().all(|waiting| waiting.ask != *next)
        }

        async fn make_one(&self, ask: &u64) -> Answered<u64> {
            self.made.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(1)).await;
            match ask {
                13 => Err(refused(BackendErrorKind::Unauthorized)),
                ask => Ok(Won { value: ask * 2, attempt: 0, attempts: 1 }),
            }
        }

        async fn make_all(&self, asks: &[u64]) -> Answered<Option<Vec<u64>>> {
            self.made.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(1)).await;
            if asks.len() > self.limit {
                return Err(refused(BackendErrorKind::Invalid));
            }
            if asks.contains(&13) {
                return Err(refused(BackendErrorKind::Unauthorized));
            }
            let value = (!asks.contains(&14)).then(|| asks.iter().map(|ask| ask * 2).collect());
            Ok(Won { value, attempt: 0, attempts: 2 })
        }
    }

    /// Asks for all numbers below `count` at once; how many requests were made for them.
    async fn all_below(count: u64, numbers: &Arc<Together<Numbers>>) -> usize {
        let asks = (0..count).map(|n| {
            let numbers = Arc::clone(numbers);
            tokio::spawn(async move { (n, numbers.ask(n).await) })
        });
        for answered in join_all(asks).await {
            match answered.unwrap() {
                (13, outcome) => assert!(outcome.is_err_and(|refused| refused.settled)),
                (n, outcome) => assert_eq!(outcome.unwrap().value, n * 2),
            }
        }
        assert_eq!(numbers.queue().under_way, 0);
        numbers.kind.made.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_together_share_a_transaction() {
        let numbers = Numbers::new(AT_MOST);
        let made = all_below(1_000, &numbers).await;
        // Those with 13 and 14 go once more, each for itself.
        assert!(made <= 1_000 / AT_MOST + 2 * AT_MOST + UNDER_WAY, "{made}");
    }

    /// Hazard G10: of the transaction that it was part of an attempt may yet be carried out.
    #[tokio::test(start_paused = true)]
    async fn who_is_asked_for_alone_after_two_attempts_is_not_settled() {
        let numbers = Numbers::new(AT_MOST);
        let (alone, together) = (Waiting::of(14), Waiting::of(15));
        numbers.make(vec![alone.0, together.0]).await;
        assert_eq!(alone.1.await.unwrap().unwrap(), Won { value: 28, attempt: 0, attempts: 2 });
        let (refused, together) = (Waiting::of(13), Waiting::of(14));
        numbers.make(vec![refused.0, together.0]).await;
        assert!(
            refused.1.await.unwrap().is_err_and(|refused| refused.settled),
            "the store refused all of it"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_etcd_that_takes_fewer_gets_fewer() {
        let numbers = Numbers::new(20);
        all_below(1_000, &numbers).await;
        assert_eq!(numbers.most.load(Relaxed), 15);
        let before = numbers.kind.made.load(Relaxed);
        let made = all_below(1_000, &numbers).await - before;
        assert!(made <= 1_000 / 15 + 2 * 15 + UNDER_WAY, "{made}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_is_left_out_and_the_same_is_not_asked_twice_in_one() {
        let numbers = Numbers::new(AT_MOST);
        let (left, gone) = Waiting::of(1);
        let (same, mut answered) = Waiting::of(2);
        let (again, mut answered_again) = Waiting::of(2);
        {
            let mut queue = numbers.queue();
            queue.under_way = 1;
            queue.waiting.extend([left, same, again]);
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

    /// Hazard G10: who waits is told when whoever was to make its request has gone, and the next one is made.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_task_that_has_gone() {
        let numbers = Numbers::new(AT_MOST);
        let gone =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let asks: Vec<_> = (0..100)
            .map(|n| {
                let numbers = Arc::clone(&numbers);
                gone.spawn(async move { numbers.ask(n).await })
            })
            .collect();
        std::thread::spawn(move || {
            gone.block_on(tokio::task::yield_now());
            drop(gone);
        })
        .join()
        .unwrap();
        drop(asks);
        assert_eq!(numbers.queue().under_way, 0);
        let answered = timeout(Duration::from_secs(1), numbers.ask(7)).await.unwrap();
        assert_eq!(answered.unwrap().value, 14);
    }
}
