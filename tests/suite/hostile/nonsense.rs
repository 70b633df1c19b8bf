//! Stores that answer nonsense, without end, or nothing.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Config, Connection, Diagnosis, Elector, Error, Level};
use tenure_testkit::suite::{until, within};

use crate::{
    is_fit_to_be_printed, never_held_more_than,
    server::{CLAIM, NO_DATA, Nonsense, PING, Pace, SETTINGS, Server},
    soon,
};

/// What a server sends to ZooKeeper's client library is kept by it for as long as it waits for the end of an answer, which is
/// seconds. So much a second is kept in bounds then; kept for longer, it is not.
const PACE: Pace = Pace::Mebibytes(32);

/// Asked for by campaigns, onlookers, observers and an operator alike, the store is asked again and again, and the status says why; or
/// the campaign fails, in words. Closing takes seconds, and memory stays as it is.
async fn is_borne(scheme: &str, nonsense: Nonsense) {
    let server = Server::start(nonsense).await;
    let url = format!("{scheme}://{}/acme", server.endpoint);
    let config = || Config::new().with_ttl(Duration::from_secs(3));
    let [candidate, onlooker] = [config(), config()].map(|config| tenure::connect_with(&url, config));
    let (candidate, onlooker) = (candidate.await.unwrap(), onlooker.await.unwrap());
    let campaign = {
        let candidate: Arc<dyn Elector> = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    let looking = {
        let onlooker: Arc<dyn Elector> = Arc::clone(&onlooker);
        tokio::spawn(async move { onlooker.candidates("e").await })
    };
    let observing = {
        let mut leaders = onlooker.observe("e");
        tokio::spawn(async move { leaders.next().await })
    };
    let diagnoses = {
        let onlooker: Arc<dyn Elector> = Arc::clone(&onlooker);
        tokio::spawn(async move { onlooker.diagnose().await })
    };
    for (elector, over) in [(&candidate, &|| campaign.is_finished()), (&onlooker, &|| looking.is_finished())]
        as [(&Arc<dyn Elector>, &dyn Fn() -> bool); 2]
    {
        until("the status says why", async || {
            let status = elector.status();
            // Each that is seen, and not only the last.
            let said = status.last_error.inspect(|said| assert!(is_fit_to_be_printed(said), "{said:?}"));
            said.is_some() && (status.connection == Connection::Retrying || over())
        })
        .await;
    }
    // Asked again, and again.
    until("it is asked again", async || server.taken() >= 6 || campaign.is_finished()).await;
    let diagnoses = within("the diagnoses", diagnoses).await.unwrap();
    assert!(diagnoses.iter().any(|diagnosis| diagnosis.level == Level::Problem), "{diagnoses:?}");
    for Diagnosis { subject, text, .. } in &diagnoses {
        assert!(is_fit_to_be_printed(subject) && is_fit_to_be_printed(text), "{text:?}");
    }
    for elector in [&candidate, &onlooker] {
        soon("closing", elector.close()).await;
    }
    for error in [soon("the campaign's end", campaign).await.unwrap().err(), looking.await.unwrap().err()] {
        let error = error.expect("nobody leads in such a store");
        assert!(matches!(error, Error::Closed | Error::Refused(_)), "{error:?}");
        assert!(is_fit_to_be_printed(&error.to_string()), "{error}");
    }
    if let Some(seen) = soon("the observer's end", observing).await.unwrap() {
        let error = seen.expect_err("nobody leads in such a store").to_string();
        assert!(is_fit_to_be_printed(&error), "{error}");
    }
    never_held_more_than(256);
}

macro_rules! borne {
    ($($name:ident: $scheme:literal, $nonsense:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                is_borne($scheme, $nonsense).await;
            }
        )*
    };
}

/// ZooKeeper: the answer to a connect request, with this timeout, session and length of the password.
fn connected(timeout: i32, session: i64, length: i32) -> Vec<u8> {
    let fields = [&timeout.to_be_bytes()[..], &session.to_be_bytes(), &length.to_be_bytes(), &[7; 16], &[0]];
    [&37_i32.to_be_bytes()[..], &[0; 4], &fields.concat()].concat()
}

