//! Members of etcd that DNS SRV records name.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tenure::Connection;
use tenure_containers::{EtcdCluster, SharedEtcd, Version};
use tenure_testkit::suite::{until, within};
use tenure_tests::{Authority, ClientFiles, wait_for_heartbeats};
use tokio::net::UdpSocket;

/// A name server that answers every question with one SRV record for each port of this machine.
struct NameServer {
    address: SocketAddr,
    ports: Arc<Mutex<Vec<u16>>>,
    /// The names that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    async fn start(ports: Vec<u16>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (ports, asked) = (Arc::new(Mutex::new(ports)), Arc::new(Mutex::new(Vec::new())));
        let server = Self { address, ports: Arc::clone(&ports), asked: Arc::clone(&asked) };
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query).await {
                let (name, question) = question(&query[..length]);
                asked.lock().unwrap().push(name);
                let answer = answer(&query[..2], question, &ports.lock().unwrap());
                socket.send_to(&answer, client).await.unwrap();
            }
        });
        server
    }

    fn set(&self, ports: Vec<u16>) {
        *self.ports.lock().unwrap() = ports;
    }

    fn url(&self, settings: &str) -> String {
        format!(
            "etcd+srv://acme.example/srv-{:016x}?name_server={}{settings}",
            fastrand::u64(..),
            self.address
        )
    }
}

/// The name in a query, and its whole question (RFC 1035, section 4.1.2).
fn question(query: &[u8]) -> (String, &[u8]) {
    let (mut name, mut at) = (String::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        name += &format!("{}.", str::from_utf8(&query[at + 1..end]).unwrap());
        at = end;
    }
    (name, &query[12..at + 5])
}

/// An authoritative answer with a record for each port at localhost (RFC 2782); without a port, that there is no such name.
fn answer(id: &[u8], question: &[u8], ports: &[u16]) -> Vec<u8> {
    let code = if ports.is_empty() { 3 } else { 0 };
    let mut answer = [id, &[0x85, 0x80 | code, 0, 1, 0, ports.len() as u8, 0, 0, 0, 0], question].concat();
    for port in ports {
        // The question's name, type, class, time to live, length.
        answer.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 0, 0, 17]);
        // Priority, weight, port, target.
        answer.extend([0, 0, 0, 0]);
        answer.extend(port.to_be_bytes());
        answer.extend(b"\x09localhost\x00");
    }
    answer
}

fn port(endpoint: &str) -> u16 {
    endpoint.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The members are found, and found again when none of those that are known answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_discovered_again_when_none_answers() {
    let cluster = EtcdCluster::start(Version::Etcd35).await.unwrap();
    let ports: Vec<_> = cluster.endpoints().iter().map(|endpoint| port(endpoint)).collect();
    let names = NameServer::start(ports[..1].to_vec()).await;
    let elector = tenure::connect(&names.url("&ttl=20s&member_list=off")).await.unwrap();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    assert!(names.asked.lock().unwrap().contains(&"_etcd-client._tcp.acme.example.".to_owned()));
    names.set(ports[1..].to_vec());
    let _fault = cluster.member(0).kill().await.unwrap();
    wait_for_heartbeats(&leadership).await;
    within("resigning", leadership.resign()).await.unwrap();
    within("leading again", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    elector.close().await;
}

/// A campaign waits for the records, and the status says which are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_waits_for_the_records() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let names = NameServer::start(Vec::new()).await;
    let elector = tenure::connect(&names.url("&ttl=5s")).await.unwrap();
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await })
    };
    until("the status names the records", async || {
        let status = elector.status();
        let error = status.last_error.unwrap_or_default();
        status.connection == Connection::Retrying
            && error.contains("by the SRV records of _etcd-client._tcp.acme.example. failed")
    })
    .await;
    let problems = within("the diagnoses", elector.diagnose()).await;
    assert!(problems.iter().any(|problem| problem.subject == "members"), "{problems:?}");
    names.set(vec![port(&server.endpoint())]);
    within("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
    elector.close().await;
}

/// With TLS, other records name the members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_for_tls_have_another_name() {
    let authority = Authority::new();
    let client = ClientFiles::new(&authority.pem(), &authority.issue("client"));
    let names = NameServer::start(Vec::new()).await;
    let elector = tenure::connect(&names.url(&format!("&{}", client.settings()))).await.unwrap();
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await })
    };
    until("the name server was asked", async || !names.asked.lock().unwrap().is_empty()).await;
    campaign.abort();
    let asked = names.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|name| name == "_etcd-client-ssl._tcp.acme.example."), "{asked:?}");
    elector.close().await;
}
