//! Faults, one after the other, in lanes beside each other.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tokio::time::sleep;

use super::{
    breakage::{break_candidate, break_members},
    candidates::{Candidates, PLACES},
    cluster::{Cluster, MEMBERS},
    plan::{Planned, Side, Target},
    report::Report,
};
use crate::{candidate::LONG, options::Options};

/// One lane breaks servers, two break candidates: a majority of the servers is never left alone by chance,
/// and everything happens beside everything.
const LANES: [Side; 3] = [Side::Store, Side::Candidates, Side::Candidates];

/// Breaks `faults` things, and mends them all.
pub(crate) async fn break_things(
    cluster: &Cluster,
    candidates: &Candidates,
    lots: &mut fastrand::Rng,
    faults: u64,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let mut plans: [Vec<Planned>; LANES.len()] = Default::default();
    for number in 0..faults {
        let lane = number as usize % LANES.len();
        plans[lane].push(Planned::draw(LANES[lane], options.ttl, lots));
    }
    for planned in plans.iter().flatten() {
        report.count(planned);
    }
    let busy = Mutex::default();
    let busy = &busy;
    let lanes = plans.iter().map(|plan| async move {
        for planned in plan {
            sleep(planned.after).await;
            if options.verbose {
                println!("{planned:?}");
            }
            happen(cluster, candidates, planned, busy).await.with_context(|| format!("{planned:?}"))?;
        }
        anyhow::Ok(())
    });
    try_join_all(lanes).await?;
    Ok(())
}

/// The places whose candidates are broken just now.
type Busy = Mutex<BTreeSet<usize>>;

async fn happen(cluster: &Cluster, candidates: &Candidates, planned: &Planned, busy: &Busy) -> Result<()> {
    let leader = || cluster.leader();
    match planned.target {
        Target::StoreLeader => break_members(cluster, candidates, &[leader().await?], planned).await,
        Target::Follower => {
            let follower = (leader().await? + 1 + planned.lot % (MEMBERS - 1)) % MEMBERS;
            break_members(cluster, candidates, &[follower], planned).await
        }
        Target::Majority => {
            let first = planned.lot % MEMBERS;
            break_members(cluster, candidates, &[first, (first + 1) % MEMBERS], planned).await
        }
        Target::Candidate | Target::LeadingCandidate => {
            let wanted = match planned.target {
                Target::Candidate => planned.lot % PLACES,
                _ => candidates.leading(LONG),
            };
            let place = Taken::take(wanted, busy);
            break_candidate(candidates, place.number, planned).await
        }
    }
}

/// A place that no other lane breaks for as long as this lives.
struct Taken<'a> {
    number: usize,
    busy: &'a Busy,
}

impl<'a> Taken<'a> {
    /// Takes this place, or the next that is free: there are more places than lanes.
    fn take(wanted: usize, busy: &'a Busy) -> Self {
        let mut taken = busy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = (wanted..wanted + PLACES).map(|place| place % PLACES);
        let number = free.find(|place| !taken.contains(place)).unwrap_or(wanted);
        taken.insert(number);
        Self { number, busy }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
