//! The simulated network link between one client and the in-memory store, and its faults.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::spi::{BackendError, BackendErrorKind};

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// Opening a session.
    Open,
    /// A heartbeat.
    Heartbeat,
    /// The read that confirms a heartbeat.
    Confirm,
    /// Entering an election.
    Enter,
    /// Waiting for leadership, watching an entry, or observing an election.
    Watch,
    /// Updating the value.
    Update,
    /// Leaving an election.
    Leave,
    /// Reading the candidates.
    Read,
    /// Closing a session.
    Close,
}

impl Op {
    /// Every kind of request.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Heartbeat,
        Self::Confirm,
        Self::Enter,
        Self::Watch,
        Self::Update,
        Self::Leave,
        Self::Read,
        Self::Close,
    ];
}

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the store.
    Request,
    /// From the store to the client.
    Response,
}

/// What happens to a message on a [`Link`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// The message is delivered.
    #[default]
    Deliver,
    /// The message is lost. The client waits without an answer.
    Drop,
    /// The message is held back until this fault is removed, and delivered even when the client no longer waits.
    Hold,
    /// The client receives an error. For a response, the store has already carried out the request.
    Fail,
    /// The message is delivered after this time, even when the client no longer waits.
    Delay(Duration),
}

/// A simulated network link between one client and the store. Clones are the same link.
#[derive(Clone, Debug)]
pub struct Link(Arc<LinkState>);

#[derive(Debug)]
struct LinkState {
    deliveries: Mutex<HashMap<(Op, Direction), Delivery>>,
    member_is_isolated: Mutex<bool>,
    changed: watch::Sender<u64>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self(Arc::new(LinkState {
            deliveries: Mutex::default(),
            member_is_isolated: Mutex::default(),
            changed: watch::channel(0).0,
        }))
    }

    fn deliveries(&self) -> MutexGuard<'_, HashMap<(Op, Direction), Delivery>> {
        self.0.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what happens from now on to all messages of these kinds in this direction.
    pub fn set(&self, ops: &[Op], direction: Direction, delivery: Delivery) {
        for op in ops {
            self.deliveries().insert((*op, direction), delivery);
        }
        self.0.changed.send_modify(|n| *n += 1);
    }

    /// Drops all messages in both directions.
    pub fn cut(&self) {
        self.set(&Op::ALL, Direction::Request, Delivery::Drop);
        self.set(&Op::ALL, Direction::Response, Delivery::Drop);
    }

    /// Sets whether the client is connected to a member that is partitioned from its peers.
    ///
    /// If a read confirms a heartbeat, the member goes on answering heartbeats: they do not extend the session, and
    /// their epoch is an old one. If a later heartbeat confirms it, the member answers no heartbeat, and those it has
    /// answered lately were never replicated.
    pub fn isolate_member(&self, is_isolated: bool) {
        *self.0.member_is_isolated.lock().unwrap_or_else(PoisonError::into_inner) = is_isolated;
    }

    /// Removes all faults. Messages that were held back are delivered.
    pub fn heal(&self) {
        self.deliveries().clear();
        self.isolate_member(false);
        self.0.changed.send_modify(|n| *n += 1);
    }

    pub(super) fn member_is_isolated(&self) -> bool {
        *self.0.member_is_isolated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn delivery(&self, op: Op, direction: Direction) -> Delivery {
        self.deliveries().get(&(op, direction)).copied().unwrap_or_default()
    }

    /// Notifies of every change of the link's faults.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Sends a request, which the store carries out by calling `carry_out`, and returns the response.
    ///
    /// A request that was held back or delayed is carried out even when the caller has dropped the future.
    pub(super) async fn send<T: Send + 'static>(
        &self,
        op: Op,
        carry_out: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let detached = matches!(self.delivery(op, Direction::Request), Delivery::Hold | Delivery::Delay(_));
        let link = self.clone();
        let request = async move {
            link.deliver(op, Direction::Request).await?;
            let answer = carry_out();
            link.deliver(op, Direction::Response).await?;
            answer
        };
        if detached {
            return tokio::spawn(request).await.unwrap_or_else(|_| Err(connection_reset(op)));
        }
        request.await
    }

    fn deliver(&self, op: Op, direction: Direction) -> impl Future<Output = Result<(), BackendError>> + Send {
        let link = self.clone();
        async move {
            let mut changes = link.changes();
            loop {
                match link.delivery(op, direction) {
                    Delivery::Deliver => return Ok(()),
                    Delivery::Drop => return std::future::pending().await,
                    Delivery::Fail => return Err(connection_reset(op)),
                    Delivery::Delay(time) => {
                        tokio::time::sleep(time).await;
                        return Ok(());
                    }
                    Delivery::Hold => {
                        if changes.changed().await.is_err() {
                            return Err(connection_reset(op));
                        }
                    }
                }
            }
        }
    }
}

fn connection_reset(op: Op) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{op:?}: the connection was reset"))
}
