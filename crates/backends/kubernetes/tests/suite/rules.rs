//! Each rule of the recipe, and the hazards K1 to K5.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tenure_core::{
    ElectionName,
    spi::{Backend as _, BackendErrorKind, EntryEvent, QueuePosition},
};

use crate::{
    api_server::{ApiServer, Fault, Gate, PATIENT, backend_by, write_kubeconfig},
    candidate::{Campaign, LIFETIME, Process, TTL, next_event},
};

const MILLISECOND: Duration = Duration::from_millis(1);

fn election() -> ElectionName {
    ElectionName::new("e").unwrap()
}

fn spec(server: &ApiServer) -> Value {
    server.lease("e").unwrap()["spec"].clone()
}

fn annotation(server: &ApiServer, name: &str) -> Option<String> {
    Some(server.lease("e")?["metadata"]["annotations"][name].as_str()?.to_owned())
}

/// Kills a leader: nobody renews its Lease any more.
fn kill(leader: Campaign) {
    std::mem::forget(leader.session);
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// The fields of a Lease are those of client-go: on creation, on renewal, on release, and when it is taken.
#[tokio::test]
async fn a_lease_has_the_fields_that_client_go_writes() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, _) = process.leader("a").await;
    let created = spec(&server);
    let now = "2023-11-14T22:13:20.000000Z";
    let expected = json!({
        "holderIdentity": a.identity(), "leaseDurationSeconds": 10, "leaseTransitions": 0, "acquireTime": now, "renewTime": now,
    });
    assert_eq!(created, expected);

    process.clock.advance(Duration::from_secs(3));
    a.session.heartbeat().await.unwrap();
    let mut expected = created;
    expected["renewTime"] = "2023-11-14T22:13:23.000000Z".into();
    assert_eq!(spec(&server), expected);

    process.clock.advance(Duration::from_secs(1));
    a.leave().await.unwrap();
    let now = "2023-11-14T22:13:24.000000Z";
    let expected = json!({
        "holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0, "acquireTime": now, "renewTime": now,
    });
    assert_eq!(spec(&server), expected);
    assert_eq!(annotation(&server, "tenure/payload"), None);

    process.clock.advance(Duration::from_secs(1));
    let (b, _) = process.leader("b").await;
    let now = "2023-11-14T22:13:25.000000Z";
    let expected = json!({
        "holderIdentity": b.identity(), "leaseDurationSeconds": 10, "leaseTransitions": 1, "acquireTime": now, "renewTime": now,
    });
    assert_eq!(spec(&server), expected);
}

/// A Lease's duration has whole seconds, and is never shorter than the TTL.
#[tokio::test]
async fn a_ttl_is_rounded_up_to_whole_seconds() {
    let server = ApiServer::start();
    let process = Process::with(server.backend(), Duration::from_millis(1_500));
    let (a, _) = process.leader("a").await;
    assert_eq!(spec(&server)["leaseDurationSeconds"], 2);
    assert_eq!(a.session.granted_ttl(), Duration::from_secs(2));
}

/// Two renewals never look equal, whatever the time of day does: a challenger compares.
#[tokio::test]
async fn the_renew_time_rises_while_the_time_of_day_stands_still_or_goes_back() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, _) = process.leader("a").await;
    let mut times = vec![spec(&server)["renewTime"].clone()];
    for step in 0..4 {
        process.clock.set_back(Duration::from_secs(step * 100));
        a.session.heartbeat().await.unwrap();
        times.push(spec(&server)["renewTime"].clone());
    }
    let times: Vec<_> = times.iter().map(|time| time.as_str().unwrap()).collect();
    let expected: Vec<_> = (0..5).map(|micro| format!("2023-11-14T22:13:20.00000{micro}Z")).collect();
    assert_eq!(times, expected);
}

/// Hazard K4: who patches a label of a dead leader's Lease again and again does not keep it alive.
#[tokio::test]
async fn a_patched_label_does_not_extend_a_dead_leaders_lease() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    kill(a);
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    for n in 0..10 {
        process.clock.advance(LIFETIME / 10 - MILLISECOND);
        server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = n.to_string().into());
        assert_eq!(b.held_by().await, "a");
    }
    process.clock.advance(MILLISECOND * 10);
    b.win().await;
}

