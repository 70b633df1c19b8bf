//! Candidates of another library in the same election: `etcdctl elect`, which is Go's `concurrency.Election`.

use std::{process::Stdio, time::Duration};

use tenure::{Config, Elector, Leadership};
use tenure_containers::Version;
use tenure_testkit::suite::{until, within};
use tenure_tests::Etcd;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// A Go candidate: campaigns until it is told to stop, and resigns then.
struct GoCandidate(Child);

impl GoCandidate {
    fn stands(etcd: &Etcd, election: &str, value: &str) -> Self {
        let child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &etcd.server().endpoint(), "elect"])
            .arg(format!("{}/{election}", etcd.prefix()))
            .arg(value)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self(child.unwrap_or_else(|error| {
            panic!("etcdctl cannot be run ({error}); `cargo xtask test` installs it, as Debian's package etcd-client does")
        }))
    }

    /// Once it knows that it leads, and says so: told to stop before, it leaves its entry to its lease.
    async fn resigns(mut self) {
        let mut printed = BufReader::new(self.0.stdout.take().unwrap()).lines();
        within("etcdctl's word that it leads", printed.next_line()).await.unwrap().unwrap();
        let id = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        within("etcdctl's end", self.0.wait()).await.unwrap();
        drop(printed);
    }
}

async fn connect(etcd: &Etcd, id: &str) -> std::sync::Arc<dyn Elector> {
    let config = Config::new().with_id(id.parse().unwrap()).with_ttl(Duration::from_secs(5));
    tenure::connect_with(&etcd.url(), config).await.unwrap()
}

/// Who stands, by value: Go's candidates have no id.
async fn values(elector: &dyn Elector) -> Vec<String> {
    let candidates = elector.candidates("e").await.unwrap();
    candidates.iter().map(|c| c.value_lossy().into_owned()).collect()
}

async fn lead(elector: &dyn Elector) -> Leadership {
    within("leading", elector.campaign("e")).await.unwrap()
}

/// Go leads, ours waits; ours leads, Go waits; and again: one queue, one rising token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_and_tenure_candidates_lead_in_turn() {
    for version in Version::ETCD {
        let etcd = Etcd::new(version).await;
        let ours = connect(&etcd, "ours").await;
        let mut last = 0;
        for round in 0..3 {
            let go = GoCandidate::stands(&etcd, "e", &format!("go-{round}"));
            until("Go leads", async || values(&ours).await == [format!("go-{round}")]).await;
            let leader = ours.leader("e").await.unwrap().unwrap();
            let token = leader.token.unwrap().get();
            assert!(token > last);
            assert!(ours.try_campaign("e").await.unwrap().is_none(), "Go leads");

            let elector = std::sync::Arc::clone(&ours);
            let campaign = tokio::spawn(async move { lead(&elector).await });
            until("ours waits", async || values(&ours).await.len() == 2).await;
            assert!(!campaign.is_finished());
            let next = GoCandidate::stands(&etcd, "e", "go-next");
            until("the next Go candidate waits", async || values(&ours).await.len() == 3).await;

            go.resigns().await;
            let leadership = within("the hand-over to ours", campaign).await.unwrap();
            last = leadership.fencing_token().get();
            assert!(leadership.is_leader() && last > token);
            let standing = values(&ours).await;
            assert_eq!(standing, ["".to_owned(), "go-next".to_owned()]);

            leadership.resign().await.unwrap();
            until("the next Go candidate leads", async || values(&ours).await == ["go-next"]).await;
            let leader = ours.leader("e").await.unwrap().unwrap();
            assert_eq!(leader.id, leader.session, "a Go candidate is known by its lease");
            next.resigns().await;
            until("nobody stands", async || values(&ours).await.is_empty()).await;
        }
        ours.close().await;
    }
}
