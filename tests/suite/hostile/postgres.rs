//! Foreign rows in the tables of elections on PostgreSQL.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use futures::future::join_all;
use tenure::{
    BootClock, Clock, Elector, Error,
    postgres::{PostgresBackend, PostgresConfig},
    spi::Backend as _,
};
use tenure_containers::Version;
use tenure_testkit::suite::until;
use tenure_tests::Postgres;

use crate::{assert_peak_memory_mib, elector, foreign_payloads, ids, is_printable, leader, names, promptly};

/// An election `e` in a schema of the test's own, whose rows tests write as a foreign program would.
pub(crate) struct TestElection(Postgres);

impl TestElection {
    pub(crate) async fn new() -> Self {
        let election = Self(Postgres::new(Version::Postgres17).await);
        // Creates the tables.
        election.backend().elections().await.unwrap();
        election
    }

    pub(crate) fn backend(&self) -> Arc<PostgresBackend> {
        let config = PostgresConfig::new([self.0.server().endpoint()], "postgres", "postgres");
        Arc::new(tenure::postgres::backend(config.schema(self.0.schema())).unwrap())
    }

    /// Runs SQL, in which `{records}` stands for the table. Returns the first column.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<String> {
        let sql = sql.replace("{records}", &format!("\"{}\".records", self.0.schema()));
        let rows = self.0.server().admin().query(&sql).await.unwrap_or_else(|error| panic!("{error}"));
        rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
    }

    /// Writes a row, or replaces it.
    async fn put(&self, key: &str, body: &[u8]) {
        let key = key.replace('\'', "''");
        let body = body.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        self.sql(&format!(
            "INSERT INTO {{records}} VALUES ('{key}', '\\x{body}') ON CONFLICT (key) DO UPDATE SET body = excluded.body"
        ))
        .await;
    }

    /// Appends slots of the session of this candidate's entry to the queue, and returns when they are there.
    pub(crate) async fn append_slots(&self, candidate: &str, slots: usize, value: &str) {
        let appended = format!(
            "UPDATE {{records}} SET body = convert_to(jsonb_set(jsonb_set(json, '{{nonce}}', to_jsonb(md5(random()::text))), '{{queue}}', \
             json->'queue' || (SELECT jsonb_agg(jsonb_build_object('candidate', 'slot-' || n, 'session', session, \
             'nonce', md5(random()::text), 'value', '{value}')) FROM generate_series(1, {slots}) AS n))::text, 'UTF8') \
             FROM (SELECT convert_from(body, 'UTF8')::jsonb AS json FROM {{records}} WHERE key = 'e/e') AS found, \
             (SELECT slot->>'session' AS session FROM {{records}} AS other, \
             jsonb_array_elements(convert_from(other.body, 'UTF8')::jsonb->'queue') AS slot \
             WHERE other.key LIKE 'e/%' AND slot->>'candidate' = '{candidate}' LIMIT 1) AS entry \
             WHERE key = 'e/e' RETURNING key"
        );
        assert_eq!(self.sql(&appended).await, ["e/e"]);
    }

    /// Removes the slots that [`append_slots`](Self::append_slots) has appended.
    pub(crate) async fn remove_slots(&self) {
        let removed = "UPDATE {records} SET body = convert_to(jsonb_set(jsonb_set(jsonb_set(json, '{nonce}', to_jsonb(md5(random()::text))), \
             '{token}', to_jsonb((json->>'token')::bigint + 1)), '{queue}', (SELECT coalesce(jsonb_agg(slot), '[]') \
             FROM jsonb_array_elements(json->'queue') AS slot WHERE slot->>'candidate' NOT LIKE 'slot-%'))::text, 'UTF8') \
             FROM (SELECT convert_from(body, 'UTF8')::jsonb AS json FROM {records} WHERE key = 'e/e') AS found \
             WHERE key = 'e/e' RETURNING key";
        assert_eq!(self.sql(removed).await, ["e/e"]);
    }

    async fn count(&self, condition: &str) -> usize {
        self.sql(&format!("SELECT count(*) FROM {{records}} WHERE {condition}")).await[0].parse().unwrap()
    }
}

