//! Tests on S3: the conformance suite, the contract of a `CasStore`, and what only this store has.

mod access;
mod seaweedfs_4;
