//! `tenure serve`: the contract of its HTTP interface, on real servers. `docs/guide/sidecar.md` states it.

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{
    RunningCommand, Sandbox, code_and_stderr, eventually, is_running,
    sidecar::{Request, Sidecar, boot_time, connect, lease_of, nonce, store_url, valid_for},
    succeed, tenure_command,
};
use serde_json::{Value, json};
use tenure_containers::{
    CreateMode, EtcdServer, Permission, SharedConsul, SharedEtcd, SharedKubernetes, SharedPostgres,
    SharedZookeeper, Version,
};
use tenure_testkit::proxy::{Direction, Proxy};

/// How long a candidate waits where it should be elected.
const ELECTED_WITHIN: Duration = Duration::from_secs(20);
/// The longest validity with a TTL of 20 s: a tenth less for the store's clock, a tenth of the TTL for the grace period, and a
/// tenth less for the client's clock.
const LONGEST: Duration = Duration::from_millis(14_400);

/// An etcd server, and a URL below it.
async fn etcd(settings: &str) -> (SharedEtcd, String) {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let url = store_url("etcd", &server.endpoint(), settings);
    (server, url)
}

/// Campaign, retry, renewal, the leader, resignation.
fn campaigns_renews_and_resigns(url: &str) {
    let (sidecar, sandbox, nonce) = (Sidecar::start(url), Sandbox::on(url), nonce());
    let body = json!({ "nonce": nonce, "value": "10.0.0.7:80", "wait_ms": ELECTED_WITHIN.as_millis() });
    let grant = sidecar.campaign_with("e", body.clone()).expect(200);
    assert_eq!(
        (&grant["state"], &grant["election"], &grant["stopping"]),
        (&json!("elected"), &json!("e"), &json!(false))
    );
    let (lease, token) = (lease_of(&grant), grant["token"].as_u64().unwrap());
    assert!(lease.len() >= 32 && valid_for(&grant) <= ELECTED_WITHIN + LONGEST, "{grant}");

    // A retry after a lost answer.
    let again = sidecar.campaign_with("e", body).expect(200);
    assert_eq!((lease_of(&again), again["token"].as_u64()), (lease.clone(), Some(token)));
    assert_eq!(sidecar.campaign("e", &nonce, Duration::ZERO).error(), (409, "nonce_reused"), "another value");
    assert_eq!(sidecar.campaign("f", &nonce, Duration::ZERO).error(), (409, "nonce_reused"));
    assert_eq!(sandbox.candidates().len(), 1);

    let grant = sidecar.renew("e", &lease).expect(200);
    assert!(valid_for(&grant) > Duration::ZERO && valid_for(&grant) <= LONGEST, "{grant}");
    assert_eq!(grant["token"].as_u64(), Some(token));

    // Only the holder sees what it has.
    let public = sidecar.leader("e").expect(200);
    assert_eq!(
        (&public["leader"]["value"], public["leader"]["token"].as_u64()),
        (&json!("10.0.0.7:80"), Some(token))
    );
    assert!(!public.to_string().contains("valid_for") && !public.to_string().contains(&lease), "{public}");
    let own = sidecar.send(&Request::new("GET", "/v1/elections/e").lease(&lease)).expect(200);
    assert_eq!(own["own"]["token"].as_u64(), Some(token));
    assert!(valid_for(&own["own"]) <= valid_for(&grant), "asking extends nothing: {own}");
    for (election, lease) in [("e", "0".repeat(48)), ("f", lease.clone()), ("e", String::new())] {
        assert_eq!(sidecar.renew(election, &lease).error(), (404, "unknown_lease"));
    }

    assert_eq!(sidecar.resign("e", &lease).expect(200)["confirmed"], true);
    assert_eq!(sandbox.candidates(), Vec::<String>::new());
    assert_eq!(sidecar.leader("e").expect(200)["leader"], Value::Null);
    assert_eq!(sidecar.renew("e", &lease).error(), (410, "lease_over"));
    assert_eq!(sidecar.resign("e", &lease).expect(200)["confirmed"], Value::Null, "a retry");
    let late = json!({ "nonce": nonce, "value": "10.0.0.7:80" });
    assert_eq!(sidecar.campaign_with("e", late).error(), (410, "lease_over"), "a request that was delayed");

    let next = sidecar.campaign("e", &common::sidecar::nonce(), ELECTED_WITHIN).expect(200);
    assert!(next["token"].as_u64().unwrap() > token, "{next}");
    let stderr = sidecar.stderr();
    assert!(!stderr.contains(&lease) && !stderr.contains(&nonce), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_campaigns_renews_and_resigns_on_etcd() {
    let (_server, url) = etcd("ttl=20s").await;
    campaigns_renews_and_resigns(&url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_campaigns_renews_and_resigns_on_zookeeper() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    campaigns_renews_and_resigns(&store_url("zookeeper", &server.endpoint(), "ttl=20s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_campaigns_renews_and_resigns_on_postgres() {
    let server = SharedPostgres::get(Version::Postgres17).await.unwrap();
    campaigns_renews_and_resigns(&store_url("postgres", &server.endpoint(), "ttl=20s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_campaigns_renews_and_resigns_on_consul() {
    let server = SharedConsul::get(Version::Consul18).await.unwrap();
    campaigns_renews_and_resigns(&store_url("consul", &server.endpoint(), "ttl=20s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_campaigns_renews_and_resigns_on_kubernetes() {
    let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let namespace = format!("serve-{:016x}", fastrand::u64(..));
    server.admin().create_namespace(&namespace).await.unwrap();
    let sandbox = Sandbox::on_server("kubernetes", &server.endpoint(), &namespace, "ttl=20s");
    campaigns_renews_and_resigns(&sandbox.url);
}

/// A client that has gone loses leadership when its grant ends: not before, and soon after.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_kept_until_the_grant_has_ended() {
    let (_server, url) = etcd("ttl=8s").await;
    let (first, second) = (Sidecar::start(&url), Sidecar::start(&url));
    let asked = json!({ "nonce": nonce(), "lease_ms": 3_000, "wait_ms": ELECTED_WITHIN.as_millis() });
    let lease = lease_of(&first.campaign_with("e", asked).expect(200));
    let sent = boot_time();
    let grant = first.renew("e", &lease).expect(200);
    assert!(
        valid_for(&grant) <= Duration::from_millis(2_700) && valid_for(&grant) > Duration::from_secs(2),
        "{grant}"
    );
    let next = second.campaign("e", &nonce(), ELECTED_WITHIN).expect(200);
    let waited = boot_time() - sent;
    assert!(waited >= valid_for(&grant), "{waited:?}: {grant}");
    assert!(waited < Duration::from_secs(8), "its lease, and not the TTL: {waited:?}");
    assert!(next["token"].as_u64() > grant["token"].as_u64());
    assert_eq!(first.renew("e", &lease).error(), (410, "lease_over"));
}

/// The leader is asked to resign by another process: nothing more is granted, and it leads until its grant has ended, or until
/// the client says that it has stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_resign_request_waits_for_the_client() {
    let (_server, url) = etcd("ttl=20s").await;
    let (sidecar, sandbox) = (Sidecar::start(&url), Sandbox::on(&url));
    let lease = lease_of(&sidecar.campaign("e", &nonce(), ELECTED_WITHIN).expect(200));
    let sent = boot_time();
    let grant = sidecar.renew("e", &lease).expect(200);
    let mut resign = sandbox.tenure(&["resign"]).spawn().unwrap();
    eventually("nothing more is granted", || {
        let answer = sidecar.renew("e", &lease);
        (answer.status == 410).then(|| assert_eq!(answer.error().1, "lease_over"))
    });
    assert!(boot_time() - sent < valid_for(&grant), "too slow to show anything");
    assert_eq!(sandbox.candidates().len(), 1, "the grant has not ended");
    assert!(resign.try_wait().unwrap().is_none());
    assert_eq!(sidecar.resign("e", &lease).expect(200)["confirmed"], true);
    assert!(resign.wait().unwrap().success());
    assert!(boot_time() - sent < valid_for(&grant), "before the grant has ended");
}

/// A candidate whose client does not ask again leaves the queue, whether its connection was closed or an answer was read.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_candidate_leaves_the_queue() {
    let (_server, url) = etcd("ttl=30s").await;
    let sandbox = Sandbox::on(&url);
    let _leader = sandbox.start(&[], "sleep 1000");
    eventually("a leader", || (sandbox.candidates().len() == 1).then_some(()));
    let sidecar = Sidecar::start(&url);
    let nonce = nonce();
    let began = boot_time();
    let waiting = sidecar.campaign("e", &nonce, Duration::from_millis(300)).expect(202);
    assert!(boot_time() - began >= Duration::from_millis(300));
    assert_eq!((&waiting["state"], waiting["retry_within_ms"].as_u64()), (&json!("waiting"), Some(10_000)));
    let lease = lease_of(&waiting);
    assert_eq!(sidecar.renew("e", &lease).error(), (409, "not_elected"));
    eventually("two candidates", || (sandbox.candidates().len() == 2).then_some(()));
    // It asks again, and goes away while it waits.
    let again = json!({ "nonce": nonce, "wait_ms": 30_000 });
    let mut stream = connect(&sidecar.address);
    stream.write_all(&Request::new("POST", "/v1/elections/e/campaign").json(&again).bytes()).unwrap();
    let asked = boot_time();
    eventually("longer than an abandoned candidate stays", || {
        (boot_time() - asked > Duration::from_secs(12)).then_some(())
    });
    assert_eq!(sandbox.candidates().len(), 2, "it asks");
    drop(stream);
    let gone = boot_time();
    eventually("the abandoned candidate leaves", || (sandbox.candidates().len() == 1).then_some(()));
    assert!(boot_time() - gone > Duration::from_secs(8));
    assert_eq!(sidecar.campaign("e", &nonce, Duration::ZERO).error(), (410, "lease_over"));
    // A waiting candidate that resigns leaves at once.
    let waiting = sidecar.campaign("e", &common::sidecar::nonce(), Duration::ZERO).expect(202);
    eventually("two candidates", || (sandbox.candidates().len() == 2).then_some(()));
    sidecar.resign("e", &lease_of(&waiting)).expect(200);
    let began = boot_time();
    eventually("it leaves", || (sandbox.candidates().len() == 1).then_some(()));
    assert!(boot_time() - began < Duration::from_secs(8));
}

/// After SIGTERM nothing new is granted, what was granted stays, and another signal does not shorten it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_stopped_waits_for_its_grants() {
    let (_server, url) = etcd("ttl=10s").await;
    let (mut sidecar, sandbox) = (Sidecar::start(&url), Sandbox::on(&url));
    let lease = lease_of(&sidecar.campaign("e", &nonce(), ELECTED_WITHIN).expect(200));
    let waiting = sidecar.campaign("e", &nonce(), Duration::ZERO).expect(202);
    let sent = boot_time();
    let grant = sidecar.renew("e", &lease).expect(200);
    assert!(valid_for(&grant) > Duration::from_secs(4), "{grant}");
    sidecar.command.signal("TERM");
    let stopping = eventually("it is being stopped", || {
        let answer = sidecar.renew("e", &lease).expect(200);
        (answer["stopping"] == true).then_some(answer)
    });
    let since = boot_time() - sent;
    assert!(valid_for(&stopping) <= valid_for(&grant), "{stopping}");
    let refused = sidecar.campaign("e", &nonce(), Duration::ZERO);
    assert_eq!((refused.error(), refused.header("retry-after")), ((503, "stopping"), Some("5")));
    let over = sidecar.renew("e", &lease_of(&waiting));
    assert_eq!((over.error(), over.header("retry-after")), ((503, "stopping"), Some("5")));
    assert!(over.body["error"]["message"].as_str().unwrap().contains("this lease is over"), "{over:?}");
    sidecar.command.signal("TERM");
    sidecar.command.signal("INT");
    let later = eventually("time passes", || {
        let answer = sidecar.renew("e", &lease).expect(200);
        (valid_for(&answer) + Duration::from_millis(500) < valid_for(&stopping)).then_some(answer)
    });
    assert_eq!(later["token"], grant["token"]);
    assert_eq!(sandbox.candidates().len(), 1);
    let code = sidecar.command.wait().code();
    let took = boot_time() - sent;
    assert_eq!(code, Some(0), "{}", sidecar.stderr());
    assert!(took >= valid_for(&grant), "{took:?}: {grant}");
    assert!(took < Duration::from_secs(15), "{took:?}, stopped {since:?} after the renewal");
    assert_eq!(sandbox.candidates(), Vec::<String>::new(), "it has resigned");
    let stderr = sidecar.stderr();
    assert!(stderr.contains("their grants have ended: 1 left, at most "), "{stderr}");
}

/// A client that resigns lets a stopping sidecar exit at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_stopped_exits_when_its_clients_have_resigned() {
    let (_server, url) = etcd("ttl=60s").await;
    let (mut sidecar, sandbox) = (Sidecar::start(&url), Sandbox::on(&url));
    let lease = lease_of(&sidecar.campaign("e", &nonce(), ELECTED_WITHIN).expect(200));
    // Elected, and nobody has asked for a grant: nothing to wait for.
    let other = sidecar.campaign("f", &nonce(), Duration::ZERO);
    if other.status == 200 {
        // It was that fast: then it has a grant.
        sidecar.resign("f", &lease_of(&other.body)).expect(200);
    }
    sidecar.renew("e", &lease).expect(200);
    let began = boot_time();
    sidecar.command.signal("TERM");
    eventually("it is being stopped", || {
        (sidecar.renew("e", &lease).expect(200)["stopping"] == true).then_some(())
    });
    assert_eq!(sidecar.resign("e", &lease).expect(200)["confirmed"], true);
    assert_eq!(sidecar.command.wait().code(), Some(0), "{}", sidecar.stderr());
    assert!(boot_time() - began < Duration::from_secs(60), "its TTL");
    assert_eq!(sandbox.candidates(), Vec::<String>::new());
}

/// Every refusal says what is wrong and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_in_words() {
    let (_server, url) = etcd("ttl=4s").await;
    let sidecar = Sidecar::start(&url);
    let campaign = || Request::new("POST", "/v1/elections/e/campaign");
    let good = json!({ "nonce": "n".repeat(32) });
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        campaign().json(&body)
    };
    let code = |request: Request| {
        let answer = sidecar.send(&request);
        let (status, code) = answer.error();
        (status, code.to_owned())
    };
    for (request, expected) in [
        (Request::new("POST", "/v1/elections/a%2Fb/campaign").json(&good), (400, "invalid_election")),
        (Request::new("POST", "/v1/elections/%FF/campaign").json(&good), (400, "invalid_election")),
        (Request::new("GET", "/v1/elections/.."), (400, "invalid_election")),
        (with("nonce", json!("short")), (400, "invalid_nonce")),
        (with("nonce", json!("with a space, and long enough")), (400, "invalid_nonce")),
        (with("nonce", json!("n".repeat(129))), (400, "invalid_nonce")),
        (with("nonce", json!(7)), (400, "invalid_body")),
        (with("wait_ms", json!(30_001)), (400, "invalid_wait")),
        (with("wait_ms", json!(-1)), (400, "invalid_body")),
        (with("lease_ms", json!(499)), (400, "invalid_lease")),
        (with("lease_ms", json!(86_400_001)), (400, "invalid_lease")),
        (with("value", json!("x".repeat(64 * 1024 + 1))), (400, "invalid_value")),
        (with("values", json!("unknown")), (400, "invalid_body")),
        (campaign().json(&json!([])), (400, "invalid_body")),
        (campaign().body("application/json", "{"), (400, "invalid_body")),
        (campaign().body("text/plain", good.to_string()), (415, "unsupported_media_type")),
        (campaign(), (415, "unsupported_media_type")),
        (with("value", json!("x".repeat(200_000))), (413, "body_too_large")),
        (Request::new("POST", "/v1/elections/e/renew"), (400, "missing_lease")),
        (Request::new("POST", "/v1/elections/e/renew").lease("a").lease("b"), (400, "missing_lease")),
        (Request::new("DELETE", "/v1/elections/e/campaign"), (400, "missing_lease")),
        (Request::new("GET", "/v1/elections/e").lease("a"), (404, "unknown_lease")),
        (Request::new("GET", "/nothing"), (404, "no_such_route")),
        (Request::new("PUT", "/v1/elections/e"), (405, "method_not_allowed")),
        (campaign().json(&good).header("Origin", "http://localhost"), (403, "forbidden_origin")),
        (campaign().json(&good).header("Host", "evil.example"), (403, "forbidden_host")),
        (Request::new("GET", "/v1/openapi.json").header("Host", "evil.example:80"), (403, "forbidden_host")),
        (Request::new("GET", "/").header("Host", "evil.example:80"), (403, "forbidden_host")),
        (Request::new("GET", "/v1/events").header("Sec-Fetch-Site", "cross-site"), (403, "forbidden_origin")),
        (Request::new("GET", "/v1/elections?prefix=a%2Fb"), (400, "invalid_prefix")),
        (Request::new("GET", "/v1/events?prefix=%22"), (400, "invalid_prefix")),
        (Request::new("GET", "/v1/elections?prefx=a"), (400, "invalid_query")),
        (Request::new("POST", "/"), (405, "method_not_allowed")),
    ] {
        let shown = String::from_utf8_lossy(&request.bytes()).chars().take(200).collect::<String>();
        let (status, refused) = code(request);
        assert_eq!((status, refused.as_str()), expected, "{shown}");
    }
    let large = Request::new("GET", "/v1/elections/e").header("X-Large", &"x".repeat(20_000));
    assert_eq!(sidecar.send(&large).status, 431);
    // A body that does not arrive, beside requests that are answered.
    let mut slow = connect(&sidecar.address);
    let request = String::from_utf8(campaign().json(&good).bytes()).unwrap();
    slow.write_all(&request.as_bytes()[..request.len() - 1]).unwrap();
    sidecar.leader("e").expect(200);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_too_slow"), "{answer}");
    assert_eq!(Sandbox::on(&url).candidates(), Vec::<String>::new(), "nobody was made a candidate");
}

/// The number of leases, and of requests for one, is limited. Renewals are answered beside them.
#[tokio::test(flavor = "multi_thread")]
async fn leases_and_waiting_requests_are_limited() {
    let (_server, url) = etcd("ttl=60s").await;
    let sidecar = Sidecar::start(&url);
    let lease = lease_of(&sidecar.campaign("e", &nonce(), ELECTED_WITHIN).expect(200));
    let (second, body) = (nonce(), |nonce: &str| json!({ "nonce": nonce, "wait_ms": 30_000 }));
    let request = Request::new("POST", "/v1/elections/e/campaign").json(&body(&second));
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = connect(&sidecar.address);
            stream.write_all(&request.bytes()).unwrap();
            stream
        })
        .collect();
    eventually("four requests wait", || {
        let answer = sidecar.campaign("e", &second, Duration::ZERO);
        (answer.status == 429).then(|| assert_eq!(answer.error().1, "too_many_requests"))
    });
    // Candidates that nobody asks for leave meanwhile, on a slow machine.
    let mut accepted = 0;
    let refused = loop {
        let answer = sidecar.campaign("e", &nonce(), Duration::ZERO);
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 500, "no limit");
        sidecar.renew("e", &lease).expect(200);
    };
    assert!(accepted >= 98, "{accepted}");
    assert_eq!((refused.error(), refused.header("retry-after")), ((429, "too_many_leases"), Some("5")));
    sidecar.renew("e", &lease).expect(200);
    drop(waiting);
}

