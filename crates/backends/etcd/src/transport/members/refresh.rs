//! When the members are looked up again: now and then, and within five seconds after one did not answer.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tenure_core::internal::lock;
use tokio::{task::AbortHandle, time::Instant};
use tracing::debug;

use super::{Members, member_list};
use crate::config::EtcdConfig;

/// The least time between two lookups, after a member did not answer.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two lookups by DNS, if the member list is not read.
#[cfg(feature = "srv")]
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(60);

/// Looks up the members in the background, one lookup at a time.
#[derive(Default)]
pub(super) struct Refresher {
    /// When the last lookup began, and its task.
    last: Mutex<Option<(Instant, AbortHandle)>>,
    /// Whether a lookup is needed soon, since the last one began.
    is_needed_soon: AtomicBool,
}

impl Refresher {
    /// Starts a lookup if the last one is long enough ago; `soon` if a member did not answer, or a call went to a listed
    /// one first.
    pub(super) fn run_if_due(&self, members: &Arc<Members>, soon: bool) {
        #[cfg(feature = "simulation")]
        if members.config.network.is_some() {
            return;
        }
        let Some(interval) = interval(&members.config) else { return };
        let soon = self.is_needed_soon.fetch_or(soon, Relaxed) || soon;
        let interval = if soon { interval.min(MIN_INTERVAL) } else { interval };
        let mut last = lock(&self.last);
        if last.as_ref().is_some_and(|(begun, task)| begun.elapsed() < interval || !task.is_finished()) {
            return;
        }
        self.is_needed_soon.store(false, Relaxed);
        let members = Arc::clone(members);
        let task = tokio::spawn(async move { refresh(&members).await }).abort_handle();
        *last = Some((Instant::now(), task));
    }

    pub(super) fn stop(&self) {
        lock(&self.last).iter().for_each(|(_, task)| task.abort());
    }
}

/// How often members are looked up; `None` for never.
fn interval(config: &EtcdConfig) -> Option<Duration> {
    #[cfg(feature = "srv")]
    if config.domain.is_some() {
        return Some(config.member_list.unwrap_or(DISCOVERY_INTERVAL));
    }
    config.member_list
}

async fn refresh(members: &Members) {
    #[cfg(feature = "srv")]
    if let Err(error) = members.discover().await {
        debug!(%error, "the members that were found last stay in use");
    }
    if members.config.member_list.is_some() {
        member_list::refresh(members).await;
    }
    if members.cluster.needs_recheck()
        && let Err(error) = members.verify_cluster("refresh members").await
    {
        debug!(%error, "the members of etcd belong to different clusters");
    }
}

#[cfg(feature = "srv")]
impl Members {
    /// Looks up the members by DNS, unless they are known. One lookup serves all calls that wait for it.
    pub(crate) async fn ensure_known(&self) -> Result<(), tenure_core::spi::BackendError> {
        self.first_lookup.get_or_try_init(|| self.discover()).await.map(|_| ())
    }

    /// Looks up the members by DNS, if they are discovered. A failure changes nothing.
    async fn discover(&self) -> Result<(), tenure_core::spi::BackendError> {
        if let Some(domain) = &self.config.domain {
            self.configure(&crate::transport::srv::lookup(&self.config, domain).await?);
        }
        Ok(())
    }
}
