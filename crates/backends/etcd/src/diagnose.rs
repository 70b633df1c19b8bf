//! What an operator is told of a cluster, member by member.

use std::time::{Duration, Instant};

use futures::future::{join_all, select_ok};
use tenure_core::{Diagnosis, spi::BackendError};
use tokio::time::timeout;

use crate::{
    transport::cluster::{Conflict, Identity},
    transport::members::Members,
};

/// How long a member's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// The changes that elections need: the version that has the fix, for each release line, and what goes wrong before it.
const FIXES: [(Version, &str); 3] = [
    (Version(3, 4, 31), STALLED),
    (Version(3, 5, 3), "members can come to differ after a crash (the data inconsistency of 3.5.0 to 3.5.2)"),
    (Version(3, 5, 13), STALLED),
];
/// Those that elections need where a login decides who may write.
const FIXES_OF_LOGINS: [(Version, &str); 3] =
    [(Version(3, 4, 42), NESTED), (Version(3, 5, 28), NESTED), (Version(3, 6, 9), NESTED)];
const NESTED: &str = "nobody's permission is looked at for what is nested in a transaction, so that whoever may log in may \
                      delete entries";
const STALLED: &str = "a member whose disk or processor stalls can revoke live leases, so that two lead until the first \
                       is told (etcd-io/etcd#15247)";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-', '+']).map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self(next()?, next()?, next()?))
    }
}

/// What one member said.
struct Told {
    version: String,
    leader: u64,
    identity: Identity,
    text: String,
    trouble: Vec<String>,
}

pub(crate) async fn diagnose(members: &Members) -> Vec<Diagnosis> {
    let logs_in = members.logs_in();
    let asked = join_all((0..members.count()).map(|member| ask(members, member))).await;
    let mut diagnoses = Vec::new();
    let (mut leaders, mut ids) = (Vec::new(), Vec::new());
    for (member, told) in asked.into_iter().enumerate() {
        let subject = format!("member {}", members.endpoint(member));
        match told {
            Ok(told) => {
                leaders.push(told.leader);
                ids.push((members.endpoint(member), told.identity));
                diagnoses.extend(judge(&subject, &told, logs_in));
            }
            Err(why) => diagnoses.push(Diagnosis::problem(
                subject,
                why,
                "start it, see that its port can be reached from here, or take it out of the URL",
            )),
        }
    }
    diagnoses.extend(one_cluster(&ids));
    diagnoses.extend(quorum(members, &leaders).await);
    diagnoses
}

async fn ask(members: &Members, member: usize) -> Result<Told, String> {
    let begun = Instant::now();
    let told = timeout(PATIENCE, async {
        let client = members.client(member).await.map_err(|failure| failure.error.to_string())?;
        let status = client.maintenance_client().status().await;
        status.map_err(|error| crate::transport::error::Failure::from(error).error.to_string())
    });
    let status = told.await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))?;
    let own = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
    let role = match (status.leader(), status.is_learner()) {
        (_, true) => "learner",
        (0, false) => "knows no leader",
        (leader, false) if leader == own => "leads its cluster",
        _ => "follows",
    };
    Ok(Told {
        version: status.version().to_owned(),
        leader: status.leader(),
        identity: Identity {
            cluster: status.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
            member: own,
        },
        text: format!("etcd {}, {role}, answered in {:.1?}", status.version(), begun.elapsed()),
        trouble: status.errors().to_vec(),
    })
}

fn judge(subject: &str, told: &Told, logs_in: bool) -> Vec<Diagnosis> {
    let Told { version, leader, text, trouble, .. } = told;
    let mut diagnoses = Vec::new();
    if *leader == 0 {
        let advice = "see whether a majority of the members is up, and whether they reach each other";
        diagnoses.push(Diagnosis::problem(subject, format!("{text}: it hears of no leader"), advice));
    }
    for trouble in trouble {
        let advice = "see `etcdctl alarm list`; after NOSPACE compact, defragment and disarm; after CORRUPT replace the member";
        diagnoses.push(Diagnosis::problem(subject, format!("{text}: {trouble}"), advice));
    }
    if let Some((what, advice)) = known_bug(version, logs_in) {
        diagnoses.push(Diagnosis::warning(subject, format!("{text}: {what}"), advice));
    }
    if diagnoses.is_empty() {
        diagnoses.push(Diagnosis::good(subject, text));
    }
    diagnoses
}

