//! Stores that answer with garbage, without end, or not at all.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tenure::{Config, Connection, Diagnosis, Elector, Error, Level};
use tenure_testkit::suite::{until, within};

use crate::{
    assert_peak_memory_mib,
    garbage_server::{Garbage, GarbageServer, HUGE_MESSAGE_PREFIX, NO_DATA, PING, Rate, SETTINGS},
    is_printable, promptly,
};

/// ZooKeeper's client library buffers what a server sends until a response is complete, and gives up after seconds. At this
/// rate the buffer stays below the memory limit of the test for that long.
const BUFFERED_RATE: Rate = Rate::MebibytesPerSecond(32);

/// Asserts that campaigns, reads, observers and a diagnosis retry, and the status says why, or that they fail with a
/// printable error. Closing takes seconds, and memory stays bounded.
async fn assert_survives(scheme: &str, garbage: Garbage) {
    let server = GarbageServer::start(garbage).await;
    let login = if scheme == "mysql" { "app:secret@" } else { "" };
    let path = if scheme == "redis" { "0" } else { "acme" };
    let url = match scheme {
        "s3" => format!("s3://key:secret@bucket/acme?endpoint=http://{}", server.endpoint),
        _ => format!("{scheme}://{login}{}/{path}", server.endpoint),
    };
    let config = || Config::new().with_ttl(Duration::from_secs(3));
    let [candidate, reader] = [config(), config()].map(|config| tenure::connect_with(&url, config));
    let (candidate, reader) = (candidate.await.unwrap(), reader.await.unwrap());
    let campaign = {
        let candidate: Arc<dyn Elector> = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    let reading = {
        let reader: Arc<dyn Elector> = Arc::clone(&reader);
        tokio::spawn(async move { reader.candidates("e").await })
    };
    let observing = {
        let mut leaders = reader.observe("e");
        tokio::spawn(async move { leaders.next().await })
    };
    let diagnoses = {
        let reader: Arc<dyn Elector> = Arc::clone(&reader);
        tokio::spawn(async move { reader.diagnose().await })
    };
    for (elector, ended) in [(&candidate, &|| campaign.is_finished()), (&reader, &|| reading.is_finished())]
        as [(&Arc<dyn Elector>, &dyn Fn() -> bool); 2]
    {
        until("the status says why", async || {
            let status = elector.status();
            // Every error that is observed has to be printable, not only the last.
            let error = status.last_error.inspect(|error| assert!(is_printable(error), "{error:?}"));
            error.is_some() && (status.connection == Connection::Retrying || ended())
        })
        .await;
    }
    until("it is retried", async || server.connections() >= 6 || campaign.is_finished()).await;
    let diagnoses = within("the diagnoses", diagnoses).await.unwrap();
    assert!(diagnoses.iter().any(|diagnosis| diagnosis.level == Level::Problem), "{diagnoses:?}");
    for Diagnosis { subject, text, .. } in &diagnoses {
        assert!(is_printable(subject) && is_printable(text), "{text:?}");
    }
    for elector in [&candidate, &reader] {
        promptly("closing", elector.close()).await;
    }
    for error in [promptly("the campaign's end", campaign).await.unwrap().err(), reading.await.unwrap().err()]
    {
        let error = error.expect("no candidate can lead in such a store");
        assert!(matches!(error, Error::Closed | Error::Refused(_)), "{error:?}");
        assert!(is_printable(&error.to_string()), "{error}");
    }
    if let Some(seen) = promptly("the observer's end", observing).await.unwrap() {
        let error = seen.expect_err("no candidate can lead in such a store").to_string();
        assert!(is_printable(&error), "{error}");
    }
    assert_peak_memory_mib(256);
}

/// MySQL: the first packet of a server, which speaks first.
const GREETING: &[u8] = b"\x59\0\0\0\x0a5.5.5-10.11.6-MariaDB\0\x07\0\0\x0012345678\0\xfe\xf7\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\x0f\0\0\0\
123456789012\0mysql_native_password\0";
/// MySQL: a login that is accepted.
const ACCEPTED: &[u8] = b"\x07\0\0\x02\0\0\0\x02\0\0\0";
/// MySQL: a packet of 16 MiB that begins.
const HUGE_PACKET: &[u8] = b"\xff\xff\xff\x02\x01";
/// MySQL: a refusal with control characters.
const REFUSED: &[u8] = b"\x15\0\0\x02\xff\x19\x04#42000\x1b[31m\r\nred\0!";

macro_rules! survived {
    ($($name:ident: $scheme:literal, $garbage:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                assert_survives($scheme, $garbage).await;
            }
        )*
    };
}

