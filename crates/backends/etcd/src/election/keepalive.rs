//! Keeping a lease alive.
//!
//! etcd's answers carry no number, so that an answer could belong to an earlier question. A
//! stream is therefore used again only when all that was asked on it has been answered; whoever
//! asks has it to itself, and when it does not come back with an answer it is dropped. The client
//! library keeps a stream's first answer to itself, and with it the term: on a new one a second
//! question is asked.
//!
//! # Why the term in the answer is good for `confirm`
//!
//! In etcd 3.4 and 3.5 alike, `server/etcdserver/api/v3rpc/lease.go` fills the
//! header *before* it renews, and the header's term (`v3rpc/header.go`) is that of
//! the last entry this member applied (`setTerm` in `etcdserver/server.go`), which
//! it has only once it knew the leader of that term (`updateLead` in
//! `etcdserver/raft.go` comes before the entries). So a member that says term x
//! renewed the lease at a leader of term K ≥ x. A linearizable read sent after that
//! was served once a leader of some term L had heard a quorum, and by a member that
//! had applied an entry of L: it says y ≥ L. No quorum hears L once it has voted
//! in K > L, so K ≤ L. With x = y then x ≤ K ≤ L ≤ y = x: the leader that renewed
//! the lease was still leader after it did, and no other can have revoked it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper};
use tenure_core::spi::{BackendError, BackendErrorKind, Heartbeat};

use crate::{
    transport::error::{Failure, malformed},
    transport::members::{Call, Members},
    transport::request::Asked,
};

/// The keepalives of one lease.
pub(crate) struct Keepalive {
    lease: i64,
    /// A stream on which no question is open.
    line: Mutex<Option<Line>>,
}

/// A stream of keepalives to one member.
struct Line {
    client: Arc<Client>,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Line {
    /// Asks once, and waits for the answer; without one the stream is dropped.
    async fn ask(mut self, lease: i64, asked: &Asked) -> Result<(Heartbeat, Self), Failure> {
        self.keeper.keep_alive().await?;
        // `keep_alive` is Ok on a dead connection (hazard E12): only an answer counts.
        let answer = self.answers.message().await?.ok_or_else(|| malformed("keepalive"))?;
        asked.answered(answer.header());
        if answer.id() != lease {
            return Err(malformed("keepalive of our lease").into());
        }
        if answer.ttl() <= 0 {
            return Err(BackendError::new(BackendErrorKind::SessionGone, "lease not found").into());
        }
        let epoch = answer.header().ok_or_else(|| malformed("header"))?.raft_term();
        Ok((Heartbeat { ttl: seconds_of(answer.ttl())?, epoch }, self))
    }
}

impl Keepalive {
    pub(crate) fn of(lease: i64) -> Self {
        Self { lease, line: Mutex::default() }
    }

    /// Asks for the lease to live on.
    pub(crate) async fn ask(&self, members: &Members) -> Result<Heartbeat, BackendError> {
        let lease = self.lease;
        let won = members
            .call("heartbeat", Call::Keepalive, |client| async move {
                let kept = self.line().take().filter(|line| Arc::ptr_eq(&line.client, client.client()));
                // One that was quiet for a while may have ended meanwhile.
                if let Some(line) = kept
                    && let Ok((heartbeat, line)) = line.ask(lease, &client).await
                {
                    *self.line() = Some(line);
                    return Ok(heartbeat);
                }
                let (keeper, answers) = client.lease_client().keep_alive(lease).await?;
                let line = Line { client: Arc::clone(client.client()), keeper, answers };
                let (heartbeat, line) = line.ask(lease, &client).await?;
                *self.line() = Some(line);
                Ok(heartbeat)
            })
            .await?;
        Ok(won.value)
    }

    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TTL as etcd says it.
pub(crate) fn seconds_of(ttl: i64) -> Result<Duration, BackendError> {
    u64::try_from(ttl)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| malformed("positive TTL"))
}
