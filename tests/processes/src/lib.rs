//! Processes that fork, that replace their program, and that are killed and restarted. The program of this package is what the tests start.

#[allow(unsafe_code)]
mod fork;

pub use fork::{ForkedChild, close_all_files, fork};
