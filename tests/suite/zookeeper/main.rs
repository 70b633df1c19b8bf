//! Tests on ZooKeeper: the conformance suite on each version, and what only ZooKeeper has.

mod access;
mod doctor;
mod ensemble;
mod interop;
mod permissions;
mod queue;
mod sessions;
mod tls;
mod zookeeper_3_8;
mod zookeeper_3_9;
