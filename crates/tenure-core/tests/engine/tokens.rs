//! Fencing tokens that go back, because the store was wiped: hazard G35.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure_core::{
    Diagnosis, Elector, Level,
    memory::{Delivery, Direction, MemoryStore, Op},
};

use crate::{
    host::{Host, TTL, sleep, within},
    tracing::CapturedLog,
};

const FIRST: &str = "the fencing token has gone back: the store was wiped, restored or exchanged; resources that check tokens refuse this \
     leader until their marks are reset";
const MORE: &str = "more fencing tokens have gone back, this election's last";

/// What was logged at once: the election, and the highest token before.
pub(crate) fn reported(log: &CapturedLog) -> Vec<(String, u64)> {
    let lines = log.with(FIRST).into_iter().map(|line| {
        assert_eq!((&line["level"], &line["fields"]["cause"]), (&"ERROR".into(), &"token_regression".into()));
        assert!(line["fields"]["token"].as_u64() < line["fields"]["highest"].as_u64(), "{line}");
        let election = line["fields"]["election"].as_str().unwrap().to_owned();
        (election, line["fields"]["highest"].as_u64().unwrap())
    });
    lines.collect()
}

/// What `diagnose` says of tokens.
async fn diagnosed(host: &Host) -> Option<Diagnosis> {
    host.elector.diagnose().await.into_iter().find(|diagnosis| diagnosis.subject == "tokens")
}

/// Leads and resigns a few times, so that the tokens are higher than those of an empty store.
async fn use_up_tokens(host: &Host) {
    for _ in 0..10 {
        host.lead().await.resign().await.unwrap();
    }
}

/// Hazard G35: a candidate that wins with a lower token than before leads, and says so once.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_token_went_back_leads_and_is_reported() {
    let log = CapturedLog::default();
    let _default = log.install();
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    use_up_tokens(&host).await;
    let leadership = host.lead().await;
    let highest = leadership.fencing_token();
    assert_eq!((diagnosed(&host).await, reported(&log)), (None, vec![]));
    store.wipe_with_tokens();
    within(TTL, leadership.lost()).await;
    drop(leadership);
    let second = host.lead().await;
    assert!(second.is_leader() && second.fencing_token() < highest);
    let expected = [("e".to_owned(), highest.get())];
    assert_eq!(reported(&log), expected);
    let diagnosis = diagnosed(&host).await.unwrap();
    assert_eq!(diagnosis.level, Level::Problem);
    let text =
        format!("the fencing token of the election e went back from {highest} to {}", second.fencing_token());
    assert_eq!(diagnosis.text, text);
    second.resign().await.unwrap();
    let third = host.lead().await;
    assert!(third.is_leader() && third.fencing_token() < highest);
    sleep(TTL).await;
    assert_eq!(reported(&log), expected, "once");
    assert!(log.with(MORE).is_empty());
}

/// Hazard G35: processes that do not campaign notice it as well, in whatever way they learn of the leader.
#[tokio::test(start_paused = true)]
async fn observers_and_readers_notice_tokens_that_go_back() {
    for way in ["observe", "observe anew", "leader", "candidates"] {
        let log = CapturedLog::default();
        let _default = log.install();
        let store = MemoryStore::new();
        let (candidate, other) = (Host::new(&store, "a"), Host::new(&store, "b"));
        use_up_tokens(&candidate).await;
        let leadership = candidate.lead().await;
        let highest = leadership.fencing_token().get();
        let mut leaders = other.elector.observe("e");
        let mut read = async || match way {
            "observe" => while leaders.next().await.unwrap().unwrap().is_none() {},
            "observe anew" => {
                let mut leaders = other.elector.observe("e");
                while leaders.next().await.unwrap().unwrap().is_none() {}
            }
            "leader" => _ = other.elector.leader("e").await.unwrap(),
            _ => _ = other.elector.candidates("e").await.unwrap(),
        };
        read().await;
        store.wipe_with_tokens();
        drop(leadership);
        // Another process, which knows nothing of earlier tokens.
        let _second = Host::new(&store, "c").lead().await;
        read().await;
        assert_eq!(reported(&log), [("e".to_owned(), highest)], "{way}");
        assert!(diagnosed(&other).await.is_some() && diagnosed(&candidate).await.is_none());
    }
}

/// Hazard G35: an answer that comes late, or a stream that begins late, is no token that went back; nor is a wiped store whose
/// tokens continue.
#[tokio::test(start_paused = true)]
async fn a_late_answer_is_no_token_that_went_back() {
    let log = CapturedLog::default();
    let _default = log.install();
    let store = MemoryStore::new();
    let (candidate, other) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = candidate.lead().await;
    let early = first.fencing_token();
    let mut leaders = other.elector.observe("e");
    assert_eq!(leaders.next().await.unwrap().unwrap().unwrap().token, Some(early));
    other.link.set(&[Op::Read], Direction::Response, Delivery::Hold);
    let elector = Arc::clone(&other.elector);
    let read = tokio::spawn(async move { elector.leader("e").await.unwrap() });
    sleep(Duration::from_millis(100)).await;
    first.resign().await.unwrap();
    let second = candidate.lead().await;
    while leaders.next().await.unwrap().unwrap().is_none_or(|leader| leader.token == Some(early)) {}
    other.link.heal();
    assert_eq!(within(TTL, read).await.unwrap().unwrap().token, Some(early), "the answer is late");
    store.wipe();
    within(TTL, second.lost()).await;
    drop(second);
    let third = candidate.lead().await;
    assert!(third.fencing_token() > early);
    assert_eq!(other.elector.leader("e").await.unwrap().unwrap().token, Some(third.fencing_token()));
    sleep(TTL).await;
    assert_eq!((reported(&log), log.with(MORE).len()), (vec![], 0));
    assert!(diagnosed(&other).await.is_none() && diagnosed(&candidate).await.is_none());
}

/// Hazard G35: after a store was wiped that has hundreds of elections, the log has a line at once and a summary now and then.
#[tokio::test(start_paused = true)]
async fn tokens_that_go_back_in_many_elections_are_summarized() {
    const COUNT: usize = 500;
    let log = CapturedLog::default();
    let _default = log.install();
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    use_up_tokens(&host).await;
    for _ in 0..2 {
        for n in 0..COUNT {
            let leadership = host.elector.campaign(&format!("e{n}")).await.unwrap();
            leadership.resign().await.unwrap();
        }
        store.wipe_with_tokens();
        // The session ends, and the next one is opened.
        sleep(TTL).await;
    }
    assert_eq!(reported(&log).len(), 1);
    let more = log.with(MORE);
    let counts = more.iter().map(|line| line["fields"]["count"].as_u64().unwrap());
    assert_eq!((1 + counts.sum::<u64>(), more.len()), (COUNT as u64, 1), "{more:?}");
    let diagnosis = diagnosed(&host).await.unwrap();
    assert!(diagnosis.text.ends_with("tokens have gone back in all"), "{diagnosis:?}");
}
