//! The stores under test, as the shared suite wants them.

mod local;
mod memory;

pub use local::Local;
pub use memory::Memory;
