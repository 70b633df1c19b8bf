//! The conformance suite on the in-memory store, once for each kind of heartbeat proof.

mod by_answer {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::memory::Proof::Answer) });
}

mod by_read {
    tenure_testkit::conformance!(async { tenure_tests::Memory::new(tenure::memory::Proof::Read) });
}

mod by_next_heartbeat {
    use std::time::Duration;

    tenure_testkit::conformance!(async {
        tenure_tests::Memory::new(tenure::memory::Proof::LaterHeartbeats { gap: Duration::from_millis(250) })
    });
}
