//! What one host has of the cluster: a line, and a member that it speaks with.

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
    cluster::{Cluster, MEMBERS, State, refused},
    line::Line,
};

/// How long a waiting host believes that it would have heard.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// A host's access to the cluster; clones are the same host's.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) cluster: Cluster,
    pub(crate) line: Arc<Line>,
    member: Arc<AtomicUsize>,
    /// Whether a request is sent a second time when its answer is late.
    hedges: bool,
}

/// Who has to stand behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// A quorum.
    Quorum,
    /// The member alone.
    Own,
}

impl Access {
    pub(crate) fn new(cluster: Cluster, line: Arc<Line>, hedges: bool) -> Self {
        Self { cluster, line, member: Arc::new(AtomicUsize::new(0)), hedges }
    }

    /// The member that this host speaks with now.
    pub(crate) fn member(&self) -> usize {
        self.member.load(Relaxed)
    }

    /// Speaks with another member from now on.
    pub(crate) fn turn(&self) {
        let other = self.line.random().usize(1..MEMBERS);
        self.member.store((self.member() + other) % MEMBERS, Relaxed);
    }

    /// Some member, often the one that this host speaks with.
    pub(crate) fn any_member(&self) -> usize {
        let turn = self.line.random().usize(..MEMBERS);
        if turn == 0 { self.member() } else { (self.member() + turn) % MEMBERS }
    }

    /// Asks the member that this host speaks with.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        word: Word,
        carried_out: impl Fn(&mut State, usize) -> Result<T, BackendError> + Send + Sync + 'static,
    ) -> Result<T, BackendError> {
        self.ask_at(self.member(), what, word, carried_out).await
    }

    /// Sends a request that may be carried out late, twice, or never, whether or not anybody waits for its answer.
    pub(crate) async fn ask_at<T: Send + 'static>(
        &self,
        member: usize,
        what: &'static str,
        word: Word,
        carried_out: impl Fn(&mut State, usize) -> Result<T, BackendError> + Send + Sync + 'static,
    ) -> Result<T, BackendError> {
        let fate = self.line.fate();
        let Some(arrives) = fate.arrives else {
            return never(what, fate.told).await;
        };
        let (answer, answered) = oneshot::channel();
        let (cluster, carried_out) = (self.cluster.clone(), Arc::new(carried_out));
        if let Some(again) = fate.again.filter(|_| self.hedges) {
            let (cluster, carried_out) = (cluster.clone(), Arc::clone(&carried_out));
            let other = (member + 1) % MEMBERS;
            tokio::spawn(async move {
                tokio::time::sleep(again).await;
                arrive(&cluster, other, word).await;
                drop(cluster.change(|state| carried_out(state, other)));
            });
        }
        tokio::spawn(async move {
            tokio::time::sleep(arrives).await;
            arrive(&cluster, member, word).await;
            let outcome = cluster.change(|state| carried_out(state, member));
            if let Some(back) = fate.answered {
                tokio::time::sleep(back).await;
                drop(answer.send(outcome));
            }
        });
        match answered.await {
            Ok(outcome) => outcome,
            Err(_) => never(what, fate.told).await,
        }
    }

    /// Returns when something may have changed in the store, if the host hears of it.
    pub(crate) async fn hear(&self, election: &ElectionName) {
        let mut changes = self.cluster.changes(election.as_str());
        let latest = Instant::now() + LOOK_AGAIN;
        loop {
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(latest) => return,
            }
            if self.line.hears() {
                let late = self.line.random().u64(100..5_000);
                tokio::time::sleep(Duration::from_micros(late)).await;
                return;
            }
        }
    }
}

async fn arrive(cluster: &Cluster, member: usize, word: Word) {
    match word {
        Word::Quorum => cluster.quorum_at(member).await,
        Word::Own => cluster.served_by(member).await,
    }
}

/// What becomes of whoever waits for an answer that never comes.
async fn never<T>(what: &'static str, told: bool) -> Result<T, BackendError> {
    if !told {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    Err(refused(what))
}

/// An election's name, for use in a request.
pub(crate) fn name(election: &ElectionName) -> String {
    election.as_str().to_owned()
}
