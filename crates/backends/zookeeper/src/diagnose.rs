//! What an operator is told of an ensemble, server by server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tenure_core::Diagnosis;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    READER_TTL, Shared,
    connection::Connection,
    ensemble::{self, Found},
    survey::survey,
};

/// How long a server's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most of an answer that is read.
const ANSWER: u64 = 16 * 1024;

pub(crate) async fn diagnose(shared: &Arc<Shared>) -> Vec<Diagnosis> {
    let servers = &shared.config.servers;
    let asked = join_all(servers.iter().map(|server| ask(shared, server))).await;
    let modes: Vec<String> = asked.iter().filter_map(|asked| asked.mode.clone()).collect();
    let roots: Vec<_> = servers
        .iter()
        .zip(&asked)
        .filter_map(|(server, asked)| Some((server.as_str(), asked.root?)))
        .collect();
    let conflict = one_root(&shared.config.root, &roots);
    let mut diagnoses: Vec<Diagnosis> = asked.into_iter().flat_map(|asked| asked.diagnoses).collect();
    diagnoses.extend(one_ensemble(servers.len(), &modes));
    diagnoses.extend(conflict);
    if servers.len() == 1 {
        diagnoses.push(Diagnosis::warning(
            "quorum",
            "the URL names one server: without it nobody can be elected",
            "run three servers, and name them all in the URL",
        ));
    }
    diagnoses.extend(survey(shared).await);
    diagnoses
}

/// Whether the servers can be of one ensemble, by their parts in it.
fn one_ensemble(servers: usize, modes: &[String]) -> Option<Diagnosis> {
    let count = |mode: &str| modes.iter().filter(|known| *known == mode).count();
    if servers > 1 && count("standalone") > 0 {
        return Some(Diagnosis::problem(
            "ensemble",
            "a server among several is a store of its own (standalone): candidates lead on each of them",
            "name the servers of one ensemble, each of which has all of them in its configuration",
        ));
    }
    (count("leader") > 1).then(|| {
        Diagnosis::problem(
            "ensemble",
            "two of the servers lead an ensemble: candidates lead on each of them",
            "ask again: during an election that is so for a moment; if it stays, the URL names two ensembles",
        )
    })
}

/// Whether the servers have one root.
fn one_root(root: &str, found: &[(&str, Found)]) -> Option<Diagnosis> {
    let (first, rest) = found.split_first()?;
    let other = rest.iter().find(|(_, found)| found.differs(first.1))?;
    let advice = "name the servers of one ensemble; while the root is made or deleted this is so for a moment: ask again";
    Some(Diagnosis::problem("ensemble", ensemble::conflict(root, *first, *other), advice))
}

/// What was learned of one server.
struct Asked {
    diagnoses: Vec<Diagnosis>,
    /// Its part in the ensemble.
    mode: Option<String>,
    root: Option<Found>,
}

