//! The conformance suite on the in-memory store, once for each kind of heartbeat proof.

mod by_answer {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::spi::HeartbeatProof::Answer) });
}

mod by_read {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::spi::HeartbeatProof::Read) });
}

mod by_next_heartbeat {
    use std::time::Duration;

    tenure_testkit::conformance!(async {
        tenure_tests::Memory::new(tenure::spi::HeartbeatProof::NextHeartbeat {
            gap: Duration::from_millis(250),
        })
    });
}
