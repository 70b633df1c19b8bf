//! Scenarios with fixed times.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use tenure_core::{
    CandidateId, ElectionName, SimClock,
    spi::{Backend as _, Entered, EntryRequest, SessionOptions},
};
use tenure_etcd::{EtcdBackend, EtcdConfig};
use tokio::time::{sleep, timeout};

use super::{
    cluster::{Cluster, MEMBERS},
    faults::TICK,
    host::{self, TTL, host_name, member_name},
    network,
    request::MemberService,
};
use crate::run::Outcome;

/// How late a second attempt is made, and how much later than that any answer comes.
const HEDGE: Duration = Duration::from_millis(10);
const LATE: Duration = Duration::from_millis(20);
/// How long withdrawing may take where nothing is in its way.
const PROMPTLY: Duration = Duration::from_secs(2);

/// Hazard E17: a request is answered by its second attempt; then the NOSPACE alarm goes on, and the entry is given up. It
/// has to be gone at once, and marked once the alarm is off.
pub(super) fn withdrawal_without_space(seed: u64) -> Outcome {
    let mut random = Rng::with_seed(seed ^ 0x0e17);
    let mut sim = turmoil::Builder::new()
        .rng_seed(random.u64(..))
        .tick_duration(TICK)
        .simulation_duration(Duration::MAX)
        .min_message_latency(LATE)
        .max_message_latency(LATE + TICK)
        .build();
    let cluster = Cluster::new(random.fork(), &mut || 1.0);
    for member in 0..MEMBERS {
        let service = MemberService { cluster: cluster.clone(), member };
        sim.host(member_name(member), move || host::member(service.clone()));
    }
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let (found, store) = (Arc::clone(&wrong), cluster.clone());
    sim.client(host_name(0), async move {
        if let Err(what) = withdraw(&store).await {
            found.lock().unwrap_or_else(PoisonError::into_inner).push(format!("E17: {what}"));
        }
        Ok(())
    });
    loop {
        cluster.advance(sim.elapsed());
        match sim.step() {
            Ok(false) => {}
            Ok(true) => break,
            Err(error) => {
                wrong.lock().unwrap_or_else(PoisonError::into_inner).push(format!("E17: {error}"));
                break;
            }
        }
    }
    let violations = std::mem::take(&mut *wrong.lock().unwrap_or_else(PoisonError::into_inner));
    Outcome { violations, ..Outcome::default() }
}

async fn withdraw(cluster: &Cluster) -> Result<(), String> {
    let endpoints = (0..MEMBERS).map(|member| format!("{}:{}", member_name(member), network::PORT));
    let config = EtcdConfig::new(endpoints).network(network::network()).hedge(HEDGE);
    let backend = EtcdBackend::new(config).map_err(|error| error.to_string())?;
    let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), 0.1);
    let session = backend.open_session(&options).await.map_err(|error| error.to_string())?;
    let request = EntryRequest {
        election: ElectionName::new("e").map_err(|error| error.to_string())?,
        candidate: CandidateId::new("a").map_err(|error| error.to_string())?,
        value: b"".as_slice().into(),
        nonce: 17,
    };
    let Entered::Leads(won) = session.enter(&request).await.map_err(|error| error.to_string())? else {
        return Err("the only candidate does not lead".to_owned());
    };
    cluster.change(|state| state.store.out_of_space = true);
    let left = timeout(PROMPTLY, session.leave(&request, Some(&won.entry))).await;
    let entry = cluster.read().store.head("/tenure/e/").cloned();
    match (left, entry) {
        (Ok(Ok(())), None) => {}
        (left, entry) => return Err(format!("leaving: {left:?}; what stands: {entry:?}")),
    }
    cluster.change(|state| state.store.out_of_space = false);
    let marked = async {
        while cluster.read().store.head("/tenure/~withdrawn/").is_none() {
            sleep(TICK).await;
        }
    };
    timeout(TTL, marked)
        .await
        .map_err(|_| "the request is not marked when there is space again".to_owned())?;
    session.close().await.map_err(|error| error.to_string())?;
    backend.close().await;
    match cluster.read().store.key_count() {
        0 => Ok(()),
        left => Err(format!("{left} keys are left")),
    }
}
