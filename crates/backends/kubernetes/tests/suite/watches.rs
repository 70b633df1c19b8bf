//! Watches that are silent, lag, end, or are refused; hazards K4 and K5.

use std::time::Duration;

use tenure_core::spi::{Backend as _, EntryEvent};

use crate::{
    api_server::{BrokenWatch, Fault},
    candidate::{LIFETIME, Process, Rivals, TTL, kill, leader, next_event, within},
};

/// Hazard K5: a watch cache that stands still delays a candidate, and never makes it lead beside another.
#[tokio::test]
async fn a_stale_watch_cache_elects_nobody() {
    let Rivals { server, a, process, b } = Rivals::start().await;
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
    let (server, a, _) = leader().await;
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

/// Hazard G12: a deletion is noticed by the watch, without a heartbeat.
#[tokio::test]
async fn a_deleted_lease_is_noticed_by_the_watch() {
    let (server, a, won) = leader().await;
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

/// A version that is not kept any more (410): the Lease is read, and watched from the present on.
#[tokio::test]
async fn a_watch_goes_on_after_a_compaction() {
    let (server, a, _) = leader().await;
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
    let Rivals { server, a, b, .. } = Rivals::start().await;
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

/// While a leader renews, those who wait for it send no request.
#[tokio::test]
async fn a_waiting_candidate_sends_nothing_while_the_leader_renews() {
    let Rivals { server, a, process, b } = Rivals::start().await;
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

/// Without the verb `watch`, which client-go does not need, Leases are polled.
#[tokio::test]
async fn without_the_verb_watch_leases_are_polled() {
    let Rivals { server, a, process, b } = Rivals::start().await;
    server.forbid("watch");
    let log = crate::log::Log::start();
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

/// Hazard K4, by the watch.
#[tokio::test]
async fn a_label_patched_while_a_candidate_watches_extends_nothing() {
    let Rivals { server, a, process, b } = Rivals::start().await;
    kill(a);
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

/// A watch that was refused is tried again some minutes later: the Role may have been changed.
#[tokio::test]
async fn a_forbidden_watch_is_tried_again() {
    let Rivals { server, a, process, b } = Rivals::start().await;
    server.forbid("watch");
    let waits = process.clock.waits();
    let waiting = b.wait();
    server.until("the watch was refused", |server| server.count("watch") == 1).await;
    // It polls, and waits for the time of the next watch.
    process.clock.until_waits_exceed(waits + 1).await;
    server.allow("watch");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(300)).await;
    tokio::time::resume();
    server.until("it watches", |server| server.open_watches() == 1).await;
    a.leave().await.unwrap();
    within("the handover", waiting).await.unwrap().unwrap();
    assert_eq!(server.count("watch"), 2);
}

/// A watch that never works is reported once, and the Lease is polled as without watches.
#[tokio::test]
async fn a_watch_that_never_works_is_reported() {
    for how in [BrokenWatch::Closed, BrokenWatch::Refused(500)] {
        let Rivals { server, a, process, b } = Rivals::start().await;
        let log = crate::log::Log::start();
        server.break_watches(Some(how));
        let waiting = b.wait();
        server.until("it has failed", |server| server.count("watch") >= 5).await;
        for _ in 0..3 {
            let reads = server.count("get");
            within("a read", async {
                while server.count("get") == reads {
                    process.clock.advance(TTL / 70);
                    a.session.heartbeat().await.unwrap();
                }
            })
            .await;
        }
        server.until("it still tries to watch", |server| server.count("watch") >= 6).await;
        assert_eq!(log.lines_with("the lease is polled instead of watched"), 1, "{log:?}");
        a.leave().await.unwrap();
        process.clock.advance(TTL / 5);
        within("the handover", waiting).await.unwrap().unwrap();
    }
}

/// A watch that shows the present state and then fails has not worked: it is started again after longer and longer pauses.
#[tokio::test]
async fn a_watch_that_shows_something_and_fails_is_not_repeated_at_once() {
    let Rivals { server, a: _a, b, .. } = Rivals::start().await;
    server.break_watches(Some(BrokenWatch::Ended));
    let waiting = b.wait();
    server.until("it watches", |server| server.count("watch") == 1).await;
    let began = tokio::time::Instant::now();
    server.until("it watches again", |server| server.count("watch") == 7).await;
    // Half of 50, 100, 200, 400, 800 and 1600 ms.
    assert!(began.elapsed() >= Duration::from_millis(1_500), "{:?}", began.elapsed());
    waiting.abort();
}
