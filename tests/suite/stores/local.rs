//! The conformance suite on the local store.

tenure_testkit::conformance!(async { tenure_tests::Local::new() });
