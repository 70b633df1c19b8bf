//! What a check of leadership costs, with one leadership and with ten thousand.

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use tenure::{Config, Elector, StoreElector, memory::MemoryStore};

fn ensure(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("ensure");
    for count in [1, 10_000] {
        let elector =
            StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new()).expect("an elector");
        let held: Vec<_> = runtime.block_on(async {
            let mut held = Vec::with_capacity(count);
            for n in 0..count {
                held.push(elector.campaign(&format!("e{n}")).await.expect("leadership"));
            }
            held
        });
        let mut next = 0;
        group.bench_function(format!("{count} held"), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % held.len();
                black_box(held[next].ensure())
            });
        });
        runtime.block_on(elector.close());
    }
    group.finish();
}

criterion_group!(benches, ensure);
criterion_main!(benches);
