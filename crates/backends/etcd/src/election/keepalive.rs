//! Keeps a lease alive.
//!
//! etcd's keepalive responses have no sequence number, so a response could belong to an earlier request. A stream is
//! therefore reused only when every request on it was answered. A request has the stream to itself, and a stream
//! whose request is not answered is dropped. The client library discards a stream's first response, and with it the
//! raft term, so a new stream sends a second request. A new stream to a grpc-proxy is refused.
//!
//! # Why the term in the response proves the keepalive
//!
//! A keepalive alone proves nothing. [`EtcdSession::heartbeat`](crate::election::session::EtcdSession) sends a linearizable
//! read after its response, and returns only once both report the same raft term. In etcd 3.4 and 3.5 alike:
//!
//! 1. `server/etcdserver/api/v3rpc/lease.go` fills the header *before* it renews the lease. The header's term x
//!    (`v3rpc/header.go`) is that of the last entry which this member applied (`setTerm` in `etcdserver/server.go`).
//! 2. A member applies an entry only once it knows the leader of its term (`updateLead` in `etcdserver/raft.go` comes
//!    before the entries). So the lease was renewed at a leader of term K ≥ x.
//! 3. A linearizable read sent after that is served once a leader of some term L has had answers from a quorum, by a
//!    member that has applied an entry of L. It reports term y ≥ L.
//! 4. A quorum that has voted in K does not answer a leader of a lower term L. So K ≤ L.
//! 5. If x = y, then x ≤ K ≤ L ≤ y = x: the leader that renewed the lease was still leader after it did, and no other
//!    can have revoked the lease.
//! 6. A leader that is elected later gives every lease its whole TTL anew. That does not hold with
//!    `--experimental-enable-lease-checkpoint-persist`.
//!
//! If they differ, another keepalive is sent, and another read after its response. The argument is about that pair alone.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper};
use futures::{TryFutureExt as _, future::try_join};
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};

use crate::transport::{
    error::{Failure, malformed},
    members::{CallClass, Members},
    proxy::refuse_proxy,
    request::Answer,
};

/// A keepalive that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renewal {
    pub(crate) ttl: Duration,
    /// The raft term in the response.
    pub(crate) raft_term: u64,
}

/// The keepalives of one lease.
pub(crate) struct Keepalive {
    lease: i64,
    /// A stream on which every request was answered.
    idle_stream: Mutex<Option<KeepaliveStream>>,
}

/// A keepalive stream to one member.
struct KeepaliveStream {
    client: Arc<Client>,
    requests: LeaseKeeper,
    responses: LeaseKeepAliveStream,
}

impl KeepaliveStream {
    /// Sends a request and waits for its response. Without one the stream is dropped.
    async fn send(mut self, lease: i64) -> Result<(Answer<Renewal>, Self), Failure> {
        self.requests.keep_alive().await?;
        // `keep_alive` returns `Ok` on a dead connection (hazard E12): only a response counts.
        let mut response = self.responses.message().await?.ok_or_else(|| malformed("keepalive"))?;
        if response.id() != lease {
            return Err(malformed("keepalive of this lease").into());
        }
        if response.ttl() <= 0 {
            return Err(BackendError::new(BackendErrorKind::SessionGone, "lease not found").into());
        }
        let header = response.take_header().ok_or_else(|| malformed("header"))?;
        let renewal = Renewal { ttl: ttl_from_secs(response.ttl())?, raft_term: header.raft_term() };
        Ok(((Some(header), renewal), self))
    }
}

impl Keepalive {
    pub(crate) fn new(lease: i64) -> Self {
        Self { lease, idle_stream: Mutex::default() }
    }

    /// Renews the lease.
    pub(crate) async fn send(&self, members: &Arc<Members>) -> Result<Renewal, BackendError> {
        let lease = self.lease;
        members
            .call("heartbeat", CallClass::Keepalive, |client| async move {
                let idle =
                    lock(&self.idle_stream).take().filter(|stream| Arc::ptr_eq(&stream.client, &client));
                // An idle stream may have ended in the meantime.
                if let Some(stream) = idle
                    && let Ok((renewal, stream)) = stream.send(lease).await
                {
                    *lock(&self.idle_stream) = Some(stream);
                    return Ok(renewal);
                }
                let mut lease_client = client.lease_client();
                let opened = lease_client.keep_alive(lease).map_err(Failure::from);
                let ((requests, responses), ()) =
                    try_join(opened, refuse_proxy(&client, BackendErrorKind::Unavailable)).await?;
                let stream = KeepaliveStream { client, requests, responses };
                let (renewal, stream) = stream.send(lease).await?;
                *lock(&self.idle_stream) = Some(stream);
                Ok(renewal)
            })
            .await
    }
}

/// A TTL from etcd, in seconds.
pub(crate) fn ttl_from_secs(ttl: i64) -> Result<Duration, BackendError> {
    u64::try_from(ttl)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| malformed("positive TTL"))
}
