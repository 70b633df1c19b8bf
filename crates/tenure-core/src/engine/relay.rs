//! Wakes users without calling their wakers on the engine's threads.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, RawWakerVTable, Wake, Waker},
};

use futures::Stream;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::callbacks::{Callbacks, contained};

/// A future or stream that a user polls and the engine wakes.
///
/// A waker is code of the user's executor: it may block or panic. So the engine registers a waker of its own, which has the
/// user's called elsewhere and its panics contained: one that panics or blocks keeps nobody else from being woken.
#[derive(Debug)]
pub(crate) struct Relayed<T> {
    inner: Pin<Box<T>>,
    callbacks: Callbacks,
    /// The waker of the last poll, and the one that was registered for it.
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
        let user = context.waker();
        let registered = match &self.waker {
            Some((last, relay)) if last.will_wake(user) => relay,
            _ => &self.waker.insert((user.clone(), Relay::of(user, &self.callbacks))).1,
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

/// The waker that the engine calls in place of a user's.
struct Relay {
    /// `None` only while it is dropped.
    user: Option<Waker>,
    way: Way,
}

/// Where the user's waker is called.
enum Way {
    /// On a worker of the user's own multi-threaded runtime: one thread switch less in each campaign.
    Runtime(Handle),
    Callbacks(Callbacks),
}

impl Relay {
    /// What to register for `user`, which is polled now.
    fn of(user: &Waker, callbacks: &Callbacks) -> Waker {
        let runtime = Handle::try_current().ok().filter(|runtime| {
            // Its workers go on whatever this thread does.
            is_of_a_tokio_task(user) && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        });
        let way = runtime.map_or_else(|| Way::Callbacks(callbacks.clone()), Way::Runtime);
        Waker::from(Arc::new(Self { user: Some(user.clone()), way }))
    }

    fn elsewhere(&self, call: impl FnOnce() + Send + 'static) {
        match &self.way {
            Way::Runtime(runtime) => drop(runtime.spawn(async move {
                contained(call);
            })),
            Way::Callbacks(callbacks) => callbacks.defer(move || {
                contained(call);
            }),
        }
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let relay = Arc::clone(self);
        self.elsewhere(move || {
            if let Some(user) = &relay.user {
                user.wake_by_ref();
            }
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Dropping a waker calls its executor, too. A tokio task's is dropped at once: it frees memory at the most.
        if let Some(user) = self.user.take()
            && matches!(self.way, Way::Callbacks(_))
        {
            self.elsewhere(move || drop(user));
        }
    }
}

/// The table of functions that all wakers of tokio's tasks share; set by the engine's first task.
static TOKIO_TASK: OnceLock<&'static RawWakerVTable> = OnceLock::new();

/// Remembers what the waker of a tokio task looks like. Polled as the first thing in a task of tokio's.
pub(crate) async fn learn_tokio_wakers() {
    std::future::poll_fn(|context| {
        TOKIO_TASK.get_or_init(|| context.waker().vtable());
        Poll::Ready(())
    })
    .await;
}

/// Whether `waker` is a tokio task's. That it is not known to be one is harmless.
fn is_of_a_tokio_task(waker: &Waker) -> bool {
    TOKIO_TASK.get().is_some_and(|known| std::ptr::eq(*known, waker.vtable()))
}

#[cfg(all(test, not(any(tenure_loom, tenure_shuttle))))]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;

    struct Names(mpsc::Sender<Option<String>>);

    impl Wake for Names {
        fn wake(self: Arc<Self>) {
            self.0.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }
    }

    /// Hazard G26: a waker that a user wrote is not called on the engine's thread.
    #[test]
    fn a_user_s_waker_is_called_elsewhere() {
        let (sender, woken) = mpsc::channel();
        let waker = Waker::from(Arc::new(Names(sender)));
        let (answer, question) = oneshot::channel();
        let mut future = Relayed::new(Callbacks::of_this_process().unwrap(), question);
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
        tokio::spawn(learn_tokio_wakers()).await.unwrap();
        let known =
            tokio::spawn(std::future::poll_fn(|context| Poll::Ready(is_of_a_tokio_task(context.waker()))));
        assert!(known.await.unwrap());
        assert!(!is_of_a_tokio_task(Waker::noop()));
    }
}
