//! Tests on NATS: the conformance suite, the contract of a `CasStore`, and what only this store has.

mod access;
mod cluster;
mod nats_2_15;
