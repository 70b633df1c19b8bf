//! The conformance suite and the contract of stores on Redis 7.0.

use tenure_containers::Version;
use tenure_tests::Redis;

tenure_testkit::conformance!(Redis::harness(Version::Redis70));

mod contract {
    use super::{Redis, Version};

    tenure_tests::cas_contract!(Redis::new(Version::Redis70));
}
