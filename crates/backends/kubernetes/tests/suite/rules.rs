//! The rules of the recipe: the Lease, takeovers, tokens, deletion; hazards K1, K4 and K5.

use std::time::Duration;

use serde_json::json;
use tenure_core::spi::{Backend as _, BackendErrorKind, EntryEvent, QueuePosition};

use crate::{
    api_server::{ApiServer, Fault, Gate},
    candidate::{LIFETIME, MILLISECOND, Process, Rivals, election, kill, leader, next_event},
};

/// The fields of a Lease are those of client-go: on creation, on renewal, on release, and when it is taken.
#[tokio::test]
async fn a_lease_has_the_fields_that_client_go_writes() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, _) = process.leader("a").await;
    let created = server.spec("e");
    let now = "2023-11-14T22:13:20.000000Z";
    let expected = json!({
        "holderIdentity": a.identity(), "leaseDurationSeconds": 10, "leaseTransitions": 0, "acquireTime": now, "renewTime": now,
    });
    assert_eq!(created, expected);

    process.clock.advance(Duration::from_secs(3));
    a.session.heartbeat().await.unwrap();
    let mut expected = created;
    expected["renewTime"] = "2023-11-14T22:13:23.000000Z".into();
    assert_eq!(server.spec("e"), expected);

    process.clock.advance(Duration::from_secs(1));
    a.leave().await.unwrap();
    let now = "2023-11-14T22:13:24.000000Z";
    let expected = json!({
        "holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0, "acquireTime": now, "renewTime": now,
    });
    assert_eq!(server.spec("e"), expected);
    assert_eq!(server.annotation("e", "tenure/payload"), None);

    process.clock.advance(Duration::from_secs(1));
    let (b, _) = process.leader("b").await;
    let now = "2023-11-14T22:13:25.000000Z";
    let expected = json!({
        "holderIdentity": b.identity(), "leaseDurationSeconds": 10, "leaseTransitions": 1, "acquireTime": now, "renewTime": now,
    });
    assert_eq!(server.spec("e"), expected);
}

/// A Lease's duration has whole seconds, and is never shorter than the TTL.
#[tokio::test]
async fn a_ttl_is_rounded_up_to_whole_seconds() {
    let server = ApiServer::start();
    let process = Process::with(server.backend(), Duration::from_millis(1_500));
    let (a, _) = process.leader("a").await;
    assert_eq!(server.spec("e")["leaseDurationSeconds"], 2);
    assert_eq!(a.session.granted_ttl(), Duration::from_secs(2));
}

/// Two renewals never look equal, whatever the time of day does: a challenger compares.
#[tokio::test]
async fn the_renew_time_rises_while_the_time_of_day_stands_still_or_goes_back() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, _) = process.leader("a").await;
    let mut times = vec![server.spec("e")["renewTime"].clone()];
    for step in 0..4 {
        process.clock.set_back(Duration::from_secs(step * 100));
        a.session.heartbeat().await.unwrap();
        times.push(server.spec("e")["renewTime"].clone());
    }
    let times: Vec<_> = times.iter().map(|time| time.as_str().unwrap()).collect();
    let expected: Vec<_> = (0..5).map(|micro| format!("2023-11-14T22:13:20.00000{micro}Z")).collect();
    assert_eq!(times, expected);
}

/// Hazard K4: who patches a label of a dead leader's Lease again and again does not keep it alive.
#[tokio::test]
async fn a_patched_label_does_not_extend_a_dead_leaders_lease() {
    let Rivals { server, a, process, b } = Rivals::start().await;
    kill(a);
    for n in 0..10 {
        process.clock.advance(LIFETIME / 10 - MILLISECOND);
        server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = n.to_string().into());
        assert_eq!(b.held_by().await, "a");
    }
    process.clock.advance(MILLISECOND * 10);
    b.win().await;
}

