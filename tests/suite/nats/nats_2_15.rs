//! The conformance suite and the contract of stores on NATS 2.15.

use tenure_containers::Version;
use tenure_tests::Nats;

tenure_testkit::conformance!(Nats::harness(Version::Nats215));

mod contract {
    use super::{Nats, Version};

    tenure_tests::cas_contract!(Nats::new(Version::Nats215));
}