/// Server-sent events: the leader now, its changes, and comments in between.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_leader_are_sent_as_events() {
    let (_server, url) = etcd("ttl=4s").await;
    let sidecar = Sidecar::start(&url);
    let mut stream = connect(&sidecar.address);
    stream.write_all(&Request::new("GET", "/v1/elections/e/events").bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut next =
        |prefix: &str| lines.find(|line| line.starts_with(prefix)).unwrap_or_else(|| panic!("no {prefix}"));
    assert_eq!(next("content-type: "), "content-type: text/event-stream");
    let leader = |line: String| {
        let event: Value = serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["election"], "e");
        event["leader"].clone()
    };
    assert_eq!(next("event: "), "event: leader");
    assert_eq!(leader(next("data: ")), Value::Null, "the present state comes first");
    let body = json!({ "nonce": nonce(), "value": "v", "wait_ms": ELECTED_WITHIN.as_millis() });
    let grant = sidecar.campaign_with("e", body).expect(200);
    let elected = leader(next("data: "));
    assert_eq!((&elected["value"], &elected["token"]), (&json!("v"), &grant["token"]));
    sidecar.resign("e", &lease_of(&grant)).expect(200);
    assert_eq!(leader(next("data: ")), Value::Null);
    assert_eq!(next(":"), ":", "a comment while nothing changes");

    let subscribe = || {
        let mut stream = connect(&sidecar.address);
        stream.write_all(&Request::new("GET", "/v1/elections/e/events").bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (status[9..].to_vec() == b"200").then_some(stream)
    };
    let subscribers: Vec<_> = (1..64).map(|_| subscribe().unwrap()).collect();
    assert!(subscribe().is_none(), "64 subscribers");
    drop(subscribers);
    eventually("a place for another subscriber", subscribe);
}

