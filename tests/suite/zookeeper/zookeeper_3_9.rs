//! The conformance suite on ZooKeeper 3.9.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Zookeeper::new(Version::Zookeeper39));
