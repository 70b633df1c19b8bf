//! Host names with several addresses.

use std::{env, net::SocketAddr, process::Command, time::Duration};

use tenure_containers::{SharedEtcd, Version};
use tenure_testkit::suite::within;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    time::timeout,
};

/// Set in the process that has a `/etc/hosts` of its own.
const HAS_OWN_HOSTS: &str = "TENURE_TEST_HAS_OWN_HOSTS";
const HOSTS: &str = "127.0.0.1 two-addresses\n127.0.0.2 two-addresses\n";

/// Hazard G36: a name has two addresses, and the first is silent. Requests reach the second one.
///
/// The resolver of the system reads `/etc/hosts`, so the test runs again in a mount namespace with a file of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_of_a_name_is_tried() {
    if env::var_os(HAS_OWN_HOSTS).is_some() {
        return leads_at_the_second_address().await;
    }
    // Shared servers are named by variables, which the process inherits.
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let hosts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hosts.path(), HOSTS).unwrap();
    let script = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.path().display());
    let run = || {
        let mut command = Command::new("unshare");
        // Root needs no user namespace, which the system may forbid.
        command.args(if rustix::process::geteuid().is_root() { &["-m"][..] } else { &["-m", "-r"] });
        command.args(["sh", "-c", &script]).arg(env::current_exe().unwrap());
        command.args(["--exact", "addresses::every_address_of_a_name_is_tried", "--nocapture"]);
        command.env(HAS_OWN_HOSTS, server.endpoint()).output()
    };
    let output =
        tokio::task::block_in_place(run).unwrap_or_else(|error| panic!("unshare (util-linux): {error}"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "in a mount namespace: {said}");
}

async fn leads_at_the_second_address() {
    let server = env::var(HAS_OWN_HOSTS).unwrap();
    let mut addresses: Vec<SocketAddr> = lookup_host("two-addresses:0").await.unwrap().collect();
    addresses.dedup();
    let [silent, answering] = addresses[..] else { panic!("{addresses:?}") };
    let listener = TcpListener::bind(answering).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = SocketAddr::new(silent.ip(), port);
    // The kernel drops connection requests to a listener whose queue is full.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(silent).unwrap();
    let _never_accepts = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(silent)).await {
        queued.push(stream.unwrap());
    }
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let prefix = format!("two-addresses-{:016x}", fastrand::u64(..));
    let elector = tenure::connect(&format!("etcd://two-addresses:{port}/{prefix}?ttl=5s")).await.unwrap();
    within("leading", elector.campaign("e")).await.unwrap().resign().await.unwrap();
    elector.close().await;
}
