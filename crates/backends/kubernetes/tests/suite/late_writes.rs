//! Writes whose answers are lost, and writes that are executed late.

use std::time::Duration;

use serde_json::json;
use tenure_core::spi::BackendErrorKind;

use crate::{
    api_server::{ApiServer, Fault, Gate},
    candidate::{LIFETIME, Process, TTL, leader},
};

/// A write of a withdrawn request that the server executes later changes nothing: the withdrawal has changed the version, and only that.
#[tokio::test]
async fn a_withdrawn_takeover_has_no_late_effect() {
    for closes in [false, true] {
        let server = ApiServer::start();
        server.edit("e", |lease| lease["spec"] = json!({ "holderIdentity": "", "leaseDurationSeconds": 1 }));
        let (before, version) = (server.spec("e"), server.version_of("e"));
        let gate = Gate::closed();
        server.inject("update", Fault::ExecuteLater(gate.clone()));
        let a = Process::new(&server).campaign("a").await;
        assert_eq!(a.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable);
        match closes {
            false => a.leave().await.unwrap(),
            true => a.session.close().await.unwrap(),
        }
        assert_eq!(server.spec("e"), before, "others' timers go on");
        assert!(server.version_of("e") > version);
        executed_late(&server, &gate).await;
        assert_eq!(server.holder("e"), "");
        // Nothing is left to withdraw.
        let reads = server.count("get");
        a.leave().await.unwrap();
        assert_eq!(server.count("get"), reads);
    }
}

/// The same of a write that would create the Lease: the withdrawal creates it, released.
#[tokio::test]
async fn a_withdrawn_creation_has_no_late_effect() {
    let server = ApiServer::start();
    let gate = Gate::closed();
    server.inject("create", Fault::ExecuteLater(gate.clone()));
    let a = Process::new(&server).campaign("a").await;
    assert_eq!(a.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable);
    a.leave().await.unwrap();
    executed_late(&server, &gate).await;
    assert_eq!(server.holder("e"), "");
    Process::new(&server).leader("b").await;
}

/// Hazard G10: the write that has acquired the Lease was not answered, a later one conflicted, and the campaign was dropped then.
#[tokio::test]
async fn a_lease_that_was_acquired_unnoticed_is_released() {
    let server = ApiServer::start();
    server.edit("e", |lease| lease["spec"] = json!({ "holderIdentity": "" }));
    server.inject("update", Fault::LoseAnswer);
    let a = Process::new(&server).campaign("a").await;
    assert_eq!(a.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable);
    assert_eq!(server.holder("e"), a.identity());
    let gates = [Gate::closed(), Gate::closed()];
    gates.iter().for_each(|gate| server.inject("get", Fault::DelayAnswer(gate.clone())));
    let (executed, writes) = (server.executed(), server.count("update"));
    let entering = {
        let (session, request) = (std::sync::Arc::clone(&a.session), a.request.clone());
        tokio::spawn(async move { session.enter(&request).await })
    };
    server.until("it has read", |server| server.executed() > executed).await;
    server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = "1".into());
    gates[0].open();
    server
        .until("it reads again", |server| server.faults_left() == 0 && server.count("update") > writes)
        .await;
    entering.abort();
    let _ = entering.await;
    a.leave().await.unwrap();
    assert_eq!(server.holder("e"), "");
}

/// A renewal that the server executes after a takeover changes nothing.
#[tokio::test]
async fn a_late_renewal_changes_nothing() {
    let (server, a, _) = leader().await;
    let gate = Gate::closed();
    server.inject("update", Fault::ExecuteLater(gate.clone()));
    assert_eq!(a.session.heartbeat().await.unwrap_err().kind(), BackendErrorKind::Unavailable);
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    process.clock.advance(LIFETIME);
    b.win().await;
    executed_late(&server, &gate).await;
    assert_eq!(server.holder("e"), b.identity());
    b.session.heartbeat().await.unwrap();
}

/// Lets the request at `gate` be executed, and waits until it was.
async fn executed_late(server: &ApiServer, gate: &Gate) {
    let executed = server.executed();
    gate.open();
    server.until("the late request was executed", |server| server.executed() > executed).await;
}

/// A write whose answer was lost is found, and the window is counted from another write, which is answered.
#[tokio::test]
async fn a_lost_answer_is_credited_from_a_later_write() {
    let server = ApiServer::start();
    server.inject("create", Fault::LoseAnswer);
    let process = Process::new(&server);
    let a = process.campaign("a").await;
    assert_eq!(a.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable);
    let created = server.spec("e");
    assert_eq!(created["holderIdentity"], a.identity());
    process.clock.advance(TTL);
    let asked = a.clock.now_nanos();
    let won = a.win().await;
    assert_eq!(won.sent.unwrap().at().as_nanos(), asked);
    assert_ne!(server.spec("e")["renewTime"], created["renewTime"], "the lease was renewed");
    assert_eq!(server.spec("e")["leaseTransitions"], 0, "it is the same leadership");
    assert_eq!(won.token.get(), server.version_of("e"));
}

/// The window is counted from before the first attempt of the write that won: a slow answer shortens it.
#[tokio::test]
async fn a_window_is_counted_from_the_sending() {
    let server = ApiServer::start();
    let gate = Gate::closed();
    server.inject("create", Fault::DelayAnswer(gate.clone()));
    let process = Process::new(&server);
    let a = process.campaign("a").await;
    let asked = a.clock.now_nanos();
    let (won, ()) = tokio::join!(a.win(), async {
        server.until("created", |server| server.lease("e").is_some()).await;
        process.clock.advance(Duration::from_secs(2));
        gate.open();
    });
    assert_eq!(won.sent.unwrap().at().as_nanos(), asked);
}

/// Hazard G11: a release is carried out even if its answer is lost, and never hits the next leader.
#[tokio::test]
async fn a_release_is_repeated_and_hits_nobody_else() {
    let (server, a, won) = leader().await;
    server.inject("update", Fault::LoseAnswer);
    let lost = a.session.leave(&a.request, Some(&won.entry)).await.unwrap_err();
    assert_eq!(lost.kind(), BackendErrorKind::Unavailable);
    assert_eq!(server.holder("e"), "");
    let (b, _) = Process::new(&server).leader("b").await;
    a.session.leave(&a.request, Some(&won.entry)).await.unwrap();
    a.session.close().await.unwrap();
    assert_eq!(server.holder("e"), b.identity());
    b.session.heartbeat().await.unwrap();
}
