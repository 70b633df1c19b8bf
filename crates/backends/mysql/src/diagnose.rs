//! Diagnoses the hosts and the database, for an operator.

use std::time::Instant;

use mysql_async::Value;
use tenure_core::{Diagnosis, spi::BackendError};

use crate::{
    requests::Requests,
    server::{Flavour, Info, column},
};

/// Diagnoses each host, and the primary.
pub(crate) async fn diagnose(requests: &Requests) -> Vec<Diagnosis> {
    let (mut attempts, mut diagnoses, mut primaries) = (requests.attempts(), Vec::new(), 0);
    while let Some(attempt) = attempts.0.join_next().await {
        let (name, opened) = attempt.unwrap_or_else(|error| {
            ("of the URL".to_owned(), Err(crate::error::unavailable(error.to_string())))
        });
        let subject = format!("host {name}");
        match opened {
            Ok(server) => {
                primaries += 1;
                diagnoses.push(Diagnosis::good(subject, format!("{}, a primary", server.info.name)));
                diagnoses.extend(diagnose_server(&server.info));
                server.close().await;
            }
            Err(error) => {
                let advice = "start it, see that its port can be reached from here and that the user may log in, or take it out of the URL";
                diagnoses.push(Diagnosis::problem(subject, error.to_string(), advice));
            }
        }
    }
    if primaries > 1 {
        diagnoses.push(Diagnosis::problem(
            "hosts",
            "more than one is a primary: two candidates may lead, each at one of them; nodes of one Galera cluster are no problem",
            "set read_only on all but one",
        ));
    }
    let begun = Instant::now();
    match diagnose_tables(requests).await {
        Ok(found) => {
            diagnoses.push(Diagnosis::good("database", format!("answered in {:.1?}", begun.elapsed())));
            diagnoses.extend(found);
        }
        Err(error) => {
            let advice = "see that one of the hosts is a primary, and what its log says";
            diagnoses.push(Diagnosis::problem("database", error.to_string(), advice));
        }
    }
    diagnoses
}

fn diagnose_server(info: &Info) -> Vec<Diagnosis> {
    let mut diagnoses = Vec::new();
    diagnoses.push(match info.unsafe_durability() {
        Some(reason) => Diagnosis::problem(
            "durability",
            format!("{reason}: a crash of the machine loses acknowledged writes, and two candidates could lead after it"),
            "set innodb_flush_log_at_trx_commit and, with log_bin, sync_binlog to 1",
        ),
        None => Diagnosis::good("durability", "acknowledged writes are on the disk, or on the other nodes of the cluster"),
    });
    if info.flavour == Flavour::Galera {
        let (status, size) = (info.value("wsrep_cluster_status"), info.value("wsrep_cluster_size"));
        let text = format!("Galera: this node is in the {status} component, of {size} nodes");
        diagnoses.push(match size.parse::<u32>() {
            Ok(3..) if status == "Primary" => Diagnosis::good("replication", text),
            _ => Diagnosis::warning(
                "replication",
                text,
                "have three nodes or more, all of them in the primary component",
            ),
        });
    } else if !matches!(info.value("Slaves_connected"), "" | "0") {
        diagnoses.push(Diagnosis::warning(
            "replication",
            format!(
                "{} replicas: a promotion may lose the last writes, after which nobody leads for the TTL and a tenth of it; a primary that lives on beside the \
                 promoted one lets two candidates lead",
                info.value("Slaves_connected")
            ),
            "see that the former primary is stopped before a replica is promoted, and that all candidates have the same TTL",
        ));
    }
    diagnoses
}

/// Whether the user may do all that a candidate does. Each statement changes nothing: no record has an empty key.
async fn diagnose_tables(requests: &Requests) -> Result<Vec<Diagnosis>, BackendError> {
    let what = "trying the rights of the user";
    let empty = || Value::from("");
    requests.query(what, |it| &it.read, vec![empty()]).await?;
    requests.write(what, |it| &it.replace, vec![empty(), empty(), empty(), 0.into()]).await?;
    requests.write(what, |it| &it.create, vec![empty(), empty(), u32::MAX.into()]).await?;
    requests.write(what, |it| &it.delete, vec![empty(), empty()]).await?;
    requests.write(what, |it| &it.raise, vec![Value::NULL, Value::NULL, Value::NULL]).await?;
    let rows = requests.query("reading the engines of the tables", |it| &it.engines, Vec::new()).await?;
    let tables: Vec<String> = rows.into_iter().filter_map(|mut row| column(&mut row, 1)).collect();
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Diagnosis::problem(
        "tables",
        format!("{}: a crash of the server may lose or break what was acknowledged", tables.join(", ")),
        "run ALTER TABLE … ENGINE=InnoDB for each",
    )])
}
