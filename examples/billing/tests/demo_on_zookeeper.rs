//! The demo on a real ZooKeeper: where leadership moves on, as it does not on a lock file.

mod common;

use common::{last_line, run};
use tenure_testkit::containers::{SharedZookeeper, Version};

/// Hazard G1: on ZooKeeper a stopped leader wakes beside its successor.
#[tokio::test]
async fn on_zookeeper_leadership_moves_on_from_a_stopped_leader() {
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let store = format!("zookeeper://{}/billing-{:016x}?ttl=2s", zookeeper.endpoint(), fastrand::u64(..));
    let data = tempfile::tempdir().unwrap();
    let output = run(&[
        "demo",
        "--store",
        &store,
        "--subscriptions",
        "200",
        "--kills",
        "1",
        "--pauses",
        "1",
        "--json",
        "--data",
        data.path().to_str().unwrap(),
    ]);
    let summary = last_line(&output);
    assert!(output.status.success(), "{summary:#}");
    let faults = summary["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{summary:#}");
    assert!(
        faults.iter().all(|fault| fault["next"].is_string() && fault["next"] != fault["leader"]),
        "{summary:#}"
    );
}
