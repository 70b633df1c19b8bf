//! The example clients of `tenure serve`, under pauses, slow answers and kills: at no instant do two of them consider
//! themselves leader, and each term has a higher fencing token than the one before.
//!
//! Real servers, two sidecars with a client in Python and one in shell each, a proxy in front of each sidecar. All record, on
//! this machine's `CLOCK_BOOTTIME`, until when they consider themselves leader.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{
    RunningCommand, Sandbox, eventually, kill,
    sidecar::{Sidecar, boot_time, store_url},
};
use serde::Deserialize;
use tenure_containers::{SharedEtcd, SharedPostgres, SharedZookeeper, Version};
use tenure_testkit::proxy::{Direction, Proxy};

const ELECTION: &str = "e";
const TTL: &str = "4s";
/// How long a takeover may take. A client whose answers are lost asks for 15 s before it tries again.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(60);

/// What a client has recorded.
#[derive(Debug, Deserialize)]
struct Record {
    client: String,
    token: Option<u64>,
    /// Not before this instant, and at least at the next, it considered itself leader.
    first: Option<f64>,
    last: Option<f64>,
    /// It considers itself leader until then, unless it stops or renews.
    until: Option<f64>,
    /// Since when it does not any more.
    stopped: Option<f64>,
    pid: Option<u32>,
}

/// When one client considered itself leader.
#[derive(Clone, Debug)]
struct Term {
    client: String,
    from: f64,
    to: f64,
    samples: usize,
}

/// The terms by their tokens.
fn terms(records: &[Record]) -> BTreeMap<u64, Term> {
    let mut terms = BTreeMap::<u64, Term>::new();
    for record in records {
        let Some(token) = record.token else { continue };
        if let (Some(first), Some(last), Some(until)) = (record.first, record.last, record.until) {
            let term = terms.entry(token).or_insert_with(|| Term {
                client: record.client.clone(),
                from: first,
                to: until,
                samples: 0,
            });
            assert_eq!(term.client, record.client, "two clients with token {token}");
            term.from = term.from.min(first);
            term.to = last.max(until);
            term.samples += 1;
        } else if let (Some(stopped), Some(term)) = (record.stopped, terms.get_mut(&token)) {
            term.to = term.to.min(stopped);
        }
    }
    terms
}

/// Two sidecars, each behind a proxy, with two clients each.
struct World {
    url: String,
    log: PathBuf,
    /// The log's folder.
    sandbox: Sandbox,
    nodes: Vec<Node>,
}

struct Node {
    sidecar: Sidecar,
    proxy: Proxy,
    /// The names of the clients, and their processes.
    clients: Vec<(String, RunningCommand)>,
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("examples/clients")
}

