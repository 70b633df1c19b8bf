//! The shared suite on the in-memory store, once for each way of confirming heartbeats.

mod answers {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::spi::Proof::Answer) });
}

mod confirming_reads {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::spi::Proof::Read) });
}

mod later_heartbeats {
    use std::time::Duration;

    tenure_testkit::conformance!(async {
        tenure_tests::Memory::new(tenure::spi::Proof::Later { gap: Duration::from_millis(250) })
    });
}
