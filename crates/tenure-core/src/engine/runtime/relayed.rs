//! Wakes callers without calling their wakers on the engine's threads.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, RawWakerVTable, Wake, Waker},
};

use futures::Stream;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::callbacks::{Callbacks, catch_panic};

/// A future or stream that the application polls and the engine wakes.
///
/// A waker is code of the caller's executor: it may block or panic. So the engine registers a waker of its own,
/// which calls the caller's waker on another thread and catches its panics. A waker that panics or blocks
/// delays no other.
#[derive(Debug)]
pub(crate) struct Relayed<T> {
    inner: Pin<Box<T>>,
    callbacks: Callbacks,
    /// The waker of the last poll, and the one that was registered in its place.
    waker: Option<(Waker, Waker)>,
}

impl<T> Relayed<T> {
    pub(crate) fn new(callbacks: Callbacks, inner: T) -> Self {
        Self { inner: Box::pin(inner), callbacks, waker: None }
    }

    fn poll_inner<R>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> R,
    ) -> R {
        if !self.callbacks.has_threads() {
            return poll(self.inner.as_mut(), context);
        }
        let caller = context.waker();
        let registered = match &self.waker {
            Some((last, relay)) if last.will_wake(caller) => relay,
            _ => &self.waker.insert((caller.clone(), RelayWaker::waker_for(caller, &self.callbacks))).1,
        };
        poll(self.inner.as_mut(), &mut Context::from_waker(registered))
    }
}

impl<T: Future> Future for Relayed<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T::Output> {
        self.poll_inner(context, |inner, context| inner.poll(context))
    }
}

impl<T: Stream> Stream for Relayed<T> {
    type Item = T::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T::Item>> {
        self.poll_inner(context, |inner, context| inner.poll_next(context))
    }
}

/// The waker that the engine calls in place of the caller's.
struct RelayWaker {
    /// `None` only while this is being dropped.
    caller: Option<Waker>,
    executor: WakeExecutor,
}

/// Where the caller's waker is called.
enum WakeExecutor {
    /// On a worker of the caller's own multi-threaded runtime: saves one thread switch in each campaign.
    CallerRuntime(Handle),
    Callbacks(Callbacks),
}

impl RelayWaker {
    /// The waker to register for `caller`, whose task is polled on this thread now.
    fn waker_for(caller: &Waker, callbacks: &Callbacks) -> Waker {
        let runtime = Handle::try_current().ok().filter(|runtime| {
            // Its workers go on whatever this thread does.
            is_tokio_task_waker(caller) && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        });
        let executor =
            runtime.map_or_else(|| WakeExecutor::Callbacks(callbacks.clone()), WakeExecutor::CallerRuntime);
        Waker::from(Arc::new(Self { caller: Some(caller.clone()), executor }))
    }

    /// Makes `call` on another thread.
    fn defer(&self, call: impl FnOnce() + Send + 'static) {
        match &self.executor {
            WakeExecutor::CallerRuntime(runtime) => drop(runtime.spawn(async move {
                catch_panic(call);
            })),
            WakeExecutor::Callbacks(callbacks) => callbacks.defer(move || {
                catch_panic(call);
            }),
        }
    }
}

impl Wake for RelayWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let relay = Arc::clone(self);
        self.defer(move || {
            if let Some(caller) = &relay.caller {
                caller.wake_by_ref();
            }
        });
    }
}

impl Drop for RelayWaker {
    fn drop(&mut self) {
        // Dropping a waker calls its executor, too. The waker of a tokio task is dropped here: that frees
        // memory at most.
        if let Some(caller) = self.caller.take()
            && matches!(self.executor, WakeExecutor::Callbacks(_))
        {
            self.defer(move || drop(caller));
        }
    }
}

/// The vtable that the wakers of all tokio tasks share; set by the engine's first task.
static TOKIO_TASK_VTABLE: OnceLock<&'static RawWakerVTable> = OnceLock::new();

/// Remembers the vtable of a tokio task's waker. Has to be polled directly as a tokio task.
pub(crate) async fn remember_tokio_waker() {
    std::future::poll_fn(|context| {
        TOKIO_TASK_VTABLE.get_or_init(|| context.waker().vtable());
        Poll::Ready(())
    })
    .await;
}

/// Whether `waker` belongs to a tokio task. A false negative is harmless.
fn is_tokio_task_waker(waker: &Waker) -> bool {
    TOKIO_TASK_VTABLE.get().is_some_and(|vtable| std::ptr::eq(*vtable, waker.vtable()))
}

#[cfg(all(test, not(any(tenure_loom, tenure_shuttle))))]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;

    /// Sends the name of the thread that wakes it.
    struct ThreadNameWaker(mpsc::Sender<Option<String>>);

    impl Wake for ThreadNameWaker {
        fn wake(self: Arc<Self>) {
            self.0.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }
    }

    /// Hazard G26: the application's waker is not called on the engine's thread.
    #[test]
    fn a_user_s_waker_is_called_elsewhere() {
        let (sender, woken) = mpsc::channel();
        let waker = Waker::from(Arc::new(ThreadNameWaker(sender)));
        let (answer, receiver) = oneshot::channel();
        let mut future = Relayed::new(Callbacks::of_this_process().unwrap(), receiver);
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut future).poll(&mut context).is_pending());
        let engine = std::thread::Builder::new().name("tenure-engine".into()).spawn(move || {
            answer.send(7).unwrap();
        });
        engine.unwrap().join().unwrap();
        assert_eq!(woken.recv().unwrap().as_deref(), Some("tenure-callbacks"));
        assert_eq!(Pin::new(&mut future).poll(&mut context), Poll::Ready(Ok(7)));
    }

    #[tokio::test]
    async fn a_tokio_task_is_known() {
        tokio::spawn(remember_tokio_waker()).await.unwrap();
        let known =
            tokio::spawn(std::future::poll_fn(|context| Poll::Ready(is_tokio_task_waker(context.waker()))));
        assert!(known.await.unwrap());
        assert!(!is_tokio_task_waker(Waker::noop()));
    }
}
