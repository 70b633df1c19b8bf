//! How each thing is broken, and mended.

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use rustix::process::Signal;
use tenure_containers::{Harm, Way};
use tenure_testkit::proxy::{Direction, Proxy};
use tokio::time::{Instant, sleep, timeout};

use super::{
    candidates::Candidates,
    cluster::Cluster,
    plan::{Kind, Planned},
};

/// How much later a slow line delivers: much more than a request takes, and much less than a TTL.
const SLOW: std::time::Duration = std::time::Duration::from_millis(250);
const LOST_PERCENT: u8 = 25;

/// Breaks servers, or everybody's lines to them, for as long as planned.
pub(crate) async fn break_members(
    cluster: &Cluster,
    candidates: &Candidates,
    members: &[usize],
    planned: &Planned,
) -> Result<()> {
    let harm = match planned.kind {
        Kind::Kill => Harm::Kill,
        Kind::Stop => Harm::Freeze,
        Kind::StalledDisk => Harm::StallDisk,
        Kind::FullDisk => Harm::FillDisk,
        Kind::CutOff => Harm::Cut(Way::Both),
        Kind::CutOffIn => Harm::Cut(Way::In),
        Kind::CutOffOut => Harm::Cut(Way::Out),
        Kind::CutOffFromPeers => Harm::CutPeers(Way::Both),
        Kind::LostPackets => Harm::LosePackets(LOST_PERCENT),
        Kind::HalfOpen | Kind::Reset | Kind::Slow => {
            let lines: Vec<&Proxy> = members.iter().flat_map(|&member| candidates.lines_to(member)).collect();
            break_lines(&lines, planned).await;
            return Ok(());
        }
    };
    let faults = try_join_all(members.iter().map(|&member| cluster.harm(member, harm))).await?;
    sleep(planned.lasts).await;
    for healed in join_all(faults.into_iter().map(|fault| fault.heal())).await {
        // Whether it serves again is looked at once everything is mended.
        if let Err(error) = healed {
            println!("a server does not come back after {:?}: {error}", planned.kind);
        }
    }
    Ok(())
}

/// Breaks a candidate, or its lines to all servers.
pub(crate) async fn break_candidate(candidates: &Candidates, place: usize, planned: &Planned) -> Result<()> {
    match planned.kind {
        Kind::Kill => {
            candidates.kill(place).await?;
            sleep(planned.lasts).await;
            candidates.come(place)?;
        }
        Kind::Stop => {
            candidates.signal(place, Signal::STOP)?;
            sleep(planned.lasts).await;
            candidates.signal(place, Signal::CONT)?;
        }
        _ => break_lines(&candidates.lines(place).iter().collect::<Vec<_>>(), planned).await,
    }
    Ok(())
}

async fn break_lines(lines: &[&Proxy], planned: &Planned) {
    let all = |act: &dyn Fn(&Proxy)| lines.iter().for_each(|line| act(line));
    match planned.kind {
        Kind::Reset => return all(&|line| line.reset_connections()),
        Kind::CutOff => all(&|line| line.cut()),
        Kind::CutOffIn => all(&|line| line.blackhole(Direction::ToClient)),
        Kind::CutOffOut => all(&|line| line.blackhole(Direction::ToServer)),
        Kind::Slow => all(&|line| line.delay(SLOW)),
        // Seen from above TCP, packets that are lost are bytes that come late, in order.
        Kind::LostPackets => {
            let end = Instant::now() + planned.lasts;
            while Instant::now() < end {
                all(&|line| line.hold(Direction::Both));
                sleep(SLOW.mul_f64(fastrand::f64())).await;
                all(&|line| line.heal());
                let quiet = sleep(SLOW.mul_f64(fastrand::f64()));
                let _ = timeout(end.saturating_duration_since(Instant::now()), quiet).await;
            }
        }
        _ => all(&|line| line.blackhole(Direction::Both)),
    }
    sleep(planned.lasts).await;
    all(&|line| line.heal());
}
