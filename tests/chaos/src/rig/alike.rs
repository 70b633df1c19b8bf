//! Whether all servers of an ensemble show the same, which they do not always after faults (ZOOKEEPER-5010).

use std::time::Duration;

use anyhow::Result;
use tenure_containers::ZookeeperEnsemble;
use tokio::time::sleep;

use super::{
    cluster::{MEMBERS, ROOT},
    report::Report,
};

/// Between two looks: what is made, deleted and made again does not last so long.
const BETWEEN: Duration = Duration::from_secs(1);

/// Takes servers that do not show what their leader shows their data, so that they have them anew.
///
/// Whoever waits at such a server for a znode that is not there waits in vain, and that is nothing that a
/// candidate could know.
pub(crate) async fn make_alike(ensemble: &ZookeeperEnsemble, report: &mut Report) -> Result<()> {
    let leader = ensemble.leader().await?;
    for member in (0..MEMBERS).filter(|&member| member != leader) {
        let differs = differences(ensemble, member, leader).await?;
        if differs.is_empty() {
            continue;
        }
        sleep(BETWEEN).await;
        let again = differences(ensemble, member, leader).await?;
        let lasting: Vec<_> = differs.into_iter().filter(|path| again.contains(path)).collect();
        if !lasting.is_empty() {
            report.differed(&format!(
                "server {member} differs from its leader, server {leader}, in {lasting:?}"
            ));
            ensemble.renew(member).await?;
        }
    }
    Ok(())
}

/// The paths that only one of the two shows.
async fn differences(ensemble: &ZookeeperEnsemble, member: usize, leader: usize) -> Result<Vec<String>> {
    let mut looks = Vec::new();
    for asked in [member, leader, member, leader] {
        // By a session of its own, which this server has seen begin: it is as far as the leader was then.
        looks.push(ensemble.member(asked).admin().tree(&format!("/{ROOT}")).await?);
    }
    let mut found = lasting_but_for(&looks[0], &looks[1], &looks[2]);
    found.extend(lasting_but_for(&looks[1], &looks[2], &looks[3]));
    Ok(found)
}

/// What was there before and after, and not elsewhere in between.
fn lasting_but_for(before: &[String], elsewhere: &[String], after: &[String]) -> Vec<String> {
    let lasting = before.iter().filter(|path| after.contains(path) && !elsewhere.contains(path));
    lasting.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_no_difference() {
        let paths = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (before, elsewhere, after) = (
            paths(&["/gone", "/both", "/ghost"]),
            paths(&["/both", "/new"]),
            paths(&["/both", "/new", "/ghost"]),
        );
        assert_eq!(lasting_but_for(&before, &elsewhere, &after), ["/ghost"]);
    }
}