/// Subscribes to all elections. Returns the lines of the answer, if it is one.
fn subscribe_to_all(sidecar: &Sidecar, query: &str) -> Option<impl Iterator<Item = String> + use<>> {
    let mut stream = connect(&sidecar.address);
    stream.write_all(&Request::new("GET", &format!("/v1/events{query}")).bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    (lines.next().unwrap().split(' ').nth(1) == Some("200")).then_some(lines)
}

/// The data of the next event with this name.
fn next_event(lines: &mut impl Iterator<Item = String>, name: &str) -> Value {
    let name = format!("event: {name}");
    lines.find(|line| *line == name).unwrap();
    let data = lines.next().unwrap();
    serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap()
}

/// All elections as JSON and as events: the same, and again at every change.
#[tokio::test(flavor = "multi_thread")]
async fn all_elections_are_sent_once_and_live() {
    let (_server, url) = etcd("ttl=20s").await;
    let (sidecar, sandbox) = (Sidecar::start(&url), Sandbox::on(&url));
    let lease = |election: &str| {
        let body = json!({ "nonce": nonce(), "value": "v", "wait_ms": ELECTED_WITHIN.as_millis() });
        lease_of(&sidecar.campaign_with(election, body).expect(200))
    };
    let (billing, _reports) = (lease("billing"), lease("reports"));
    let listing = sidecar.send(&Request::new("GET", "/v1/elections")).expect(200);
    let mut printed: Value =
        serde_json::from_slice(&succeed(&mut sandbox.tenure(&["elections", "--json"])).stdout).unwrap();
    printed["time"] = listing["time"].clone();
    assert_eq!(listing, printed);
    let listing = sidecar.send(&Request::new("GET", "/v1/elections?prefix=rep")).expect(200);
    assert_eq!((&listing["total"], &listing["elections"][0]["election"]), (&json!(1), &json!("reports")));

    let mut lines = subscribe_to_all(&sidecar, "?prefix=billing").unwrap();
    let snapshot = next_event(&mut lines, "snapshot");
    assert_eq!(
        (&snapshot["total"], &snapshot["outage"], &snapshot["changes"]),
        (&json!(1), &Value::Null, &json!([]))
    );
    let election = &snapshot["elections"][0];
    assert_eq!((&election["election"], &election["leader"]["value"]), (&json!("billing"), &json!("v")));
    assert_eq!(
        (&election["start_observed"], &election["candidates"][0]),
        (&json!(false), &election["leader"])
    );
    let readings: Vec<_> = (0..2).map(|_| next_event(&mut lines, "reading")["time"].clone()).collect();
    assert!(readings[0].as_str() < readings[1].as_str(), "{readings:?}");
    sidecar.resign("billing", &billing).expect(200);
    // The next event is not another snapshot of the same.
    let snapshot = next_event(&mut lines, "snapshot");
    let election = &snapshot["elections"][0];
    assert_eq!((&election["leader"], &election["candidate_count"]), (&Value::Null, &json!(0)), "{snapshot}");
    assert_eq!(snapshot["changes"][0]["previous"]["id"], listing["elections"][0]["leader"]["id"]);
    let text = snapshot.to_string();
    assert!(!text.contains(&billing) && !text.contains("valid_for"), "{text}");

    // Another viewer of the same has the history of the first.
    let mut other = subscribe_to_all(&sidecar, "?prefix=billing").unwrap();
    assert_eq!(next_event(&mut other, "snapshot"), snapshot);
    let mut all = subscribe_to_all(&sidecar, "").unwrap();
    assert_eq!(next_event(&mut all, "snapshot")["changes"], json!([]));
}

/// Viewers, and what is read for them, are limited, beside requests for leases. Nothing is read once they have gone.
#[tokio::test(flavor = "multi_thread")]
async fn viewers_of_all_elections_are_limited() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let sidecar = Sidecar::start(&store_url("etcd", &proxy.endpoint(), "ttl=60s"));
    let lease = lease_of(&sidecar.campaign("e", &nonce(), ELECTED_WITHIN).expect(200));
    let get = |path: &str| sidecar.send(&Request::new("GET", path));
    let mut viewers: Vec<_> =
        (0..4).map(|number| subscribe_to_all(&sidecar, &format!("?prefix={number}")).unwrap()).collect();
    let refused = get("/v1/events?prefix=4");
    assert_eq!((refused.error(), refused.header("retry-after")), ((429, "too_many_prefixes"), Some("15")));
    // These read nothing of what they are sent.
    viewers.extend((4..16).map(|_| subscribe_to_all(&sidecar, "?prefix=0").unwrap()));
    assert_eq!(get("/v1/events?prefix=0").error(), (429, "too_many_viewers"));
    assert_eq!(get("/v1/elections").error(), (429, "too_many_viewers"));
    sidecar.renew("e", &lease).expect(200);
    let mut stream = connect(&sidecar.address);
    stream.write_all(&Request::new("GET", "/v1/elections/e/events").bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(next_event(&mut lines, "leader")["election"], "e", "subscribers are not viewers");
    drop(viewers);
    // Readings of those who have gone end, and free their places.
    let _viewer = eventually("a place for another prefix", || subscribe_to_all(&sidecar, "?prefix=4"));
    get("/v1/elections").expect(200);

    // A store that does not answer is an error, and not an empty list.
    proxy.blackhole(Direction::Both);
    assert_eq!(get("/v1/elections").error(), (503, "store_unavailable"));
    let mut lines = subscribe_to_all(&sidecar, "?prefix=5").unwrap();
    let snapshot = next_event(&mut lines, "snapshot");
    assert!(snapshot["outage"]["since"].is_string(), "{snapshot}");
}

/// A Unix socket is for this user alone. What an earlier process has left is replaced, and what lives is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_for_this_user_alone() {
    let (_server, url) = etcd("ttl=4s").await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tenure.sock");
    let listen = format!("unix:{}", socket.display());
    let mut first = Sidecar::start_with(&url, &["--listen", &listen]);
    assert_eq!(first.address, listen);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let leader = || Request::new("GET", "/v1/elections/e").header("Host", "tenure");
    let send = |request: Request| request.send_to(UnixStream::connect(&socket).unwrap());
    assert_eq!(send(leader()).expect(200)["leader"], Value::Null);
    assert_eq!(send(leader().header("Origin", "http://e")).error(), (403, "forbidden_origin"));

    let serve = |path: &Path| {
        code_and_stderr(
            tenure_command(&["serve", "--listen", &format!("unix:{}", path.display())])
                .env("TENURE_STORE", &url),
        )
    };
    let (code, stderr) = serve(&socket);
    assert!(code == Some(2) && stderr.contains("another process listens on unix:"), "{stderr}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, stderr) = serve(&file);
    assert!(code == Some(2) && stderr.contains("exists and is no socket"), "{stderr}");
    assert!(file.exists());
    // As that of a PostgreSQL server.
    let foreign = folder.path().join("postgres.lock");
    fs::write(&foreign, "4711\n").unwrap();
    let (code, stderr) = serve(&folder.path().join("postgres"));
    assert!(code == Some(2) && stderr.contains("belongs to another program"), "{stderr}");
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "4711\n");

    first.command.signal("KILL");
    first.command.wait();
    assert!(socket.exists(), "left behind");
    let mut second = Sidecar::start_with(&url, &["--listen", &listen]);
    send(leader()).expect(200);
    second.command.signal("TERM");
    assert_eq!(second.command.wait().code(), Some(0));
    assert!(!socket.exists());
}

