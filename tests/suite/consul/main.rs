//! Tests on Consul: the conformance suite, the contract of a `CasStore`, and what only this store has.

mod access;
mod cluster;
mod consul_1_8;
mod doctor;