/// A candidate leads, and another waits and leads next, however many foreign rows there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_foreign_rows_on_postgres_stop_no_candidate() {
    let election = TestElection::new().await;
    let foreign = async |prefix: &str| {
        let rows = format!(
            "INSERT INTO {{records}} SELECT '{prefix}' || n, convert_to('foreign', 'UTF8') FROM generate_series(1, 5000) AS n"
        );
        election.sql(&rows).await;
    };
    foreign("e/foreign-").await;
    for name in names::unusual().iter().filter(|name| !name.contains('\0') && name.len() < 2000) {
        for prefix in ["e/", "s/", ""] {
            election.put(&format!("{prefix}{name}"), b"foreign").await;
        }
    }
    let (a, b) = (elector(election.backend(), "a"), elector(election.backend(), "b"));
    let first = promptly("leading among foreign rows", a.campaign("e")).await.unwrap();
    foreign("s/").await;
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    foreign("e/e/").await;
    let listed = promptly("listing the elections", a.elections()).await.unwrap();
    assert_eq!(listed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["e"]);
    collect_garbage(&election).await;
    promptly("resigning", first.resign()).await.unwrap();
    let next = promptly("the handover", waiting).await.unwrap().unwrap();
    assert!(next.is_leader());
    assert_eq!(leader(&*a).await.unwrap().id, "b");
    promptly("resigning", next.resign()).await.unwrap();
    assert_eq!(leader(&*a).await, None, "no foreign row leads");
    promptly("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    let unusual = names::unusual().iter().filter(|name| !name.contains('\0') && name.len() < 2000).count();
    let foreign = election.count("body = convert_to('foreign', 'UTF8')").await;
    assert_eq!(foreign, 15_000 + 3 * unusual, "no foreign row was deleted or changed");
    assert_peak_memory_mib(128);
}

/// Looks for dead sessions twice, as every elector does now and then: a session that is ended by one look is deleted by the next.
async fn collect_garbage(election: &TestElection) {
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let backend = election.backend();
    for _ in 0..2 {
        promptly("collecting garbage", backend.collect_garbage(&clock, 0.1)).await.unwrap();
    }
    backend.close().await;
}

/// Somebody stores files of 16 MiB in the table. They are not read as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_foreign_rows_on_postgres_are_not_read() {
    let election = TestElection::new().await;
    for (key, rows) in [("e/huge-", 8), (&format!("s/{:031}", 7), 8), ("huge-", 2)] {
        // Each takes the server some time.
        for n in 1..=rows {
            let body = "convert_to(repeat('x', 16777216), 'UTF8')";
            election.sql(&format!("INSERT INTO {{records}} VALUES ('{key}{n}', {body})")).await;
        }
    }
    let [a, b] = ["a", "b"].map(|id| elector(election.backend(), id));
    assert_eq!(leader(&*b).await, None);
    let first = promptly("leading", a.campaign("e")).await.unwrap();
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    assert!(promptly("trying", b.try_campaign("e")).await.unwrap().is_none());
    let listed = promptly("listing the elections", a.elections()).await.unwrap();
    assert_eq!(listed.len(), 1);
    collect_garbage(&election).await;
    let refused = promptly("a campaign", b.campaign("huge-1")).await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, Error::Refused(_)) && is_printable(&text), "{refused:?}");
    assert!(text.contains("e/huge-1") && text.contains("bytes"), "{text}");
    promptly("resigning", first.resign()).await.unwrap();
    for elector in [a, b] {
        promptly("closing", elector.close()).await;
    }
    assert_eq!(election.count("octet_length(body) = 16777216").await, 18);
    assert_peak_memory_mib(64);
}

