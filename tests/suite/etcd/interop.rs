//! Interoperability with `etcdctl elect`, which uses Go's `concurrency.Election`, in the same election.

use std::{process::Stdio, time::Duration};

use tenure::{Config, Elector, Leadership};
use tenure_containers::Version;
use tenure_testkit::suite::{until, within};
use tenure_tests::Etcd;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// A candidate of Go's library: campaigns, leads, and resigns on SIGINT.
struct GoCandidate(Child);

impl GoCandidate {
    fn start(etcd: &Etcd, election: &str, value: &str) -> Self {
        let child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &etcd.server().endpoint(), "elect"])
            .arg(format!("{}/{election}", etcd.prefix()))
            .arg(value)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self(child.unwrap_or_else(|error| {
            panic!("cannot run etcdctl: {error}; install Debian's package etcd-client, as `cargo xtask test` does")
        }))
    }

    /// Makes it resign, after it has printed that it leads: earlier, SIGINT would leave its entry until the lease expires.
    async fn resign(mut self) {
        let mut printed = BufReader::new(self.0.stdout.take().unwrap()).lines();
        within("etcdctl to lead", printed.next_line()).await.unwrap().unwrap();
        let id = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        within("etcdctl to exit", self.0.wait()).await.unwrap();
        drop(printed);
    }
}

async fn connect(etcd: &Etcd, id: &str) -> std::sync::Arc<dyn Elector> {
    let config = Config::new().with_id(id.parse().unwrap()).with_ttl(Duration::from_secs(5));
    tenure::connect_with(&etcd.url(), config).await.unwrap()
}

/// The values of all candidates, in order. Go's candidates have no id.
async fn values(elector: &dyn Elector) -> Vec<String> {
    let candidates = elector.candidates("e").await.unwrap();
    candidates.iter().map(|c| c.value_lossy().into_owned()).collect()
}

async fn lead(elector: &dyn Elector) -> Leadership {
    within("leading", elector.campaign("e")).await.unwrap()
}

/// Go leads and tenure waits; tenure leads and Go waits; and again: they share one queue with increasing tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_and_tenure_candidates_lead_in_turn() {
    for version in Version::ETCD {
        let etcd = Etcd::new(version).await;
        let elector = connect(&etcd, "tenure").await;
        let mut last = 0;
        for round in 0..3 {
            let go = GoCandidate::start(&etcd, "e", &format!("go-{round}"));
            until("Go leads", async || values(&elector).await == [format!("go-{round}")]).await;
            let leader = elector.leader("e").await.unwrap().unwrap();
            let token = leader.token.unwrap().get();
            assert!(token > last);
            assert!(elector.try_campaign("e").await.unwrap().is_none(), "Go leads");

            let candidate = std::sync::Arc::clone(&elector);
            let campaign = tokio::spawn(async move { lead(&candidate).await });
            until("tenure waits", async || values(&elector).await.len() == 2).await;
            assert!(!campaign.is_finished());
            let next = GoCandidate::start(&etcd, "e", "go-next");
            until("the next Go candidate waits", async || values(&elector).await.len() == 3).await;

            go.resign().await;
            let leadership = within("the handover to tenure", campaign).await.unwrap();
            last = leadership.fencing_token().get();
            assert!(leadership.is_leader() && last > token);
            let remaining = values(&elector).await;
            assert_eq!(remaining, ["".to_owned(), "go-next".to_owned()]);

            leadership.resign().await.unwrap();
            until("the next Go candidate leads", async || values(&elector).await == ["go-next"]).await;
            let leader = elector.leader("e").await.unwrap().unwrap();
            assert_eq!(leader.id, leader.session, "a Go candidate is identified by its lease");
            next.resign().await;
            until("no candidate is left", async || values(&elector).await.is_empty()).await;
        }
        elector.close().await;
    }
}
