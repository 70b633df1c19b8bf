//! Diagnoses the server, for an operator.

use redis::cmd;
use tenure_core::{Diagnosis, spi::BackendError};

use crate::{
    SINGLE_NODE,
    connection::{Connection, Requests},
    error::grant,
    store::parsed,
};

pub(crate) async fn diagnose(requests: &Requests) -> Vec<Diagnosis> {
    let connection = match requests.connection().await {
        Ok(connection) => connection,
        Err(error) => {
            let advice = "start it, see that its port can be reached from here and that the user may log in";
            let host = format!("server {}", requests.config.hosts.join(", "));
            return vec![Diagnosis::problem(host, format!("{error}; {SINGLE_NODE}"), advice)];
        }
    };
    let mut found = vec![server(&connection, has_sentinels(requests).await)];
    found.push(persistence(requests, &connection).await);
    found.push(memory(&connection));
    found.push(match rights(requests).await {
        Ok(denied) if denied.is_empty() => {
            Diagnosis::good("rights", format!("{} has all", requests.config.user()))
        }
        Ok(denied) => Diagnosis::problem(
            "rights",
            format!("{} may not use {}", requests.config.user(), denied.join(", ")),
            format!("have an administrator run: {}", grant(&requests.config)),
        ),
        Err(error) => Diagnosis::problem("rights", error.to_string(), "see what the log of the server says"),
    });
    found
}

fn server(connection: &Connection, has_sentinels: bool) -> Diagnosis {
    let (name, version) = match connection.get("valkey_version") {
        "" => ("Redis", connection.get("redis_version")),
        version => ("Valkey", version),
    };
    let (mode, replicas) = (connection.mode(), connection.get("connected_slaves"));
    let sentinels = if has_sentinels { ", watched by Sentinel" } else { "" };
    let text =
        format!("{name} {version}, {mode}, a primary with {replicas} replicas{sentinels}; {SINGLE_NODE}");
    let subject = format!("server {}", connection.host);
    if mode == "cluster" || replicas != "0" || has_sentinels {
        let advice = "promote no replica while candidates run, and let nothing do it by itself; or elect where a failover is safe";
        return Diagnosis::warning(subject, text, advice);
    }
    Diagnosis::good(subject, text)
}

/// Sentinels subscribe to a channel of theirs. Without the right to ask, nothing is known.
async fn has_sentinels(requests: &Requests) -> bool {
    let asked = cmd("PUBSUB").arg("NUMSUB").arg("__sentinel__:hello").to_owned();
    match requests.send("asking for Sentinels", &asked).await {
        Ok(Ok(answer)) => parsed::<(String, u64)>("", answer).is_ok_and(|(_, count)| count > 0),
        _ => false,
    }
}

async fn persistence(requests: &Requests, connection: &Connection) -> Diagnosis {
    const PAUSE: &str = "after a restart nobody leads for the TTL and a tenth of it, whatever was lost";
    let asked = cmd("CONFIG").arg("GET").arg("appendfsync").to_owned();
    let fsync = match requests.send("reading the configuration", &asked).await {
        Ok(Ok(answer)) => parsed::<std::collections::HashMap<String, String>>("", answer).ok(),
        _ => None,
    };
    let fsync = fsync.and_then(|mut found| found.remove("appendfsync"));
    let fsync = fsync.unwrap_or_else(|| "not known without the right +config|get".to_owned());
    match (connection.get("aof_enabled"), connection.get("aof_last_write_status")) {
        ("1", "ok") => {
            Diagnosis::good("persistence", format!("appendonly yes, appendfsync {fsync}; {PAUSE}"))
        }
        ("1", status) => Diagnosis::problem(
            "persistence",
            format!("the last write to the append-only file: {status}; it refuses writes, or will"),
            "see to the disk of the server",
        ),
        _ => Diagnosis::warning(
            "persistence",
            format!("appendonly no: a restart can lose all records; {PAUSE}"),
            "set appendonly yes, so that the epoch and the fencing tokens survive a restart",
        ),
    }
}

fn memory(connection: &Connection) -> Diagnosis {
    match (connection.get("maxmemory"), connection.get("maxmemory_policy")) {
        ("0", _) => Diagnosis::good("memory", "no limit"),
        (limit, policy) if policy.starts_with("allkeys") => Diagnosis::problem(
            "memory",
            format!(
                "maxmemory {limit}, {policy}: the server removes the records when its memory is full, which ends all leaderships"
            ),
            "set maxmemory-policy noeviction or one of volatile-*, or use a server of its own",
        ),
        (limit, policy) => Diagnosis::good("memory", format!("maxmemory {limit}, {policy}")),
    }
}

async fn rights(requests: &Requests) -> Result<Vec<String>, BackendError> {
    let what = "reading the rights";
    parsed(what, requests.run(what, &[b"rights"]).await?)
}
