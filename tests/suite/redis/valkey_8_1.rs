//! The conformance suite and the contract of stores on Valkey 8.1.

use tenure_containers::Version;
use tenure_tests::Redis;

tenure_testkit::conformance!(Redis::harness(Version::Valkey81));

mod contract {
    use super::{Redis, Version};

    tenure_tests::cas_contract!(Redis::new(Version::Valkey81));
}
