//! Tests on a Kubernetes API server: the conformance suite, and what only Kubernetes has.

mod access;
mod cluster;
mod faults;
mod interop;
mod kubernetes_1_20;
mod secrets;
