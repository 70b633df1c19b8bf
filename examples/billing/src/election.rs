//! Connects to the election's store with tenure.

use std::sync::Arc;

use anyhow::bail;
use tenure::{CandidateId, Config, Elector, StoreUrl};

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

/// The database that a PostgreSQL store is in, for the billing tables. `None` for another store, and if the store has several
/// hosts, of which one is the primary.
pub(crate) fn database_of(store: &str) -> Option<String> {
    let url: StoreUrl = store.parse().ok()?;
    let (database, _) = store.split_once('?').unwrap_or((store, ""));
    (is_postgres(store) && url.hosts().len() == 1).then(|| database.to_owned())
}

/// Whether a PostgreSQL store is in this database, so that its transactions can check the election.
pub(crate) fn is_in_database(store: &str, database: &str) -> bool {
    let parse = |url: &str| url.parse::<StoreUrl>().ok().filter(|_| is_postgres(url));
    let (Some(store), Some(database)) = (parse(store), parse(database)) else { return false };
    // One that is written differently is taken for another, whose transactions check the table `fence`: safe, too.
    let with_port = |host: &String| match host.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => host.clone(),
        _ => format!("{host}:5432"),
    };
    let hosts: Vec<_> = store.hosts().iter().map(with_port).collect();
    store.path() == database.path()
        && database.hosts().iter().map(with_port).any(|host| hosts.contains(&host))
}

pub(crate) fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
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
    if !cfg!(feature = "kubernetes") && store.starts_with("kubernetes:") {
        bail!("built without Kubernetes: add --features kubernetes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_in_the_billing_database_is_recognized() {
        let store = "postgres://elections:secret@h1,h2:5433/billing?ttl=3s&schema=x";
        for (database, is_same) in [
            ("postgres://app@h1/billing", true),
            ("postgresql://app:other@h1:5432/billing?sslmode=disable", true),
            ("postgres://app@h2:5433/billing", true),
            ("postgres://app@h2/billing", false),
            ("postgres://app@h3/billing", false),
            ("postgres://app@h1/invoices", false),
            ("sqlite:billing.db", false),
        ] {
            assert_eq!(is_in_database(store, database), is_same, "{database}");
        }
        assert!(!is_in_database("etcd://h1:5432/billing", "postgres://app@h1/billing"));
    }

    #[test]
    fn the_database_of_a_store_is_the_default() {
        let database = database_of("postgres://app@h:5433/billing?ttl=3s");
        assert_eq!(database.as_deref(), Some("postgres://app@h:5433/billing"));
        for other in ["postgres://app@h1,h2/billing", "etcd://h/billing", "local:/tmp/x"] {
            assert_eq!(database_of(other), None, "{other}");
        }
    }
}
