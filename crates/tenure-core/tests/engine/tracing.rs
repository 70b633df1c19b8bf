//! The names of spans and fields in the log, which filters and dashboards depend on.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tenure_core::{Elector, LossReason, OnClockJump, SimClock, memory::MemoryStore};
use tracing_subscriber::fmt::MakeWriter;

use crate::host::{Host, TTL, sleep, until, within};

#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

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
    /// The events with this message.
    fn with(&self, message: &str) -> Vec<Value> {
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
    let unanswered = &log.with("heartbeat unanswered")[0];
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
    let subscriber = tracing_subscriber::fmt().json().with_writer(log.clone()).finish();
    let _default = tracing::subscriber::set_default(subscriber);
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
