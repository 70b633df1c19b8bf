//! Many elections in one process: the time to lead them, their memory, and the time for a handover of all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tenure::{Elector, Leadership};

use crate::{MEMORY, Options, raw::RawStore, row::Row, single::TestStore};

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut Option<Box<dyn RawStore>>,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let all = match store.scheme.as_str() {
        // Each is a file, or takes two commits that are flushed one after the other.
        "local" | "postgres" => 1_000,
        _ => 10_000,
    };
    let count = options.rounds(all);
    let scheme = store.scheme.as_str();
    if !options.is_selected("many") {
        return Ok(());
    }
    let floor = match raw.as_mut() {
        Some(raw) => Some(raw.enter_many(count).await?),
        None => None,
    };
    let elector = store.elector().await?;
    let warm = elector.campaign("many-warm").await?;
    let before = MEMORY.current_usage();
    let begun = Instant::now();
    let with_session = lead(&elector, count).await?;
    let took = begun.elapsed();
    settle().await;
    let each = MEMORY.current_usage().saturating_sub(before) / count;
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    let ours = micros(took);
    let (target, met) = match scheme {
        // Go: 7 000 a second on the same machine.
        "etcd" => ("at most a fifth of Go's 143 us".to_owned(), ours <= 143.0 / 5.0),
        "zookeeper" => {
            let ratio = floor.map_or(0.0, |floor| ours / micros(floor));
            ("at most 1.3 times raw, pipelined".to_owned(), ratio <= 1.3)
        }
        _ => ("none".to_owned(), true),
    };
    let what = "the same number, raw, in the store's own best way";
    report(Row::value(
        (scheme, &format!("many: lead {count}, each")),
        ours,
        (what, floor.map(micros)),
        (target, met),
    ))?;
    let target = ("at most 1024 (bytes, not us)".to_owned(), each <= 1024);
    report(Row::value(
        (scheme, &format!("many: memory of one of {count} held, bytes")),
        each as f64,
        ("none", None),
        target,
    ))?;

    let successor = store.elector().await?;
    // Opens its session, so that it is not measured.
    successor.campaign("many-waits-warm").await?.resign().await?;
    let before = MEMORY.current_usage();
    let waiting: Vec<_> = (0..count)
        .map(|n| {
            let successor = Arc::clone(&successor);
            tokio::spawn(async move { successor.campaign(&name(n)).await })
        })
        .collect();
    for n in [0, count / 2, count - 1] {
        while elector.candidates(&name(n)).await?.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    settle().await;
    let each = MEMORY.current_usage().saturating_sub(before) / count;
    let target = ("at most 4096 (bytes, not us)".to_owned(), each <= 4096);
    report(Row::value(
        (scheme, &format!("many: memory of one of {count} waiting, bytes")),
        each as f64,
        ("none", None),
        target,
    ))?;

    // The holder's session ends, as its last word to the store.
    let begun = Instant::now();
    let closing = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.close().await })
    };
    drop((with_session, warm));
    let mut next = Vec::with_capacity(count);
    for campaign in waiting {
        next.push(campaign.await.context("a campaign panicked")??);
    }
    let took = begun.elapsed();
    closing.await?;
    let per_5000 = took.as_secs_f64() * 5_000.0 / count as f64;
    let target = match scheme {
        "etcd" => ("5 000 in half of Go's 0.40 s: 40 us each".to_owned(), per_5000 <= 0.2),
        _ => ("none".to_owned(), true),
    };
    report(Row::value(
        (scheme, &format!("many: take over {count}, each")),
        micros(took),
        ("none", None),
        target,
    ))?;
    drop(next);
    successor.close().await;
    Ok(())
}

fn name(n: usize) -> String {
    format!("many-{n}")
}

pub(crate) async fn lead(elector: &Arc<dyn Elector>, count: usize) -> Result<Vec<Leadership>> {
    let campaigns = (0..count).map(|n| {
        let elector = Arc::clone(elector);
        tokio::spawn(async move { elector.campaign(&name(n)).await })
    });
    try_join_all(campaigns).await?.into_iter().map(|led| Ok(led?)).collect()
}

/// Until what is under way in the background is over.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}