/// Hazard K4, by the watch.
#[tokio::test]
async fn a_label_patched_while_a_candidate_watches_extends_nothing() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    kill(a);
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    let waiting = b.wait();
    server.until("b watches", |server| server.open_watches() == 1).await;
    for n in 0..9 {
        process.clock.advance(LIFETIME / 10);
        let waits = process.clock.waits();
        server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = n.to_string().into());
        process.clock.until_waits_exceed(waits).await;
        assert_ne!(server.holder("e"), b.identity());
    }
    process.clock.advance(LIFETIME / 10);
    within("the takeover", waiting).await.unwrap().unwrap();
}

/// The duration is that of the Lease, with the drift bound, by the challenger's own clock, from when it has seen the spec.
#[tokio::test]
async fn a_takeover_waits_for_the_duration_and_the_drift_bound() {
    let server = ApiServer::start();
    let (a, first) = Process::new(&server).leader("a").await;
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
    assert_eq!(spec(&server)["leaseTransitions"], 1);
    let lost = a.session.heartbeat().await.unwrap_err();
    assert_eq!(lost.kind(), BackendErrorKind::SessionGone, "{lost}");
}

/// Campaigns that do not wait take over, too: what was seen belongs to the process.
#[tokio::test]
async fn a_takeover_needs_no_campaign_that_waits() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
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
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
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

/// Hazard K5: a watch cache that stands still delays a candidate, and never makes it lead beside another.
#[tokio::test]
async fn a_stale_watch_cache_elects_nobody() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    server.stop_watches(true);
    let waiting = b.wait();
    for _ in 0..3 {
        a.session.heartbeat().await.unwrap();
        let reads = server.count("get");
        process.clock.advance(LIFETIME);
        server.until("b has read", |server| server.count("get") > reads).await;
    }
    assert_eq!(server.holder("e"), a.identity());
    a.session.heartbeat().await.unwrap();
    // Another watch may be served by another cache.
    server.until("it watches again", |server| server.count("watch") > 1).await;
    // A release that the watch does not show is found by a read.
    a.leave().await.unwrap();
    process.clock.advance(TTL);
    within("the handover", waiting).await.unwrap().unwrap();
}

/// Hazard K5: a lower version than one that was seen is ignored. Here a watch that starts again is served by a cache that lags.
#[tokio::test]
async fn a_lower_version_restarts_no_timer() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    // Watches show nothing of what follows.
    server.stop_watches(true);
    a.session.heartbeat().await.unwrap();
    kill(a);
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    server.compact();
    let waiting = b.wait();
    server.until("the watch has started again", |server| server.is_watch_open(2)).await;
    process.clock.advance(LIFETIME / 2);
    server.end_watches();
    server.until("and again", |server| server.is_watch_open(3)).await;
    process.clock.advance(LIFETIME / 2);
    within("the takeover", waiting).await.unwrap().unwrap();
}

/// Hazard K1: `leaseTransitions` begins again when a Lease is created again; tokens rise.
#[tokio::test]
async fn tokens_rise_across_deletion() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let mut last = None;
    for _ in 0..3 {
        let (a, won) = process.leader("a").await;
        assert_eq!(spec(&server)["leaseTransitions"], 0);
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
        () = server.until("published", |server| annotation(server, "tenure/token").is_some()) => {}
    }
    for _ in 0..3 {
        assert_eq!(annotation(&server, "tenure/token"), Some(token.clone()));
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
    assert_eq!(annotation(&server, "tenure/token"), Some(token));
    assert_eq!(process.backend.leader(&election()).await.unwrap().unwrap().id, "a");
}

