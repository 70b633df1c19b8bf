//! Asking members which cluster they are of, and refusing what another cluster says; see [`crate::transport::cluster`].

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use etcd_client::GetOptions;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::timeout;
use tracing::warn;

use super::Members;
use crate::{
    transport::cluster::Identity,
    transport::error::{Failure, malformed},
    transport::request::Asked,
};

/// How long at least the members have to say which cluster they are of.
const ROLL_CALL: Duration = Duration::from_millis(300);

impl Members {
    /// Asks all members at once which cluster they are of, and remembers it. `what` is what is to be done next.
    ///
    /// Whoever does not answer in time is not waited for: it is seen when it answers something.
    ///
    /// # Errors
    /// As for [`Cluster::agree`](crate::transport::cluster::Cluster::agree).
    pub(crate) async fn agree(&self, what: &str) -> Result<(), BackendError> {
        if let [_] = &self.members[..] {
            self.cluster.forget();
            return Ok(());
        }
        let mut said = vec![None; self.members.len()];
        let asking = (0..self.members.len()).map(async |member| {
            let asked = Asked::new(self.client(member).await.ok()?);
            Some((member, self.identity(&asked).await.ok()?))
        });
        let mut asking: FuturesUnordered<_> = asking.collect();
        let all = async {
            while let Some(answer) = asking.next().await {
                if let Some((member, identity)) = answer {
                    said[member] = Some(identity);
                }
            }
        };
        let _ = timeout(ROLL_CALL.max(self.config.hedge), all).await;
        let endpoints = self.members.iter().map(|member| member.endpoint.as_str());
        let said: Vec<_> = endpoints.zip(said).collect();
        self.cluster
            .agree(&said)
            .map_err(|error| BackendError::new(error.kind(), format!("{what} on etcd: {error}")))
    }

    /// What the member says of itself, by a read that it answers without the others.
    async fn identity(&self, asked: &Asked) -> Result<Identity, Failure> {
        let options = GetOptions::new().with_count_only().with_serializable();
        let answer = asked.kv_client().get(&*self.probe_key, Some(options)).await?;
        Ok(Identity::of(answer.header().ok_or_else(|| malformed("header"))?))
    }

    /// Refuses an answer of another cluster than the one that is pinned.
    pub(crate) fn admit(&self, index: usize, cluster: u64) -> Result<(), Failure> {
        let member = &self.members[index];
        let Err(pinned) = self.cluster.admit(cluster) else {
            member.is_foreign.store(false, Relaxed);
            return Ok(());
        };
        let text = format!(
            "it is a member of cluster {cluster:x} now, and the others are of cluster {pinned:x}: it is not asked any more; \
             take it out of the URL, or put the member back"
        );
        if !member.is_foreign.swap(true, Relaxed) {
            warn!(member = %member.endpoint, "{text}");
        }
        Err(BackendError::new(BackendErrorKind::Unavailable, text).into())
    }

    /// The failure, if it may be a word of our cluster: a refusal does not say whose it is, and a member of another cluster
    /// knows neither our lease nor our user.
    pub(super) async fn if_of_our_cluster(&self, index: usize, asked: &Asked, failure: Failure) -> Failure {
        if failure.error.kind() == BackendErrorKind::Unavailable {
            return failure;
        }
        match self.identity(asked).await {
            Ok(identity) => self.admit(index, identity.cluster).err().unwrap_or(failure),
            Err(_) => failure,
        }
    }
}
