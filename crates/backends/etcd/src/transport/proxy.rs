//! Refuses etcd's grpc-proxy (hazard E20).
//!
//! The proxy answers a client's keepalive when the proxy's own keepalive of that lease was answered, which it sends about
//! three times in a TTL. Nothing in the answer shows when that one was sent, so the answer proves no extension.

use etcd_client::Client;
use tenure_core::spi::{BackendError, BackendErrorKind};

use crate::transport::error::Failure;

/// The reason why a grpc-proxy cannot be used.
pub(crate) const IS_PROXY: &str = "this is an etcd grpc-proxy, which does not pass keepalives on, so that nothing shows \
                                   until when a lease lasts: name the members of the cluster instead";

/// Fails with an error of this kind when the server is a grpc-proxy.
///
/// A proxy returns a member list of its own, without the header that every member sends. A server that refuses to show its
/// list is none: a proxy asks for no permission. One that was started with an empty `--advertise-client-url` passes the list of
/// a member on and is not recognized.
pub(crate) async fn refuse_proxy(server: &Client, kind: BackendErrorKind) -> Result<(), Failure> {
    match server.cluster_client().member_list().await {
        Ok(list) if list.header().is_none() => Err(BackendError::new(kind, IS_PROXY).into()),
        Ok(_) | Err(_) => Ok(()),
    }
}