/// A conflict is no loss: who patches a label makes the leader write again.
#[tokio::test]
async fn a_conflict_is_no_loss() {
    let server = ApiServer::start();
    let (a, won) = Process::new(&server).leader("a").await;
    for n in 0..3 {
        server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = n.to_string().into());
        a.clock.advance(Duration::from_secs(1));
        let (reads, writes) = (server.count("get"), server.count("update"));
        a.session.heartbeat().await.unwrap();
        assert_eq!((server.count("get") - reads, server.count("update") - writes), (1, 2));
        assert_eq!(spec(&server)["renewTime"], format!("2023-11-14T22:13:2{}.000000Z", n + 1));
        assert_eq!(server.lease("e").unwrap()["metadata"]["labels"]["touched"], n.to_string());
    }
    assert_eq!(won.token.get().to_string(), annotation(&server, "tenure/token").unwrap());
}

/// Hazard K5: a Lease that was deleted and created again is another one, even if it names the same holder.
#[tokio::test]
async fn another_uid_is_a_loss() {
    let server = ApiServer::start();
    let (a, won) = Process::new(&server).leader("a").await;
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

/// Hazard G12: a deletion is noticed by the watch, without a heartbeat.
#[tokio::test]
async fn a_deleted_lease_is_noticed_by_the_watch() {
    let server = ApiServer::start();
    let (a, won) = Process::new(&server).leader("a").await;
    let mut watcher = a.watch(&won);
    let deleting = async {
        server.until("a watches", |server| server.open_watches() == 1).await;
        server.delete("e");
    };
    let (event, ()) = tokio::join!(next_event(&mut watcher), deleting);
    assert_eq!(event, EntryEvent::Deleted);
    let lost = a.session.heartbeat().await.unwrap_err();
    assert!(lost.to_string().contains("the lease was deleted"), "{lost}");
}

/// Hazard K5: a candidate that has seen a holder keeps its timer when the Lease vanishes. One that has just started cannot know.
#[tokio::test]
async fn a_vanished_lease_is_created_only_after_the_holders_time() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
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
    let server = ApiServer::start();
    let (_a, _) = Process::new(&server).leader("a").await;
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

/// A write of a withdrawn request that the server executes later changes nothing: the withdrawal has changed the version, and only that.
#[tokio::test]
async fn a_withdrawn_takeover_has_no_late_effect() {
    for closes in [false, true] {
        let server = ApiServer::start();
        server.edit("e", |lease| lease["spec"] = json!({ "holderIdentity": "", "leaseDurationSeconds": 1 }));
        let (before, version) = (spec(&server), server.version_of("e"));
        let gate = Gate::closed();
        server.inject("update", Fault::ExecuteLater(gate.clone()));
        let a = Process::new(&server).campaign("a").await;
        assert_eq!(a.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable);
        match closes {
            false => a.leave().await.unwrap(),
            true => a.session.close().await.unwrap(),
        }
        assert_eq!(spec(&server), before, "others' timers go on");
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
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
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
    let created = spec(&server);
    assert_eq!(created["holderIdentity"], a.identity());
    process.clock.advance(TTL);
    let asked = a.clock.now_nanos();
    let won = a.win().await;
    assert_eq!(won.sent.unwrap().at().as_nanos(), asked);
    assert_ne!(spec(&server)["renewTime"], created["renewTime"], "the lease was renewed");
    assert_eq!(spec(&server)["leaseTransitions"], 0, "it is the same leadership");
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
    let server = ApiServer::start();
    let (a, won) = Process::new(&server).leader("a").await;
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

/// A version that is not kept any more (410): the Lease is read, and watched from the present on.
#[tokio::test]
async fn a_watch_goes_on_after_a_compaction() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    for refused_at_once in [false, true] {
        let process = Process::new(&server);
        let b = process.campaign("b").await;
        assert_eq!(b.held_by().await, "a");
        if refused_at_once {
            server.inject("watch", Fault::Refuse(410, None));
        } else {
            server.compact();
        }
        let (reads, watches) = (server.count("get"), server.count("watch"));
        let waiting = b.wait();
        server
            .until("it watches again", |server| {
                server.count("watch") == watches + 2 && server.open_watches() == 1
            })
            .await;
        for _ in 0..5 {
            let waits = process.clock.waits();
            a.session.heartbeat().await.unwrap();
            process.clock.until_waits_exceed(waits).await;
        }
        assert_eq!((server.count("get") - reads, server.count("watch") - watches), (1, 2));
        waiting.abort();
        let _ = waiting.await;
        server.until("the watch is closed", |server| server.open_watches() == 0).await;
    }
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    server.compact();
    let waiting = b.wait();
    server.until("it watches", |server| server.open_watches() == 1).await;
    a.leave().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap();
}

/// A watch that ends goes on after the last bookmark, without a read.
#[tokio::test]
async fn a_watch_goes_on_after_a_bookmark() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    let waiting = b.wait();
    server.until("b watches", |server| server.open_watches() == 1).await;
    server.compact();
    server.send_bookmarks();
    let (reads, watches) = (server.count("get"), server.count("watch"));
    server.end_watches();
    server.until("it watches again", |server| server.is_watch_open(2)).await;
    a.leave().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap();
    assert_eq!(
        (server.count("get") - reads, server.count("watch") - watches),
        (1, 1),
        "the read of the takeover"
    );
}

/// Observers see a leader, its value and its token, a vacancy, and a leader that has died: the last by their own clock.
#[tokio::test]
async fn an_observer_sees_leaders_with_their_tokens() {
    let server = ApiServer::start();
    let process = Process::with(server.backend(), Duration::from_secs(1));
    let mut leaders = process.backend.observe(&election()).await.unwrap();
    let mut next = async || within("the next leader", leaders.next()).await.unwrap().unwrap();
    assert_eq!(next().await, None);
    let (a, won) = process.leader("a").await;
    a.session.heartbeat().await.unwrap();
    let leader = next().await.unwrap();
    assert_eq!(
        (leader.id.as_str(), leader.value_lossy().as_ref(), leader.token),
        ("a", "10.0.0.1:80", Some(won.token))
    );
    kill(a);
    assert_eq!(next().await, None);
    assert!(server.holder("e").starts_with("a_"));
    assert_eq!(process.backend.elections().await.unwrap(), []);
}

/// While a leader renews, those who wait for it send no request.
#[tokio::test]
async fn a_waiting_candidate_sends_nothing_while_the_leader_renews() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    let waiting = b.wait();
    server.until("b watches", |server| server.open_watches() == 1).await;
    let reads = server.count("get");
    for _ in 0..10 {
        process.clock.advance(TTL / 3);
        let waits = process.clock.waits();
        a.session.heartbeat().await.unwrap();
        process.clock.until_waits_exceed(waits).await;
    }
    assert_eq!(server.count("get"), reads);
    assert!(!waiting.is_finished());
    a.leave().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap();
}

