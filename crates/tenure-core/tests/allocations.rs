//! A check of leadership allocates nothing.

use std::{hint::black_box, sync::Arc};

use tenure_core::{Config, Elector, StoreElector, memory::MemoryStore};

#[tokio::test]
async fn a_check_allocates_nothing_whatever_the_number_of_leaderships() {
    let elector = StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new()).unwrap();
    for count in [1, 1_000] {
        let mut held = Vec::with_capacity(count);
        for n in 0..count {
            held.push(elector.campaign(&format!("e{count}-{n}")).await.unwrap());
        }
        let allocated = allocation_counter::measure(|| {
            for leadership in &held {
                black_box(leadership.ensure()).unwrap();
                assert!(black_box(leadership.is_leader()));
            }
        });
        assert_eq!(allocated.count_total, 0, "with {count} held");
        let made = allocation_counter::measure(|| drop(black_box(Box::new(held.len()))));
        assert_eq!(made.count_total, 1, "allocations are counted");
    }
    elector.close().await;
}
