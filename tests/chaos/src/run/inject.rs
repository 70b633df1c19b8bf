//! How each disruption is injected and healed.

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use rustix::process::Signal;
use tenure_containers::{Direction, FaultKind};
use tenure_testkit::proxy::{self, Proxy};
use tokio::time::{Instant, sleep, timeout};

use super::{
    candidates::Candidates,
    plan::{Disruption, PlannedFault},
};
use crate::cluster::Cluster;

/// The delay of a slow connection: much more than a request takes, and much less than a TTL.
const SLOW_DELAY: std::time::Duration = std::time::Duration::from_millis(250);
const LOST_PACKETS_PERCENT: u8 = 25;

/// Disrupts servers, or the connections of all candidates to them, for the planned duration.
pub(crate) async fn disrupt_members(
    cluster: &Cluster,
    candidates: &Candidates,
    members: &[usize],
    planned: &PlannedFault,
) -> Result<()> {
    let kind = match planned.disruption {
        Disruption::Kill => FaultKind::Kill,
        Disruption::Freeze => FaultKind::Freeze,
        Disruption::StalledDisk => FaultKind::StallDisk,
        Disruption::FullDisk => FaultKind::FillDisk,
        Disruption::Partition => FaultKind::PartitionFromAll(Direction::Both),
        Disruption::InboundPartition => FaultKind::PartitionFromAll(Direction::Inbound),
        Disruption::OutboundPartition => FaultKind::PartitionFromAll(Direction::Outbound),
        Disruption::PartitionFromPeers => FaultKind::PartitionFromPeers(Direction::Both),
        Disruption::LostPackets => FaultKind::LosePackets { percent: LOST_PACKETS_PERCENT },
        Disruption::PartitionFromClients => FaultKind::PartitionFromClients(Direction::Both),
        Disruption::Terminate => return cluster.terminate_connections().await,
        Disruption::Failover => return cluster.fail_over_after(planned.duration).await,
        Disruption::HalfOpen | Disruption::Reset | Disruption::Slow => {
            let proxies: Vec<&Proxy> =
                members.iter().flat_map(|&member| candidates.proxies_to(member)).collect();
            disrupt_proxies(&proxies, planned).await;
            return Ok(());
        }
    };
    let faults = try_join_all(members.iter().map(|&member| cluster.inject(member, kind))).await?;
    sleep(planned.duration).await;
    for healed in join_all(faults.into_iter().map(|fault| fault.heal())).await {
        // Whether the server recovers is checked after the round.
        if let Err(error) = healed {
            println!("a server is not ready after {:?}: {error}", planned.disruption);
        }
    }
    Ok(())
}

/// Disrupts a candidate, or its connections to all servers, for the planned duration.
pub(crate) async fn disrupt_candidate(
    candidates: &Candidates,
    slot: usize,
    planned: &PlannedFault,
) -> Result<()> {
    match planned.disruption {
        Disruption::Kill => {
            candidates.kill(slot).await?;
            sleep(planned.duration).await;
            candidates.start_process(slot)?;
        }
        Disruption::Freeze => {
            candidates.signal(slot, Signal::STOP)?;
            sleep(planned.duration).await;
            candidates.signal(slot, Signal::CONT)?;
        }
        _ => disrupt_proxies(&candidates.proxies(slot).iter().collect::<Vec<_>>(), planned).await,
    }
    Ok(())
}

async fn disrupt_proxies(proxies: &[&Proxy], planned: &PlannedFault) {
    let all = |act: &dyn Fn(&Proxy)| proxies.iter().for_each(|proxy| act(proxy));
    match planned.disruption {
        Disruption::Reset => return all(&|proxy| proxy.reset_connections()),
        Disruption::Partition => all(&|proxy| proxy.cut()),
        Disruption::InboundPartition => all(&|proxy| proxy.blackhole(proxy::Direction::ToClient)),
        Disruption::OutboundPartition => all(&|proxy| proxy.blackhole(proxy::Direction::ToServer)),
        Disruption::Slow => all(&|proxy| proxy.delay(SLOW_DELAY)),
        // Above TCP, lost packets are bytes that arrive late, in order.
        Disruption::LostPackets => {
            let end = Instant::now() + planned.duration;
            while Instant::now() < end {
                all(&|proxy| proxy.hold(proxy::Direction::Both));
                sleep(SLOW_DELAY.mul_f64(fastrand::f64())).await;
                all(&|proxy| proxy.heal());
                let pause = sleep(SLOW_DELAY.mul_f64(fastrand::f64()));
                let _ = timeout(end.saturating_duration_since(Instant::now()), pause).await;
            }
        }
        _ => all(&|proxy| proxy.blackhole(proxy::Direction::Both)),
    }
    sleep(planned.duration).await;
    all(&|proxy| proxy.heal());
}
