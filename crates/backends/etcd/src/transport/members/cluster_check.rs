//! Queries the members for their cluster, and rejects responses of another cluster; see
//! [`crate::transport::cluster`].

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use etcd_client::{Client, GetOptions};
use futures::{StreamExt as _, future::join, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Members,
    slots::{Member, Origin},
};
use crate::transport::{
    cluster::MemberIdentity,
    error::{Failure, malformed},
    proxy::refuse_proxy,
};

/// The least time that the members have to report their cluster.
const MIN_IDENTITY_TIMEOUT: Duration = Duration::from_millis(300);

impl Members {
    /// The failure to report: a permanent error counts only if its member belongs to the pinned cluster.
    ///
    /// An error response names no cluster, and a member of another cluster knows neither the lease nor the user.
    pub(super) async fn verify_failure(&self, member: &Member, client: &Client, failure: Failure) -> Failure {
        if failure.error.kind() == BackendErrorKind::Unavailable {
            return failure;
        }
        match self.identity(client).await {
            Ok(identity) => self.check_cluster(member, identity.cluster).err().unwrap_or(failure),
            Err(_) => failure,
        }
    }

    /// Queries the configured members for their cluster at the same time, and pins it. Refuses a grpc-proxy among them. When
    /// it replaces another one, the listed members, which belong to that one, are dropped. `what` is the operation that needs
    /// this.
    ///
    /// A member that does not answer in time is skipped. Its cluster is checked with its first response.
    ///
    /// # Errors
    /// As for [`PinnedCluster::verify`](crate::transport::cluster::PinnedCluster::verify).
    pub(crate) async fn verify_cluster(&self, what: &str) -> Result<(), BackendError> {
        let in_context =
            |error: BackendError| BackendError::new(error.kind(), format!("{what} on etcd: {error}"));
        let members = self.all();
        if let [_] = &members[..] {
            self.cluster.unpin();
            return Ok(());
        }
        // A listed member was accepted because it belongs to the pinned cluster.
        let configured = || members.iter().filter(|member| member.origin == Origin::Configured);
        let mut identities = vec![None; configured().count()];
        let queries = configured().enumerate().map(async |(n, member)| {
            let client = member.connection.get().await.ok()?.client();
            let checked = join(self.identity(&client), refuse_proxy(&client, BackendErrorKind::Invalid));
            let (identity, not_a_proxy) = checked.await;
            Some((n, identity.ok()?, not_a_proxy))
        });
        let mut queries: FuturesUnordered<_> = queries.collect();
        let all = async {
            while let Some(answer) = queries.next().await {
                if let Some((member, identity, not_a_proxy)) = answer {
                    not_a_proxy.map_err(|refused| (member, refused))?;
                    identities[member] = Some(identity);
                }
            }
            Ok(())
        };
        if let Ok(Err((proxy, refused))) = timeout(MIN_IDENTITY_TIMEOUT.max(self.config.hedge), all).await {
            let Failure { error, .. } = refused;
            let endpoint = configured().nth(proxy).map_or("", |member| &member.endpoint);
            return Err(in_context(BackendError::new(error.kind(), format!("{endpoint}: {error}"))));
        }
        let reported: Vec<_> = configured().map(|member| member.endpoint.as_str()).zip(identities).collect();
        if self.cluster.verify(&reported).map_err(in_context)? {
            self.update(Vec::new(), |member| member.origin != Origin::Configured);
        }
        Ok(())
    }

    /// The member's ids, by a serializable read, which it answers without the other members.
    async fn identity(&self, client: &Client) -> Result<MemberIdentity, Failure> {
        let options = GetOptions::new().with_count_only().with_serializable();
        let response = client.kv_client().get(&*self.probe_key, Some(options)).await?;
        Ok(MemberIdentity::of(response.header().ok_or_else(|| malformed("header"))?))
    }

    /// Rejects a response of another cluster than the pinned one.
    pub(crate) fn check_cluster(&self, member: &Member, cluster: u64) -> Result<(), Failure> {
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
}
