//! Electors on an API server that fails: what happens to the work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tenure_core::{CandidateId, Config, Connection, Elector as _, ElectorExt as _, StoreElector};
use tenure_kubernetes::KubernetesBackend;
use tenure_testkit::suite::until;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    api_server::{ApiServer, Gate},
    candidate::within,
    log::Log,
};

fn elector(server: &ApiServer, id: &str) -> Arc<StoreElector> {
    let config = Config::new().with_ttl(Duration::from_secs(2)).with_id(CandidateId::new(id).unwrap());
    Arc::new(StoreElector::new(Arc::new(server.backend()), config).unwrap())
}

/// Hazard K2: the Lease is held until the work has stopped.
#[tokio::test]
async fn the_lease_is_held_until_the_work_has_stopped() {
    let server = ApiServer::start();
    let elector = elector(&server, "a");
    let (stop, stopped) = oneshot::channel::<()>();
    let (begun, told, gate) = (Gate::closed(), Gate::closed(), Gate::closed());
    let (begins, tells, stops) = (begun.clone(), told.clone(), gate.clone());
    let running = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move {
            let shutdown = async { stopped.await.unwrap_or_default() };
            elector
                .run_while_leader("e", shutdown, |leadership| {
                    let (tells, stops) = (tells.clone(), stops.clone());
                    begins.open();
                    async move {
                        leadership.lost().await;
                        tells.open();
                        stops.wait().await;
                        Ok(())
                    }
                })
                .await
        })
    };
    within("the work begins", begun.wait()).await;
    let _ = stop.send(());
    within("the work is cancelled", told.wait()).await;
    let heartbeats = server.count("update");
    assert!(server.holder("e").starts_with("a_"), "released while the work ran");
    gate.open();
    within("the shutdown", running).await.unwrap().unwrap();
    assert_eq!(server.holder("e"), "");
    assert!(server.count("update") > heartbeats);
    elector.close().await;
}

/// Hazards K3, G1: while the API server is frozen, the leader's work stops before another candidate leads, and what was sent
/// meanwhile changes nothing afterwards.
#[tokio::test]
async fn work_stops_while_the_api_server_is_frozen() {
    let server = ApiServer::start();
    let (a, b) = (elector(&server, "a"), elector(&server, "b"));
    let first = within("leading", a.campaign("e")).await.unwrap();
    let next = {
        let b = Arc::clone(&b);
        tokio::spawn(async move {
            let leadership = b.campaign("e").await.unwrap();
            (Instant::now(), leadership)
        })
    };
    server.until("b watches", |server| server.open_watches() == 2).await;
    server.freeze();
    assert!(within("the loss", first.run(std::future::pending::<()>())).await.is_err());
    let stopped = Instant::now();
    assert!(!first.is_leader());
    server.thaw();
    let (won, second) = within("the takeover", next).await.unwrap();
    assert!(stopped < won, "the next leader led {:?} before the work had stopped", stopped - won);
    assert!(second.fencing_token() > first.fencing_token());
    assert!(server.holder("e").starts_with("b_"));
    for elector in [a, b] {
        elector.close().await;
    }
    assert_eq!(server.holder("e"), "");
}

/// Hazard G33: while everybody is refused, as by a control plane that restarts, a leader loses its leadership, and no campaign ends.
#[tokio::test]
async fn a_refusal_that_passes_ends_no_campaign() {
    let server = ApiServer::start();
    let (a, b) = (elector(&server, "a"), elector(&server, "b"));
    let first = within("leading", a.campaign("e")).await.unwrap();
    let next = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    server.until("b watches", |server| server.open_watches() == 2).await;
    let verbs = ["get", "create", "update", "watch"];
    verbs.iter().for_each(|verb| server.forbid(verb));
    server.end_watches();
    within("the loss", first.lost()).await;
    let reads = server.count("get");
    server.until("b is refused again and again", |server| server.count("get") > reads + 3).await;
    assert!(!next.is_finished());
    verbs.iter().for_each(|verb| server.allow(verb));
    let second = within("the takeover", next).await.unwrap().unwrap();
    assert!(second.fencing_token() > first.fencing_token());
    for elector in [a, b] {
        elector.close().await;
    }
}

/// Case 31: an outage is logged when it begins, while it lasts, and when it is over. A campaign that begins meanwhile is no answer.
#[tokio::test]
async fn an_outage_is_logged_as_one() {
    let (log, server) = (Log::start(), ApiServer::start());
    let config =
        Config::new().with_ttl(Duration::from_secs(1)).with_request_timeout(Duration::from_millis(300));
    let elector = Arc::new(StoreElector::new(Arc::new(server.backend()), config).unwrap());
    let campaigns = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move {
            while let Ok(leadership) = elector.campaign("e").await {
                leadership.lost().await;
            }
        })
    };
    server.until("it leads", |server| server.count("update") > 1).await;
    server.freeze();
    let logged = async |part: &str| {
        until(part, async || log.lines_with(part) > 0).await;
    };
    logged("requests to the store still fail").await;
    assert_eq!(log.lines_with("a request to the store failed; trying again"), 1);
    assert_eq!(log.lines_with("the store answers again"), 0);
    server.thaw();
    logged("the store answers again").await;
    elector.close().await;
    campaigns.await.unwrap();
    assert_eq!(log.lines_with("the store answers again"), 1);
}

/// A candidate that waits in an outage says when it is over, and waits on.
#[tokio::test]
async fn a_waiting_candidate_says_that_an_outage_is_over() {
    let (log, server) = (Log::start(), ApiServer::start());
    let renew = |round: u64| {
        server.edit("e", |lease| {
            lease["spec"] = json!({
                "holderIdentity": "somebody", "leaseDurationSeconds": 3, "leaseTransitions": 0,
                "renewTime": format!("2020-01-01T00:00:00.{round:06}Z"),
            });
        });
    };
    renew(0);
    let config = Config::new().with_request_timeout(Duration::from_millis(300));
    let backend =
        KubernetesBackend::new(server.config().attempt_timeout(Duration::from_millis(300))).unwrap();
    let elector = Arc::new(StoreElector::new(Arc::new(backend), config).unwrap());
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await })
    };
    server.until("it watches", |server| server.open_watches() == 1).await;
    let round = AtomicU64::new(1);
    let logged = async |part: &str| {
        until(part, async || {
            renew(round.fetch_add(1, Ordering::Relaxed));
            log.lines_with(part) > 0
        })
        .await;
    };
    server.freeze();
    server.end_watches();
    logged("a request to the store failed; trying again").await;
    server.thaw();
    logged("the store answers again").await;
    assert_eq!(elector.status().connection, Connection::Connected);
    assert!(!campaign.is_finished());
    elector.close().await;
    campaign.await.unwrap().unwrap_err();
}
