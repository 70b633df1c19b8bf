//! Every node issues tickets. No number is issued twice, and none is lower than one before.

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

/// Requests a ticket from this node, again while leadership moves.
async fn request_ticket(client: &Client, node: &Node) -> (u64, u64) {
    let request = async {
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
    tokio::time::timeout(Duration::from_secs(60), request).await.unwrap()
}

/// Whether this node answers that it is the leader.
async fn is_leading(client: &Client, node: &Node) -> bool {
    client.get(format!("{}/leading", node.url)).send().await.unwrap().status().is_success()
}

#[tokio::test]
async fn tickets_are_unique_and_increase_on_every_node() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let mut nodes = vec![start(&store), start(&store), start(&store)];
    let client = Client::new();
    let mut tickets = Vec::new();
    while !nodes.is_empty() {
        for _ in 0..3 {
            for node in &nodes {
                tickets.push(request_ticket(&client, node).await);
            }
        }
        let mut leader = None;
        for (index, node) in nodes.iter().enumerate() {
            if is_leading(&client, node).await {
                assert_eq!(leader.replace(index), None, "two nodes lead");
            }
        }
        let mut leader = nodes.remove(leader.expect("a node leads"));
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
    assert_eq!(tickets.len(), 18);
    assert!(tickets.is_sorted_by(|a, b| a < b), "{tickets:?}");
    assert_eq!(tickets.iter().map(|(token, _)| token).collect::<std::collections::BTreeSet<_>>().len(), 3);
}
