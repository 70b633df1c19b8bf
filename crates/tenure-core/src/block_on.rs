//! Waits for a future on the current thread, for `tenure::blocking`.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use crate::{Error, engine::runtime::callbacks::is_engine_thread};

/// Wakes the thread that waits. Each call of `block_on` has its own, so that calls can be nested.
#[derive(Default)]
struct Signal {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits until it is woken, at most until `deadline`. Returns whether it was woken.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            let Some(deadline) = deadline else {
                woken = self.changed.wait(woken).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (woken, _) = self.changed.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner);
        }
        *woken = false;
        true
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }
}

/// Polls `future` on the current thread until it completes.
///
/// # Errors
/// [`Error::OnEngineThread`].
pub fn block_on<F: Future>(future: F) -> Result<F::Output, Error> {
    let mut future = pin!(future);
    loop {
        // Without a deadline there is always an output.
        if let Some(output) = poll_until(future.as_mut(), None)? {
            return Ok(output);
        }
    }
}

/// Polls `future` on the current thread until it completes, or for at most `limit`. Returns `None` after that; the future
/// can then be polled again.
///
/// # Errors
/// [`Error::OnEngineThread`].
pub fn block_on_timeout<F: Future>(future: Pin<&mut F>, limit: Duration) -> Result<Option<F::Output>, Error> {
    poll_until(future, Instant::now().checked_add(limit))
}

fn poll_until<F: Future>(future: Pin<&mut F>, deadline: Option<Instant>) -> Result<Option<F::Output>, Error> {
    if is_engine_thread() {
        return Err(Error::OnEngineThread);
    }
    // In a task of tokio, a channel that has yielded often enough is pending until that task yields, which it does not.
    let mut future = pin!(tokio::task::unconstrained(future));
    let signal = Arc::new(Signal::default());
    let waker = Waker::from(Arc::clone(&signal));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(Some(output));
        }
        if !signal.wait(deadline) {
            return Ok(None);
        }
    }
}

#[cfg(all(test, not(any(tenure_loom, tenure_shuttle))))]
mod tests {
    use std::thread;

    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::engine::runtime::callbacks::mark_engine_thread;

    #[test]
    fn a_call_inside_another_one_leaves_no_wake_up_unseen() {
        let (outer, outer_receiver) = oneshot::channel();
        let (inner, inner_receiver) = oneshot::channel();
        let mut inner_receiver = Some(inner_receiver);
        let mut sender = None;
        let mut outer = Some(outer).zip(Some(inner));
        let mut outer_receiver = pin!(outer_receiver);
        let output = block_on(std::future::poll_fn(|context| {
            let polled = outer_receiver.as_mut().poll(context);
            if let Some((outer, inner)) = outer.take() {
                assert!(polled.is_pending());
                // While the inner call waits, the outer future is woken first.
                sender = Some(thread::spawn(move || {
                    outer.send(1).unwrap();
                    inner.send(2).unwrap();
                }));
                assert_eq!(block_on(inner_receiver.take().unwrap()).unwrap(), Ok(2));
            }
            polled
        }));
        assert_eq!(output.unwrap(), Ok(1));
        sender.unwrap().join().unwrap();
    }

    #[test]
    fn a_future_goes_on_after_its_timeout() {
        let (sender, receiver) = oneshot::channel();
        let mut receiver = pin!(receiver);
        assert_eq!(block_on_timeout(receiver.as_mut(), Duration::from_millis(1)).unwrap(), None);
        sender.send(7).unwrap();
        assert_eq!(block_on_timeout(receiver.as_mut(), Duration::MAX).unwrap(), Some(Ok(7)));
    }

    /// Inside a task of tokio, more items can be received than that task may receive between two yields.
    #[tokio::test]
    async fn a_task_of_tokio_can_receive_many_items() {
        let (sender, mut receiver) = mpsc::channel(1_000);
        for n in 0..1_000 {
            sender.try_send(n).unwrap();
        }
        for n in 0..1_000 {
            assert_eq!(block_on(receiver.recv()).unwrap(), Some(n));
        }
    }

    #[test]
    fn an_engine_thread_is_refused() {
        mark_engine_thread();
        assert!(matches!(block_on(std::future::ready(())), Err(Error::OnEngineThread)));
    }
}
