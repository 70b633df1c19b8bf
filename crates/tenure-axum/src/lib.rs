//! Leader election in [axum] services.
//!
//! - [`router`]: health endpoints for load balancers, orchestrators and operators.
//! - [`ForwardToLeader`]: a layer with which followers forward requests to the leader.
//! - [`Fencing`] and [`FenceLayer`]: the `Fencing-Token` header, for services that a leader writes to.
//!
//! ```
//! use axum::{Router, routing::post};
//! use std::sync::Arc;
//! use tenure_axum::{ForwardToLeader, Leading};
//! use tenure_core::{Config, StatusHandle, StoreElector, memory::MemoryStore};
//!
//! // Runs on the leader only. Followers forward the request to it.
//! async fn charge(Leading(leadership): Leading) -> String {
//!     format!("charged with token {}\n", leadership.fencing_token())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tenure_core::Error> {
//! // The candidate's value is the address at which followers reach this process.
//! let config = Config::new().with_value("http://10.0.0.7:8080");
//! let elector = Arc::new(StoreElector::new(Arc::new(MemoryStore::new().backend()), config)?);
//! let status = StatusHandle::new(elector, "billing")?;
//! let app: Router = Router::new()
//!     .route("/charge", post(charge))
//!     .layer(ForwardToLeader::new(status.clone()))
//!     .merge(tenure_axum::router(status)); // after the layer: each node answers these itself
//! # drop(app);
//! # Ok(()) }
//! ```
//!
//! The service itself campaigns, for example with `run_while_leader` in another task.
#![doc(test(attr(deny(warnings))))]

mod fencing;
mod forward;
mod health;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod test_support;

pub use fencing::{FENCING_TOKEN, FenceLayer, FencedService, Fencing, FencingRejection};
pub use forward::{ForwardService, ForwardToLeader, Leading, NotLeader};
pub use health::{Readiness, router, router_with};
