//! The servers and the provider, as processes.

mod common;

use common::{RunningProcess, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

async fn get(server: &RunningProcess, path: &str) -> Option<(u16, Value)> {
    let answer = reqwest::get(format!("{}/{path}", server.address)).await.ok()?;
    let status = answer.status().as_u16();
    let text = answer.text().await.ok()?;
    Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

/// Waits until `server` names `leader` as the leader.
async fn wait_for_leader(server: &RunningProcess, leader: &str) -> Value {
    wait_until(&format!("{leader} leads"), async || {
        let (_, answer) = get(server, "leader").await?;
        (answer["leader"]["id"] == leader).then_some(answer)
    })
    .await
}

#[tokio::test]
async fn a_server_that_is_terminated_resigns_exits_0_and_the_next_one_charges() {
    let data = tempfile::tempdir().unwrap();
    let provider = RunningProcess::start_provider(data.path());
    let first = RunningProcess::start_server(data.path(), &provider, "first");
    let own_view = wait_for_leader(&first, "first").await;
    let second = RunningProcess::start_server(data.path(), &provider, "second");
    let other_view = wait_for_leader(&second, "first").await;

    // The follower knows the leader's address.
    assert_eq!((&own_view["me"]["leading"], &other_view["me"]["leading"]), (&json!(true), &json!(false)));
    assert_eq!(other_view["leader"]["address"], first.address);
    for server in [&first, &second] {
        assert_eq!(get(server, "healthz").await.unwrap().0, 200);
        let ready = wait_until("the server is ready", async || {
            get(server, "readyz").await.filter(|(s, _)| *s == 200)
        })
        .await;
        assert_eq!(ready.1, json!({ "ready": true, "store": "ok", "database": "ok" }));
    }

    assert_eq!(first.terminate().code(), Some(0));
    wait_for_leader(&second, "second").await;

    // The new leader charges a new subscription.
    let database = data.path().join("billing.db");
    let mut database = SqliteConnection::connect(&format!("sqlite:{}", database.display())).await.unwrap();
    sqlx::query(
        "INSERT INTO subscriptions (id, plan, price_cents, started_at, periods_paid, renews_at)
         SELECT 1, 'annual', 9900, s, 0, s FROM (SELECT CAST(strftime('%s', 'now') AS INTEGER) * 1000 AS s)",
    )
    .execute(&mut database)
    .await
    .unwrap();
    let ledger = data.path().join("provider.db");
    let mut ledger = SqliteConnection::connect(&format!("sqlite:{}", ledger.display())).await.unwrap();
    wait_until("the renewal is charged", async || {
        sqlx::query_scalar::<_, i64>("SELECT amount_cents FROM charges WHERE subscription = 1")
            .fetch_optional(&mut ledger)
            .await
            .unwrap()
    })
    .await;
    assert_eq!(second.terminate().code(), Some(0));
    assert_eq!(provider.terminate().code(), Some(0));
}

#[tokio::test]
async fn a_follower_takes_over_when_the_leader_is_killed() {
    let data = tempfile::tempdir().unwrap();
    let provider = RunningProcess::start_provider(data.path());
    let first = RunningProcess::start_server(data.path(), &provider, "first");
    wait_for_leader(&first, "first").await;
    let second = RunningProcess::start_server(data.path(), &provider, "second");
    let before = wait_for_leader(&second, "first").await;
    first.signal(Signal::KILL);
    let after = wait_for_leader(&second, "second").await;
    let token = |answer: &Value| answer["leader"]["token"].as_u64().unwrap();
    assert!(token(&after) > token(&before), "{before} {after}");
}

/// Hazard G1, over HTTP.
#[tokio::test]
async fn the_provider_refuses_a_stale_token_and_keeps_the_request() {
    let data = tempfile::tempdir().unwrap();
    let provider = RunningProcess::start_provider(data.path());
    let http = reqwest::Client::new();
    let charge = async |subscription: i64, token: Option<&str>, key: Option<&str>| {
        let body = json!({ "subscription": subscription, "period": "2026-12-21", "amount_cents": 990 });
        let mut request = http.post(format!("{}/charges", provider.address)).json(&body);
        if let Some(token) = token {
            request = request.header("Fencing-Token", token);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(charge(1, Some("9"), Some("a")).await, 201);
    assert_eq!(charge(1, Some("9"), Some("a")).await, 409);
    assert_eq!(charge(2, Some("7"), Some("b")).await, 412);
    assert_eq!(charge(2, Some("seven"), Some("b")).await, 400);
    assert_eq!(charge(2, None, Some("b")).await, 400);
    assert_eq!(charge(2, Some("9"), None).await, 400);

    let ledger = data.path().join("provider.db");
    let mut ledger = SqliteConnection::connect(&format!("sqlite:{}", ledger.display())).await.unwrap();
    let rows: Vec<(i64, String)> = sqlx::query_as("SELECT subscription, outcome FROM charges ORDER BY id")
        .fetch_all(&mut ledger)
        .await
        .unwrap();
    let expected = [(1, "charged"), (1, "refused_duplicate"), (2, "refused_stale")];
    assert_eq!(rows, expected.map(|(subscription, outcome)| (subscription, outcome.to_owned())));
}
