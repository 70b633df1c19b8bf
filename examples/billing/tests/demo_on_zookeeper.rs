//! The demo on a real ZooKeeper: where leadership moves on, as it does not on a lock file.

mod common;

use common::leadership_moves_on;
use tenure_containers::{SharedZookeeper, Version};

/// Hazard G1: on ZooKeeper a stopped leader wakes beside its successor.
#[tokio::test]
async fn on_zookeeper_leadership_moves_on_from_a_stopped_leader() {
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let store = format!("zookeeper://{}/billing-{:016x}?ttl=2s", zookeeper.endpoint(), fastrand::u64(..));
    leadership_moves_on(&store);
}