/// What goes wrong with this version, where a login is needed or not, and what to do.
pub(crate) fn known_bug(version: &str, logs_in: bool) -> Option<(String, String)> {
    let known = Version::parse(version)?;
    if known < Version(3, 4, 0) {
        let advice = "update it: elections are tested with 3.4 and 3.5".to_owned();
        return Some(("it is older than what elections need".to_owned(), advice));
    }
    let of_logins = FIXES_OF_LOGINS.into_iter().filter(|_| logs_in);
    let open = FIXES
        .into_iter()
        .chain(of_logins)
        .filter(|(fixed, _)| (fixed.0, fixed.1) == (known.0, known.1) && known < *fixed);
    let (versions, whats): (Vec<_>, Vec<_>) = open.unzip();
    let Version(major, minor, patch) = versions.into_iter().max()?;
    let advice = format!(
        "update it to {major}.{minor}.{patch} or later; give etcd a disk of its own, and send the fencing token with \
         every write"
    );
    Some((whats.join("; "), advice))
}

/// Whether the members are of one cluster, and each another.
fn one_cluster(said: &[(&str, Identity)]) -> Option<Diagnosis> {
    let conflict = Conflict::among(said)?;
    let advice =
        "see `etcdctl member list` at each of them, and name the members of one cluster only, each once";
    Some(Diagnosis::problem("cluster", conflict.to_string(), advice))
}

/// Whether a read that takes a quorum is answered, and how far the members agree.
async fn quorum(members: &Members, leaders: &[u64]) -> Vec<Diagnosis> {
    let begun = Instant::now();
    let probes = (0..members.count()).map(|member| Box::pin(members.probe(member, PATIENCE)));
    let outcome: Result<(), BackendError> = select_ok(probes).await.map(|(answer, _)| answer);
    let mut diagnoses = vec![match outcome {
        Ok(()) => {
            Diagnosis::good("quorum", format!("a linearizable read was answered in {:.1?}", begun.elapsed()))
        }
        Err(error) => Diagnosis::problem(
            "quorum",
            error.to_string(),
            "see whether a majority of the members is up, and whether the user may read below the prefix",
        ),
    }];
    let known = |leader: &&u64| **leader != 0;
    let first = leaders.iter().find(known);
    if leaders.iter().filter(known).any(|leader| Some(leader) != first) {
        diagnoses.push(Diagnosis::problem(
            "quorum",
            "the members name different leaders",
            "ask again: during an election that is so for a moment; if it stays, the URL names members of two clusters",
        ));
    }
    if members.count() == 1 {
        diagnoses.push(Diagnosis::warning(
            "quorum",
            "the URL names one member: without it nobody can be elected",
            "run three members, and name them all in the URL",
        ));
    }
    diagnoses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_bugs_are_named() {
        for (version, expected) in [
            ("3.3.27", Some("tested with 3.4 and 3.5")),
            ("3.4.23", Some("3.4.31")),
            ("3.4.31", None),
            ("3.5.1", Some("3.5.13")),
            ("3.5.12", Some("3.5.13")),
            ("3.5.13", None),
            ("3.5.16+dfsg", None),
            ("3.6.0", None),
            ("not a version", None),
        ] {
            let advice = known_bug(version, false).map(|(_, advice)| advice);
            match expected {
                Some(part) => {
                    assert!(advice.as_ref().is_some_and(|advice| advice.contains(part)), "{version}")
                }
                None => assert_eq!(advice, None, "{version}"),
            }
        }
    }

    #[test]
    fn versions_that_overlook_permissions_are_named_where_there_is_a_login() {
        for (version, fixed) in [("3.4.41", "3.4.42"), ("3.5.16", "3.5.28"), ("3.6.8", "3.6.9")] {
            let (what, advice) = known_bug(version, true).unwrap();
            assert!(what.contains("nested in a transaction") && advice.contains(fixed), "{what} {advice}");
            assert_eq!(known_bug(version, false), None);
            assert_eq!(known_bug(fixed, true), None);
        }
        let (what, advice) = known_bug("3.4.23", true).unwrap();
        assert!(
            what.contains("15247") && what.contains("nested") && advice.contains("3.4.42"),
            "{what} {advice}"
        );
    }
}