/// 429: the server says how long to wait, and the request is sent again after that.
#[tokio::test]
async fn a_throttled_request_waits_as_the_server_says() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    server.inject("update", Fault::Refuse(429, Some(1)));
    let (began, writes) = (tokio::time::Instant::now(), server.count("update"));
    a.session.heartbeat().await.unwrap();
    assert_eq!(server.count("update") - writes, 2);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Hazard G8: a verb that is missing is named, with the resource.
#[tokio::test]
async fn a_missing_verb_is_named() {
    for verb in ["get", "create", "update"] {
        let server = ApiServer::start();
        if verb == "update" {
            server.edit("e", |lease| lease["spec"] = json!({ "holderIdentity": "" }));
        }
        server.forbid(verb);
        let a = Process::new(&server).campaign("a").await;
        let refused = a.enter().await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Forbidden, "{refused}");
        let text = refused.to_string();
        assert!(text.contains(&format!("cannot {verb} lease \"e\" in namespace \"elections\"")), "{text}");
        let advice = format!(
            "grant the verb \"{verb}\" on the resource \"leases\" of the API group \"coordination.k8s.io\""
        );
        assert!(text.contains(&advice), "{text}");
        server.allow(verb);
        a.leave().await.unwrap();
        a.win().await;
    }
    let server = ApiServer::start();
    server.forbid("list");
    let refused = server.backend().elections().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Forbidden);
    assert!(refused.to_string().contains("cannot list leases in namespace \"elections\""), "{refused}");
}

