//! Ends a session of an earlier process of this candidate ([`Backend::end_session`](tenure_core::spi::Backend::end_session)).
//!
//! A lease's id alone is no proof: another cluster, or this one restored from a snapshot, may have a lease with this id. So the
//! cluster is compared, and one entry of the lease has to carry the nonce of that process. A lease without an entry of ours blocks
//! no election here, and is left to expire.

use std::sync::Arc;

use etcd_client::{GetOptions, LeaseTimeToLiveOptions};
use tenure_core::spi::{BackendError, BackendErrorKind, SessionRecord};

use crate::{
    election::{keys::Keys, store::ElectionStore},
    transport::{
        members::{CallClass, Members},
        request::kv,
    },
};

/// Revokes the lease of `record`, if it is the one that the record means.
///
/// # Errors
/// [`Invalid`](BackendErrorKind::Invalid) when it is not, or has no entry below the prefix.
pub(crate) async fn end(store: &ElectionStore, record: &SessionRecord) -> Result<(), BackendError> {
    let refused = |text: String| Err(BackendError::new(BackendErrorKind::Invalid, text));
    let Ok(lease) = i64::from_str_radix(&record.session, 16) else {
        return refused(format!("{:?} is no etcd lease", record.session));
    };
    let members = &store.members;
    members.verify_cluster("end session").await?;
    catch_up(members, &store.keys.absent_key()).await?;
    let keys = keys_of(members, lease).await?;
    let cluster = cluster(members)?;
    if cluster != record.cluster {
        return refused(format!("the session belongs to cluster {}, and this is {cluster}", record.cluster));
    }
    let Some(keys) = keys else { return Ok(()) };
    let prefix = members.key_prefix();
    let is_entry = |key: &&Vec<u8>| Keys::is_entry_of(&prefix, key, lease);
    let Some(entry) = keys.iter().find(is_entry) else {
        return refused(format!(
            "found no entry of lease {lease:x} below {prefix}: it had none, or the earlier process had another prefix; the lease \
             expires"
        ));
    };
    let read = members.call("end session", CallClass::Urgent, |client| async move {
        let mut response = kv(&client).get(entry.as_slice(), None).await?;
        Ok((response.take_header(), response.take_kvs().pop()))
    });
    let Some(found) = read.await? else {
        let text = format!("an entry of lease {lease:x} was deleted meanwhile: try again");
        return Err(BackendError::new(BackendErrorKind::Unavailable, text));
    };
    if found.lease() != lease || !record.is_payload_of_session(found.value()) {
        return refused("the entries of the session were created by another process".to_owned());
    }
    revoke(members, "end session", lease).await
}

/// The cluster that has answered, as a record names it.
///
/// # Errors
/// When none has.
pub(crate) fn cluster(members: &Arc<Members>) -> Result<String, BackendError> {
    let cluster = members.cluster.pinned();
    let unknown = || BackendError::new(BackendErrorKind::Unavailable, "no member has told its cluster yet");
    cluster.map(|cluster| format!("{cluster:x}")).ok_or_else(unknown)
}

/// Revokes a lease. Succeeds if it does not exist.
pub(crate) async fn revoke(
    members: &Arc<Members>,
    what: &'static str,
    lease: i64,
) -> Result<(), BackendError> {
    let revoked = members.call(what, CallClass::Urgent, |client| async move {
        Ok((client.lease_client().revoke(lease).await?.take_header(), ()))
    });
    match revoked.await {
        Err(error) if error.kind() != BackendErrorKind::SessionGone => Err(error),
        _ => Ok(()),
    }
}

/// A linearizable read. A newly elected leader that has not applied everything yet does not know every lease, nor every key of
/// one. After this it does.
async fn catch_up(members: &Arc<Members>, absent_key: &str) -> Result<(), BackendError> {
    let read = members.call("end session", CallClass::Urgent, |client| async move {
        let options = GetOptions::new().with_keys_only();
        Ok((kv(&client).get(absent_key, Some(options)).await?.take_header(), ()))
    });
    read.await
}

/// The keys of a lease; `None` if there is no such lease.
async fn keys_of(members: &Arc<Members>, lease: i64) -> Result<Option<Vec<Vec<u8>>>, BackendError> {
    let asked = members.call("end session", CallClass::Urgent, |client| async move {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let mut response = client.lease_client().time_to_live(lease, Some(options)).await?;
        Ok((response.take_header(), (response.ttl() >= 0).then(|| response.keys().to_vec())))
    });
    match asked.await {
        Err(error) if error.kind() == BackendErrorKind::SessionGone => Ok(None),
        answer => answer,
    }
}
