//! How often etcd revokes a lease that lives, when a member that led before thaws (etcd-io/etcd#15247, and
//! what its fix leaves open). No elector takes part: what is found is the store's own.
//!
//! ```text
//! cargo run --release -p tenure-containers --example early_revocations -- --rounds 40 --busy 6
//! ```

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use tenure_containers::{ContainerError, EtcdAdmin, EtcdCluster, Version};
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(2);
/// Longer than the lease has left, by the frozen member's count.
const FROZEN: Duration = Duration::from_secs(3);
/// How long after it has thawed the member may still revoke.
const AFTER: Duration = Duration::from_millis(1500);
const PACE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_millis(400);

#[derive(Parser)]
struct Options {
    /// How often the leader of the cluster is frozen
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Threads that do nothing but keep the processors busy
    #[arg(long, default_value_t = 6)]
    busy: usize,
    /// Of etcd: 3.4 or 3.5
    #[arg(long, default_value = "3.5", value_parser = version)]
    etcd: Version,
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "3.4" => Ok(Version::Etcd34),
        "3.5" => Ok(Version::Etcd35),
        other => Err(format!("{other:?} is not at hand; allowed are 3.4 and 3.5")),
    }
}

#[tokio::main]
async fn main() -> Result<(), ContainerError> {
    let options = Options::parse();
    let cluster = EtcdCluster::start(options.etcd).await?;
    let _busy = Busy::start(options.busy);
    let (mut early, mut late) = (0, 0);
    for round in 1..=options.rounds {
        match lease_beside_a_thaw(&cluster).await? {
            Ended::Early { since, by } => {
                early += 1;
                println!(
                    "round {round}: revoked {since:.0?} after its last answered keepalive began, by {by}"
                );
            }
            Ended::Late => late += 1,
            Ended::Never => {}
        }
    }
    println!("{early} of {} live leases revoked; {late} were not kept alive in time", options.rounds);
    Ok(())
}

/// How a lease ended that was kept alive.
enum Ended {
    Early { since: Duration, by: String },
    Late,
    Never,
}

/// Keeps a lease alive by the members that go on, while the one that led is frozen and thaws.
async fn lease_beside_a_thaw(cluster: &EtcdCluster) -> Result<Ended, ContainerError> {
    let leader = cluster.leader().await?;
    let members = || (0..cluster.endpoints().len()).map(|member| cluster.member(member).admin());
    let others: Vec<_> = (1..cluster.endpoints().len())
        .map(|next| cluster.member((leader + next) % cluster.endpoints().len()).admin())
        .collect();
    let mut counted = Vec::new();
    for member in members() {
        counted.push(member.expiries().await?.revoked);
    }
    let lease = others[0].grant_lease(TTL).await?;
    let frozen = async {
        let fault = cluster.member(leader).pause().await?;
        sleep(FROZEN).await;
        fault.heal().await?;
        sleep(AFTER).await;
        Ok::<_, ContainerError>(())
    };
    let ended = tokio::select! {
        ended = keep_alive(&others, lease) => ended,
        frozen = frozen => return frozen.map(|()| Ended::Never),
    };
    if ended >= TTL {
        return Ok(Ended::Late);
    }
    let mut by = Vec::new();
    for (number, (member, before)) in members().zip(counted).enumerate() {
        let now = member.expiries().await?;
        if now.revoked > before {
            let leads = if now.leader == now.member { "leads" } else { "does not lead" };
            by.push(format!("member {number}, which {leads}"));
        }
    }
    Ok(Ended::Early { since: ended, by: by.join(" and ") })
}

/// Until the lease is gone; returns how long ago the last keepalive had begun that was answered.
async fn keep_alive(members: &[&EtcdAdmin], lease: i64) -> Duration {
    let mut answered = Instant::now();
    for member in members.iter().cycle() {
        let began = Instant::now();
        match timeout(PATIENCE, member.keep_alive(lease)).await {
            Ok(Ok(true)) => answered = began,
            Ok(Ok(false)) => return answered.elapsed(),
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(PACE).await;
    }
    unreachable!("a cluster has members")
}

/// Threads that spin until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start(threads: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..threads {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