/// ZooKeeper: the response to a connect request, with this timeout, session and length of the password.
fn connect_response(timeout: i32, session: i64, length: i32) -> Vec<u8> {
    let fields = [&timeout.to_be_bytes()[..], &session.to_be_bytes(), &length.to_be_bytes(), &[7; 16], &[0]];
    [&37_i32.to_be_bytes()[..], &[0; 4], &fields.concat()].concat()
}

/// ZooKeeper: a session in which every response announces a list and ends before it.
fn session(timeout: i32, session: i64, length: i32) -> Garbage {
    Garbage::TruncatedLists(connect_response(timeout, session, length), 7)
}

/// ZooKeeper: a frame of this length that ends after its first byte.
fn frame(length: i32) -> Garbage {
    Garbage::Response([&length.to_be_bytes()[..], &[0]].concat())
}

/// Consul: the head of an answer that ends with its connection.
const HTTP_WITHOUT_LENGTH: &[u8] = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\n\r\n";

/// Consul: an answer.
fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}\r\n{body}").into_bytes()
}

/// Consul: an answer with this JSON.
fn http_json(body: &str) -> Vec<u8> {
    http("200 OK", &format!("X-Consul-Index: 7\r\nContent-Length: {}\r\n", body.len()), body)
}

/// NATS: what a server says of itself when a client connects.
const NATS_INFO: &[u8] = b"INFO {\"server_id\":\"x\",\"version\":\"2.15.0\",\"max_payload\":1048576,\"headers\":true,\"jetstream\":true}\r\n";

/// The beginning of an S3 object.
const OK_WITH_ENTITY: &[u8] =
    b"HTTP/1.1 200 OK\r\nETag: \"7\"\r\nLast-Modified: Mon, 30 Nov 2026 12:00:00 GMT\r\n\r\n";

