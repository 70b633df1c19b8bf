//! Leader election: the traits, the engine that holds all safety rules, fencing, and an in-memory store.
#![doc(test(attr(deny(warnings))))]

mod candidate;
mod clock;
mod config;
mod diagnosis;
mod election_status;
mod elector;
mod error;
#[doc(hidden)]
pub mod failpoints;
mod fencing;
mod hierarchy;
mod leadership;
mod loss;
mod name;
mod plain_text;
mod printable;
mod random;
mod runner;
mod status;
mod sync;
mod telemetry;
mod tls;
mod url;

pub mod engine;
pub mod memory;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod spi;

pub use candidate::{Candidate, MAX_VALUE_BYTES};
pub use clock::{BootClock, BootInstant, Clock, SimClock};
pub use config::{Backoff, Config, OnDisconnect, OnOverrun, Overrun};
pub use diagnosis::{Diagnosis, Level};
pub use election_status::{ElectionStatus, StatusHandle};
pub use elector::{Elector, Leaders};
pub use engine::StoreElector;
pub use error::{BoxError, Error, InvalidConfig, Lost};
pub use fencing::{Fence, FencingToken, ParseTokenError, StaleToken};
pub use hierarchy::Hierarchy;
pub use leadership::{Leadership, LeadershipHandle};
pub use loss::LossReason;
pub use name::{CandidateId, ElectionName, InvalidCandidate, InvalidElection};
pub use runner::ElectorExt;
pub use status::{Connection, Status};
pub use tls::{Tls, TlsPem};
pub use url::{InvalidUrl, Password, Secret, StoreUrl};
