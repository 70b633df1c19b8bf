//! Diagnoses the hosts and the database, for an operator.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use tenure_core::{Diagnosis, spi::BackendError};
use tokio::time::timeout;
use tokio_postgres::{Row, types::FromSql};

use crate::{
    connect::{Host, Server},
    connection::Requests,
    error::classify,
    hints,
};

/// A statement may take this long without harm: a server that is busy answers within it.
const SHORT: i32 = 1_000;
/// How many rows that vacuum has left make a read slow.
const MANY_DEAD_ROWS: i64 = 100_000;

/// Diagnoses each host, and the primary.
pub(crate) async fn diagnose(requests: &Arc<Requests>) -> Vec<Diagnosis> {
    let mut diagnoses = diagnose_hosts(requests).await;
    let begun = Instant::now();
    let rows =
        requests.query("diagnosing the database", &requests.database.statements.diagnose, Vec::new()).await;
    let time = begun.elapsed();
    let found = rows
        .and_then(|rows| rows.first().map_or_else(|| Ok(Vec::new()), |row| diagnose_database(requests, row)));
    match found {
        Ok(found) => {
            diagnoses.push(Diagnosis::good("database", format!("answered in {time:.1?}")));
            diagnoses.extend(found);
            diagnoses.push(diagnose_notifications(requests).await);
        }
        Err(error) => {
            let advice = "see that one of the hosts is a primary, and what its log says";
            diagnoses.push(Diagnosis::problem("database", error.to_string(), advice));
        }
    }
    diagnoses
}

async fn diagnose_hosts(requests: &Arc<Requests>) -> Vec<Diagnosis> {
    let mut attempts = pin!(requests.database.attempts(None));
    let (mut diagnoses, mut hosts) = (Vec::new(), Vec::<Host>::new());
    while let Some((host, outcome)) = attempts.next().await {
        let subject = format!("host {host}");
        match outcome {
            Ok(Server { host, .. }) => {
                let role = match host.is_read_only {
                    true => "a standby, or read-only".to_owned(),
                    false => format!("a primary, timeline {}", host.identity.timeline),
                };
                diagnoses.push(Diagnosis::good(subject, format!("PostgreSQL {}, {role}", host.version)));
                // Not another address of the same server.
                if hosts.iter().all(|other| other.identity != host.identity) {
                    hosts.push(host);
                }
            }
            Err(error) => diagnoses.push(Diagnosis::problem(
                subject,
                error.to_string(),
                "start it, see that its port can be reached from here and that the user may log in, or take it out of the URL",
            )),
        }
    }
    let clusters: Vec<_> = hosts.iter().map(|host| host.identity.cluster).collect();
    if clusters.iter().any(|cluster| Some(cluster) != clusters.first()) {
        diagnoses.push(Diagnosis::problem(
            "hosts",
            "they belong to different clusters: two candidates could lead",
            "name the hosts of one cluster",
        ));
    } else if hosts.iter().filter(|host| !host.is_read_only).count() > 1 {
        diagnoses.push(Diagnosis::problem(
            "hosts",
            "more than one is a primary: a candidate that is connected to the earlier one may lead beside another",
            "stop the one with the lower timeline at once, and make it a standby with pg_rewind",
        ));
    }
    diagnoses
}

