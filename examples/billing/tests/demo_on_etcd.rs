//! The demo on a real etcd. There a stopped leader loses its leadership, other than on a lock file.

mod common;

use common::check_takeovers;
use tenure_containers::{SharedEtcd, Version};

/// Hazard G1: on etcd a stopped leader continues after its successor was elected.
#[tokio::test]
async fn on_etcd_leadership_moves_on_from_a_stopped_leader() {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let store = format!("etcd://{}/billing-{:016x}?ttl=2s", etcd.endpoint(), fastrand::u64(..));
    check_takeovers(&store);
}