/// Without the verb `watch`, which client-go does not need, Leases are polled.
#[tokio::test]
async fn without_the_verb_watch_leases_are_polled() {
    let server = ApiServer::start();
    server.forbid("watch");
    let log = crate::log::Log::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "a");
    let waiting = b.wait();
    server.until("the watch was refused", |server| server.count("watch") == 1).await;
    a.leave().await.unwrap();
    within("the handover", async {
        while !waiting.is_finished() {
            process.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    })
    .await;
    waiting.await.unwrap().unwrap();
    assert_eq!(server.count("watch"), 1);
    assert_eq!(log.lines_with("the lease is polled instead of watched"), 1, "{log:?}");
    assert_eq!(
        log.lines_with("grant the verb \\\"watch\\\" on the resource")
            + log.lines_with("grant the verb \"watch\" on the resource"),
        1
    );
    let found = process.backend.diagnose().await;
    let watch = found.iter().find(|it| it.subject == "verb watch").unwrap();
    assert_eq!(watch.level, tenure_core::Level::Warning);
    assert!(found.iter().filter(|it| it.level != tenure_core::Level::Good).count() == 1, "{found:?}");
}

/// Hazard G11: a write that a proxy answers with 503 may have been executed. It is not taken for refused.
#[tokio::test]
async fn a_write_that_a_proxy_refuses_is_withdrawn() {
    for verb in ["create", "update"] {
        let server = ApiServer::start();
        if verb == "update" {
            let (a, won) = Process::new(&server).leader("a").await;
            a.session.leave(&a.request, Some(&won.entry)).await.unwrap();
        }
        let b = Process::new(&server).campaign("b").await;
        server.inject(verb, Fault::ExecuteAndRefuse(503, 0));
        assert_eq!(b.enter().await.unwrap_err().kind(), BackendErrorKind::Unavailable, "{verb}");
        assert_eq!(server.holder("e"), b.identity(), "{verb}");
        b.session.leave(&b.request, None).await.unwrap();
        assert_eq!(server.holder("e"), "", "{verb}");
    }
}

/// Hazard G34: a kubeconfig that names another cluster later is not followed.
#[tokio::test]
async fn another_cluster_is_refused() {
    let (first, other) = (ApiServer::start(), ApiServer::start());
    first.accept_token("first");
    let file = tempfile::NamedTempFile::new().unwrap();
    write_kubeconfig(file.path(), &first.endpoint(), "first");
    let process = Process::with(backend_by(file.path(), PATIENT), TTL);
    let (a, _) = process.leader("a").await;
    write_kubeconfig(file.path(), &other.endpoint(), "second");
    first.accept_token("second");
    let refused = a.session.heartbeat().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("names another cluster or namespace"), "{refused}");
    assert!(other.leases().is_empty());
}

/// Neither the output of a credential plugin nor a line of a kubeconfig is shown.
#[tokio::test]
async fn errors_show_no_credentials() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let plugin = |script: &str| {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": "http://127.0.0.1:9" } }],
            "users": [{ "name": "test", "user": { "exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
                "interactiveMode": "Never",
            } } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        kubeconfig.to_string()
    };
    for kubeconfig in [
        plugin("echo my-secret; exit 1"),
        plugin("echo '{\"status\": my-secret'"),
        "apiVersion: v1\nusers:\n- name: test\n  user:\n    token: [my-secret".to_owned(),
        "apiVersion: v1\nusers:\n- name: test\n  user: my-secret\n".to_owned(),
    ] {
        std::fs::write(file.path(), &kubeconfig).unwrap();
        let b = Process::with(backend_by(file.path(), PATIENT), TTL).campaign("b").await;
        let error = b.enter().await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(!cause.contains("secret"), "{cause}");
    }
}

/// Hazard G33: a token that has expired is read again from its file.
#[tokio::test]
async fn a_rotated_token_is_read_again() {
    let server = ApiServer::start();
    server.accept_token("first");
    let file = tempfile::NamedTempFile::new().unwrap();
    write_kubeconfig(file.path(), &server.endpoint(), "first");
    let process = Process::with(backend_by(file.path(), PATIENT), TTL);
    let (a, _) = process.leader("a").await;
    write_kubeconfig(file.path(), &server.endpoint(), "second");
    server.accept_token("second");
    a.session.heartbeat().await.unwrap();
    server.accept_token("third");
    let refused = a.session.heartbeat().await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unauthorized, "{refused}");
    assert!(refused.to_string().contains("check the token"), "{refused}");
    assert!(!refused.to_string().contains("second"), "{refused}");
}

