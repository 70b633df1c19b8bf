//! Every node can be asked for a ticket; no number is given twice, and none is lower than one given before.

use std::{process::Command, time::Duration};

use reqwest::Client;
use tenure_testkit::program::Program;

struct Node {
    program: Program,
    url: String,
}

fn start(store: &str) -> Node {
    let mut command = Command::new(env!("CARGO_BIN_EXE_web"));
    command.args(["--listen", "127.0.0.1:0", "--store", store, "--election", "tickets"]);
    let mut program = Program::start(&mut command).unwrap();
    let url = program.wait_for("listening on ").split_off("listening on ".len());
    Node { program, url }
}

/// A ticket from this node, which may have to be asked again while leadership moves.
async fn ticket(client: &Client, node: &Node) -> (u64, u64) {
    let asking = async {
        loop {
            let answer = client.post(format!("{}/tickets", node.url)).send().await.unwrap();
            if answer.status().is_success() {
                let text = answer.text().await.unwrap();
                let (token, count) = text.trim().split_once('-').unwrap();
                return (token.parse().unwrap(), count.parse().unwrap());
            }
            assert!([502, 503].contains(&answer.status().as_u16()), "{answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.unwrap()
}

/// Whether this node says that it leads.
async fn leads(client: &Client, node: &Node) -> bool {
    client.get(format!("{}/leading", node.url)).send().await.unwrap().status().is_success()
}

#[tokio::test]
async fn tickets_are_given_once_and_rise_whichever_node_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let mut nodes = vec![start(&store), start(&store), start(&store)];
    let client = Client::new();
    let mut given = Vec::new();
    while !nodes.is_empty() {
        for _ in 0..3 {
            for node in &nodes {
                given.push(ticket(&client, node).await);
            }
        }
        let mut leader = None;
        for (at, node) in nodes.iter().enumerate() {
            if leads(&client, node).await {
                assert_eq!(leader.replace(at), None, "two lead");
            }
        }
        let mut leader = nodes.remove(leader.expect("one has answered"));
        let metrics =
            client.get(format!("{}/metrics", leader.url)).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("tenure_is_leader{election=\"tickets\"} 1"), "{metrics}");
        if nodes.len() == 1 {
            leader.program.terminate();
            assert!(leader.program.wait().unwrap().success());
        } else {
            leader.program.kill();
        }
    }
    assert_eq!(given.len(), 18);
    assert!(given.is_sorted_by(|a, b| a < b), "{given:?}");
    assert_eq!(given.iter().map(|(token, _)| token).collect::<std::collections::BTreeSet<_>>().len(), 3);
}
