//! What the doctor says about settings of ZooKeeper that keep candidates out.

use tenure::{Diagnosis, Level};
use tenure_containers::{Version, ZookeeperEnsemble, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::suite::within;

async fn problems(hosts: &str) -> Vec<Diagnosis> {
    let elector = tenure::connect(&format!("zookeeper://{hosts}/acme?ttl=5s")).await.unwrap();
    let mut diagnoses = within("the diagnoses", elector.diagnose()).await;
    elector.close().await;
    diagnoses.retain(|diagnosis| diagnosis.level == Level::Problem);
    diagnoses
}

fn assert_named(problems: &[Diagnosis], subject: &str, text: &str, advice: &str) {
    let found: Vec<_> = problems.iter().filter(|problem| problem.text.contains(text)).collect();
    assert_eq!(found.len(), 1, "{problems:?}");
    assert_eq!(found[0].subject, subject, "{found:?}");
    assert!(format!("{:?}", found[0]).contains(advice), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_a_name_that_does_not_resolve() {
    let problems = problems("zookeeper.invalid:2181").await;
    let text = "the name zookeeper.invalid cannot be resolved";
    assert_named(&problems, "server zookeeper.invalid:2181", text, "/etc/resolv.conf");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_the_limit_of_connections() {
    let settings = ZookeeperSettings::default().set("maxClientCnxns", "1");
    let server = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    // A session, since it is certain then that the server counts the connection. The one that has found the server ready may not be
    // closed yet.
    let only = async {
        loop {
            match server.admin().session().await {
                Ok(session) => break session,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let _only = within("the one connection", only).await;
    let problems = problems(&server.endpoint()).await;
    let subject = format!("server {}", server.endpoint());
    assert_named(&problems, &subject, "closes them without an answer", "maxClientCnxns");
}

/// Hazard Z22: such sessions cannot enter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_local_sessions() {
    let settings = ZookeeperSettings::default().set("localSessionsEnabled", "true");
    let ensemble = ZookeeperEnsemble::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let problems = problems(&ensemble.endpoints().join(",")).await;
    assert_named(
        &problems,
        "sessions",
        "localSessionsUpgradingEnabled=false",
        "localSessionsUpgradingEnabled=true",
    );
}
