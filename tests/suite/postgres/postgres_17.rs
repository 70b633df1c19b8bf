//! The conformance suite and the contract of stores on PostgreSQL 17.

use tenure_containers::Version;
use tenure_tests::Postgres;

tenure_testkit::conformance!(Postgres::harness(Version::Postgres17));

mod contract {
    use super::{Postgres, Version};

    tenure_tests::cas_contract!(Postgres::new(Version::Postgres17));
}
