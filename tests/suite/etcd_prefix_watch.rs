//! The conformance suite on etcd 3.5, with clients that use one prefix watch for all waits.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Etcd::with_prefix_watch(Version::Etcd35));
