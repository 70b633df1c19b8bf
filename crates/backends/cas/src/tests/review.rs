//! Findings of reviews, each with the test that shows it.

use tokio::time::Instant;

use super::host::{Host, TTL, sleep, stored};
use crate::{garbage::collect, memory::MemoryCas, record::MAX_SLOTS};

/// A replica that crashes again and again has filled the queue behind a healthy leader: newcomers are not refused for good.
#[tokio::test(start_paused = true)]
async fn a_queue_that_dead_candidates_have_filled_is_emptied() {
    let store = MemoryCas::new();
    let (leader, crashed, newcomer) =
        (Host::new(&store).await, Host::new(&store).await, Host::new(&store).await);
    leader.lead("e", 1).await;
    let _alive = (leader.keep_alive(), newcomer.keep_alive());
    for nonce in 2..=MAX_SLOTS as u128 {
        crashed.queue("e", nonce).await;
    }
    let began = Instant::now();
    let mut entered = newcomer.enter("e", 1000).await;
    while let Err(error) = &entered {
        assert!(error.is_retryable() && error.to_string().contains("may be dead"), "{error}");
        assert!(began.elapsed() < TTL * 2, "{error}");
        sleep(0.5).await;
        entered = newcomer.enter("e", 1000).await;
    }
    assert!(entered.unwrap().token().is_none(), "the leader still leads");
    assert_eq!(stored(&store, "e").queue.len(), 2);
    assert!(!crashed.is_open());
}

/// Slots go in the same collection that ends their session.
#[tokio::test(start_paused = true)]
async fn garbage_goes_in_the_collection_that_ends_it() {
    let store = MemoryCas::new();
    let (dead, other) = (Host::new(&store).await, Host::new(&store).await);
    dead.lead("e", 1).await;
    let _alive = other.keep_alive();
    collect(&other.backend.shared, &other.clock).await.unwrap();
    assert_eq!(stored(&store, "e").queue.len(), 1, "it may live");
    sleep(TTL.as_secs_f64() * 1.2).await;
    collect(&other.backend.shared, &other.clock).await.unwrap();
    assert!(stored(&store, "e").queue.is_empty());
}
