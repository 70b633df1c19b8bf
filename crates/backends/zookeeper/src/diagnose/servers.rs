//! Diagnoses of an ensemble, server by server.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tenure_core::Diagnosis;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::transport::{
    connect_options::READER_TTL,
    connection::Connection,
    ensemble::Ensemble,
    ensemble_identity::{RootState, conflict},
};

/// The time limit for a server's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How much of an answer to `srvr` is read.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

const RESOLVE_ADVICE: &str =
    "check the name in the URL, and the name servers of this machine (/etc/resolv.conf)";
const CONNECTIONS_ADVICE: &str = "check the server's log: \"Too many connections\" means that this machine has \
                                  maxClientCnxns of them (60 by default), so raise it, or use fewer electors here; without \
                                  such a line, check whether the port speaks TLS (then give ca=/path/to/authorities.pem) or \
                                  belongs to a proxy whose server is down";
/// Why there is no answer of a server that closed the connection.
const CLOSED: &str = "it closed the connection";

pub(crate) async fn diagnose(ensemble: &Ensemble) -> Vec<Diagnosis> {
    let servers = &ensemble.servers.all;
    let checked = join_all(servers.iter().map(|server| check_server(ensemble, server))).await;
    let modes: Vec<String> = checked.iter().filter_map(|checked| checked.mode.clone()).collect();
    let roots: Vec<_> = servers
        .iter()
        .zip(&checked)
        .filter_map(|(server, checked)| Some((server.as_str(), checked.root?)))
        .collect();
    let root_conflict = compare_roots(&ensemble.options.root, &roots);
    let mut diagnoses: Vec<Diagnosis> = checked.into_iter().flat_map(|checked| checked.diagnoses).collect();
    diagnoses.extend(compare_modes(servers.len(), &modes));
    diagnoses.extend(root_conflict);
    if servers.len() == 1 {
        diagnoses.push(Diagnosis::warning(
            "quorum",
            "the URL names one server: without it there are no elections",
            "run three servers, and name them all in the URL",
        ));
    }
    diagnoses
}

/// A problem if servers with these modes cannot be of one ensemble.
fn compare_modes(servers: usize, modes: &[String]) -> Option<Diagnosis> {
    let count = |mode: &str| modes.iter().filter(|known| *known == mode).count();
    if servers > 1 && count("standalone") > 0 {
        return Some(Diagnosis::problem(
            "ensemble",
            "the URL names several servers, and one of them is standalone: each would have its own leader",
            "name the servers of one ensemble, and list all of them in each server's configuration",
        ));
    }
    (count("leader") > 1).then(|| {
        Diagnosis::problem(
            "ensemble",
            "two of the servers lead an ensemble: each ensemble would have its own leader",
            "repeat the check, since two servers may lead for a moment while ZooKeeper elects; if it stays, the URL names \
             servers of two ensembles",
        )
    })
}

/// A problem if the servers have different roots.
fn compare_roots(root: &str, found: &[(&str, RootState)]) -> Option<Diagnosis> {
    let (first, rest) = found.split_first()?;
    let other = rest.iter().find(|(_, found)| found.differs(first.1))?;
    let advice = "name the servers of one ensemble; repeat the check, since roots differ for a moment while the root is \
                  created or deleted";
    Some(Diagnosis::problem("ensemble", conflict(root, *first, *other), advice))
}

/// The result of checking one server.
struct CheckedServer {
    diagnoses: Vec<Diagnosis>,
    /// `leader`, `follower`, `observer` or `standalone`.
    mode: Option<String>,
    root: Option<RootState>,
}

