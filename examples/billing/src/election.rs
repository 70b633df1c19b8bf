//! Connects to the election's store with tenure.

use std::sync::Arc;

use anyhow::bail;
use tenure::{CandidateId, Config, Elector};

/// The default name of the election.
pub(crate) const DEFAULT_ELECTION: &str = "billing";

/// Creates an elector whose candidate has this id, and this address as its value.
///
/// # Errors
/// If the URL, the id or a setting is invalid. A store that cannot be reached is no error: the elector retries.
pub(crate) async fn connect(store: &str, id: &str, address: &str) -> anyhow::Result<Arc<dyn Elector>> {
    check_features(store)?;
    let config = Config::new().with_id(CandidateId::new(id)?).with_value(address);
    Ok(tenure::connect_with(store, config).await?)
}

/// Creates an elector that only observes.
pub(crate) async fn connect_observer(store: &str) -> anyhow::Result<Arc<dyn Elector>> {
    check_features(store)?;
    Ok(tenure::connect(store).await?)
}

fn check_features(store: &str) -> anyhow::Result<()> {
    if !cfg!(feature = "etcd") && store.starts_with("etcd:") {
        bail!(
            "built without etcd: add --features etcd (building it needs a protobuf compiler: protoc, or protox with PROTOC=protox)"
        );
    }
    if !cfg!(feature = "zookeeper") && store.starts_with("zookeeper:") {
        bail!("built without ZooKeeper: add --features zookeeper");
    }
    Ok(())
}