/// The row of an election that tenure did not write is refused in words, and not overwritten. Once it is gone, the election works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_row_of_an_election_on_postgres_is_refused() {
    let election = TestElection::new().await;
    let candidate = elector(election.backend(), "candidate");
    let mut payloads = foreign_payloads(1 << 20);
    let nonce = "0123456789abcdef0123456789abcdef";
    payloads.extend(
        [
            "{}".to_owned(),
            "[".repeat(100_000),
            r#"{"format":"tenure-election/2"}"#.to_owned(),
            format!(r#"{{"format":"tenure-session/1","state":"ended","nonce":"{nonce}"}}"#),
            format!(r#"{{"format":"tenure-election/1","token":-1,"nonce":"{nonce}","queue":[]}}"#),
            format!(r#"{{"format":"tenure-election/1","token":18446744073709551615,"nonce":"{nonce}","queue":[]}}"#),
            format!(r#"{{"format":"tenure-election/1","token":1,"nonce":"{nonce}","queue":[{{"candidate":"a\u001b[31m","session":"{nonce}","nonce":"{nonce}"}}]}}"#),
            format!(r#"{{"format":"tenure-election/1","token":1,"nonce":"{nonce}","queue":[{{"candidate":"a","session":"../x","nonce":"{nonce}"}}]}}"#),
        ]
        .map(String::into_bytes),
    );
    for payload in payloads {
        election.put("e/e", &payload).await;
        let refused = promptly("a campaign", candidate.campaign("e")).await.unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, Error::Refused(_)) && !refused.is_retryable(), "{refused:?}");
        assert!(is_printable(&text) && text.contains("cannot use the record \"e/e\""), "{text}");
        for refused in [
            promptly("asking", candidate.leader("e")).await.map(drop).unwrap_err(),
            promptly("listing", candidate.candidates("e")).await.map(drop).unwrap_err(),
            promptly("asking to resign", candidate.request_resign("e")).await.map(drop).unwrap_err(),
        ] {
            assert!(is_printable(&refused.to_string()), "{refused}");
        }
        assert!(promptly("listing the elections", candidate.elections()).await.unwrap().is_empty());
        let unchanged =
            election.sql("SELECT encode(sha256(body), 'hex') FROM {records} WHERE key = 'e/e'").await;
        election.put("copy", &payload).await;
        let copy = election.sql("SELECT encode(sha256(body), 'hex') FROM {records} WHERE key = 'copy'").await;
        assert_eq!(unchanged, copy, "it is as it was");
    }
    election.sql("DELETE FROM {records} WHERE key = 'e/e'").await;
    let leadership = promptly("leading", candidate.campaign("e")).await.unwrap();
    promptly("resigning", leadership.resign()).await.unwrap();
    promptly("closing", candidate.close()).await;
    assert_peak_memory_mib(64);
}

/// A waiting candidate outlasts garbage in the row of the session ahead of it, which its owner can no longer use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_row_of_a_session_on_postgres_ends_that_session_only() {
    let election = TestElection::new().await;
    let [a, b] = ["a", "b"].map(|id| elector(election.backend(), id));
    let leadership = promptly("leading", a.campaign("e")).await.unwrap();
    let session = election
        .sql("SELECT convert_from(body, 'UTF8')::jsonb->'queue'->0->>'session' FROM {records} WHERE key = 'e/e'")
        .await
        .swap_remove(0);
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    election.put(&format!("s/{session}"), b"{\"format\":\"tenure-session/1\"}").await;
    promptly("the loss", leadership.lost()).await;
    drop(leadership);
    // Nobody but a person can say whose that row is.
    election.sql(&format!("DELETE FROM {{records}} WHERE key = 's/{session}'")).await;
    let next = promptly("leading", waiting).await.unwrap().unwrap();
    assert!(next.is_leader());
    promptly("resigning", next.resign()).await.unwrap();
    for elector in [a, b] {
        promptly("closing", elector.close()).await;
    }
}

/// Somebody deletes rows at random, of elections and sessions, while candidates campaign. Afterwards the election works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_vanish_on_postgres_end_in_a_leader() {
    let election = TestElection::new().await;
    let electors: Vec<_> = (0..4).map(|n| elector(election.backend(), &format!("candidate-{n}"))).collect();
    let campaigns = electors.iter().map(|elector| {
        let elector = Arc::clone(elector);
        tokio::spawn(async move {
            for _ in 0..20 {
                // What fails meanwhile is repeated.
                if let Ok(leadership) = elector.campaign("e").await {
                    let _ = leadership.resign_within(Duration::from_secs(1)).await;
                }
            }
        })
    });
    let campaigns: Vec<_> = campaigns.collect();
    for n in 0..200 {
        let garbage = if n % 10 == 0 {
            "; INSERT INTO {records} VALUES ('e/e', '\\x00') ON CONFLICT DO NOTHING"
        } else {
            ""
        };
        election
            .sql(&format!("DELETE FROM {{records}} WHERE key IN (SELECT key FROM {{records}} WHERE key <> 'store' ORDER BY random() LIMIT 1){garbage}"))
            .await;
    }
    election.sql("DELETE FROM {records} WHERE key = 'e/e'").await;
    promptly("the campaigns", join_all(campaigns)).await;
    let leadership = promptly("leading", electors[0].campaign("e")).await.unwrap();
    assert!(leadership.is_leader());
    promptly("resigning", leadership.resign()).await.unwrap();
    for elector in electors {
        promptly("closing", elector.close()).await;
    }
}

