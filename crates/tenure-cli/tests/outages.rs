//! What the commands say, and when they give up, while the store does not answer.

mod common;

use std::{
    io::{BufRead as _, BufReader, Read},
    net::TcpListener,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{RunningCommand, Sandbox, code_and_stderr, eventually, kill, store_name};
use tenure_containers::{
    SharedConsul, SharedEtcd, SharedKubernetes, SharedMysql, SharedNats, SharedPostgres, SharedRedis,
    SharedS3, SharedZookeeper, Version,
};
use tenure_testkit::proxy::{Direction, Proxy};

/// The commands that only ask the store.
const QUERIES: [&str; 5] = ["leader", "candidates", "observe", "resign", "elections"];

/// The stores that have servers.
const SCHEMES: [&str; 9] =
    ["etcd", "zookeeper", "postgres", "consul", "kubernetes", "nats", "s3", "mysql", "redis"];

/// The servers, which may be this test's own and end with it.
struct Servers {
    etcd: SharedEtcd,
    zookeeper: SharedZookeeper,
    postgres: SharedPostgres,
    consul: SharedConsul,
    kubernetes: SharedKubernetes,
    nats: SharedNats,
    s3: SharedS3,
    mysql: SharedMysql,
    redis: SharedRedis,
}

impl Servers {
    async fn get() -> Self {
        Self {
            etcd: SharedEtcd::get(Version::Etcd35).await.unwrap(),
            zookeeper: SharedZookeeper::get(Version::Zookeeper39).await.unwrap(),
            postgres: SharedPostgres::get(Version::Postgres17).await.unwrap(),
            consul: SharedConsul::get(Version::Consul18).await.unwrap(),
            kubernetes: SharedKubernetes::get(Version::Kubernetes120).await.unwrap(),
            nats: SharedNats::get(Version::Nats215).await.unwrap(),
            s3: SharedS3::get(Version::Seaweedfs4).await.unwrap(),
            mysql: SharedMysql::get(Version::Mariadb1011).await.unwrap(),
            redis: SharedRedis::get(Version::Redis70).await.unwrap(),
        }
    }

    /// The name of a new root, which is a namespace and a database, too.
    async fn new_root(&self) -> String {
        let root = format!("cli-{:016x}", fastrand::u64(..));
        self.kubernetes.admin().create_namespace(&root).await.unwrap();
        self.mysql.admin().create_database(&root).await.unwrap();
        root
    }

    /// The schemes of their URLs, and their endpoints.
    fn endpoints(&self) -> [(&'static str, String); 9] {
        let endpoints = [
            self.etcd.endpoint(),
            self.zookeeper.endpoint(),
            self.postgres.endpoint(),
            self.consul.endpoint(),
            self.kubernetes.endpoint(),
            self.nats.endpoint(),
            self.s3.endpoint(),
            self.mysql.endpoint(),
            self.redis.endpoint(),
        ];
        std::array::from_fn(|n| (SCHEMES[n], endpoints[n].clone()))
    }
}

/// The lines of a standard error, without the warning that Redis is a single node.
fn messages(stderr: impl Read) -> impl Iterator<Item = String> {
    let lines = BufReader::new(stderr).lines().map(Result::unwrap);
    lines.filter(|line| !line.contains("WARN Redis is a single node here"))
}

/// Case 40. Tries that waited for the store would all run their programs, one after the other, when it answers again.
#[tokio::test(flavor = "multi_thread")]
async fn tries_that_find_no_store_run_nothing_when_it_returns() {
    let servers = Servers::get().await;
    for (scheme, server) in servers.endpoints() {
        let proxy = Proxy::start(&server).await.unwrap();
        proxy.blackhole(Direction::Both);
        let root = servers.new_root().await;
        let sandbox = Sandbox::on_server(scheme, &proxy.endpoint(), &root, "");
        let start = || sandbox.start(&["--try"], "echo x >> ran");
        let mut tries = vec![start(), start(), start()];
        let (code, stderr) = tries[0].code_and_stderr();
        assert_eq!(code, Some(75), "{scheme}: {stderr}");
        let line = stderr.lines().find(|line| line.starts_with("tenure: not elected: "));
        let line = line.unwrap_or_else(|| panic!("{scheme}: {stderr}"));
        let name = store_name(scheme, &proxy.endpoint(), &root);
        assert!(line.contains(&name) && line.contains("tenure doctor"), "{line}");
        assert!(line.contains("does not answer: "), "the reason: {line}");
        // These still run when the store returns, so they may be elected.
        tries.extend([start(), start()]);
        proxy.heal();
        let codes: Vec<_> = tries[1..].iter_mut().map(|running| running.wait().code()).collect();
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 75))), "{scheme}: {codes:?}");
        let elected = codes.iter().filter(|code| **code == Some(0)).count();
        let ran = std::fs::read_to_string(sandbox.file("ran")).unwrap_or_default();
        assert_eq!(ran.lines().count(), elected, "{scheme}: {codes:?}");
        let healthy = Sandbox::on_server(scheme, &server, &root, "");
        eventually("an empty queue", || healthy.candidates().is_empty().then_some(()));
    }
}

