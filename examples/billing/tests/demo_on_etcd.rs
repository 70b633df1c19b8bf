//! The demo on a real etcd: where leadership moves on, as it does not on a lock file.

mod common;

use common::leadership_moves_on;
use tenure_containers::{SharedEtcd, Version};

/// Hazard G1: on etcd a stopped leader wakes beside its successor.
#[tokio::test]
async fn on_etcd_leadership_moves_on_from_a_stopped_leader() {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let store = format!("etcd://{}/billing-{:016x}?ttl=2s", etcd.endpoint(), fastrand::u64(..));
    leadership_moves_on(&store);
}
