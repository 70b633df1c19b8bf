//! The conformance suite and the contract of stores on MariaDB 10.11.

use tenure_containers::Version;
use tenure_tests::Mysql;

tenure_testkit::conformance!(Mysql::harness(Version::Mariadb1011));

mod contract {
    use super::{Mysql, Version};

    tenure_tests::cas_contract!(Mysql::new(Version::Mariadb1011));
}
