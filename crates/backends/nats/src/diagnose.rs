//! Diagnoses the servers and the bucket, for an operator.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, future::join_all};
use serde_json::Value;
use tenure_cas::{CasStore as _, Freshness, Version};
use tenure_core::{
    Diagnosis,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{bucket, store::NatsStore};

/// A key that no record has.
const NO_RECORD: &str = "e/.";
/// The largest answer of a monitoring port that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// Diagnoses each server, the bucket, and what the user may do.
pub(crate) async fn diagnose(store: &NatsStore) -> Vec<Diagnosis> {
    let mut diagnoses =
        join_all(store.requests.config.hosts.iter().map(|host| diagnose_host(store, host))).await;
    match state(store).await {
        Ok(state) => {
            diagnoses.extend(diagnose_bucket(store, &state));
            // A host may have been down at the first connection.
            if let Err(error) = store.requests.compare_hosts().await {
                diagnoses.push(Diagnosis::problem(
                    "hosts",
                    error.to_string(),
                    "name the servers of one cluster",
                ));
            }
        }
        Err(error) => diagnoses.push(problem("bucket", &error)),
    }
    diagnoses.extend(diagnose_disks(store).await);
    diagnoses.extend(diagnose_requests(store).await);
    diagnoses
}

async fn diagnose_host(store: &NatsStore, host: &str) -> Diagnosis {
    let subject = format!("server {host}");
    match store.requests.connect_host(host).await {
        Ok(connection) => {
            let info = connection.client.server_info();
            let cluster = match info.cluster {
                Some(cluster) => format!("in the cluster {cluster}"),
                None => "not in a cluster".to_owned(),
            };
            let text = format!("NATS {}, {}, {cluster}", info.version, info.server_name);
            match info.jetstream {
                true => Diagnosis::good(subject, text),
                false => Diagnosis::warning(
                    subject,
                    format!("{text}, without JetStream"),
                    "enable JetStream in its configuration, unless others have it and it forwards requests to them",
                ),
            }
        }
        Err(error) if error.kind() == BackendErrorKind::Invalid => problem(subject, &error),
        Err(error) => Diagnosis::problem(
            subject,
            error.to_string(),
            "start it, see that its port can be reached from here and that the user may log in, or take it out of the URL",
        ),
    }
}

async fn state(store: &NatsStore) -> Result<Value, BackendError> {
    // Opens the bucket, which checks its settings.
    store.read(NO_RECORD, Freshness::MayBeStale).await?;
    let lost = || {
        BackendError::new(BackendErrorKind::Unavailable, "the connection ended, or the bucket was deleted")
    };
    let connection = store.requests.current().ok_or_else(lost)?;
    bucket::info(&connection, &store.requests.config).await?.ok_or_else(lost)
}

fn diagnose_bucket(store: &NatsStore, state: &Value) -> Vec<Diagnosis> {
    let (settings, cluster) = (&state["config"], &state["cluster"]);
    let count = settings["num_replicas"].as_u64().unwrap_or(1);
    let mut diagnoses = Vec::new();
    let others = cluster["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |replica: &Value| replica["name"].as_str().unwrap_or("?").to_owned();
    let is_current = |replica: &&Value| replica["current"] == true && replica["offline"] != true;
    let current: Vec<_> = others.iter().filter(is_current).map(name).collect();
    let behind: Vec<_> = others.iter().filter(|replica| !is_current(replica)).map(name).collect();
    let leader = cluster["leader"].as_str().unwrap_or("this server");
    let text = match current[..] {
        [] => format!("replicas: {count}; leader {leader}"),
        _ => format!("replicas: {count}; leader {leader}, current {}", current.join(", ")),
    };
    let edit = format!("nats stream edit {} --replicas=3", store.requests.config.stream());
    diagnoses.push(match (&behind[..], count) {
        ([], 3..) => Diagnosis::good("bucket", text),
        ([], _) => Diagnosis::warning(
            "bucket",
            format!("{text}: nobody can lead while one server is down, and the loss of its disk loses the fencing tokens"),
            format!("in a cluster of three servers or more, run: {edit}"),
        ),
        (behind, _) => Diagnosis::warning(
            "bucket",
            format!("{text}, not current {}", behind.join(", ")),
            "start these servers, and see why they do not catch up",
        ),
    });
    if settings["max_bytes"].as_i64() > Some(0) {
        diagnoses.push(Diagnosis::warning(
            "size",
            "the bucket has a limit of its size: when it is full, heartbeats are refused",
            "remove the limit (max_bytes), or watch the size",
        ));
    }
    if settings["deny_purge"] == true {
        diagnoses.push(Diagnosis::warning(
            "purge",
            "the bucket refuses to purge subjects: records of dead sessions stay",
            "create the bucket without deny_purge",
        ));
    }
    diagnoses
}

/// Whether the servers write to their disks before they acknowledge. Only their monitoring ports tell.
async fn diagnose_disks(store: &NatsStore) -> Vec<Diagnosis> {
    const LOSES: &str = "acknowledged writes can be lost when several machines crash at once, and two candidates could lead after it";
    const SET: &str = "set `jetstream { sync_interval: always }` in the configuration of each server";
    let config = &store.requests.config;
    if config.monitor.is_empty() {
        return vec![Diagnosis::warning(
            "sync_interval",
            format!("not known, and by default writes are flushed to the disk every 2 min: {LOSES}"),
            format!("{SET}, and give their monitoring ports to this check: monitor=host1:8222,host2:8222"),
        )];
    }
    let asked = config.monitor.iter().map(|host| async move {
        let subject = format!("sync_interval at {host}");
        match timeout(config.settings.request_timeout(), jetstream_settings(host)).await.unwrap_or(None) {
            Some(settings) if settings["sync_always"] == true => {
                Diagnosis::good(subject, "writes are flushed to the disk before they are acknowledged")
            }
            Some(settings) => {
                let interval = Duration::from_nanos(settings["sync_interval"].as_u64().unwrap_or_default());
                Diagnosis::warning(
                    subject,
                    format!("writes are flushed to the disk every {interval:?}: {LOSES}"),
                    SET,
                )
            }
            None => {
                let advice = "see that http_port is set there, and that it can be reached from here";
                Diagnosis::warning(subject, format!("the monitoring port does not tell it: {LOSES}"), advice)
            }
        }
    });
    join_all(asked).await
}

/// The settings of JetStream, by a server's monitoring port.
async fn jetstream_settings(host: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(host).await.ok()?;
    stream.write_all(format!("GET /jsz HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.ok()?;
    let start = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let answer: Value = serde_json::from_slice(&answer[start..]).ok()?;
    answer.get("config").cloned()
}

/// Does what a candidate does, by a key that no record has.
async fn diagnose_requests(store: &NatsStore) -> Vec<Diagnosis> {
    let begun = Instant::now();
    let done = async {
        store.list("e/").await?;
        store.delete(NO_RECORD, &Version::from(0)).await
    };
    let requests = match done.await {
        Ok(_) => {
            Diagnosis::good("requests", format!("written, listed and purged in {:.1?}", begun.elapsed()))
        }
        Err(error) => problem("requests", &error),
    };
    let hint = async {
        let mut hints = store.changes(NO_RECORD)?;
        store.requests.current()?.publish(store.hints_of(NO_RECORD));
        hints.next().await
    };
    let hints = match timeout(store.requests.config.settings.request_timeout(), hint).await {
        Ok(Some(())) => Diagnosis::good("hints", "delivered"),
        _ => Diagnosis::warning(
            "hints",
            format!(
                "not delivered: a handover can take {:?}",
                store.requests.config.settings.poll_interval() * 10
            ),
            format!(
                "allow the user to publish and to subscribe to tenure.{}.>",
                store.requests.config.bucket
            ),
        ),
    };
    vec![requests, hints]
}

fn problem(subject: impl Into<String>, error: &BackendError) -> Diagnosis {
    Diagnosis::problem(
        subject,
        error.to_string(),
        "see what the text says; otherwise what the servers' logs say",
    )
}
