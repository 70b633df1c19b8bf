//! The conformance suite on PostgreSQL 15.

tenure_testkit::conformance!(tenure_tests::Postgres::new());
