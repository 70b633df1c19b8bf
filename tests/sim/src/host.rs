//! One host's access to the cluster: its link, and the member that it uses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tenure_core::{ElectionName, spi::BackendError};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    cluster::{Cluster, MEMBERS, State, connection_reset},
    link::Link,
};

/// A waiting host reads again after this time, in case it missed a change.
const RECHECK_INTERVAL: Duration = Duration::from_secs(3);

/// A host's access to the cluster; clones are the same host's.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) cluster: Cluster,
    pub(crate) link: Arc<Link>,
    member: Arc<AtomicUsize>,
    /// Whether a request is sent a second time when its answer is late.
    hedges: bool,
}

/// How consistent an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// Linearizable: a quorum confirms it.
    Quorum,
    /// One member answers from its own state.
    Member,
}

impl Access {
    pub(crate) fn new(cluster: Cluster, link: Arc<Link>, hedges: bool) -> Self {
        Self { cluster, link, member: Arc::new(AtomicUsize::new(0)), hedges }
    }

    /// The member that this host uses now.
    pub(crate) fn member(&self) -> usize {
        self.member.load(Relaxed)
    }

    /// Uses another member from now on.
    pub(crate) fn switch_member(&self) {
        let other = self.link.random().usize(1..MEMBERS);
        self.member.store((self.member() + other) % MEMBERS, Relaxed);
    }

    /// Some member, often the one in use.
    pub(crate) fn any_member(&self) -> usize {
        let switch_member = self.link.random().usize(..MEMBERS);
        if switch_member == 0 { self.member() } else { (self.member() + switch_member) % MEMBERS }
    }

    /// Sends a request to the member in use.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        consistency: Consistency,
        carried_out: impl Fn(&mut State, usize) -> Result<T, BackendError> + Send + Sync + 'static,
    ) -> Result<T, BackendError> {
        self.ask_at(self.member(), what, consistency, carried_out).await
    }

    /// Sends a request, which may be applied late, twice or never, even when its caller has given up.
    pub(crate) async fn ask_at<T: Send + 'static>(
        &self,
        member: usize,
        what: &'static str,
        consistency: Consistency,
        carried_out: impl Fn(&mut State, usize) -> Result<T, BackendError> + Send + Sync + 'static,
    ) -> Result<T, BackendError> {
        let delivery = self.link.delivery();
        let Some(request_delay) = delivery.request_delay else {
            return no_answer(what, delivery.is_reported).await;
        };
        let (answer, answered) = oneshot::channel();
        let (cluster, carried_out) = (self.cluster.clone(), Arc::new(carried_out));
        if let Some(duplicate_delay) = delivery.duplicate_delay.filter(|_| self.hedges) {
            let (cluster, carried_out) = (cluster.clone(), Arc::clone(&carried_out));
            let other = (member + 1) % MEMBERS;
            tokio::spawn(async move {
                tokio::time::sleep(duplicate_delay).await;
                arrive(&cluster, other, consistency).await;
                drop(cluster.change(|state| carried_out(state, other)));
            });
        }
        tokio::spawn(async move {
            tokio::time::sleep(request_delay).await;
            arrive(&cluster, member, consistency).await;
            let outcome = cluster.change(|state| carried_out(state, member));
            if let Some(back) = delivery.answered {
                tokio::time::sleep(back).await;
                drop(answer.send(outcome));
            }
        });
        match answered.await {
            Ok(outcome) => outcome,
            Err(_) => no_answer(what, delivery.is_reported).await,
        }
    }

    /// Returns when the election may have changed and the host was notified, or after [`RECHECK_INTERVAL`].
    pub(crate) async fn wait_for_change(&self, election: &ElectionName) {
        let mut changes = self.cluster.changes(election.as_str());
        let latest = Instant::now() + RECHECK_INTERVAL;
        loop {
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(latest) => return,
            }
            if self.link.notices_change() {
                let late = self.link.random().u64(100..5_000);
                tokio::time::sleep(Duration::from_micros(late)).await;
                return;
            }
        }
    }
}

async fn arrive(cluster: &Cluster, member: usize, consistency: Consistency) {
    match consistency {
        Consistency::Quorum => cluster.quorum_at(member).await,
        Consistency::Member => cluster.served_by(member).await,
    }
}

/// Fails after a moment when the loss is reported to the caller, else never returns.
async fn no_answer<T>(what: &'static str, is_reported: bool) -> Result<T, BackendError> {
    if !is_reported {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    Err(connection_reset(what))
}

/// The election's name, owned, for a request.
pub(crate) fn name(election: &ElectionName) -> String {
    election.as_str().to_owned()
}
