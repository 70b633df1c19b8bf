//! Random faults over a simulated cluster: one seed is one run.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenure_core::{
    Elector, SimClock,
    memory::{MemoryStore, Op, Path, Side},
    spi::Proof,
};

use crate::host::{Host, TTL, nothing_left, pass, until};

/// What happened in a run, for checking.
#[derive(Default)]
struct History {
    /// Who believes to lead at this moment.
    leading: Vec<u64>,
    highest: u64,
    terms: usize,
}

/// Promises S1, S2, S3, L2: whatever is cut, delayed, held back, refused, expired or deleted, and
/// however the clocks drift within the bound.
#[test]
fn no_two_lead_at_once_whatever_happens() {
    let mut terms = 0;
    for seed in 0..60 {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        terms += runtime.block_on(run(seed));
    }
    assert!(terms > 600, "only {terms} terms: the faults leave no room to lead");
}

async fn run(seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let proof = match seed % 3 {
        0 => Proof::Answer,
        1 => Proof::Read,
        _ => Proof::Later { gap: TTL / 4 },
    };
    let store = MemoryStore::with_proof(proof);
    let history = Arc::new(Mutex::new(History::default()));
    let hosts: Vec<Host> = (0..4)
        .map(|n| {
            let rate = 0.95 + 0.1 * random.f64();
            Host::with(&store, &format!("c{n}"), SimClock::with_rate(rate), |c| c)
        })
        .collect();
    let mut candidates = Vec::new();
    for host in &hosts {
        let (elector, history) = (Arc::clone(&host.elector), Arc::clone(&history));
        let mut random = fastrand::Rng::with_seed(random.u64(..));
        candidates.push(tokio::spawn(async move {
            loop {
                let patience = Duration::from_millis(random.u64(1..60_000));
                let Ok(campaign) = tokio::time::timeout(patience, elector.campaign("e")).await else {
                    continue;
                };
                let Ok(leadership) = campaign else { return };
                let token = leadership.fencing_token().get();
                let length = Duration::from_millis(random.u64(1..40_000));
                let history = Arc::clone(&history);
                let _ = leadership.run(lead(seed, token, length, history)).await;
                if random.bool() {
                    let _ = leadership.resign().await;
                }
            }
        }));
    }
    for _ in 0..60 {
        pass(Duration::from_millis(random.u64(1..8_000))).await;
        let host = &hosts[random.usize(..hosts.len())];
        let op = Op::ALL[random.usize(..Op::ALL.len())];
        let side = if random.bool() { Side::Request } else { Side::Answer };
        let delay = Duration::from_millis(random.u64(1..12_000));
        match random.u8(..10) {
            0 => host.link.cut(),
            1 => host.link.lie(true),
            2 => host.link.set(&[op], side, Path::Lose),
            3 => host.link.set(&[op], side, Path::Hold),
            4 => host.link.set(&[op], side, Path::Refuse),
            5 => host.link.set(&[op], side, Path::Delay(delay)),
            6 => store.begin_epoch(),
            7 => host.clock.jump(delay),
            _ => host.link.heal(),
        }
    }
    for host in &hosts {
        host.link.heal();
    }
    // Promise L1: with the store whole again, somebody leads.
    let terms = history.lock().unwrap().terms;
    until(&format!("somebody leads again, seed {seed}"), || history.lock().unwrap().terms > terms).await;
    for host in &hosts {
        host.elector.close().await;
    }
    for candidate in candidates {
        if let Err(error) = candidate.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    nothing_left(&store).await;
    let history = history.lock().unwrap();
    assert!(history.leading.is_empty(), "seed {seed}: {:?}", history.leading);
    history.terms
}

/// Marks the time in which this leader works, and counts on being dropped in time.
async fn lead(seed: u64, token: u64, length: Duration, history: Arc<Mutex<History>>) {
    struct Leading(u64, Arc<Mutex<History>>);
    impl Drop for Leading {
        fn drop(&mut self) {
            let Ok(mut history) = self.1.lock() else { return };
            history.leading.retain(|token| *token != self.0);
        }
    }
    {
        let mut history = history.lock().unwrap();
        assert!(history.leading.is_empty(), "seed {seed}: {token} leads beside {:?}", history.leading);
        assert!(token > history.highest, "seed {seed}: token {token} after {}", history.highest);
        history.leading.push(token);
        history.highest = token;
        history.terms += 1;
    }
    let _leading = Leading(token, Arc::clone(&history));
    pass(length).await;
}
