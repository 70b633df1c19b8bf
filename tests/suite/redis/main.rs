//! Tests on Redis and Valkey: the conformance suite, the contract of a `CasStore`, and what only this store has.

mod access;
mod faults;
mod redis_7_0;
mod valkey_8_1;
