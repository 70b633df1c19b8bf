//! The conformance suite on PostgreSQL 17.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Postgres::new(Version::Postgres17));
