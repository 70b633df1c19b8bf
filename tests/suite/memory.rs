//! The shared suite on the in-memory store, once for each way of confirming heartbeats.

mod answers {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::spi::HeartbeatProof::Answer) });
}

mod confirming_reads {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::spi::HeartbeatProof::Read) });
}

mod later_heartbeats {
    use std::time::Duration;

    tenure_testkit::conformance!(async {
        tenure_tests::Memory::new(tenure::spi::HeartbeatProof::NextHeartbeat {
            gap: Duration::from_millis(250),
        })
    });
}
