//! A supervisor that ends the session of a process that is dead, by the record that it got from that process.

use std::time::Duration;

use tenure_core::{Elector as _, Error, LossReason, memory::MemoryStore, spi::SessionRecord};

use crate::host::{Host, TTL, sleep, within};

/// Less than a TTL.
const SOON: Duration = Duration::from_secs(1);

/// The record, as a supervisor in another process reads it.
fn sent(record: &SessionRecord) -> SessionRecord {
    serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
}

/// Hazard G40: the next candidate leads at once and not after the TTL, without a resume file.
#[tokio::test(start_paused = true)]
async fn the_session_of_a_dead_process_is_ended_by_its_record() {
    let store = MemoryStore::new();
    let (dead, next, supervisor) = (Host::new(&store, "a"), Host::new(&store, "b"), Host::new(&store, "c"));
    let leadership = dead.lead().await;
    let record = sent(&leadership.session_record().await.unwrap().unwrap());
    // What a process that was killed looks like from outside.
    dead.link.cut();
    let campaign = next.enter_queue(&store).await;
    supervisor.elector.end_session(&record).await.unwrap();
    let second = within(SOON, campaign).await.unwrap();
    assert!(second.fencing_token() > leadership.fencing_token());
    // It has ended, and another one under which somebody leads is not affected.
    supervisor.elector.end_session(&record).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(store.entries("e").len(), 1);
}

/// Hazard G40: a record that is not exactly the one of the session ends nothing.
#[tokio::test(start_paused = true)]
async fn a_record_of_another_process_or_store_ends_nothing() {
    let (store, other) = (MemoryStore::new(), MemoryStore::new());
    let (host, supervisor) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let leadership = host.lead().await;
    let record = leadership.session_record().await.unwrap().unwrap();
    let foreign = Host::new(&other, "c").lead().await.session_record().await.unwrap().unwrap();
    for wrong in [
        SessionRecord::new(&*record.session, &*record.cluster, record.nonce + 1),
        SessionRecord::new(&*record.session, &*foreign.cluster, record.nonce),
        SessionRecord::new(&*record.session, &*record.cluster, foreign.nonce),
    ] {
        let refused = supervisor.elector.end_session(&wrong).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert!(leadership.is_leader());
    }
    assert_eq!(store.entries("e").len(), 1);
}

/// Every term under the same session has the same record: it identifies the session, which the process ends itself as long as it
/// lives. A session after a loss has another one, which an old record does not end.
#[tokio::test(start_paused = true)]
async fn a_record_is_of_one_session() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let first = host.lead().await;
    let record = first.session_record().await.unwrap().unwrap();
    first.resign().await.unwrap();
    let second = host.lead().await;
    assert_eq!(second.session_record().await.unwrap().unwrap(), record);
    let supervisor = Host::new(&store, "b");
    supervisor.elector.end_session(&record).await.unwrap();
    let reason = second.lost().await;
    assert!(matches!(reason, LossReason::EntryGone | LossReason::SessionExpired), "{reason}");
    drop(second);
    let third = host.lead().await;
    assert_ne!(third.session_record().await.unwrap().unwrap().session, record.session);
    supervisor.elector.end_session(&record).await.unwrap();
    sleep(TTL * 2).await;
    assert!(third.is_leader());
    assert_eq!(store.entries("e").len(), 1);
}