/// Several start at once on the socket that a killed process has left: one serves, and the others end at once with the reason.
#[test]
fn one_of_several_sidecars_gets_the_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tenure.sock");
    let listen = format!("unix:{}", socket.display());
    for _ in 0..5 {
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let mut command = tenure_command(&["serve", "--listen", &listen]);
        command.env("TENURE_STORE", "etcd://127.0.0.1:1/x").stderr(Stdio::piped());
        let mut running: Vec<_> = (0..4).map(|_| RunningCommand::start(&mut command)).collect();
        let mut ended = Vec::new();
        eventually("all but one have ended", || {
            let (over, left) = running.drain(..).partition(|command| !is_running(&command.pid().to_string()));
            ended.extend::<Vec<RunningCommand>>(over);
            running = left;
            (running.len() <= 1).then_some(())
        });
        for mut command in ended {
            let (code, stderr) = command.code_and_stderr();
            assert!(code == Some(2) && stderr.contains("another process listens on unix:"), "{stderr}");
        }
        let mut first = running.pop().expect("one serves");
        eventually("it serves", || UnixStream::connect(&socket).ok());
        first.signal("TERM");
        assert_eq!(first.wait().code(), Some(0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "neither socket nor lock is left");
    }
}

/// A user with permissions for one election only serves it. Other elections are refused in the answer, and a wrong password ends
/// the command.
#[tokio::test(flavor = "multi_thread")]
async fn permissions_for_one_election_are_enough() {
    const PASSWORD: &str = "Zanzibar4711";
    let server = EtcdServer::start_with(Version::Etcd35, &["--bcrypt-cost=4"]).await.unwrap();
    let admin = server.admin();
    admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/e/").await.unwrap();
    // The markers of withdrawn requests.
    admin.grant_permission("app", Permission::ReadWrite, "/acme/~").await.unwrap();
    admin.enable_auth("root-password").await.unwrap();
    let url = |password: &str| format!("etcd://app:{password}@{}/acme?ttl=4s", server.endpoint());
    let on_etcd = Sidecar::start(&url(PASSWORD));

    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let root = format!("/serve-{:016x}", fastrand::u64(..));
    let operator = zookeeper.admin().with_auth("digest", "operator:secret");
    let id = operator.identity().await.unwrap();
    let mut session = operator.session().await.unwrap();
    for (path, acl) in [(&root, ("world", "anyone")), (&format!("{root}/tenure-doctor"), (&*id.0, &*id.1))] {
        let acl = [(31, acl.0, acl.1)];
        session.create_with_acl(path, "", CreateMode::Persistent, &acl).await.unwrap();
    }
    session.close().await.unwrap();
    let on_zookeeper =
        Sidecar::start(&format!("zookeeper://app:{PASSWORD}@{}{root}?ttl=4s", zookeeper.endpoint()));

    for sidecar in [&on_etcd, &on_zookeeper] {
        eventually("it says so", || {
            sidecar.stderr().contains("may not read the election tenure-doctor").then_some(())
        });
        let lease = lease_of(&sidecar.campaign("e", &nonce(), ELECTED_WITHIN).expect(200));
        sidecar.renew("e", &lease).expect(200);
        assert_eq!(sidecar.leader("tenure-doctor").error(), (502, "store_refuses"));
        assert_eq!(sidecar.resign("e", &lease).expect(200)["confirmed"], true);
    }
    let mut wrong = tenure_command(&["serve", "--listen", "127.0.0.1:0"]);
    let (code, stderr) = code_and_stderr(wrong.env("TENURE_STORE", url("wrong")));
    assert!(code == Some(69) && stderr.contains("invalid user ID or password"), "{code:?}: {stderr}");
}

