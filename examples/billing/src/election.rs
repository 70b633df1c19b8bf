//! How the servers elect: everything here is tenure's.

use std::sync::Arc;

use anyhow::bail;
use tenure::{CandidateId, Config, Elector};

/// The election that decides who charges, unless another is named.
pub(crate) const DEFAULT_ELECTION: &str = "billing";

/// An elector that stands under the name `id`, and lets the others know its address.
///
/// # Errors
/// A URL, id or setting that cannot work. A store that cannot be reached now is none: it is waited for.
pub(crate) async fn connect(store: &str, id: &str, address: &str) -> anyhow::Result<Arc<dyn Elector>> {
    check_features(store)?;
    let config = Config::new().with_id(CandidateId::new(id)?).with_value(address);
    Ok(tenure::connect_with(store, config).await?)
}

/// An elector that only watches.
pub(crate) async fn watch(store: &str) -> anyhow::Result<Arc<dyn Elector>> {
    check_features(store)?;
    Ok(tenure::connect(store).await?)
}

fn check_features(store: &str) -> anyhow::Result<()> {
    if !cfg!(feature = "etcd") && store.starts_with("etcd:") {
        bail!("built without etcd: add --features etcd (building it needs protoc)");
    }
    if !cfg!(feature = "zookeeper") && store.starts_with("zookeeper:") {
        bail!("built without ZooKeeper: add --features zookeeper");
    }
    Ok(())
}