/// Opens a session at a server, reads the root, and asks for the version and mode.
async fn check_server(ensemble: &Ensemble, server: &str) -> CheckedServer {
    let subject = format!("server {server}");
    if let Some(reason) = unresolved(server).await {
        let diagnoses = vec![Diagnosis::problem(subject, reason, RESOLVE_ADVICE)];
        return CheckedServer { diagnoses, mode: None, root: None };
    }
    let begun = Instant::now();
    let opening = Connection::open(&ensemble.options, server, READER_TTL, None);
    let connected = timeout(ANSWER_TIMEOUT, opening).await;
    let elapsed = begun.elapsed();
    let mut root = None;
    let failure = match connected {
        Ok(Ok(connection)) => {
            let reading = timeout(ANSWER_TIMEOUT, ensemble.read_root(&connection)).await;
            root = reading.ok().and_then(Result::ok);
            connection.close_session().await;
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no session within {ANSWER_TIMEOUT:?}")),
    };
    // With TLS, the port does not answer four-letter words.
    let srvr = match ensemble.options.tls {
        Some(_) => Err("srvr is not available over TLS".to_owned()),
        None => {
            let asking = timeout(ANSWER_TIMEOUT, ask_srvr(server)).await;
            asking.unwrap_or_else(|_| Err("no answer to srvr".to_owned()))
        }
    };
    let mode = srvr.as_ref().ok().map(|srvr| srvr.mode.clone());
    let refuses_connections = srvr.as_ref().is_err_and(|reason| reason == CLOSED);
    if failure.is_some() && refuses_connections {
        let text = "it accepts connections and closes them without an answer";
        let diagnoses = vec![Diagnosis::problem(subject, text, CONNECTIONS_ADVICE)];
        return CheckedServer { diagnoses, mode, root };
    }
    CheckedServer { diagnoses: diagnose_server(&subject, failure, srvr, elapsed), mode, root }
}

pub(crate) fn diagnose_server(
    subject: &str,
    failure: Option<String>,
    srvr: Result<Srvr, String>,
    elapsed: Duration,
) -> Vec<Diagnosis> {
    if let Some(cause) = failure {
        let mode = srvr
            .map_or_else(|_| String::new(), |srvr| format!("ZooKeeper {}, {}: ", srvr.version, srvr.mode));
        return vec![Diagnosis::problem(
            subject,
            format!("{mode}cannot open a session: {cause}"),
            "start it, and check that its port is reachable from here and that a majority of the servers is up; if it refuses, \
             check the login and the certificate authority",
        )];
    }
    let Ok(Srvr { version, mode }) = srvr else {
        return vec![Diagnosis::good(
            subject,
            format!(
                "gave a session in {elapsed:.1?}; its version is unknown (srvr is disabled, or it uses TLS)"
            ),
        )];
    };
    let text = format!("ZooKeeper {version}, {mode}, gave a session in {elapsed:.1?}");
    let mut diagnoses = Vec::new();
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() < [3, 6].as_slice() {
        let advice = "update it: elections need 3.6, and are tested with 3.8 and 3.9";
        diagnoses.push(Diagnosis::problem(subject, format!("{text}: its version is too old"), advice));
    }
    if mode == "standalone" {
        let advice = "run three servers as an ensemble";
        diagnoses.push(Diagnosis::warning(
            subject,
            format!("{text}: without it there are no elections"),
            advice,
        ));
    }
    if diagnoses.is_empty() {
        diagnoses.push(Diagnosis::good(subject, text));
    }
    diagnoses
}

/// A server's answer to the four-letter word `srvr`.
pub(crate) struct Srvr {
    pub(crate) version: String,
    pub(crate) mode: String,
}

/// Why the name of `server` has no address. `None` if it has one.
async fn unresolved(server: &str) -> Option<String> {
    let name = server.rsplit_once(':').map_or(server, |(name, _)| name);
    match timeout(ANSWER_TIMEOUT, lookup_host(server)).await {
        Ok(Ok(mut addresses)) => {
            addresses.next().is_none().then(|| format!("the name {name} has no address"))
        }
        Ok(Err(error)) => Some(format!("the name {name} cannot be resolved: {error}")),
        Err(_) => Some(format!("the name {name} cannot be resolved: no answer within {ANSWER_TIMEOUT:?}")),
    }
}

async fn ask_srvr(server: &str) -> Result<Srvr, String> {
    let answer = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(b"srvr").await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = answer.await.map_err(|error| match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => CLOSED.to_owned(),
        _ => error.to_string(),
    })?;
    if answer.is_empty() {
        return Err(CLOSED.to_owned());
    }
    parse_srvr(&answer)
        .ok_or_else(|| format!("its answer to srvr is {:?}", answer.lines().next().unwrap_or_default()))
}

pub(crate) fn parse_srvr(answer: &str) -> Option<Srvr> {
    let line = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name));
    let version = line("Zookeeper version: ")?.split([',', ' ']).next()?.to_owned();
    Some(Srvr { version, mode: line("Mode: ")?.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use tenure_core::Level;

    use super::*;

    const ANSWER: &str = "Zookeeper version: 3.9.3--1, built on 2025-01-18 13:08 UTC\nLatency min/avg/max: 0/0.0/0\n\
                          Received: 1\nMode: follower\nNode count: 5\n";

    #[test]
    fn srvr_has_the_version_and_the_mode() {
        let srvr = parse_srvr(ANSWER).unwrap();
        assert_eq!((srvr.version.as_str(), srvr.mode.as_str()), ("3.9.3--1", "follower"));
        assert!(parse_srvr("srvr is not executed because it is not in the whitelist.\n").is_none());
        assert!(parse_srvr("This ZooKeeper instance is not currently serving requests\n").is_none());
    }

    #[test]
    fn modes_of_two_ensembles_are_a_problem() {
        let modes = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(compare_modes(1, &modes("standalone")), None);
        assert_eq!(compare_modes(3, &modes("leader follower follower")), None);
        assert!(compare_modes(3, &modes("standalone standalone standalone")).is_some());
        assert!(compare_modes(2, &modes("leader leader")).is_some());
    }

    #[test]
    fn an_old_server_and_a_standalone_one_are_reported() {
        let level = |version: &str, mode: &str| {
            let srvr = Srvr { version: version.to_owned(), mode: mode.to_owned() };
            let diagnoses = diagnose_server("server", None, Ok(srvr), Duration::ZERO);
            diagnoses.iter().map(|diagnosis| diagnosis.level).max().unwrap()
        };
        assert_eq!(level("3.9.3--1", "leader"), Level::Good);
        assert_eq!(level("3.8.0", "standalone"), Level::Warning);
        assert_eq!(level("3.4.14-4c25d480e66aadd371de8bd2fd8da255ac140bcf", "leader"), Level::Problem);
        assert_eq!(level("3.5.5", "standalone"), Level::Problem);
    }
}
