//! The line between one client and the in-memory store, and what can go wrong on it.

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
    /// A confirming read.
    Confirm,
    /// Entering an election.
    Enter,
    /// Waiting for one's turn, watching one's entry, or observing.
    Watch,
    /// Changing the value.
    Update,
    /// Leaving an election.
    Leave,
    /// Reading candidates.
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

/// One of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// From the client to the store.
    Request,
    /// From the store to the client.
    Answer,
}

/// What happens to a message on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// It arrives.
    #[default]
    Pass,
    /// It is lost; the client waits in vain.
    Lose,
    /// It waits until the path is open again, even when the client no longer does.
    Hold,
    /// The client is told that it failed. On the way back: after the store carried it out.
    Refuse,
    /// It arrives after a while, even when the client no longer waits.
    Delay(Duration),
}

/// The line between one client and the store; clones are the same line.
#[derive(Clone, Debug)]
pub struct Link(Arc<LinkState>);

#[derive(Debug)]
struct LinkState {
    faults: Mutex<HashMap<(Op, Side), Path>>,
    lies: Mutex<bool>,
    changed: watch::Sender<u64>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self(Arc::new(LinkState {
            faults: Mutex::default(),
            lies: Mutex::default(),
            changed: watch::channel(0).0,
        }))
    }

    fn faults(&self) -> MutexGuard<'_, HashMap<(Op, Side), Path>> {
        self.0.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `path` happen to all messages of these kinds on this side, from now on.
    pub fn set(&self, ops: &[Op], side: Side, path: Path) {
        for op in ops {
            self.faults().insert((*op, side), path);
        }
        self.0.changed.send_modify(|n| *n += 1);
    }

    /// Loses everything, both ways.
    pub fn cut(&self) {
        self.set(&Op::ALL, Side::Request, Path::Lose);
        self.set(&Op::ALL, Side::Answer, Path::Lose);
    }

    /// Talks to a member that is cut off from its peers.
    ///
    /// Where a read confirms a heartbeat, the member goes on answering heartbeats: they do not
    /// renew the session, and their epoch is an old one. Where a later heartbeat confirms it, the
    /// member answers none, and what it has answered lately was never relayed.
    pub fn lie(&self, yes: bool) {
        *self.0.lies.lock().unwrap_or_else(PoisonError::into_inner) = yes;
    }

    /// Lets everything arrive again, and whatever was held back.
    pub fn heal(&self) {
        self.faults().clear();
        self.lie(false);
        self.0.changed.send_modify(|n| *n += 1);
    }

    pub(super) fn lies(&self) -> bool {
        *self.0.lies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, op: Op, side: Side) -> Path {
        self.faults().get(&(op, side)).copied().unwrap_or_default()
    }

    /// Wakes at every change of the line's faults.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Sends a request, has `carried_out` by the store, and returns its answer.
    ///
    /// A request that was held back or delayed is carried out even when the caller has gone.
    pub(super) async fn send<T: Send + 'static>(
        &self,
        op: Op,
        carried_out: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let detached = matches!(self.path(op, Side::Request), Path::Hold | Path::Delay(_));
        let link = self.clone();
        let request = async move {
            link.pass(op, Side::Request).await?;
            let answer = carried_out();
            link.pass(op, Side::Answer).await?;
            answer
        };
        if detached {
            return tokio::spawn(request).await.unwrap_or_else(|_| Err(refused(op)));
        }
        request.await
    }

    fn pass(&self, op: Op, side: Side) -> impl Future<Output = Result<(), BackendError>> + Send {
        let link = self.clone();
        async move {
            let mut changes = link.changes();
            loop {
                match link.path(op, side) {
                    Path::Pass => return Ok(()),
                    Path::Lose => return std::future::pending().await,
                    Path::Refuse => return Err(refused(op)),
                    Path::Delay(time) => {
                        tokio::time::sleep(time).await;
                        return Ok(());
                    }
                    Path::Hold => {
                        if changes.changed().await.is_err() {
                            return Err(refused(op));
                        }
                    }
                }
            }
        }
    }
}

fn refused(op: Op) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{op:?}: the connection was reset"))
}
