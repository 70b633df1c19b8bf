//! Captures the task that the client library spawns, so that it can be aborted and its end is noticed.

use std::sync::{Arc, Mutex};

use asyncs::task::{Spawn, Task};
use tokio::{sync::oneshot, task::AbortHandle};
use tokio_util::sync::CancellationToken;
use zookeeper_client::Client;

use super::lock;

/// Spawns the one task that the client starts while it connects.
#[derive(Default)]
pub(crate) struct ClientTaskSpawner {
    spawned: Mutex<Option<ClientTask>>,
    /// The client, once it is connected. The task keeps a reference to it.
    pub(crate) client: Arc<Mutex<Option<Client>>>,
}

/// The client's task. It starts once `release` is sent, so that no change of state is missed.
pub(crate) struct ClientTask {
    pub(crate) handle: AbortHandle,
    /// Cancelled when the task has ended.
    pub(crate) ended: CancellationToken,
    pub(crate) release: oneshot::Sender<()>,
}

impl ClientTaskSpawner {
    pub(crate) fn take(&self) -> Option<ClientTask> {
        lock(&self.spawned).take()
    }
}

impl Spawn for ClientTaskSpawner {
    fn spawn(&self, task: Task) {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let (client, future) = (Arc::clone(&self.client), Box::into_pin(task.future));
        let (release, released) = oneshot::channel();
        let handle = tokio::spawn(async move {
            // Dropped in reverse order. `ended` is cancelled first, because dropping the future ends its watches. The
            // client outlives the future, which would otherwise end the session.
            let _client = client;
            let mut future = future;
            let _guard = guard;
            if released.await.is_ok() {
                (&mut future).await;
            }
        });
        *lock(&self.spawned) = Some(ClientTask { handle: handle.abort_handle(), ended, release });
    }
}