/// A resign request reaches the leader, and a renewal keeps it.
#[tokio::test]
async fn a_resign_request_reaches_the_leader() {
    let server = ApiServer::start();
    let process = Process::new(&server);
    let (a, won) = process.leader("a").await;
    let asked = server.backend().request_resign(&election()).await.unwrap().unwrap();
    assert_eq!(asked.id, "a");
    a.session.heartbeat().await.unwrap();
    let mut watcher = a.watch(&won);
    assert_eq!(next_event(&mut watcher).await, EntryEvent::ResignRequested);
    let again = server.backend().leader(&election()).await.unwrap().unwrap();
    assert_eq!((again.id.as_str(), again.value_lossy().as_ref()), ("a", "10.0.0.1:80"));
}

/// A holder that is not of tenure is shown by its identity, without what client-go leaves of the holder before it, and reads no resign
/// requests.
#[tokio::test]
async fn a_foreign_holder_is_shown_and_not_asked() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    a.session.heartbeat().await.unwrap();
    kill(a);
    server.edit("e", |lease| {
        lease["spec"]["holderIdentity"] = "host_0c9d1f".into();
        lease["spec"]["leaseTransitions"] = 1.into();
    });
    let backend = server.backend();
    let leader = backend.leader(&election()).await.unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.token, leader.value.len()), ("host_0c9d1f", None, 0));
    assert_eq!(backend.elections().await.unwrap(), []);
    let refused = backend.request_resign(&election()).await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Invalid, "{refused}");
    // It never renews, and is taken over like any other.
    let process = Process::new(&server);
    let b = process.campaign("b").await;
    assert_eq!(b.held_by().await, "host_0c9d1f");
    process.clock.advance(LIFETIME);
    b.win().await;
    assert_eq!(spec(&server)["leaseTransitions"], 2);
}

/// Unequal durations are unsafe beside challengers that wait for their own: they are said once.
#[tokio::test]
async fn unequal_durations_are_said_once() {
    let server = ApiServer::start();
    let (_a, _) = Process::new(&server).leader("a").await;
    let process = Process::with(server.backend(), TTL * 2);
    let log = crate::log::Log::start();
    let b = process.campaign("b").await;
    for _ in 0..3 {
        b.held_by().await;
    }
    let lines = log.lines_with("lease duration is 10s, and the TTL here is 20s");
    assert_eq!(lines, 1, "{log:?}");
    // It waits for what the Lease says.
    process.clock.advance(LIFETIME);
    b.win().await;
}

/// Elections whose names are no names of objects have Leases with computed names, and are listed by their own.
#[tokio::test]
async fn any_election_has_a_lease() {
    let server = ApiServer::start();
    let (a, _) = Process::new(&server).leader("a").await;
    let names = ["Billing", "a_b", "-", "tenure-x-1", "a..b", "a.b-c"];
    let process = Process::new(&server);
    let mut held = Vec::new();
    for name in names {
        let campaign = process.campaign_in(name, "b").await;
        campaign.win().await;
        held.push(campaign);
    }
    let mut listed: Vec<_> =
        process.backend.elections().await.unwrap().iter().map(ToString::to_string).collect();
    listed.sort();
    assert_eq!(listed, ["-", "Billing", "a..b", "a.b-c", "a_b", "e", "tenure-x-1"]);
    assert!(server.lease("a.b-c").is_some() && server.lease("tenure-x-1").is_none());
    drop(a);
}

/// A namespace with many Leases is listed page by page.
#[tokio::test]
async fn lists_have_pages() {
    let server = ApiServer::start();
    for n in 0..1_200 {
        server.edit(&format!("other-{n}"), |lease| lease["spec"] = json!({ "holderIdentity": "x" }));
    }
    let (_z, _) = Process::new(&server).leader("z").await;
    let listed = server.backend().elections().await.unwrap();
    assert_eq!(listed, [election()]);
    assert_eq!(server.count("list"), 3);
}
