//! Tests on PostgreSQL: the conformance suite, the contract of a `CasStore`, and what only this store has.

mod access;
mod connections;
mod doctor;
mod fence;
mod postgres_15;
mod postgres_17;
mod store;
