//! Leader election: the traits, the engine that holds all safety rules, fencing, and an in-memory store.
#![doc(test(attr(deny(warnings))))]

mod candidate;
mod clock;
mod config;
mod error;
mod fencing;
mod loss;
mod name;
mod url;

pub mod spi;

pub use candidate::{Candidate, MAX_VALUE_BYTES, encode_payload};
pub use clock::{BootClock, Clock, Moment, SimClock};
pub use config::{Backoff, Config, OnDisconnect, OnOverrun, Overrun};
pub use error::{BoxError, Error, InvalidConfig, Lost};
pub use fencing::{Fence, FencingToken, ParseTokenError, StaleToken};
pub use loss::LossReason;
pub use name::{CandidateId, ElectionName, InvalidCandidate, InvalidElection};
pub use url::{InvalidUrl, Secret, StoreUrl};