survived! {
    mysql_that_never_answers: "mysql", Garbage::Silence;
    mysql_that_answers_random_bytes: "mysql", Garbage::RandomBytes;
    mysql_that_streams_bytes_forever: "mysql", Garbage::StreamAtOnce(b"my");
    mysql_that_streams_zeros_forever: "mysql", Garbage::StreamAtOnce(&[0]);
    mysql_that_hangs_up: "mysql", Garbage::Close;
    mysql_that_streams_a_huge_packet: "mysql", Garbage::StreamAtOnce(&[0xff]);
    mysql_that_accepts_forever: "mysql", Garbage::Stream(GREETING, ACCEPTED, Rate::Unbounded);
    mysql_that_sends_a_huge_packet: "mysql", Garbage::Stream(GREETING, HUGE_PACKET, Rate::Unbounded);
    mysql_that_refuses_with_control_characters: "mysql", Garbage::Stream(GREETING, REFUSED, Rate::Unbounded);

    etcd_that_never_answers: "etcd", Garbage::Silence;
    etcd_that_answers_random_bytes: "etcd", Garbage::RandomBytes;
    etcd_that_streams_bytes_forever: "etcd", Garbage::Stream(b"", b"etc", Rate::Unbounded);
    etcd_that_streams_zeros_forever: "etcd", Garbage::Stream(b"", &[0], Rate::Unbounded);
    etcd_that_hangs_up: "etcd", Garbage::Close;
    etcd_that_is_a_web_server: "etcd", Garbage::HttpError;
    etcd_that_sends_settings_forever: "etcd", Garbage::Stream(SETTINGS, SETTINGS, Rate::Unbounded);
    etcd_that_pings_forever: "etcd", Garbage::Stream(SETTINGS, PING, Rate::Unbounded);
    etcd_that_announces_a_message_of_1_gib: "etcd", Garbage::StreamResponse(HUGE_MESSAGE_PREFIX);
    etcd_that_refuses_with_control_characters: "etcd", Garbage::UnprintableError;
    etcd_that_answers_empty_data_forever: "etcd", Garbage::StreamResponse(NO_DATA);

    consul_that_never_answers: "consul", Garbage::Silence;
    consul_that_answers_random_bytes: "consul", Garbage::RandomBytes;
    consul_that_streams_bytes_forever: "consul", Garbage::Stream(b"", b"consul", Rate::Unbounded);
    consul_that_hangs_up: "consul", Garbage::Close;
    consul_that_is_a_web_server: "consul", Garbage::HttpError;
    consul_that_streams_an_answer_forever: "consul", Garbage::Stream(HTTP_WITHOUT_LENGTH, &[b' '; 4096], Rate::Unbounded);
    consul_that_announces_an_answer_of_1_gib: "consul", Garbage::Response(http("200 OK", "Content-Length: 1073741824\r\n", "["));
    consul_that_answers_json_of_another_shape: "consul", Garbage::Response(http_json("{\"Results\":[{}],\"Errors\":7}"));
    consul_that_answers_deep_json: "consul", Garbage::Response(http_json(&"[".repeat(100_000)));
    consul_that_answers_entries_without_an_index: "consul", Garbage::Response(http_json(
        "[{\"Key\":\"acme/store\",\"Value\":\"e30=\",\"ModifyIndex\":0}]",
    ));
    consul_that_finds_nothing_and_has_no_index: "consul", Garbage::Response(http("404 Not Found", "Content-Length: 0\r\n", ""));
    consul_that_redirects: "consul", Garbage::Response(http("301 Moved", "Location: http://127.0.0.1:1/\r\nContent-Length: 0\r\n", ""));
    consul_that_refuses_with_control_characters: "consul", Garbage::Response(http(
        "500 Internal Server Error", "Content-Length: 18\r\n", "\u{1b}[31m\r\nERROR xxxx\n",
    ));

    nats_that_never_answers: "nats", Garbage::Silence;
    nats_that_answers_random_bytes: "nats", Garbage::RandomBytes;
    nats_that_streams_bytes_forever: "nats", Garbage::Stream(b"", b"nats", BUFFERED_RATE);
    nats_that_hangs_up: "nats", Garbage::Close;
    nats_that_is_a_web_server: "nats", Garbage::HttpError;
    nats_that_refuses_with_control_characters: "nats", Garbage::Stream(NATS_INFO, b"-ERR '\x1b[31mred\x07'\r\n", Rate::MebibytesPerSecond(1));
    nats_that_repeats_itself_once_connected: "nats", Garbage::Stream(NATS_INFO, NATS_INFO, Rate::MebibytesPerSecond(1));

    s3_that_never_answers: "s3", Garbage::Silence;
    s3_that_answers_random_bytes: "s3", Garbage::RandomBytes;
    s3_that_streams_zeros_forever: "s3", Garbage::Stream(b"", &[0], Rate::Unbounded);
    s3_that_streams_headers_forever: "s3", Garbage::Stream(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", Rate::Unbounded);
    s3_that_streams_an_answer_forever: "s3", Garbage::Stream(OK_WITH_ENTITY, b"x", Rate::Unbounded);
    s3_that_streams_a_refusal_forever: "s3", Garbage::Stream(b"HTTP/1.1 500 No\r\n\r\n", b"x", Rate::Unbounded);
    s3_that_hangs_up: "s3", Garbage::Close;
    s3_that_is_a_web_server: "s3", Garbage::HttpError;
    s3_that_answers_without_entities: "s3", Garbage::Response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    s3_that_redirects: "s3", Garbage::Response(b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".to_vec());

    zookeeper_that_never_answers: "zookeeper", Garbage::Silence;
    zookeeper_that_answers_random_bytes: "zookeeper", Garbage::RandomBytes;
    zookeeper_that_streams_bytes_forever: "zookeeper", Garbage::Stream(b"", b"zk", BUFFERED_RATE);
    zookeeper_that_streams_zeros_forever: "zookeeper", Garbage::Stream(b"", &[0], BUFFERED_RATE);
    zookeeper_that_hangs_up: "zookeeper", Garbage::Close;
    zookeeper_that_is_a_web_server: "zookeeper", Garbage::HttpError;
    zookeeper_that_announces_a_frame_of_2_gib: "zookeeper", frame(i32::MAX);
    zookeeper_that_announces_a_frame_of_negative_length: "zookeeper", frame(-1);
    zookeeper_that_grants_a_negative_timeout: "zookeeper", session(-1, 7, 16);
    zookeeper_that_grants_no_timeout: "zookeeper", session(0, 7, 16);
    zookeeper_that_grants_weeks: "zookeeper", session(i32::MAX, 7, 16);
    zookeeper_with_a_negative_session: "zookeeper", session(3000, -7, 16);
    zookeeper_without_a_session: "zookeeper", session(3000, 0, 16);
    zookeeper_with_a_password_of_2_gib: "zookeeper", session(3000, 7, i32::MAX);
    zookeeper_with_a_password_of_negative_length: "zookeeper", session(3000, 7, -1);
    zookeeper_that_announces_a_million_children: "zookeeper", Garbage::TruncatedLists(connect_response(3000, 7, 16), 1_000_000);
    zookeeper_that_is_silent_once_connected: "zookeeper", Garbage::Response(connect_response(3000, 7, 16));
    zookeeper_that_streams_bytes_once_connected: "zookeeper", Garbage::StreamAfterResponse(connect_response(3000, 7, 16), b"zk", BUFFERED_RATE);
    zookeeper_that_streams_zeros_once_connected: "zookeeper", Garbage::StreamAfterResponse(connect_response(3000, 7, 16), &[0], BUFFERED_RATE);
    zookeeper_that_sends_truncated_lists: "zookeeper", session(3000, 7, 16);

    redis_that_never_answers: "redis", Garbage::Silence;
    redis_that_answers_random_bytes: "redis", Garbage::RandomBytes;
    redis_that_hangs_up: "redis", Garbage::Close;
    redis_that_is_a_web_server: "redis", Garbage::HttpError;
    redis_that_streams_bytes_forever: "redis", Garbage::Stream(b"+", b"redis", Rate::Unbounded);
    redis_that_streams_numbers_forever: "redis", Garbage::Stream(b"", b":1\r\n", Rate::Unbounded);
    redis_that_sends_a_text_of_1_gib: "redis", Garbage::Stream(b"$1073741824\r\n", b"redis", Rate::Unbounded);
    redis_that_sends_a_list_of_a_billion: "redis", Garbage::Stream(b"*1000000000\r\n", b"+redis\r\n", Rate::Unbounded);
    redis_that_nests_lists_forever: "redis", Garbage::Stream(b"", b"*1\r\n", Rate::Unbounded);
    redis_that_pushes_messages_forever: "redis", Garbage::Stream(b"", b">3\r\n+message\r\n+tenure\r\n+e/e\r\n", Rate::Unbounded);
    redis_that_announces_a_list_of_negative_length: "redis", Garbage::Response(b"%-2\r\n".to_vec());
}
