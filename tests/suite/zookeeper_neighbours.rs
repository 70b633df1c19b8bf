//! Candidates of other libraries in the same election: Python's kazoo and Java's Curator, both ways.

use std::{sync::Arc, time::Duration};

use tenure::{Config, Elector};
use tenure_containers::{Program, Version, ZookeeperServer};
use tenure_testkit::suite::{until, within};

const KAZOO: &str = include_str!("peers/candidate.py");
const CURATOR: &str = include_str!("peers/Candidate.java");

/// Which library, and how its candidates are run inside the server's container.
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

    /// Starts a candidate, and returns once it stands or leads. It resigns when told by [`resign`].
    async fn stands(self, server: &ZookeeperServer, id: &str) -> Program {
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
        within("its start", program.until("stands")).await.unwrap();
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

/// Theirs leads and ours waits; ours leads and theirs waits; and again: one queue, one rising token.
async fn lead_in_turn(library: Library, version: Version) {
    let server = ZookeeperServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
    let config = Config::new().with_ttl(Duration::from_secs(5)).with_value("ours");
    let url = format!("zookeeper://{}/acme?layout={}", server.endpoint(), library.layout());
    let ours: Arc<dyn Elector> = tenure::connect_with(&url, config).await.unwrap();
    let mut last = 0;
    for round in 0..2 {
        let (first, next) = (format!("first-{round}"), format!("next-{round}"));
        let mut theirs = library.stands(&server, &first).await;
        within("theirs leads", theirs.until("leads")).await.unwrap();
        assert_eq!(values(&*ours).await, [&*first]);
        let token = ours.leader("e").await.unwrap().unwrap().token.unwrap().get();
        assert!(token > last);
        assert!(ours.try_campaign("e").await.unwrap().is_none(), "theirs leads");

        let elector = Arc::clone(&ours);
        let campaign = tokio::spawn(async move { elector.campaign("e").await });
        until("ours waits", async || values(&*ours).await.len() == 2).await;
        let mut waiting = library.stands(&server, &next).await;
        until("the next of theirs waits", async || values(&*ours).await == [&*first, "ours", &*next]).await;
        assert!(!campaign.is_finished());

        resign(&server, &first).await;
        let leadership = within("the hand-over to ours", campaign).await.unwrap().unwrap();
        last = leadership.fencing_token().get();
        assert!(leadership.is_leader() && last > token);
        within("its end", theirs.until("resigned")).await.unwrap();

        leadership.resign().await.unwrap();
        within("the hand-over to theirs", waiting.until("leads")).await.unwrap();
        assert_eq!(values(&*ours).await, [&*next]);
        resign(&server, &next).await;
        within("its end", waiting.until("resigned")).await.unwrap();
        until("nobody stands", async || values(&*ours).await.is_empty()).await;
    }
    ours.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kazoo_and_tenure_candidates_lead_in_turn_on_3_8() {
    lead_in_turn(Library::Kazoo, Version::Zookeeper38).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kazoo_and_tenure_candidates_lead_in_turn_on_3_9() {
    lead_in_turn(Library::Kazoo, Version::Zookeeper39).await;
}

/// The image of 3.8 has Curator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curator_and_tenure_candidates_lead_in_turn() {
    lead_in_turn(Library::Curator, Version::Zookeeper38).await;
}
