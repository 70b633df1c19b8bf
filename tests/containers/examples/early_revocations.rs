//! Measures how often etcd revokes a live lease when a former leader of the cluster thaws (etcd-io/etcd#15247, and the cases
//! that its fix leaves open). It uses no elector: what it finds is etcd's own behaviour.
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
/// How long the leader is frozen: longer than the lease has left by the leader's own count.
const FREEZE_DURATION: Duration = Duration::from_secs(3);
/// How long after it has thawed the former leader may still revoke.
const WATCH_AFTER_THAW: Duration = Duration::from_millis(1500);
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(100);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(400);

#[derive(Parser)]
struct Options {
    /// How often the leader of the cluster is frozen
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// The number of threads that keep the processors busy
    #[arg(long, default_value_t = 6)]
    busy: usize,
    /// The version of etcd: 3.4 or 3.5
    #[arg(long, default_value = "3.5", value_parser = version)]
    etcd: Version,
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "3.4" => Ok(Version::Etcd34),
        "3.5" => Ok(Version::Etcd35),
        other => Err(format!("unknown version {other:?}; allowed are 3.4 and 3.5")),
    }
}

#[tokio::main]
async fn main() -> Result<(), ContainerError> {
    let options = Options::parse();
    let cluster = EtcdCluster::start(options.etcd).await?;
    let _load = Load::start(options.busy);
    let (mut early, mut late) = (0, 0);
    for round in 1..=options.rounds {
        match lease_during_thaw(&cluster).await? {
            LeaseEnd::Early { since, by } => {
                early += 1;
                println!(
                    "round {round}: revoked {since:.0?} after its last answered keepalive began, by {by}"
                );
            }
            LeaseEnd::Late => late += 1,
            LeaseEnd::Never => {}
        }
    }
    println!("{early} of {} live leases revoked; {late} were not kept alive in time", options.rounds);
    Ok(())
}

/// How a lease ended that was kept alive.
enum LeaseEnd {
    Early { since: Duration, by: String },
    Late,
    Never,
}

/// Keeps a lease alive through the other members while the leader is frozen and thaws.
async fn lease_during_thaw(cluster: &EtcdCluster) -> Result<LeaseEnd, ContainerError> {
    let leader = cluster.leader().await?;
    let members = || (0..cluster.endpoints().len()).map(|member| cluster.member(member).admin());
    let others: Vec<_> = (1..cluster.endpoints().len())
        .map(|next| cluster.member((leader + next) % cluster.endpoints().len()).admin())
        .collect();
    let mut revoked_before = Vec::new();
    for member in members() {
        revoked_before.push(member.lease_expiry_stats().await?.revoked);
    }
    let lease = others[0].grant_lease(TTL).await?;
    let freeze = async {
        let fault = cluster.member(leader).pause().await?;
        sleep(FREEZE_DURATION).await;
        fault.heal().await?;
        sleep(WATCH_AFTER_THAW).await;
        Ok::<_, ContainerError>(())
    };
    let since = tokio::select! {
        since = keep_alive(&others, lease) => since,
        frozen = freeze => return frozen.map(|()| LeaseEnd::Never),
    };
    if since >= TTL {
        return Ok(LeaseEnd::Late);
    }
    let mut by = Vec::new();
    for (number, (member, before)) in members().zip(revoked_before).enumerate() {
        let stats = member.lease_expiry_stats().await?;
        if stats.revoked > before {
            let leads = if stats.leader == stats.member { "leads" } else { "does not lead" };
            by.push(format!("member {number}, which {leads}"));
        }
    }
    Ok(LeaseEnd::Early { since, by: by.join(" and ") })
}

/// Keeps a lease alive until it is gone. Returns how long ago the last answered keepalive was sent.
async fn keep_alive(members: &[&EtcdAdmin], lease: i64) -> Duration {
    let mut last_answered = Instant::now();
    for member in members.iter().cycle() {
        let began = Instant::now();
        match timeout(KEEPALIVE_TIMEOUT, member.keep_alive(lease)).await {
            Ok(Ok(true)) => last_answered = began,
            Ok(Ok(false)) => return last_answered.elapsed(),
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(KEEPALIVE_INTERVAL).await;
    }
    unreachable!("a cluster has members")
}

/// Threads that spin until this is dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start(threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..threads {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
