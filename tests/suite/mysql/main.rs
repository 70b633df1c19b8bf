//! Tests on MariaDB and MySQL: the conformance suite, the contract of a `CasStore`, and what only this store has.

mod access;
mod failover;
mod mariadb_10_11;