/// With a token file, every request needs the token. The file can be rotated.
#[tokio::test(flavor = "multi_thread")]
async fn requests_need_the_token() {
    let (_server, url) = etcd("ttl=4s").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "first-token-of-the-test\n").unwrap();
    let path = file.path().to_str().unwrap();
    let sidecar = Sidecar::start_with(&url, &["--listen", "0.0.0.0:0", "--token-file", path]);
    let port = sidecar.address.rsplit_once(':').unwrap().1;
    let status = |token: &str| {
        // Other machines name this one as they like.
        let request = Request::new("GET", "/v1/elections/e").header("Host", "sidecar.example");
        let request = request.header("Authorization", &format!("Bearer {token}"));
        request.send_to(connect(&format!("127.0.0.1:{port}")))
    };
    status("first-token-of-the-test").expect(200);
    let refused = status("wrong");
    assert_eq!(
        (refused.error(), refused.header("www-authenticate")),
        ((401, "unauthorized"), Some("bearer"))
    );
    fs::write(&file, "second-token-of-the-test\n").unwrap();
    eventually("the new token counts", || (status("second-token-of-the-test").status == 200).then_some(()));
    assert_eq!(status("first-token-of-the-test").status, 401);
    fs::write(&file, "").unwrap();
    eventually("the problem is reported", || {
        let stderr = sidecar.stderr();
        stderr.contains("the previous token stays in use").then(|| assert!(!stderr.contains("second-token")))
    });
    status("second-token-of-the-test").expect(200);
}

