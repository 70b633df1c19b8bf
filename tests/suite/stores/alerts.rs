//! The alert rules are valid, and fire when they should: promtool runs their unit tests.

use std::{path::Path, process::Command, time::Duration};

use tenure::{Config, Elector as _};
use tenure_containers::Version;
use tenure_testkit::suite::{until, within};
use tenure_tests::{Etcd, Kubernetes, Zookeeper};

fn run_promtool(arguments: &[&str]) {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("docs/guide/operating");
    let output =
        Command::new("promtool").args(arguments).current_dir(folder).output().unwrap_or_else(|error| {
            panic!("promtool: {error}; `cargo xtask test` installs it (on Debian, the package `prometheus`)")
        });
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}:\n{text}");
}

#[test]
fn promtool_accepts_the_alert_rules() {
    run_promtool(&["check", "rules", "alerts.yml"]);
}

/// Case 60: the rules fit any TTL and store. Hazard G35: one of them reports tokens that have gone back.
#[test]
fn the_alerts_fire_when_they_should() {
    run_promtool(&["test", "rules", "alerts.test.yml"]);
}

/// Case 60: a healthy leader has more of its TTL left at its heartbeats than the alert `DeadlineNear` asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_leader_has_more_than_a_quarter_of_its_ttl_left() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let gauge = |name: &str| -> Option<f64> {
        recorder.render().lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let etcd = Etcd::new(Version::Etcd35).await;
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let kubernetes = Kubernetes::new(Version::Kubernetes120).await;
    let kubeconfig = kubernetes.kubeconfig("admin-token").await;
    let lease =
        format!("kubernetes:///{}?kubeconfig={}", kubernetes.namespace(), kubeconfig.path().display());
    for (url, ttl) in [(etcd.url(), 2.0), (zookeeper.url(), 5.0), (lease, 2.0)] {
        let config = Config::new().with_ttl(Duration::from_secs_f64(ttl));
        let elector = tenure::connect_with(&url, config).await.unwrap();
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        until("the granted TTL is measured", async || gauge("tenure_ttl_seconds") == Some(ttl)).await;
        tokio::time::sleep(Duration::from_secs_f64(ttl)).await;
        let mut left = Vec::new();
        for _ in 0..200 {
            left.push(gauge("tenure_time_to_deadline_seconds").unwrap() / ttl);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Not the least: beside other tests a heartbeat may be late, and the alert waits for a minute.
        left.sort_unstable_by(f64::total_cmp);
        assert!((0.35..1.0).contains(&left[100]), "{url}: {left:?}");
        println!("{url}: {:.2} at least, {:.2} in the median", left[0], left[100]);
        leadership.resign().await.unwrap();
        elector.close().await;
    }
}