/// 500 candidates of a session that lives fill an election: the next is refused in words, until one has left. Those of sessions that do not
/// exist are found to be dead together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_on_postgres_is_refused_and_dead_candidates_are_outlasted() {
    let election = TestElection::new().await;
    let [alive, candidate] = ["alive", "candidate"].map(|id| elector(election.backend(), id));
    let first = promptly("leading", alive.campaign("e")).await.unwrap();
    election.append_slots("alive", 499, "x").await;
    assert_eq!(ids(&*candidate).await.len(), 500);
    let refused = promptly("a campaign", candidate.campaign("e")).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("500 candidates are in its queue") && is_printable(&text), "{text}");
    election.remove_slots().await;
    assert!(promptly("trying", candidate.try_campaign("e")).await.unwrap().is_none());
    promptly("resigning", first.resign()).await.unwrap();

    let dead = "SELECT jsonb_agg(jsonb_build_object('candidate', 'slot-' || n, 'session', md5(random()::text), \
                'nonce', md5(random()::text))) FROM generate_series(1, 500) AS n";
    election
        .sql(&format!(
            "UPDATE {{records}} SET body = convert_to(jsonb_set(jsonb_set(jsonb_set(json, '{{nonce}}', to_jsonb(md5(random()::text))), \
             '{{token}}', to_jsonb((json->>'token')::bigint + 1)), '{{queue}}', ({dead}))::text, 'UTF8') \
             FROM (SELECT convert_from(body, 'UTF8')::jsonb AS json FROM {{records}} WHERE key = 'e/e') AS found WHERE key = 'e/e'"
        ))
        .await;
    // Less than two TTLs, and not one for each.
    let leadership = promptly("leading", candidate.campaign("e")).await.unwrap();
    assert_eq!(ids(&*alive).await, ["candidate"]);
    promptly("resigning", leadership.resign()).await.unwrap();
    for elector in [alive, candidate] {
        promptly("closing", elector.close()).await;
    }
    assert_peak_memory_mib(64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_on_postgres() {
    let election = TestElection::new().await;
    let candidate = elector(election.backend(), "candidate");
    names::check_election_names(&*candidate).await;
    promptly("closing", candidate.close()).await;
}
