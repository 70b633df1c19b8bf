//! The stores under test, as the shared suite wants them.

mod etcd;
mod local;
mod memory;

pub use etcd::Etcd;
pub use local::Local;
pub use memory::Memory;
