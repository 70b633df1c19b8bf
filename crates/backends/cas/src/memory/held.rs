//! Requests that wait in a frozen server.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tenure_core::internal::lock;
use tokio::sync::Notify;

type Execute = Box<dyn FnOnce() + Send>;

/// A request that the store holds, and carries out when it is told to, whether or not its sender still waits. Clones are the same one.
#[derive(Clone, Default)]
pub struct HeldRequest(Arc<Inner>);

#[derive(Default)]
struct Inner {
    request: Mutex<Option<Execute>>,
    arrived: Notify,
}

impl HeldRequest {
    pub(super) fn arrive(&self, request: Execute) {
        *lock(&self.0.request) = Some(request);
        self.0.arrived.notify_one();
    }

    /// Waits until the request has arrived.
    pub async fn arrived(&self) {
        while lock(&self.0.request).is_none() {
            self.0.arrived.notified().await;
        }
    }

    /// Carries the request out, and answers it. Does nothing if none has arrived.
    pub fn execute(&self) {
        let request = lock(&self.0.request).take();
        if let Some(request) = request {
            request();
        }
    }
}

impl fmt::Debug for HeldRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldRequest").finish_non_exhaustive()
    }
}
