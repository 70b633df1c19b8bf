//! The conformance suite on etcd 3.5.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Etcd::new(Version::Etcd35));
