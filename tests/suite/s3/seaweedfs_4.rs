//! The conformance suite and the contract of stores on an S3 server.

use tenure_tests::S3;

tenure_testkit::conformance!(S3::harness());

mod contract {
    use std::time::Duration;

    use super::S3;

    async fn patient() -> S3 {
        S3::new().await.with_attempt_timeout(Duration::from_secs(20))
    }

    tenure_tests::cas_contract!(patient());
}
