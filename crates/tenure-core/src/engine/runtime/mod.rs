//! Where engine code and application code run: the engine's thread, and the threads that call the application.
//!
//! | file | what |
//! |---|---|
//! | `engine_runtime` | the thread, or the given runtime, on which the engine's tasks run |
//! | `callbacks` | the threads that call wakers, hooks and subscribers of the application |
//! | `relayed` | wakes a caller on any executor from the engine's thread |
//! | `report` | hands over logs and metrics without waiting |
//! | `report_queue` | the queue in which they wait for a callback thread |
//! | `forward` | the `tracing` subscriber of the engine's threads, which copies events into that queue |
//! | `retry` | pauses between attempts, and timeouts of requests |

pub(crate) mod callbacks;
pub(crate) mod engine_runtime;
mod forward;
mod relayed;
pub(crate) mod report;
mod report_queue;
pub(crate) mod retry;
