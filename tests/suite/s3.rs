//! The conformance suite and the contract of stores on an S3 server.

use tenure_tests::S3;

tenure_testkit::conformance!(S3::harness());

mod contract {
    use super::S3;

    tenure_tests::cas_contract!(S3::new());
}
