//! Queries the members for their cluster, and rejects responses of another cluster; see
//! [`crate::transport::cluster`].

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use etcd_client::GetOptions;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::timeout;
use tracing::warn;

use super::Members;
use crate::transport::{
    cluster::MemberIdentity,
    error::{Failure, malformed},
    request::AttemptClient,
};

/// The least time that the members have to report their cluster.
const MIN_IDENTITY_TIMEOUT: Duration = Duration::from_millis(300);

impl Members {
    /// The cluster that has answered, once one has.
    pub(crate) fn cluster_id(&self) -> Option<u64> {
        self.cluster.pinned()
    }

    /// Queries all members for their cluster at the same time, and pins it. `what` is the operation that needs it.
    ///
    /// A member that does not answer in time is skipped. Its cluster is checked with its first response.
    ///
    /// # Errors
    /// As for [`PinnedCluster::verify`](crate::transport::cluster::PinnedCluster::verify).
    pub(crate) async fn verify_cluster(&self, what: &str) -> Result<(), BackendError> {
        if let [_] = &self.members[..] {
            self.cluster.unpin();
            return Ok(());
        }
        let mut identities = vec![None; self.members.len()];
        let queries = (0..self.members.len()).map(async |member| {
            let attempt = AttemptClient::new(self.client(member).await.ok()?);
            Some((member, self.identity(&attempt).await.ok()?))
        });
        let mut queries: FuturesUnordered<_> = queries.collect();
        let all = async {
            while let Some(answer) = queries.next().await {
                if let Some((member, identity)) = answer {
                    identities[member] = Some(identity);
                }
            }
        };
        let _ = timeout(MIN_IDENTITY_TIMEOUT.max(self.config.hedge), all).await;
        let endpoints = self.members.iter().map(|member| member.endpoint.as_str());
        let reported: Vec<_> = endpoints.zip(identities).collect();
        self.cluster
            .verify(&reported)
            .map_err(|error| BackendError::new(error.kind(), format!("{what} on etcd: {error}")))
    }

    /// The member's ids, by a serializable read, which it answers without the other members.
    async fn identity(&self, attempt: &AttemptClient) -> Result<MemberIdentity, Failure> {
        let options = GetOptions::new().with_count_only().with_serializable();
        let response = attempt.kv_client().get(&*self.probe_key, Some(options)).await?;
        Ok(MemberIdentity::of(response.header().ok_or_else(|| malformed("header"))?))
    }

    /// Rejects a response of another cluster than the pinned one.
    pub(crate) fn check_cluster(&self, index: usize, cluster: u64) -> Result<(), Failure> {
        let member = &self.members[index];
        let Err(pinned) = self.cluster.accept(cluster) else {
            member.is_foreign.store(false, Relaxed);
            return Ok(());
        };
        let text = format!(
            "it is a member of cluster {cluster:x} now, but the others belong to cluster {pinned:x}: it is no longer \
             used; remove it from the URL, or restore the member"
        );
        if !member.is_foreign.swap(true, Relaxed) {
            warn!(member = %member.endpoint, "{text}");
        }
        Err(BackendError::new(BackendErrorKind::Unavailable, text).into())
    }

    /// The failure to report: a permanent error counts only if its member belongs to the pinned cluster.
    ///
    /// An error response names no cluster, and a member of another cluster knows neither the lease nor the user.
    pub(super) async fn verify_failure(
        &self,
        index: usize,
        attempt: &AttemptClient,
        failure: Failure,
    ) -> Failure {
        if failure.error.kind() == BackendErrorKind::Unavailable {
            return failure;
        }
        match self.identity(attempt).await {
            Ok(identity) => self.check_cluster(index, identity.cluster).err().unwrap_or(failure),
            Err(_) => failure,
        }
    }
}