/// The duration is that of the Lease, with the drift bound, by the challenger's own clock, from when it has seen the spec.
#[tokio::test]
async fn a_takeover_waits_for_the_duration_and_the_drift_bound() {
    let (server, a, first) = leader().await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    // Seen now for the first time, however old it is by the time of day.
    process.clock.advance(LIFETIME * 10);
    assert_eq!(b.held_by().await, "a");
    process.clock.advance(LIFETIME - MILLISECOND);
    assert_eq!(b.held_by().await, "a");
    // A renewal begins it again.
    a.session.heartbeat().await.unwrap();
    assert_eq!(b.held_by().await, "a");
    process.clock.advance(LIFETIME - MILLISECOND);
    assert_eq!(b.held_by().await, "a");
    process.clock.advance(MILLISECOND);
    let second = b.win().await;
    assert!(second.token > first.token);
    assert_eq!(server.spec("e")["leaseTransitions"], 1);
    let lost = a.session.heartbeat().await.unwrap_err();
    assert_eq!(lost.kind(), BackendErrorKind::SessionGone, "{lost}");
}

/// Campaigns that do not wait take over, too: what was seen belongs to the process.
#[tokio::test]
async fn a_takeover_needs_no_campaign_that_waits() {
    let (server, a, _) = leader().await;
    kill(a);
    let process = Process::new(&server);
    for _ in 0..10 {
        assert_eq!(process.campaign("b").await.held_by().await, "a");
        process.clock.advance(LIFETIME / 10);
    }
    process.campaign("b").await.win().await;
}

/// The precondition of a takeover is the version that a quorum has answered with: a renewal that comes between is not overwritten.
#[tokio::test]
async fn a_takeover_never_overwrites_a_renewal() {
    let Rivals { server, a, process, b } = Rivals::start().await;
    process.clock.advance(LIFETIME);
    let gate = Gate::closed();
    server.inject("get", Fault::DelayAnswer(gate.clone()));
    let reads = server.count("get");
    let (held_by, ()) = tokio::join!(b.held_by(), async {
        server.until("b has read", |server| server.count("get") > reads && server.faults_left() == 0).await;
        a.session.heartbeat().await.unwrap();
        gate.open();
    });
    assert_eq!(held_by, "a");
    assert_eq!(server.holder("e"), a.identity());
    a.session.heartbeat().await.unwrap();
}

/// Hazard K1: `leaseTransitions` begins again when a Lease is created again; tokens rise.
#[tokio::test]
async fn tokens_rise_across_deletion() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let mut last = None;
    for _ in 0..3 {
        let (a, won) = process.leader("a").await;
        assert_eq!(server.spec("e")["leaseTransitions"], 0);
        assert_eq!(won.token.get(), server.version_of("e"), "the version at which it holds the lease");
        assert!(last < Some(won.token), "{last:?}, {:?}", won.token);
        last = Some(won.token);
        a.session.heartbeat().await.unwrap();
        a.leave().await.unwrap();
        server.delete("e");
    }
}

/// A token is fixed once per leadership, and published.
#[tokio::test]
async fn a_token_is_fixed_and_published() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, won) = process.leader("a").await;
    let token = won.token.get().to_string();
    let mut watcher = a.watch(&won);
    tokio::select! {
        event = next_event(&mut watcher) => panic!("{event:?}"),
        () = server.until("published", |server| server.annotation("e", "tenure/token").is_some()) => {}
    }
    for _ in 0..3 {
        assert_eq!(server.annotation("e", "tenure/token"), Some(token.clone()));
        a.session.heartbeat().await.unwrap();
    }
    let position = QueuePosition::new(|_| {});
    let again = a.session.wait_turn(&a.request, Some(&won.entry), &position);
    assert_eq!(again.await.unwrap().token, won.token);
    let leader = process.backend.leader(&election()).await.unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.token), ("a", Some(won.token)));
    // A renewal publishes it again, if somebody has removed it.
    server.edit("e", |lease| lease["metadata"]["annotations"] = json!({}));
    a.session.heartbeat().await.unwrap();
    assert_eq!(server.annotation("e", "tenure/token"), Some(token));
    assert_eq!(process.backend.leader(&election()).await.unwrap().unwrap().id, "a");
}

