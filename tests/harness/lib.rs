//! The stores under test, as the shared suite wants them.

mod etcd;
mod local;
mod memory;
mod relay;
mod zookeeper;

pub use etcd::Etcd;
pub use local::Local;
pub use memory::Memory;
pub use relay::Relay;
pub use zookeeper::{Zookeeper, session_id};