/// What cannot be safe is refused before anything listens.
#[test]
fn unsafe_settings_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "0123456789abcdef").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let path = file.path().to_str().unwrap();
    let etcd = "etcd://127.0.0.1:1/x";
    for (arguments, said) in [
        (&["--store", "local:/tmp/x"][..], "needs a store of several machines, and local: elects within one"),
        (&["--store", "memory:x"], "needs a store of several machines, and memory: elects within one"),
        (&[], "needs a store of several machines, and local: elects within one"),
        (&["--store", "etcd://127.0.0.1:1/x?resume=/tmp/r"], "resume= is not allowed here"),
        (
            &["--store", "etcd://127.0.0.1:1/x?on_clock_jump=lose"],
            "on_clock_jump=lose is not allowed with `tenure serve`",
        ),
        (
            &["--store", "etcd://127.0.0.1:1/x?ttl=5s", "--ttl", "6s"],
            "--ttl (or TENURE_TTL) is 6s: give one of them",
        ),
        (&["--store", etcd, "--ttl", "1ms"], "ttl 1ms is not allowed"),
        (
            &["--store", etcd, "--listen", "0.0.0.0:0"],
            "can be reached by other machines: give a --token-file",
        ),
        (&["--store", etcd, "--listen", "localhost:80"], "allowed are IP:PORT"),
        (&["--store", etcd, "--token-file", path], "chmod o-rwx"),
        (&["--store", etcd, "--token-file", "/nonexistent/token"], "No such file"),
    ] {
        let (code, stderr) = code_and_stderr(&mut tenure_command(&[&["serve"], arguments].concat()));
        assert!(code == Some(2) && stderr.contains(said), "{arguments:?}: {code:?}: {stderr}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stderr) =
        code_and_stderr(&mut tenure_command(&["serve", "--store", etcd, "--listen", &address]));
    assert!(code == Some(70) && stderr.contains("cannot listen on"), "{code:?}: {stderr}");
}

/// While the store does not answer, the sidecar says so, and every request is answered within its bound.
#[test]
fn an_outage_is_reported() {
    let sidecar = Sidecar::start("etcd://127.0.0.1:1/x?ttl=4s");
    let answer = sidecar.leader("e");
    assert_eq!((answer.error(), answer.header("retry-after")), ((503, "store_unavailable"), Some("1")));
    assert_eq!(sidecar.campaign("e", &nonce(), Duration::from_millis(100)).expect(202)["state"], "waiting");
    eventually("the outage is reported", || sidecar.stderr().contains("does not answer").then_some(()));
}

/// The OpenAPI document is valid, is the one in the tree, and describes exactly the routes that there are.
#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_describes_every_route() {
    let (_server, url) = etcd("ttl=4s").await;
    let sidecar = Sidecar::start(&url);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/openapi.json");
    // Not a part of Python: `cargo xtask test` installs it.
    succeed(Command::new("python3").args(["-m", "openapi_spec_validator"]).arg(&file));
    let served = sidecar.send(&Request::new("GET", "/v1/openapi.json")).expect(200);
    assert_eq!(served, serde_json::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap());
    let mut operations = 0;
    for (path, item) in served["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"] {
            if path.ends_with("/events") && method == "get" {
                // An answer without an end: another test reads it.
                assert!(item[method].is_object());
                operations += 1;
                continue;
            }
            let request = Request::new(&method.to_uppercase(), &path.replace("{name}", "e"));
            let answer = sidecar.send(&request);
            let exists = ![404, 405].contains(&answer.status);
            assert_eq!(item[method].is_object(), exists, "{method} {path}: {answer:?}");
            if exists {
                operations += 1;
                let status = answer.status.to_string();
                assert!(item[method]["responses"][&status].is_object(), "{method} {path} answers {status}");
            }
        }
    }
    assert_eq!(operations, 12);
}

