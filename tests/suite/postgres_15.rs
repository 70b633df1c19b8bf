//! The conformance suite on PostgreSQL 15.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Postgres::new(Version::Postgres15));
