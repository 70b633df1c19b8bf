//! Two groups of two: one leads, and what happens when it is killed, and when it ends.

use std::{collections::HashMap, process::Command, time::Duration};

use futures::StreamExt as _;
use tenure_testkit::program::Program;

#[tokio::test]
async fn one_of_all_leads_and_another_goes_on_when_it_is_killed_or_ends() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let mut all: HashMap<&str, Program> = [("a", "berlin"), ("b", "berlin"), ("c", "paris"), ("d", "paris")]
        .into_iter()
        .map(|(id, group)| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_hierarchy"));
            command.args(["--group", group, "--candidate", id, "--store", &store, "--election", "plant"]);
            (id, Program::start(&mut command).unwrap())
        })
        .collect();
    let elector = tenure::connect(&store).await.unwrap();
    let mut leaders = elector.observe("plant");
    let mut seen = Vec::new();
    for round in 0..4 {
        let looking = async {
            loop {
                match leaders.next().await.unwrap().unwrap() {
                    Some(leader) if !seen.contains(&leader.id) => return leader,
                    _ => {}
                }
            }
        };
        let leader = tokio::time::timeout(Duration::from_secs(60), looking).await.unwrap();
        let mut program = all.remove(leader.id.as_str()).unwrap();
        let token = leader.token.unwrap();
        assert!(program.wait_for("leads all groups").ends_with(&format!("token {token}")));
        // Of the two groups that are left no more than one each stands at the top.
        assert!(elector.candidates("plant").await.unwrap().len() <= 2);
        for other in all.values() {
            assert_eq!(other.lines(), [] as [&str; 0], "it waits");
        }
        if round % 2 == 0 {
            program.kill();
        } else {
            program.terminate();
            assert!(program.wait().unwrap().success());
            assert!(program.lines().iter().any(|line| line.ends_with("has stopped")), "its work was awaited");
        }
        seen.push(leader.id);
    }
    assert!(elector.leader("plant").await.unwrap().is_none());
}
