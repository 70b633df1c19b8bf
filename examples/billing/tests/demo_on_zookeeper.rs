//! The demo on a real ZooKeeper. There a stopped leader loses its leadership, other than on a lock file.

mod common;

use common::check_takeovers;
use tenure_containers::{SharedZookeeper, Version};

/// Hazard G1: on ZooKeeper a stopped leader continues after its successor was elected.
#[tokio::test]
async fn on_zookeeper_leadership_moves_on_from_a_stopped_leader() {
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let store = format!("zookeeper://{}/billing-{:016x}?ttl=2s", zookeeper.endpoint(), fastrand::u64(..));
    check_takeovers(&store);
}
