//! The conformance suite on a Kubernetes API server 1.20.

use tenure_containers::Version;

tenure_testkit::conformance!(tenure_tests::Kubernetes::new(Version::Kubernetes120));
