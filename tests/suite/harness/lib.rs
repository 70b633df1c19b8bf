//! The stores under test, as the shared suite wants them.

/// The guides' Rust, compiled and, where it needs no server, run.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/contributing/backend.md")]
    struct Backend;
    #[doc = include_str!("../../../docs/guide/choosing.md")]
    struct Choosing;
    #[doc = include_str!("../../../docs/guide/coming-from.md")]
    struct ComingFrom;
    #[doc = include_str!("../../../docs/guide/fencing.md")]
    struct Fencing;
    #[doc = include_str!("../../../docs/guide/operating.md")]
    struct Operating;
    #[doc = include_str!("../../../docs/guide/start.md")]
    struct Start;
}

mod authority;
mod etcd;
mod local;
mod memory;
mod patience;
mod relay;
mod zookeeper;

pub use authority::{Authority, ClientFiles};
pub use etcd::Etcd;
pub use local::Local;
pub use memory::Memory;
pub use patience::{goes_on, promptly};
pub use relay::Relay;
pub use zookeeper::{Zookeeper, session_id};
