//! The demo on a real etcd: where leadership moves on, as it does not on a lock file.

mod common;

use common::{last_line, run};
use tenure_testkit::containers::{SharedEtcd, Version};

/// Hazard G1: on etcd a stopped leader wakes beside its successor.
#[tokio::test]
async fn on_etcd_leadership_moves_on_from_a_stopped_leader() {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let store = format!("etcd://{}/billing-{:016x}?ttl=2s", etcd.endpoint(), fastrand::u64(..));
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
