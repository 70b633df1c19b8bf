//! Injects the faults of a round: one after the other in each lane, the lanes at the same time.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tokio::time::sleep;

use super::{
    candidates::{CANDIDATES, Candidates},
    inject::{disrupt_candidate, disrupt_members},
    plan::{PlannedFault, Target, TargetGroup},
    report::Report,
};
use crate::{
    cluster::Cluster,
    options::{LONG_ELECTION, RunOptions},
};

/// One lane disrupts servers, so that two of its faults never add up to a loss of the majority. Two lanes disrupt
/// candidates.
const LANES: [TargetGroup; 3] = [TargetGroup::Servers, TargetGroup::Candidates, TargetGroup::Candidates];

/// Injects so many faults, and heals all of them.
pub(crate) async fn inject_faults(
    cluster: &Cluster,
    candidates: &Candidates,
    rng: &mut fastrand::Rng,
    faults: u64,
    options: &RunOptions,
    report: &mut Report,
) -> Result<()> {
    let mut plans: [Vec<PlannedFault>; LANES.len()] = Default::default();
    for number in 0..faults {
        let lane = number as usize % LANES.len();
        plans[lane].push(PlannedFault::draw(LANES[lane], options.store, options.ttl, rng));
    }
    for planned in plans.iter().flatten() {
        report.count_fault(planned);
    }
    let reserved = Mutex::default();
    let reserved = &reserved;
    let lanes = plans.iter().map(|plan| async move {
        for planned in plan {
            sleep(planned.delay).await;
            if options.verbose {
                println!("{planned:?}");
            }
            let injected = inject(cluster, candidates, planned, reserved).await;
            injected.with_context(|| format!("{planned:?}"))?;
        }
        anyhow::Ok(())
    });
    try_join_all(lanes).await?;
    Ok(())
}

/// The slots whose candidates a lane disrupts at the moment.
type ReservedSlots = Mutex<BTreeSet<usize>>;

async fn inject(
    cluster: &Cluster,
    candidates: &Candidates,
    planned: &PlannedFault,
    reserved: &ReservedSlots,
) -> Result<()> {
    let (leader, members) = (|| cluster.leader(), cluster.members());
    match planned.target {
        Target::StoreLeader => disrupt_members(cluster, candidates, &[leader().await?], planned).await,
        Target::Follower => {
            let follower = (leader().await? + 1 + planned.selector % (members - 1)) % members;
            disrupt_members(cluster, candidates, &[follower], planned).await
        }
        Target::Majority => {
            let first = planned.selector % members;
            disrupt_members(cluster, candidates, &[first, (first + 1) % members], planned).await
        }
        Target::ApiServers => disrupt_members(cluster, candidates, &[0, 1], planned).await,
        Target::Candidate | Target::LeadingCandidate => {
            let preferred = match planned.target {
                Target::Candidate => planned.selector % CANDIDATES,
                _ => candidates.last_leader(LONG_ELECTION),
            };
            let slot = SlotReservation::new(preferred, reserved);
            disrupt_candidate(candidates, slot.number, planned).await
        }
    }
}

/// Keeps other lanes from disrupting a slot's candidate.
struct SlotReservation<'a> {
    number: usize,
    reserved: &'a ReservedSlots,
}

impl<'a> SlotReservation<'a> {
    /// Reserves the preferred slot or the next one that is free. There are more slots than lanes.
    fn new(preferred: usize, reserved: &'a ReservedSlots) -> Self {
        let mut taken = reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = (preferred..preferred + CANDIDATES).map(|slot| slot % CANDIDATES);
        let number = slots.find(|slot| !taken.contains(slot)).unwrap_or(preferred);
        taken.insert(number);
        Self { number, reserved }
    }
}

impl Drop for SlotReservation<'_> {
    fn drop(&mut self) {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