/// ZooKeeper: such a session, in which every answer is a list that is not there.
fn session(timeout: i32, session: i64, length: i32) -> Nonsense {
    Nonsense::Listing(connected(timeout, session, length), 7)
}

/// ZooKeeper: the length of a frame.
fn frame(length: i32) -> Nonsense {
    Nonsense::Answer([&length.to_be_bytes()[..], &[0]].concat())
}

borne! {
    etcd_that_never_answers: "etcd", Nonsense::Silence;
    etcd_that_answers_random_bytes: "etcd", Nonsense::Garbage;
    etcd_that_streams_bytes_for_ever: "etcd", Nonsense::Endless(b"", b"etc", Pace::Unbounded);
    etcd_that_streams_zeros_for_ever: "etcd", Nonsense::Endless(b"", &[0], Pace::Unbounded);
    etcd_that_hangs_up: "etcd", Nonsense::Hangup;
    etcd_that_is_a_web_server: "etcd", Nonsense::Http;
    etcd_that_sends_settings_for_ever: "etcd", Nonsense::Endless(SETTINGS, SETTINGS, Pace::Unbounded);
    etcd_that_pings_for_ever: "etcd", Nonsense::Endless(SETTINGS, PING, Pace::Unbounded);
    etcd_that_says_its_answer_has_a_gibibyte: "etcd", Nonsense::EndlessAnswer(CLAIM);
    etcd_that_refuses_with_control_characters: "etcd", Nonsense::Refusal;
    etcd_that_answers_empty_data_for_ever: "etcd", Nonsense::EndlessAnswer(NO_DATA);

    zookeeper_that_never_answers: "zookeeper", Nonsense::Silence;
    zookeeper_that_answers_random_bytes: "zookeeper", Nonsense::Garbage;
    zookeeper_that_streams_bytes_for_ever: "zookeeper", Nonsense::Endless(b"", b"zk", PACE);
    zookeeper_that_streams_zeros_for_ever: "zookeeper", Nonsense::Endless(b"", &[0], PACE);
    zookeeper_that_hangs_up: "zookeeper", Nonsense::Hangup;
    zookeeper_that_is_a_web_server: "zookeeper", Nonsense::Http;
    zookeeper_that_announces_a_frame_of_2_gib: "zookeeper", frame(i32::MAX);
    zookeeper_that_announces_a_frame_of_negative_length: "zookeeper", frame(-1);
    zookeeper_that_grants_a_negative_timeout: "zookeeper", session(-1, 7, 16);
    zookeeper_that_grants_no_timeout: "zookeeper", session(0, 7, 16);
    zookeeper_that_grants_weeks: "zookeeper", session(i32::MAX, 7, 16);
    zookeeper_with_a_negative_session: "zookeeper", session(3000, -7, 16);
    zookeeper_without_a_session: "zookeeper", session(3000, 0, 16);
    zookeeper_with_a_password_of_2_gib: "zookeeper", session(3000, 7, i32::MAX);
    zookeeper_with_a_password_of_negative_length: "zookeeper", session(3000, 7, -1);
    zookeeper_that_lists_a_million_of_nothing: "zookeeper", Nonsense::Listing(connected(3000, 7, 16), 1_000_000);
    zookeeper_that_is_silent_once_connected: "zookeeper", Nonsense::Answer(connected(3000, 7, 16));
    zookeeper_that_streams_bytes_once_connected: "zookeeper", Nonsense::EndlessOnceAnswered(connected(3000, 7, 16), b"zk", PACE);
    zookeeper_that_streams_zeros_once_connected: "zookeeper", Nonsense::EndlessOnceAnswered(connected(3000, 7, 16), &[0], PACE);
    zookeeper_that_answers_without_sense: "zookeeper", session(3000, 7, 16);
}
