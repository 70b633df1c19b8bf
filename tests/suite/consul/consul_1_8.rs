//! The conformance suite and the contract of stores on Consul 1.8.

use tenure_containers::Version;
use tenure_tests::Consul;

tenure_testkit::conformance!(Consul::harness(Version::Consul18));

mod contract {
    use super::{Consul, Version};

    tenure_tests::cas_contract!(Consul::new(Version::Consul18));
}