/// What one server says of itself, its part, and whether it takes a session of ours.
async fn ask(shared: &Shared, server: &str) -> Asked {
    let subject = format!("server {server}");
    let begun = Instant::now();
    let connected = timeout(PATIENCE, Connection::open(&shared.terms, server, READER_TTL, None)).await;
    let took = begun.elapsed();
    let mut root = None;
    let failed = match connected {
        Ok(Ok(connection)) => {
            root = timeout(PATIENCE, ensemble::look(shared, &connection)).await.ok().and_then(Result::ok);
            connection.end().await;
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no session within {PATIENCE:?}")),
    };
    // Over TLS nothing but a session can be asked for.
    let said = match shared.terms.tls {
        Some(_) => Err("asked over TLS, it tells nothing of itself".to_owned()),
        None => timeout(PATIENCE, srvr(server)).await.unwrap_or_else(|_| Err("no answer to srvr".to_owned())),
    };
    let mode = said.as_ref().ok().map(|said| said.mode.clone());
    Asked { diagnoses: judge(&subject, failed, said, took), mode, root }
}

pub(crate) fn judge(
    subject: &str,
    failed: Option<String>,
    said: Result<Said, String>,
    took: Duration,
) -> Vec<Diagnosis> {
    if let Some(why) = failed {
        let mode = said
            .map_or_else(|_| String::new(), |said| format!("ZooKeeper {}, {}: ", said.version, said.mode));
        return vec![Diagnosis::problem(
            subject,
            format!("{mode}it gives no session: {why}"),
            "start it, see that its port can be reached from here and that a majority of the servers is up; a refusal \
             may be of the user or the authority",
        )];
    }
    let Ok(Said { version, mode }) = said else {
        return vec![Diagnosis::good(
            subject,
            format!(
                "gave a session in {took:.1?}; it does not tell its version (srvr is off, or it speaks TLS)"
            ),
        )];
    };
    let text = format!("ZooKeeper {version}, {mode}, gave a session in {took:.1?}");
    let mut diagnoses = Vec::new();
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() < [3, 6].as_slice() {
        let advice = "update it: elections are tested with 3.8 and 3.9, and need 3.6";
        diagnoses.push(Diagnosis::problem(
            subject,
            format!("{text}: it is older than what elections need"),
            advice,
        ));
    }
    if mode == "standalone" {
        let advice = "run three servers as an ensemble";
        diagnoses.push(Diagnosis::warning(
            subject,
            format!("{text}: without it nobody can be elected"),
            advice,
        ));
    }
    if diagnoses.is_empty() {
        diagnoses.push(Diagnosis::good(subject, text));
    }
    diagnoses
}

/// What `srvr` tells.
pub(crate) struct Said {
    pub(crate) version: String,
    pub(crate) mode: String,
}

async fn srvr(server: &str) -> Result<Said, String> {
    let answer = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(b"srvr").await?;
        let mut answer = Vec::new();
        stream.take(ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = answer.await.map_err(|error| error.to_string())?;
    parse(&answer)
        .ok_or_else(|| format!("it answers to srvr with {:?}", answer.lines().next().unwrap_or_default()))
}

pub(crate) fn parse(answer: &str) -> Option<Said> {
    let line = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name));
    let version = line("Zookeeper version: ")?.split([',', ' ']).next()?.to_owned();
    Some(Said { version, mode: line("Mode: ")?.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use tenure_core::Level;

    use super::*;

    const ANSWER: &str = "Zookeeper version: 3.9.3--1, built on 2025-01-18 13:08 UTC\nLatency min/avg/max: 0/0.0/0\n\
                          Received: 1\nMode: follower\nNode count: 5\n";

    #[test]
    fn a_server_tells_its_version_and_its_part() {
        let said = parse(ANSWER).unwrap();
        assert_eq!((said.version.as_str(), said.mode.as_str()), ("3.9.3--1", "follower"));
        assert!(parse("srvr is not executed because it is not in the whitelist.\n").is_none());
        assert!(parse("This ZooKeeper instance is not currently serving requests\n").is_none());
    }

    #[test]
    fn servers_are_of_one_ensemble() {
        let modes = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(one_ensemble(1, &modes("standalone")), None);
        assert_eq!(one_ensemble(3, &modes("leader follower follower")), None);
        assert!(one_ensemble(3, &modes("standalone standalone standalone")).is_some());
        assert!(one_ensemble(2, &modes("leader leader")).is_some());
    }

    #[test]
    fn an_old_server_and_one_alone_are_told_of() {
        let level = |version: &str, mode: &str| {
            let said = Said { version: version.to_owned(), mode: mode.to_owned() };
            let diagnoses = judge("server", None, Ok(said), Duration::ZERO);
            diagnoses.iter().map(|diagnosis| diagnosis.level).max().unwrap()
        };
        assert_eq!(level("3.9.3--1", "leader"), Level::Good);
        assert_eq!(level("3.8.0", "standalone"), Level::Warning);
        assert_eq!(level("3.4.14-4c25d480e66aadd371de8bd2fd8da255ac140bcf", "leader"), Level::Problem);
        assert_eq!(level("3.5.5", "standalone"), Level::Problem);
    }
}