fn start_client(name: &str, sidecar: &str, log: &Path) -> RunningCommand {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut command = match name.starts_with("python") {
        true => Command::new("python3"),
        false => Command::new("sh"),
    };
    let script = if name.starts_with("python") { "candidate.py" } else { "candidate.sh" };
    command.arg(tests.join(script)).args([sidecar, ELECTION, name]).arg(log);
    command.env("PYTHONPATH", examples().join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("CLIENT", examples().join("shell/tenure.sh"));
    RunningCommand::start(command.stdin(Stdio::null()).stderr(Stdio::null()))
}

impl World {
    async fn start(url: String) -> Self {
        let sandbox = Sandbox::on(&url);
        let log = sandbox.file("log");
        fs::write(&log, "").unwrap();
        let mut world = Self { url, log, sandbox, nodes: Vec::new() };
        for number in 0..2 {
            let sidecar = Sidecar::start(&world.url);
            let proxy = Proxy::start(&sidecar.address).await.unwrap();
            let names = [format!("python{number}"), format!("shell{number}")];
            let clients = names.map(|name| {
                let client = start_client(&name, &proxy.endpoint(), &world.log);
                (name, client)
            });
            world.nodes.push(Node { sidecar, proxy, clients: clients.into() });
        }
        world
    }

    fn records(&self) -> Vec<Record> {
        let text = fs::read_to_string(&self.log).unwrap();
        // The last line may not be complete.
        let lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines).lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
            .collect()
    }

    /// Waits until a client whose name begins with `prefix` considers itself leader. Returns its node, its process and its token.
    fn leader(&self, prefix: &str) -> (usize, u32, u64) {
        eventually(&format!("{prefix} leads"), || {
            let records = self.records();
            let last = records.iter().rev().find(|record| record.until.is_some())?;
            let is_valid = last.until? > boot_time().as_secs_f64() && last.client.starts_with(prefix);
            let node = usize::from(last.client.ends_with('1'));
            is_valid.then_some((node, last.pid?, last.token?))
        })
    }

    /// Waits until a client of another process leads with a higher token.
    fn successor_of(&self, pid: u32, token: u64) {
        let is_successor = |record: &Record| {
            record.token.is_some_and(|next| next > token) && record.pid.is_some_and(|other| other != pid)
        };
        let began = boot_time();
        while !self.records().iter().any(is_successor) {
            if boot_time() - began > TAKEOVER_WITHIN {
                let log = fs::read_to_string(&self.log).unwrap();
                let end: Vec<_> = log.lines().rev().take(30).collect();
                let sidecars: Vec<_> = self.nodes.iter().map(|node| node.sidecar.stderr()).collect();
                panic!(
                    "no successor of process {pid}, token {token}: {end:#?}\n{}",
                    sidecars.join("\n---\n")
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A sidecar at the same proxy, after the one before was killed.
    async fn replace_sidecar(&mut self, node: usize) {
        let sidecar = Sidecar::start(&self.url);
        let proxy = Proxy::start(&sidecar.address).await.unwrap();
        let number = node.to_string();
        let names: Vec<_> = self.nodes[node].clients.iter().map(|(name, _)| name.clone()).collect();
        // Killed first: their records must not mix.
        self.nodes[node].clients.clear();
        let clients = names.into_iter().map(|name| {
            assert!(name.ends_with(&number));
            let client = start_client(&name, &proxy.endpoint(), &self.log);
            (name, client)
        });
        let clients = clients.collect();
        self.nodes[node] = Node { sidecar, proxy, clients };
    }

    /// At no instant have two clients considered themselves leader.
    fn check(&self) {
        let records = self.records();
        let terms = terms(&records);
        let clients: BTreeSet<_> = terms.values().map(|term| term.client.as_str()).collect();
        assert!(terms.len() >= 10 && clients.len() == 4, "too few terms to show anything: {terms:#?}");
        assert!(terms.values().map(|term| term.samples).sum::<usize>() > 500, "{terms:#?}");
        let in_order: Vec<_> = terms.iter().collect();
        for pair in in_order.windows(2) {
            let [(token, term), (next_token, next)] = pair else { unreachable!() };
            assert!(
                term.to <= next.from,
                "two leaders for {:.3} s: token {token} {term:?}, token {next_token} {next:?}",
                term.to - next.from
            );
        }
        // Terms are in the order of their tokens, and each begins after the end of the one before: tokens grow.
        let (first, last) = (in_order[0].1.from, in_order[in_order.len() - 1].1.to);
        println!("{} terms of 4 clients in {:.1} s, {} samples", terms.len(), last - first, records.len());
    }
}

async fn never_two_leaders(url: String) {
    let mut world = World::start(url).await;
    for kind in ["python", "shell"] {
        // The client is stopped, and goes on beside the next leader.
        let (_, pid, token) = world.leader(kind);
        kill("STOP", pid);
        world.successor_of(pid, token);
        kill("CONT", pid);
        // Answers are slow.
        let (node, pid, token) = world.leader(kind);
        world.nodes[node].proxy.delay(Duration::from_millis(600));
        world.successor_of(pid, token);
        world.nodes[node].proxy.heal();
        // Requests arrive, and answers do not.
        let (node, pid, token) = world.leader(kind);
        world.nodes[node].proxy.blackhole(Direction::ToClient);
        world.successor_of(pid, token);
        world.nodes[node].proxy.heal();
        // Answers are held back, and delivered when another leads.
        let (node, pid, token) = world.leader(kind);
        world.nodes[node].proxy.hold(Direction::ToClient);
        world.successor_of(pid, token);
        world.nodes[node].proxy.heal();
        // The sidecar is stopped, and goes on beside the next leader.
        let (node, pid, token) = world.leader(kind);
        world.nodes[node].sidecar.command.signal("STOP");
        eventually("a client of the other sidecar", || {
            let records = world.records();
            let other = if node == 0 { '1' } else { '0' };
            records
                .iter()
                .any(|record| record.token.is_some_and(|next| next > token) && record.client.ends_with(other))
                .then_some(())
        });
        world.nodes[node].sidecar.command.signal("CONT");
        let _ = pid;
        // The client is killed: its lease ends before the TTL.
        let (node, pid, token) = world.leader(kind);
        kill("KILL", pid);
        world.successor_of(pid, token);
        let endpoint = world.nodes[node].proxy.endpoint();
        for (name, client) in &mut world.nodes[node].clients {
            if client.pid() == pid {
                *client = start_client(name, &endpoint, &world.log);
            }
        }
        // The sidecar is killed, and its clients' grants end by themselves.
        let (node, pid, token) = world.leader(kind);
        world.nodes[node].sidecar.command.signal("KILL");
        world.successor_of(pid, token);
        world.replace_sidecar(node).await;
        // The sidecar is asked to stop.
        let (node, pid, token) = world.leader(kind);
        world.nodes[node].sidecar.command.signal("TERM");
        world.successor_of(pid, token);
        assert_eq!(world.nodes[node].sidecar.command.wait().code(), Some(0));
        world.replace_sidecar(node).await;
    }
    for node in &mut world.nodes {
        node.clients.clear();
    }
    world.check();
    let _ = &world.sandbox;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_never_lead_at_once_on_etcd() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    never_two_leaders(store_url("etcd", &server.endpoint(), &format!("ttl={TTL}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_never_lead_at_once_on_zookeeper() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    never_two_leaders(store_url("zookeeper", &server.endpoint(), &format!("ttl={TTL}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_never_lead_at_once_on_postgres() {
    let server = SharedPostgres::get(Version::Postgres17).await.unwrap();
    never_two_leaders(store_url("postgres", &server.endpoint(), &format!("ttl={TTL}"))).await;
}

/// The check finds what it is for.
#[test]
fn an_overlap_is_found() {
    let record = |client: &str, token, at: f64, until| Record {
        client: client.to_owned(),
        token: Some(token),
        first: Some(at),
        last: Some(at),
        until: Some(until),
        stopped: None,
        pid: None,
    };
    let stopped = |client: &str, token, at| Record {
        client: client.to_owned(),
        token: Some(token),
        first: None,
        last: None,
        until: None,
        stopped: Some(at),
        pid: None,
    };
    let ends = |records: &[Record]| terms(records)[&1].to;
    assert_eq!(ends(&[record("a", 1, 0.0, 3.0), record("a", 1, 1.0, 4.0), record("b", 2, 3.5, 6.0)]), 4.0);
    assert_eq!(ends(&[record("a", 1, 0.0, 3.0), stopped("a", 1, 1.0)]), 1.0);
    assert_eq!(ends(&[record("a", 1, 0.0, 3.0), stopped("a", 1, 9.0)]), 3.0);
    assert_eq!(ends(&[record("a", 1, 0.0, 3.0), record("a", 1, 9.0, 8.0)]), 9.0, "it went on too long");
}
