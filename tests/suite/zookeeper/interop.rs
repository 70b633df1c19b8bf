//! Interoperability with Python's kazoo and Java's Curator in the same election.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector};
use tenure_containers::{Program, Version, ZookeeperServer};
use tenure_testkit::suite::{until, within};

const KAZOO: &str = include_str!("interop_candidates/candidate.py");
const CURATOR: &str = include_str!("interop_candidates/Candidate.java");

/// A library whose candidates run inside the server's container.
#[derive(Clone, Copy)]
enum Library {
    Kazoo,
    Curator,
}

impl Library {
    fn layout(self) -> &'static str {
        match self {
            Self::Kazoo => "kazoo",
            Self::Curator => "curator",
        }
    }

    /// Starts a candidate, and returns once it campaigns. It resigns after [`resign`].
    async fn start(self, server: &ZookeeperServer, id: &str) -> Program {
        let resign = format!("/data/resign-{id}");
        let arguments = ["127.0.0.1:2181", "/acme/e", id, &resign];
        let mut program = match self {
            Self::Kazoo => server.run(&[&["python3", "-c", KAZOO], &arguments[..]].concat()).await,
            Self::Curator => {
                let script = "echo \"$1\" >/data/Candidate.java; shift; \
                     exec java -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
                     -cp '/usr/share/java/slf4j-simple.jar:/usr/share/java/*' /data/Candidate.java \"$@\"";
                server.run(&[&["sh", "-ec", script, "sh", CURATOR], &arguments[..]].concat()).await
            }
        }
        .unwrap_or_else(|error| panic!("{error}"));
        within("its start", program.wait_for("campaigns")).await.unwrap();
        program
    }
}

async fn resign(server: &ZookeeperServer, id: &str) {
    server.run(&["touch", &format!("/data/resign-{id}")]).await.unwrap().output().await;
}

async fn values(elector: &dyn Elector) -> Vec<String> {
    let candidates = elector.candidates("e").await.unwrap();
    candidates.iter().map(|c| c.value_lossy().into_owned()).collect()
}

/// The other library leads and tenure waits; tenure leads and the other library waits; and again: they share one queue with
/// increasing tokens.
async fn lead_in_turn(library: Library, version: Version) {
    let server = ZookeeperServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
    let config = Config::new().with_ttl(Duration::from_secs(5)).with_value("tenure");
    let url = format!("zookeeper://{}/acme?layout={}", server.endpoint(), library.layout());
    let elector: Arc<dyn Elector> = tenure::connect_with(&url, config).await.unwrap();
    let mut last = 0;
    for round in 0..2 {
        let (first, next) = (format!("first-{round}"), format!("next-{round}"));
        let mut first_program = library.start(&server, &first).await;
        within("the other library leads", first_program.wait_for("leads")).await.unwrap();
        assert_eq!(values(&*elector).await, [&*first]);
        let token = elector.leader("e").await.unwrap().unwrap().token.unwrap().get();
        assert!(token > last);
        assert!(elector.try_campaign("e").await.unwrap().is_none(), "the other library leads");

        let candidate = Arc::clone(&elector);
        let campaign = tokio::spawn(async move { candidate.campaign("e").await });
        until("tenure waits", async || values(&*elector).await.len() == 2).await;
        let mut next_program = library.start(&server, &next).await;
        until("the next candidate waits", async || values(&*elector).await == [&*first, "tenure", &*next])
            .await;
        assert!(!campaign.is_finished());

        resign(&server, &first).await;
        let leadership = within("the handover to tenure", campaign).await.unwrap().unwrap();
        last = leadership.fencing_token().get();
        assert!(leadership.is_leader() && last > token);
        within("its end", first_program.wait_for("resigned")).await.unwrap();

        leadership.resign().await.unwrap();
        within("the handover to the other library", next_program.wait_for("leads")).await.unwrap();
        assert_eq!(values(&*elector).await, [&*next]);
        resign(&server, &next).await;
        within("its end", next_program.wait_for("resigned")).await.unwrap();
        until("no candidate is left", async || values(&*elector).await.is_empty()).await;
    }
    elector.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kazoo_and_tenure_candidates_lead_in_turn_on_3_8() {
    lead_in_turn(Library::Kazoo, Version::Zookeeper38).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kazoo_and_tenure_candidates_lead_in_turn_on_3_9() {
    lead_in_turn(Library::Kazoo, Version::Zookeeper39).await;
}

/// Only the image of ZooKeeper 3.8 has Curator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curator_and_tenure_candidates_lead_in_turn() {
    lead_in_turn(Library::Curator, Version::Zookeeper38).await;
}