/// The findings in the row of [`Statements::diagnose`](crate::schema::Statements::diagnose).
fn diagnose_database(requests: &Arc<Requests>, row: &Row) -> Result<Vec<Diagnosis>, BackendError> {
    let (schema, mut diagnoses) = (&requests.database.config.schema, Vec::new());
    for setting in ["fsync", "full_page_writes"] {
        if !get::<bool>(row, setting)? {
            diagnoses.push(Diagnosis::problem(
                setting,
                "it is off: a crash of the machine loses or breaks what was acknowledged, and two candidates could lead after it",
                format!("turn {setting} on"),
            ));
        }
    }
    let (standbys, names) = (get::<i64>(row, "standbys")?, get::<&str>(row, "standby_names")?);
    let commit = get::<&str>(row, "commit")?;
    let commit = match commit {
        "off" | "local" => format!("synchronous_commit is {commit}, and on for elections"),
        other => format!("synchronous_commit is {other}"),
    };
    diagnoses.push(match (names, standbys) {
        ("", 0) => Diagnosis::good("replication", format!("no standby is connected; {commit}")),
        ("", _) => Diagnosis::warning(
            "replication",
            format!(
                "asynchronous, {standbys} connected; {commit}: a promotion loses the last writes, after which nobody leads for the TTL and a tenth of it; a \
                 primary that lives on beside the promoted one lets two candidates lead"
            ),
            "set synchronous_standby_names, or see that the former primary is stopped before a standby is promoted",
        ),
        (names, 0) => Diagnosis::problem(
            "replication",
            format!("synchronous with {names:?}, and no standby is connected: no write is acknowledged; {commit}"),
            "start the standby, or see why it does not connect",
        ),
        (names, _) => {
            Diagnosis::good("replication", format!("synchronous with {names:?}, {standbys} connected; {commit}"))
        }
    });
    if !get::<bool>(row, "is_permitted")? {
        let grant = requests.database.statements.grant(&requests.database.config.user);
        diagnoses.push(Diagnosis::problem(
            "rights",
            format!("{} may not use the tables in {schema:?}", requests.database.config.user),
            format!("have an owner run: {grant}"),
        ));
    }
    if get::<bool>(row, "is_unlogged")? {
        diagnoses.push(Diagnosis::problem(
            "tables",
            "they are unlogged: a crash empties them, and two candidates could lead after it",
            format!(
                "run: ALTER TABLE \"{schema}\".records SET LOGGED; ALTER TABLE \"{schema}\".epoch SET LOGGED"
            ),
        ));
    }
    let dead = get::<i64>(row, "dead_rows")?;
    if dead > MANY_DEAD_ROWS {
        diagnoses.push(Diagnosis::warning(
            "tables",
            format!("{dead} versions of records are dead and not removed: requests become slow"),
            "end the oldest transactions in pg_stat_activity, unused replication slots, and see that autovacuum is on",
        ));
    }
    for setting in ["statement_timeout", "transaction_timeout"] {
        let milliseconds = get::<i32>(row, setting)?;
        if (1..SHORT).contains(&milliseconds) {
            diagnoses.push(Diagnosis::warning(
                setting,
                format!("{milliseconds} ms: heartbeats fail when the server is busy for as long"),
                format!("run: ALTER ROLE {} SET {setting} = 0", requests.database.config.user),
            ));
        }
    }
    if get::<i32>(row, "idle_session_timeout")? > 0 {
        diagnoses.push(Diagnosis::warning(
            "idle_session_timeout",
            "it ends the connection that listens, and elections are polled for a while after that",
            format!("run: ALTER ROLE {} SET idle_session_timeout = 0", requests.database.config.user),
        ));
    }
    Ok(diagnoses)
}

async fn diagnose_notifications(requests: &Arc<Requests>) -> Diagnosis {
    let limit: Duration =
        requests.database.config.connect_timeout + 3 * requests.database.config.attempt_timeout;
    let advice = "connect to the server directly, or to a pool in session mode";
    let polled = format!(
        "elections are polled every {:?}, and a handover takes about half of it",
        requests.database.config.poll_interval
    );
    match timeout(limit, hints::try_delivery(requests)).await {
        Ok(Ok(true)) => Diagnosis::good("notifications", "delivered"),
        Ok(Ok(false)) => {
            let text = format!("not delivered, as through PgBouncer in transaction mode: {polled}");
            Diagnosis::warning("notifications", text, advice)
        }
        Ok(Err(error)) => Diagnosis::warning("notifications", format!("{error}: {polled}"), advice),
        Err(_) => {
            Diagnosis::warning("notifications", format!("no answer within {limit:?}: {polled}"), advice)
        }
    }
}

fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, BackendError> {
    row.try_get(column).map_err(|error| classify("diagnosing the database", &error))
}
