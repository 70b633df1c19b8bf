//! A log subscriber that panics in simulated time, where the engine calls it: it may cost a session, but no candidate is forgotten.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tenure_core::{
    Elector,
    memory::{Delivery, Direction, MemoryStore, Op},
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};

use crate::host::{Host, TTL, assert_nothing_left, sleep, until, within};

/// A subscriber that panics at the first event with this message.
struct PanicsOnce {
    message: &'static str,
    has_panicked: Arc<AtomicBool>,
}

impl<S: Subscriber> Layer<S> for PanicsOnce {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let panics = message.0 == self.message && !self.has_panicked.swap(true, SeqCst);
        assert!(!panics, "a bug in the subscriber");
    }
}

/// Hazard G14: whatever event the subscriber panics at, campaigns come to an end, and the elector leads again.
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_leaves_no_candidate_behind() {
    for message in [
        "a request to the store failed; trying again",
        "the store answers again",
        "session opened",
        "leads",
        "leads no more",
        "entering again",
        "the entry of a waiting candidate is gone; entering again",
        "campaigning on under a new session",
    ] {
        let has_panicked = Arc::new(AtomicBool::new(false));
        let panics = PanicsOnce { message, has_panicked: Arc::clone(&has_panicked) };
        let _listens = tracing::subscriber::set_default(tracing_subscriber::registry().with(panics));
        let store = MemoryStore::new();
        let (host, other) = (Host::new(&store, "a"), Host::new(&store, "b"));
        let campaign = || {
            let elector = Arc::clone(&host.elector);
            tokio::spawn(async move { elector.campaign("e").await })
        };

        // The session is opened at the second attempt, and the entry is deleted once it leads.
        host.link.set(&[Op::Open, Op::Enter], Direction::Request, Delivery::Fail);
        let first = campaign();
        sleep(Duration::from_millis(100)).await;
        host.link.set(&[Op::Open], Direction::Request, Delivery::Deliver);
        sleep(Duration::from_secs(2)).await;
        host.link.heal();
        if let Ok(leadership) = within(TTL, first).await.unwrap() {
            store.delete_entry("e", leadership.fencing_token().get());
            within(TTL, leadership.lost()).await;
        }
        // It waits, its entry is deleted, and its session expires.
        let leads = within(TTL * 2, other.lead()).await;
        let second = campaign();
        until("it has entered", || second.is_finished() || store.entries("e").len() == 2).await;
        if let Some(entry) = store.entries("e").get(1) {
            store.delete_entry("e", entry.revision);
        }
        until("it has entered again", || second.is_finished() || store.entries("e").len() == 2).await;
        if let Some(entry) = store.entries("e").get(1) {
            store.expire_session(entry.session);
        }
        sleep(TTL).await;
        drop(leads);
        drop(within(TTL * 2, second).await.unwrap());

        assert!(has_panicked.load(SeqCst), "{message}: nothing was logged");
        let leadership = within(TTL * 2, host.lead()).await;
        within(TTL, leadership.resign()).await.unwrap();
        within(TTL * 2, host.elector.close()).await;
        within(TTL * 2, other.elector.close()).await;
        assert_nothing_left(&store).await;
    }
}
