//! Leader election in [axum] services: health endpoints, followers that send requests to the leader, and the
//! `Fencing-Token` header.
//!
//! ```
//! use axum::{Router, routing::post};
//! use std::sync::Arc;
//! use tenure_axum::{ForwardToLeader, Leading};
//! use tenure_core::{Config, StatusHandle, StoreElector, memory::MemoryStore};
//!
//! // Only the leader gets here; the others have sent the request on to it.
//! async fn charge(Leading(leadership): Leading) -> String {
//!     format!("charged with token {}\n", leadership.fencing_token())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tenure_core::Error> {
//! // The value is where the others find this process.
//! let config = Config::new().with_value("http://10.0.0.7:8080");
//! let elector = Arc::new(StoreElector::new(Arc::new(MemoryStore::new().backend()), config)?);
//! let status = StatusHandle::new(elector, "billing")?;
//! let app: Router = Router::new()
//!     .route("/charge", post(charge))
//!     .layer(ForwardToLeader::new(status.clone()))
//!     .merge(tenure_axum::router(status)); // after the layer: each node answers for itself
//! # drop(app);
//! # Ok(()) }
//! ```
//!
//! Campaigning is left to the service: `run_while_leader` in a task beside the server, say.
#![doc(test(attr(deny(warnings))))]

mod fencing;
mod forward;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod health;

pub use fencing::{FENCING_TOKEN, FenceLayer, FencedService, Fencing, FencingRejection};
pub use forward::{ForwardService, ForwardToLeader, Leading, NotLeading};
pub use health::router;