#[test]
fn a_try_gives_up_at_once_when_nothing_listens() {
    for scheme in SCHEMES {
        let sandbox = Sandbox::on_server(scheme, "127.0.0.1:1", "x", "");
        let began = Instant::now();
        let (code, stderr) = code_and_stderr(&mut sandbox.run(&["--try", "--quiet"], "touch ran"));
        assert_eq!(code, Some(75), "{stderr}");
        assert!(
            stderr.contains(&format!("{} does not answer", store_name(scheme, "127.0.0.1:1", "x")))
                && stderr.lines().count() == 1,
            "{stderr}"
        );
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

/// Case 41. Connections to this port are accepted, and nothing is answered.
#[test]
fn a_query_names_the_silent_store_and_gives_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let silent = &silent;
    let stores = SCHEMES.into_iter().flat_map(|scheme| [(scheme, "127.0.0.1:1"), (scheme, silent)]);
    std::thread::scope(|scope| {
        for (scheme, host) in stores {
            scope.spawn(move || {
                let sandbox = Sandbox::on_server(scheme, host, "x", "");
                let name = &*store_name(scheme, host, "x");
                for query in QUERIES {
                    // `observe` asks again after 2 s and waits 2 s for that, but only once it has printed something.
                    let timeout = if query == "observe" { "5s" } else { "3s" };
                    let mut command = sandbox.tenure(&[query, "--timeout", timeout]);
                    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
                    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
                    let first = lines.next().unwrap().unwrap();
                    if query == "observe" {
                        // Its timeout stays.
                        kill("WINCH", running.id());
                        kill("USR1", running.id());
                    }
                    assert!(
                        first.contains(name) && first.contains("tenure doctor"),
                        "{query} {scheme}: {first}"
                    );
                    let rest: Vec<_> = lines.map(Result::unwrap).collect();
                    let output = running.wait_with_output().unwrap();
                    assert_eq!(output.status.code(), Some(69), "{query} {scheme}: {rest:?}");
                    assert!(
                        rest.len() == 1 && rest[0].contains("no answer from"),
                        "{query} {scheme}: {rest:?}"
                    );
                    assert!(output.stdout.is_empty(), "{query} {scheme}");
                }
                let mut doctor = sandbox.tenure(&["doctor"]);
                let (code, stderr) = code_and_stderr(doctor.env_remove("TENURE_ELECTION"));
                assert_eq!(code, Some(69), "{scheme}: {stderr}");
                // It has nothing to wait for where nothing listens.
                assert_eq!(stderr.contains(name), *host == *silent, "{scheme}: {stderr}");
                assert!(!stderr.contains("`tenure doctor`"), "advice that is this command: {stderr}");
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_the_store_answers_late_says_so_and_succeeds() {
    let servers = Servers::get().await;
    for (scheme, server) in servers.endpoints() {
        let proxy = Proxy::start(&server).await.unwrap();
        proxy.hold(Direction::Both);
        let root = servers.new_root().await;
        let sandbox = Sandbox::on_server(scheme, &proxy.endpoint(), &root, "");
        let mut running = RunningCommand::start(sandbox.tenure(&["candidates"]).stderr(Stdio::piped()));
        let mut lines = BufReader::new(running.stderr()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(
            first.contains(&format!("no answer yet from {}", store_name(scheme, &proxy.endpoint(), &root))),
            "{first}"
        );
        proxy.heal();
        let rest: Vec<_> = lines.map(Result::unwrap).collect();
        assert_eq!(running.wait().code(), Some(0), "{scheme}: {rest:?}");
    }
}

/// Case 52. A watch on a store that is frozen is only silent.
#[tokio::test(flavor = "multi_thread")]
async fn observe_says_that_the_store_is_frozen_and_back() {
    let servers = Servers::get().await;
    for (scheme, server) in servers.endpoints() {
        let proxy = Proxy::start(&server).await.unwrap();
        let root = servers.new_root().await;
        let sandbox = Sandbox::on_server(scheme, &proxy.endpoint(), &root, "");
        let mut command = sandbox.tenure(&["observe"]);
        let mut running = RunningCommand::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut lines = messages(running.stderr());
        assert_eq!(BufReader::new(running.stdout()).lines().next().unwrap().unwrap(), "-");
        proxy.hold(Direction::Both);
        let frozen = lines.next().unwrap();
        assert!(
            frozen.contains(&format!("{} does not answer", store_name(scheme, &proxy.endpoint(), &root))),
            "{frozen}"
        );
        assert!(frozen.contains("may be outdated") && frozen.contains("tenure doctor"), "{frozen}");
        proxy.heal();
        let back = lines.next().unwrap();
        assert!(back.contains("answers again after"), "{back}");
    }
}

/// The store stops answering after the request: the command does not know whether the leader still leads.
#[tokio::test(flavor = "multi_thread")]
async fn resign_says_that_the_store_has_stopped_answering() {
    let servers = Servers::get().await;
    for (scheme, server) in servers.endpoints() {
        let proxy = Proxy::start(&server).await.unwrap();
        let root = servers.new_root().await;
        let healthy = Sandbox::on_server(scheme, &server, &root, "");
        // In a new database of MySQL nobody leads until the first candidate has waited for its TTL.
        let (code, stderr) = code_and_stderr(&mut healthy.run(&["--ttl", "2s"], "true"));
        assert_eq!(code, Some(0), "{scheme}: {stderr}");
        let reluctant = "trap 'echo > asked' TERM; echo > leads; until test -e end; do sleep 0.02; done";
        let _leader = healthy.start(&["--ttl", "60s", "--grace-period", "20s"], reluctant);
        healthy.wait_for_line("leads");
        let sandbox = Sandbox::on_server(scheme, &proxy.endpoint(), &root, "");
        let resign = |arguments: &[&str]| {
            let mut command = sandbox.tenure(&[&["resign"], arguments].concat());
            RunningCommand::start(command.stdout(Stdio::null()).stderr(Stdio::piped()))
        };
        let (code, stderr) = resign(&["--timeout", "1s"]).code_and_stderr();
        assert!(code == Some(69) && stderr.contains("has not been seen to resign within 1s"), "{stderr}");
        let mut patient = resign(&[]);
        let mut lines = messages(patient.stderr());
        let still = lines.next().unwrap();
        assert!(still.contains("still leads e"), "it answers: {still}");
        proxy.hold(Direction::Both);
        let silent = lines.next().unwrap();
        assert!(
            silent.contains(&format!("no answer yet from {}", store_name(scheme, &proxy.endpoint(), &root))),
            "{silent}"
        );
        std::fs::write(healthy.file("end"), "").unwrap();
        proxy.heal();
        assert_eq!(patient.wait().code(), Some(0), "{scheme}: {:?}", lines.collect::<Vec<_>>());
    }
}

/// The first request takes 5 s to fail.
#[test]
fn run_names_a_store_that_has_never_answered() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let sandbox = Sandbox::on(format!("etcd://{silent}/x"));
    let (code, stderr) = code_and_stderr(&mut sandbox.run(&["--timeout", "3s"], "true"));
    assert_eq!(code, Some(75), "{stderr}");
    let first = stderr.lines().next().unwrap();
    assert!(
        first.contains(&format!("{silent} does not answer")) && first.contains("tenure doctor"),
        "{stderr}"
    );
}
