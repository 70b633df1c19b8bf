//! Detects ZooKeeper servers whose data differ from their leader's, which can happen after faults (ZOOKEEPER-5010).

use std::time::Duration;

use anyhow::Result;
use tenure_containers::ZookeeperEnsemble;
use tokio::time::sleep;

use super::report::Report;
use crate::cluster::{MEMBERS, PREFIX};

/// The time between two comparisons. A znode that is created and deleted by a candidate exists for less.
const COMPARISON_INTERVAL: Duration = Duration::from_secs(1);

/// Makes servers whose data differ from their leader's copy the leader's data again.
///
/// A candidate that is connected to such a server may wait forever for the deletion of a znode that does not exist, and
/// cannot detect that.
pub(crate) async fn resync_divergent_members(
    ensemble: &ZookeeperEnsemble,
    report: &mut Report,
) -> Result<()> {
    let leader = ensemble.leader().await?;
    for member in (0..MEMBERS).filter(|&member| member != leader) {
        let differs = differences(ensemble, member, leader).await?;
        if differs.is_empty() {
            continue;
        }
        sleep(COMPARISON_INTERVAL).await;
        let again = differences(ensemble, member, leader).await?;
        let lasting: Vec<_> = differs.into_iter().filter(|path| again.contains(path)).collect();
        if !lasting.is_empty() {
            report.add_divergent_server(&format!(
                "server {member} differs from its leader, server {leader}, in {lasting:?}"
            ));
            ensemble.resync_member(member).await?;
        }
    }
    Ok(())
}

/// The paths that only one of the two servers has.
async fn differences(ensemble: &ZookeeperEnsemble, member: usize, leader: usize) -> Result<Vec<String>> {
    let mut trees = Vec::new();
    for server in [member, leader, member, leader] {
        // Each read opens a session, which the server has to learn of first: it is as current as the leader was then.
        trees.push(ensemble.member(server).admin().tree(&format!("/{PREFIX}")).await?);
    }
    let mut found = missing_in_between(&trees[0], &trees[1], &trees[2]);
    found.extend(missing_in_between(&trees[1], &trees[2], &trees[3]));
    Ok(found)
}

/// The paths that one server had before and after, and the other one had not in between.
fn missing_in_between(before: &[String], other: &[String], after: &[String]) -> Vec<String> {
    let lasting = before.iter().filter(|path| after.contains(path) && !other.contains(path));
    lasting.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn znodes_that_come_and_go_are_no_difference() {
        let paths = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (before, other, after) = (
            paths(&["/deleted", "/both", "/only-here"]),
            paths(&["/both", "/new"]),
            paths(&["/both", "/new", "/only-here"]),
        );
        assert_eq!(missing_in_between(&before, &other, &after), ["/only-here"]);
    }
}
