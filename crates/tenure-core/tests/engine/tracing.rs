//! The names of spans and fields in the log, which filters and dashboards depend on.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tenure_core::{
    Elector, LossReason, OnClockJump, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op},
};
use tracing_subscriber::fmt::MakeWriter;

use crate::host::{Host, TTL, sleep, until, within};

#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for CapturedLog {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl CapturedLog {
    /// Logs the events of this thread, until the guard is dropped.
    pub(crate) fn install(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt().json().with_writer(self.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The events with this message.
    pub(crate) fn with(&self, message: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["fields"]["message"] == message).collect()
    }
}

fn in_span<'a>(event: &'a Value, name: &str) -> &'a Value {
    let spans = event["spans"].as_array().unwrap();
    spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no span {name} in {event}"))
}

#[tokio::test(start_paused = true)]
async fn spans_and_fields_have_the_documented_names() {
    let log = CapturedLog::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    let token = leadership.fencing_token().get();
    leadership.run(async { tracing::info!("charged") }).await.unwrap();
    let charged = &log.with("charged")[0];
    let span = in_span(charged, "leadership");
    assert_eq!(
        (&span["election"], &span["candidate"], &span["token"]),
        (&"e".into(), &"a".into(), &token.into())
    );

    host.link.cut();
    sleep(Duration::from_secs(20)).await;
    host.elector.close().await;
    let leads = &log.with("leads")[0]["fields"];
    assert_eq!(
        (&leads["election"], &leads["candidate"], &leads["token"]),
        (&"e".into(), &"a".into(), &token.into())
    );
    let over = log.with("leads no more");
    assert_eq!(over.len(), 1, "logged more than once: {over:?}");
    let over = &over[0]["fields"];
    assert_eq!((&over["cause"], &over["token"]), (&"deadline".into(), &token.into()));
    let unanswered = &log.with("a request to the store failed; trying again")[0];
    assert!(
        unanswered["fields"]["error"].is_string() && unanswered["fields"]["left"].is_string(),
        "{unanswered}"
    );
    assert!(in_span(unanswered, "session")["session"].is_string());
    assert!(log.with("session ends")[0]["fields"]["reason"].is_string());
}

/// Hazard G23: with `OnClockJump::Log` each jump of the time of day costs one warning and no leadership. The store's answer
/// ends it, if the machine was paused and the session has expired.
#[tokio::test(start_paused = true)]
async fn a_jump_of_the_time_of_day_that_is_logged_ends_nothing() {
    const JUMPED: &str = "the time of day jumped ahead of the machine's clock: if the machine was paused, another candidate may lead too";
    let log = CapturedLog::default();
    let _default = log.install();
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_on_clock_jump(OnClockJump::Log));
    let leadership = host.lead().await;
    for jumps in 1..=3 {
        host.clock.jump_wall(Duration::from_secs(2));
        for _ in 0..30 {
            assert!(leadership.is_leader());
            sleep(TTL / 10).await;
        }
        assert_eq!(log.with(JUMPED).len(), jumps);
    }
    assert_eq!(log.with(JUMPED)[0]["fields"]["jump"], "2s");
    host.clock.jump_wall(TTL * 3);
    assert!(leadership.is_leader(), "until the store answers");
    store.expire_session(store.sessions()[0]);
    let reason = within(TTL, leadership.lost()).await;
    assert!(matches!(reason, LossReason::EntryGone | LossReason::SessionExpired), "{reason}");
    until("the last jump was reported", || log.with(JUMPED).len() == 4).await;
}

/// Case 54: leaders and followers have one line for each change.
#[tokio::test(start_paused = true)]
async fn followers_and_leaders_log_one_line_per_change() {
    let log = CapturedLog::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(log.clone()).finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let store = MemoryStore::new();
    let (first, second) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = first.lead().await;
    let elector = Arc::clone(&second.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    until("the second waits", || log.with("waits for leadership").len() == 1).await;
    leadership.resign().await.unwrap();
    let leadership = within(TTL, campaign).await.unwrap().unwrap();
    assert_eq!(log.with("waits for leadership").len(), 1);
    assert_eq!(log.with("leads").len(), 2);
    let elector = Arc::clone(&first.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    until("the first waits", || log.with("waits for leadership").len() == 2).await;
    campaign.abort();
    until("the first gives up", || log.with("waits no more").len() == 1).await;
    let elector = Arc::clone(&first.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    until("the first waits again", || log.with("waits for leadership").len() == 3).await;
    first.elector.close().await;
    campaign.await.unwrap().unwrap_err();
    assert_eq!(log.with("waits no more").len(), 2);
    drop(leadership);
}

/// Case 31: an outage is logged when it begins, every few seconds while it lasts, and when it is over.
#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_at_its_beginning_now_and_then_and_at_its_end() {
    let log = CapturedLog::default();
    let _default = log.install();
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    sleep(TTL).await;
    host.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
    within(TTL, leadership.lost()).await;
    drop(leadership);
    let elector = Arc::clone(&host.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    sleep(Duration::from_secs(60)).await;
    let first = log.with("a request to the store failed; trying again");
    assert!(first.len() == 1 && first[0]["fields"]["left"].is_string(), "{first:?}");
    let summaries = log.with("requests to the store still fail");
    // Every 5 s, at the next failure: the pauses between requests are random.
    assert!((8..=13).contains(&summaries.len()), "{summaries:?}");
    let last = &summaries[summaries.len() - 1]["fields"];
    assert!(last["failed"].as_u64() > Some(20) && last["lasted"].is_string(), "{last}");
    assert!(log.with("the store answers again").is_empty());
    host.link.heal();
    assert!(within(TTL, campaign).await.unwrap().unwrap().is_leader());
    let recovered = log.with("the store answers again");
    assert!(recovered.len() == 1 && recovered[0]["fields"]["lasted"].is_string(), "{recovered:?}");
    for line in first.iter().chain(&summaries).chain(&recovered) {
        assert_eq!(line["fields"]["store"], "memory", "{line}");
    }
}

/// Case 31: failures that alternate with answers are one outage in the log, not many.
#[tokio::test(start_paused = true)]
async fn failures_between_answers_are_summarized() {
    let log = CapturedLog::default();
    let _default = log.install();
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    // Some heartbeats of each second fail, and some are answered.
    for _ in 0..30 {
        host.link.set(&[Op::Heartbeat], Direction::Request, Delivery::Fail);
        sleep(TTL / 3).await;
        host.link.heal();
        sleep(TTL / 3).await;
    }
    assert!(leadership.is_leader());
    let count = |message| log.with(message).len();
    assert_eq!(count("a request to the store failed; trying again"), 1);
    let summaries = count("requests to the store still fail");
    // In 200 s, one every 5 s at most.
    assert!((20..=40).contains(&summaries), "{summaries}");
    assert!(count("the store answers again") <= 2);
    sleep(TTL).await;
    let recovered = log.with("the store answers again");
    let last = &recovered[recovered.len() - 1]["fields"];
    assert!(recovered.len() <= 3 && last["failed"].as_u64() > Some(30), "{recovered:?}");
    drop(leadership);
}