/// A conflict is no loss: who patches a label makes the leader write again.
#[tokio::test]
async fn a_conflict_is_no_loss() {
    let (server, a, won) = leader().await;
    for n in 0..3 {
        server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = n.to_string().into());
        a.clock.advance(Duration::from_secs(1));
        let (reads, writes) = (server.count("get"), server.count("update"));
        a.session.heartbeat().await.unwrap();
        assert_eq!((server.count("get") - reads, server.count("update") - writes), (1, 2));
        assert_eq!(server.spec("e")["renewTime"], format!("2023-11-14T22:13:2{}.000000Z", n + 1));
        assert_eq!(server.lease("e").unwrap()["metadata"]["labels"]["touched"], n.to_string());
    }
    assert_eq!(won.token.get().to_string(), server.annotation("e", "tenure/token").unwrap());
}

/// Hazard K5: a Lease that was deleted and created again is another one, even if it names the same holder.
#[tokio::test]
async fn another_uid_is_a_loss() {
    let (server, a, won) = leader().await;
    let mut watcher = a.watch(&won);
    let lease = server.lease("e").unwrap();
    server.delete("e");
    server.edit("e", |again| {
        again["spec"] = lease["spec"].clone();
        again["metadata"]["annotations"] = lease["metadata"]["annotations"].clone();
    });
    let lost = a.session.heartbeat().await.unwrap_err();
    assert_eq!(lost.kind(), BackendErrorKind::SessionGone, "{lost}");
    assert!(lost.to_string().contains("the lease was deleted, and another one was created"), "{lost}");
    assert_eq!(next_event(&mut watcher).await, EntryEvent::Deleted);
}

/// Hazard K5: a candidate that has seen a holder keeps its timer when the Lease vanishes. One that has just started cannot know.
#[tokio::test]
async fn a_vanished_lease_is_created_only_after_the_holders_time() {
    let Rivals { server, a, process, b } = Rivals::start().await;
    process.clock.advance(LIFETIME - MILLISECOND);
    // It may have renewed just before, unseen.
    a.session.heartbeat().await.unwrap();
    server.delete("e");
    b.held_by().await;
    assert_eq!(server.lease("e"), None);
    process.clock.advance(LIFETIME - MILLISECOND);
    b.held_by().await;
    process.clock.advance(MILLISECOND);
    b.win().await;
}

/// Hazard K5: the same when the Lease was created again, by whomever.
#[tokio::test]
async fn a_lease_that_was_created_again_is_taken_only_after_the_first_holders_time() {
    let (server, _a, _) = leader().await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    server.delete("e");
    server.edit("e", |lease| lease["spec"] = json!({ "holderIdentity": "" }));
    b.held_by().await;
    process.clock.advance(LIFETIME - MILLISECOND);
    b.held_by().await;
    process.clock.advance(MILLISECOND);
    b.win().await;
}

/// An API server creates a Lease by the verb `update`, too, if no uid is named: neither a renewal nor a release does.
#[tokio::test]
async fn a_lease_that_was_deleted_is_not_created_again() {
    for renews in [false, true] {
        let (server, a, won) = leader().await;
        server.delete("e");
        if renews {
            let lost = a.session.heartbeat().await.unwrap_err();
            assert_eq!(lost.kind(), BackendErrorKind::SessionGone, "{lost}");
            let lost = a.session.update(&won.entry, &a.request).await.unwrap_err();
            assert_eq!(lost.kind(), BackendErrorKind::EntryGone, "{lost}");
        }
        a.leave().await.unwrap();
        a.session.close().await.unwrap();
        assert_eq!(server.lease("e"), None);
    }
}

/// Writes that conflict again and again are repeated after random pauses, and not for ever.
#[tokio::test]
async fn conflicts_are_followed_by_pauses() {
    let (server, a, _) = leader().await;
    for _ in 0..20 {
        server.inject("update", Fault::Refuse(409, None));
    }
    let began = tokio::time::Instant::now();
    let failed = a.session.heartbeat().await.unwrap_err();
    assert!(failed.to_string().contains("is written by others again and again"), "{failed}");
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    assert_eq!(server.faults_left(), 0);
    a.session.heartbeat().await.unwrap();
}
