//! etcd servers: started, administered, and watched for leases that expire too early.

mod admin;
mod cluster;
mod gateway;
mod lease_expiry;
mod replacement;
mod server;
mod users;

pub use admin::{EtcdAdmin, KeyValue, Lease, LeaseExpiryStats};
pub use cluster::EtcdCluster;
pub use lease_expiry::LeaseExpiryMonitor;
pub(crate) use server::client_flags;
pub use server::{EtcdServer, SharedEtcd};
pub use users::Permission;
