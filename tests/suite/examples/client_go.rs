//! Compares elections on Kubernetes with those of client-go's `leaderelection`, on the same API server.
//!
//! ```text
//! cargo run --release -p tenure-tests --example client_go
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use futures::future::try_join_all;
use serde_json::Value;
use tenure::{Config, Elector};
use tenure_containers::{
    GoCandidate, GoCandidateSettings, GoEvent, KubernetesAdmin, KubernetesCluster, KubernetesSettings,
    Version,
};
use tenure_testkit::proxy::{Direction, Proxy};
use tokio::time::sleep;

const NAMESPACE: &str = "compared";
/// How many candidates wait while requests are counted.
const FOLLOWERS: usize = 10;

#[derive(Parser)]
struct Options {
    /// How often each is repeated
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How many leaders are cut off, at the same time
    #[arg(long, default_value_t = 8)]
    crashes: usize,
    /// For how long requests are counted, in seconds
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

/// client-go's own defaults. The TTL of tenure's candidates is the same.
fn settings() -> GoCandidateSettings {
    GoCandidateSettings {
        lease_duration: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
        retry_period: Duration::from_secs(2),
        release_on_cancel: true,
    }
}

struct Bench {
    cluster: KubernetesCluster,
    files: tempfile::TempDir,
}

impl Bench {
    fn admin(&self) -> &KubernetesAdmin {
        self.cluster.server(0).admin()
    }

    async fn go(&self, lease: &str, identity: &str) -> Result<GoCandidate> {
        Ok(GoCandidate::start(&self.cluster, 0, (NAMESPACE, lease), identity, &settings()).await?)
    }

    async fn rust(&self, endpoint: &str) -> Result<std::sync::Arc<dyn Elector>> {
        let kubeconfig = self.admin().kubeconfig(endpoint, "admin-token", NAMESPACE).await?;
        let file = self.files.path().join(endpoint.replace(':', "-"));
        std::fs::write(&file, kubeconfig)?;
        let url = format!("kubernetes:///{NAMESPACE}?kubeconfig={}", file.display());
        Ok(tenure::connect_with(&url, Config::new().with_ttl(settings().lease_duration)).await?)
    }

    fn endpoint(&self) -> String {
        self.cluster.server(0).endpoint()
    }

    async fn spec(&self, lease: &str) -> Result<Value> {
        let found = self.admin().lease(NAMESPACE, lease).await?.context("there is no such Lease")?;
        Ok(found["spec"].clone())
    }

    /// A first election, with connecting; and a handover to a candidate that waits.
    async fn go_round(&self, lease: &str) -> Result<(Duration, Duration)> {
        let mut first = self.go(lease, "first").await?;
        let began = Instant::now();
        first.wait_for(&GoEvent::Started("first".to_owned())).await?;
        let acquired = began.elapsed();
        let mut second = self.go(lease, "second").await?;
        second.wait_for(&GoEvent::Leader("first".to_owned())).await?;
        pause_of_any_length().await;
        first.terminate().await?;
        first.wait_for(&GoEvent::Stopped("first".to_owned())).await?;
        let began = Instant::now();
        second.wait_for(&GoEvent::Started("second".to_owned())).await?;
        Ok((acquired, began.elapsed()))
    }

    async fn rust_round(&self, lease: &str) -> Result<(Duration, Duration)> {
        let (first, second) = (self.rust(&self.endpoint()).await?, self.rust(&self.endpoint()).await?);
        let began = Instant::now();
        let leadership = first.campaign(lease).await?;
        let acquired = began.elapsed();
        let waiting = {
            let (second, lease) = (second.clone(), lease.to_owned());
            tokio::spawn(async move {
                let leadership = second.campaign(&lease).await?;
                let elected = Instant::now();
                leadership.resign().await?;
                Ok::<_, tenure::Error>(elected)
            })
        };
        pause_of_any_length().await;
        let began = Instant::now();
        leadership.resign().await?;
        let elected = waiting.await??;
        first.close().await;
        second.close().await;
        Ok((acquired, elected - began))
    }

    /// How long after its duration the Lease of a leader that was frozen has the next holder, by the times in the Lease.
    async fn go_crash(&self, lease: &str) -> Result<f64> {
        let mut first = self.go(lease, "first").await?;
        first.wait_for(&GoEvent::Started("first".to_owned())).await?;
        let mut second = self.go(lease, "second").await?;
        second.wait_for(&GoEvent::Leader("first".to_owned())).await?;
        pause_of_any_length().await;
        let _frozen = first.pause().await?;
        let before = self.spec(lease).await?;
        second.wait_for(&GoEvent::Started("second".to_owned())).await?;
        beyond_the_duration(&before, &self.spec(lease).await?)
    }

