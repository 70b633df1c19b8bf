//! The shared suite on etcd 3.5, with clients that watch all that they wait for with one watch.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Etcd::with_common_watch(Version::Etcd35));
