//! Two groups of two processes: one of the four leads, and another takes over when it is killed or stopped.

use std::{collections::HashMap, process::Command, time::Duration};

use futures::StreamExt as _;
use tenure_testkit::program::Program;

#[tokio::test]
async fn one_process_leads_and_another_takes_over_when_it_is_killed_or_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let mut programs: HashMap<&str, Program> =
        [("a", "berlin"), ("b", "berlin"), ("c", "paris"), ("d", "paris")]
            .into_iter()
            .map(|(id, group)| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_hierarchy"));
                command.args(["--group", group, "--candidate", id, "--store", &store, "--election", "plant"]);
                (id, Program::start(&mut command).unwrap())
            })
            .collect();
    let elector = tenure::connect(&store).await.unwrap();
    let mut leaders = elector.observe("plant");
    let mut earlier_leaders = Vec::new();
    for round in 0..4 {
        let next_leader = async {
            loop {
                match leaders.next().await.unwrap().unwrap() {
                    Some(leader) if !earlier_leaders.contains(&leader.id) => return leader,
                    _ => {}
                }
            }
        };
        let leader = tokio::time::timeout(Duration::from_secs(60), next_leader).await.unwrap();
        let mut program = programs.remove(leader.id.as_str()).unwrap();
        let token = leader.token.unwrap();
        assert!(program.wait_for("leads all groups").ends_with(&format!("token {token}")));
        // At most one candidate of each group takes part in the upper election.
        assert!(elector.candidates("plant").await.unwrap().len() <= 2);
        for other in programs.values() {
            assert_eq!(other.lines(), [] as [&str; 0], "it must wait");
        }
        if round % 2 == 0 {
            program.kill();
        } else {
            program.terminate();
            assert!(program.wait().unwrap().success());
            assert!(
                program.lines().iter().any(|line| line.ends_with("has stopped")),
                "its work must be awaited"
            );
        }
        earlier_leaders.push(leader.id);
    }
    assert!(elector.leader("plant").await.unwrap().is_none());
}
