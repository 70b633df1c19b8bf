//! ZooKeeper servers: configured, started and administered.

mod admin;
mod ensemble;
mod frame;
mod protocol;
mod server;
mod session;
mod settings;

pub use admin::ZookeeperAdmin;
pub use ensemble::ZookeeperEnsemble;
pub use frame::AclEntry;
pub use server::{SharedZookeeper, ZookeeperServer};
pub use session::{AdminSession, CreateMode, Znode};
pub use settings::ZookeeperSettings;