    async fn rust_crash(&self, lease: &str) -> Result<f64> {
        let proxy = Proxy::start(self.endpoint()).await?;
        let (first, second) = (self.rust(&proxy.endpoint()).await?, self.rust(&self.endpoint()).await?);
        let leadership = first.campaign(lease).await?;
        let waiting = {
            let (second, lease) = (second.clone(), lease.to_owned());
            tokio::spawn(async move { second.campaign(&lease).await })
        };
        pause_of_any_length().await;
        proxy.blackhole(Direction::Both);
        // A renewal may be under way.
        sleep(Duration::from_secs(1)).await;
        let before = self.spec(lease).await?;
        let next = waiting.await??;
        let after = self.spec(lease).await?;
        next.resign().await?;
        drop(leadership);
        proxy.heal();
        first.close().await;
        second.close().await;
        beyond_the_duration(&before, &after)
    }

    /// Requests a second about Leases, of a leader and of those that wait.
    async fn go_idle(&self, time: Duration) -> Result<f64> {
        let mut all = Vec::new();
        for number in 0..=FOLLOWERS {
            let mut candidate = self.go("idle-go", &number.to_string()).await?;
            candidate.wait_for(&GoEvent::Leader("0".to_owned())).await?;
            all.push(candidate);
        }
        self.requests_a_second(time).await
    }

    async fn rust_idle(&self, time: Duration) -> Result<f64> {
        let (mut all, mut waiting) = (Vec::new(), Vec::new());
        let leader = self.rust(&self.endpoint()).await?;
        let leadership = leader.campaign("idle").await?;
        for _ in 0..FOLLOWERS {
            let elector = self.rust(&self.endpoint()).await?;
            let candidate = elector.clone();
            waiting.push(tokio::spawn(async move { candidate.campaign("idle").await }));
            all.push(elector);
        }
        let rate = self.requests_a_second(time).await;
        for elector in all {
            elector.close().await;
        }
        leadership.resign().await?;
        rate
    }

    async fn requests_a_second(&self, time: Duration) -> Result<f64> {
        // The first requests of all.
        sleep(Duration::from_secs(5)).await;
        let before = self.requests().await?;
        sleep(time).await;
        Ok((self.requests().await? - before) / time.as_secs_f64())
    }

    async fn requests(&self) -> Result<f64> {
        let metrics = self.admin().metrics().await?;
        let of_leases = metrics.lines().filter(|line| {
            line.starts_with("apiserver_request_total{") && line.contains("resource=\"leases\"")
        });
        Ok(of_leases.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }
}

/// So that what follows begins at any moment between two renewals, or two attempts.
async fn pause_of_any_length() {
    sleep(Duration::from_secs(1) + settings().retry_period.mul_f64(fastrand::f64())).await;
}

/// In seconds.
fn beyond_the_duration(before: &Value, after: &Value) -> Result<f64> {
    let time = |value: &Value| -> Result<f64> {
        let time = value.as_str().context("no time")?;
        Ok(humantime::parse_rfc3339(time)?.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
    };
    let duration = before["leaseDurationSeconds"].as_f64().context("no duration")?;
    Ok(time(&after["acquireTime"])? - time(&before["renewTime"])? - duration)
}

fn print(measure: &str, unit: &str, ours: &mut [f64], theirs: &mut [f64]) {
    let quantiles = |values: &mut [f64]| {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
        (at(0.5), at(0.99))
    };
    let ((ours, our_p99), (theirs, their_p99)) = (quantiles(ours), quantiles(theirs));
    println!(
        "| {measure}, {unit} | {ours:.1} ({our_p99:.1}) | {theirs:.1} ({their_p99:.1}) | {:.3} |",
        ours / theirs
    );
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let cluster =
        KubernetesCluster::start_with(Version::Kubernetes120, &KubernetesSettings::default()).await?;
    let bench = Bench { cluster, files: tempfile::tempdir()? };
    bench.admin().create_namespace(NAMESPACE).await?;
    println!("| measure | tenure, p50 (p99) | client-go, p50 (p99) | ratio |\n|---|---|---|---|");

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        ours.push(bench.rust_round(&format!("rust-{round}")).await?);
        theirs.push(bench.go_round(&format!("go-{round}")).await?);
    }
    let millis = |times: &[(Duration, Duration)], of: fn(&(Duration, Duration)) -> Duration| -> Vec<f64> {
        times.iter().map(|times| of(times).as_secs_f64() * 1e3).collect()
    };
    let (first, second) = (|times: &(Duration, Duration)| times.0, |times: &(Duration, Duration)| times.1);
    print("election, with connecting", "ms", &mut millis(&ours, first), &mut millis(&theirs, first));
    print("handover", "ms", &mut millis(&ours, second), &mut millis(&theirs, second));

    let leases: Vec<_> = (0..options.crashes).map(|number| format!("crash-{number}")).collect();
    let mut ours = try_join_all(leases.iter().map(|lease| bench.rust_crash(lease))).await?;
    let leases: Vec<_> = (0..options.crashes).map(|number| format!("crash-go-{number}")).collect();
    let mut theirs = try_join_all(leases.iter().map(|lease| bench.go_crash(lease))).await?;
    print("takeover beyond the duration", "s", &mut ours, &mut theirs);

    let time = Duration::from_secs(options.idle);
    let ours = bench.rust_idle(time).await?;
    let theirs = bench.go_idle(time).await?;
    print("requests of a leader and ten followers", "a second", &mut [ours], &mut [theirs]);
    Ok(())
}