/// A program that forks while it leads. The child leaves the `with` block too, and a second campaign needs an object of its own.
const FORKING_PROGRAM: &str = "
import os, sys, time
from tenure_sidecar import Leadership

with Leadership('e', sidecar=sys.argv[1]) as leadership:
    child = os.fork()
    if child == 0:
        sys.exit(7 if leadership.valid_for() == 0.0 else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    leadership.check()
    with open('forked', 'w') as file:
        file.write('forked\\n')
    while not os.path.exists('end'):
        time.sleep(0.02)
    leadership.check()
try:
    with leadership:
        sys.exit(9)
except RuntimeError:
    pass
";

/// A forked child does not lead, and does not resign its parent's leadership.
#[tokio::test(flavor = "multi_thread")]
async fn a_forked_child_of_the_python_client_resigns_nothing() {
    let (_server, url) = etcd("ttl=20s").await;
    let (sidecar, sandbox) = (Sidecar::start(&url), Sandbox::on(&url));
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/clients/python");
    let mut program = Command::new("python3");
    program.args(["-c", FORKING_PROGRAM, &sidecar.address]).current_dir(sandbox.file(""));
    program.env("PYTHONPATH", library).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut program = RunningCommand::start(&mut program);
    sandbox.wait_for_line("forked");
    assert_eq!(sandbox.candidates().len(), 1);
    assert_ne!(sidecar.leader("e").expect(200)["leader"], Value::Null);
    fs::write(sandbox.file("end"), "").unwrap();
    assert!(program.wait().success());
    assert_eq!(sandbox.candidates(), Vec::<String>::new(), "the parent has resigned");
}
