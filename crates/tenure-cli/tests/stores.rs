//! `tenure run` on stores with deadlines: the program, and every process that it has started, is dead before the next
//! node becomes leader, whatever happens to tenure and to its connection to the store.

mod common;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::{CHECK_ALONE, RunningCommand, STUBBORN_PROGRAM, Sandbox, eventually, is_running, store_url};
use tenure_containers::{
    ConsulServer, ConsulSettings, EtcdCluster, EtcdServer, PostgresServer, PostgresSettings, RedisServer,
    RedisSettings, SharedConsul, SharedEtcd, SharedKubernetes, SharedMysql, SharedNats, SharedPostgres,
    SharedS3, SharedZookeeper, Version,
};
use tenure_testkit::proxy::{Direction, Proxy};

/// Options of a term with a long grace period.
const OPTIONS: [&str; 4] = ["--grace-period", "600ms", "--stop-signal", "INT"];

/// What happens to the first node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum FaultKind {
    /// The store does not answer it any more.
    Blackhole,
    /// tenure is stopped, and the program is not.
    Stop,
    /// tenure's process group is stopped.
    StopGroup,
    /// tenure is killed.
    Kill,
}

/// A store's server, and the scheme and settings of its URL.
struct StoreServer {
    endpoint: String,
    scheme: &'static str,
    settings: &'static str,
    /// Ends with this test, if it is this test's own.
    _server: Box<dyn std::any::Any + Send + Sync>,
}

impl StoreServer {
    async fn etcd() -> Self {
        let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
        Self { endpoint: server.endpoint(), scheme: "etcd", settings: "ttl=4s", _server: Box::new(server) }
    }

    async fn zookeeper() -> Self {
        let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
        Self {
            endpoint: server.endpoint(),
            scheme: "zookeeper",
            settings: "ttl=4s",
            _server: Box::new(server),
        }
    }

    async fn postgres() -> Self {
        let server = SharedPostgres::get(Version::Postgres17).await.unwrap();
        Self {
            endpoint: server.endpoint(),
            scheme: "postgres",
            settings: "ttl=4s",
            _server: Box::new(server),
        }
    }

    async fn consul() -> Self {
        let server = SharedConsul::get(Version::Consul18).await.unwrap();
        Self { endpoint: server.endpoint(), scheme: "consul", settings: "ttl=4s", _server: Box::new(server) }
    }

    async fn nats() -> Self {
        let server = SharedNats::get(Version::Nats215).await.unwrap();
        Self { endpoint: server.endpoint(), scheme: "nats", settings: "ttl=4s", _server: Box::new(server) }
    }

    async fn s3() -> Self {
        let server = SharedS3::get(Version::Seaweedfs4).await.unwrap();
        Self { endpoint: server.endpoint(), scheme: "s3", settings: "ttl=4s", _server: Box::new(server) }
    }

    /// A server, and a namespace on it.
    async fn kubernetes() -> (Self, String) {
        let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
        let namespace = format!("cli-{:016x}", fastrand::u64(..));
        server.admin().create_namespace(&namespace).await.unwrap();
        let endpoint = server.endpoint();
        (Self { endpoint, scheme: "kubernetes", settings: "ttl=4s", _server: Box::new(server) }, namespace)
    }

    /// A server, and a database on it.
    async fn mysql() -> (Self, String) {
        let server = SharedMysql::get(Version::Mariadb1011).await.unwrap();
        let database = format!("cli-{:016x}", fastrand::u64(..));
        server.admin().create_database(&database).await.unwrap();
        let endpoint = server.endpoint();
        (Self { endpoint, scheme: "mysql", settings: "ttl=4s", _server: Box::new(server) }, database)
    }

    async fn is_dead_in_time(&self, fault: FaultKind) {
        self.is_dead_in_time_below(&format!("cli-{:016x}", fastrand::u64(..)), fault).await;
    }

    /// The program ignores the stop signal.
    async fn is_dead_in_time_below(&self, root: &str, fault: FaultKind) {
        let proxy = Proxy::start(&self.endpoint).await.unwrap();
        let healthy = Sandbox::on_server(self.scheme, &self.endpoint, root, self.settings);
        let mut sandbox = Sandbox::on_server(self.scheme, &proxy.endpoint(), root, self.settings);
        let mut first = sandbox.start(
            &OPTIONS,
            &format!("test -n \"$TENURE_DEADLINE_BOOTTIME_NS\" || exit 1; {STUBBORN_PROGRAM}"),
        );
        let pids = sandbox.wait_for_line("pids");
        sandbox.url.clone_from(&healthy.url);
        let mut second = sandbox.start(&["--quiet"], CHECK_ALONE);
        // Kubernetes shows the leader only.
        let shown = if self.scheme == "kubernetes" { 1 } else { 2 };
        eventually("a second candidate", || (sandbox.candidates().len() == shown).then_some(()));
        match fault {
            FaultKind::Blackhole => proxy.blackhole(Direction::Both),
            FaultKind::Stop => first.signal("STOP"),
            FaultKind::StopGroup => first.signal_group("STOP"),
            FaultKind::Kill => first.signal("KILL"),
        }
        assert_eq!(second.code_and_stderr(), (Some(0), String::new()), "{fault:?}");
        assert!(pids.split(' ').all(|pid| !is_running(pid)), "{fault:?}: {pids}");
        if matches!(fault, FaultKind::Stop | FaultKind::StopGroup) {
            first.signal("CONT");
        }
        let (code, stderr) = first.code_and_stderr();
        if fault != FaultKind::Kill {
            assert_eq!(code, Some(76), "{fault:?}: {stderr}");
            // A process that was frozen can also learn first that its entry was deleted meanwhile.
            let reasons = ["no heartbeat was confirmed in time", "its entry is gone from the store"];
            let allowed = if fault == FaultKind::Blackhole { &reasons[..1] } else { &reasons };
            let lost = |reason| stderr.contains(&format!("leadership of e was lost: {reason}"));
            assert!(allowed.iter().any(lost), "{fault:?}: {stderr}");
        }
    }
}

/// How long a shutdown takes at most, on a busy machine.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

impl StoreServer {
    /// While the store is cut off and the deadline is far away, a signal ends `tenure run` and the program within the
    /// shutdown timeout.
    async fn ends_in_time_when_cut_off(&self, program: &str) {
        let proxy = Proxy::start(&self.endpoint).await.unwrap();
        let root = format!("cli-{:016x}", fastrand::u64(..));
        let sandbox = Sandbox::on(store_url(self.scheme, &proxy.endpoint(), &root, "ttl=30s"));
        let mut run = sandbox.start(&[], program);
        let pids = sandbox.wait_for_line("pids");
        proxy.blackhole(Direction::Both);
        let start = Instant::now();
        run.signal("TERM");
        let (code, stderr) = run.code_and_stderr();
        let took = start.elapsed();
        assert!(took < SHUTDOWN_TIMEOUT, "{took:?}: {stderr}");
        assert!(
            stderr.contains("the store has not confirmed") || stderr.contains("was not confirmed"),
            "{code:?}: {stderr}"
        );
        assert!(pids.split(' ').all(|pid| !is_running(pid)), "{pids}");
    }
}

/// Hazard G30, case 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_when_etcd_is_cut_off() {
    StoreServer::etcd().await.ends_in_time_when_cut_off("echo $$ > pids; exec sleep 1000").await;
}

/// Hazard G30, case 9: with a program that does not stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_stubborn_program_in_time_when_zookeeper_is_cut_off() {
    StoreServer::zookeeper().await.ends_in_time_when_cut_off(STUBBORN_PROGRAM).await;
}

/// Hazard G30, case 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_when_postgres_is_cut_off() {
    StoreServer::postgres().await.ends_in_time_when_cut_off("echo $$ > pids; exec sleep 1000").await;
}

/// Hazard G30, case 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_when_s3_is_cut_off() {
    StoreServer::s3().await.ends_in_time_when_cut_off("echo $$ > pids; exec sleep 1000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_etcd_is_cut_off() {
    StoreServer::etcd().await.is_dead_in_time(FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_etcd() {
    StoreServer::etcd().await.is_dead_in_time(FaultKind::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_its_job_is_stopped_on_etcd() {
    StoreServer::etcd().await.is_dead_in_time(FaultKind::StopGroup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_etcd() {
    StoreServer::etcd().await.is_dead_in_time(FaultKind::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_zookeeper_is_cut_off() {
    StoreServer::zookeeper().await.is_dead_in_time(FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_zookeeper() {
    StoreServer::zookeeper().await.is_dead_in_time(FaultKind::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_zookeeper() {
    StoreServer::zookeeper().await.is_dead_in_time(FaultKind::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_postgres_is_cut_off() {
    StoreServer::postgres().await.is_dead_in_time(FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_postgres() {
    StoreServer::postgres().await.is_dead_in_time(FaultKind::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_postgres() {
    StoreServer::postgres().await.is_dead_in_time(FaultKind::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_s3_is_cut_off() {
    StoreServer::s3().await.is_dead_in_time(FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_s3() {
    StoreServer::s3().await.is_dead_in_time(FaultKind::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_s3() {
    StoreServer::s3().await.is_dead_in_time(FaultKind::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_kubernetes_is_cut_off() {
    let (server, namespace) = StoreServer::kubernetes().await;
    server.is_dead_in_time_below(&namespace, FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_mysql_is_cut_off() {
    let (server, database) = StoreServer::mysql().await;
    server.is_dead_in_time_below(&database, FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_mysql() {
    let (server, database) = StoreServer::mysql().await;
    server.is_dead_in_time_below(&database, FaultKind::Stop).await;
}

/// When the program is killed, the next candidate leads at once, and not after the TTL.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_leads_at_once_when_the_program_is_killed() {
    for server in [
        StoreServer::etcd().await,
        StoreServer::zookeeper().await,
        StoreServer::postgres().await,
        StoreServer::nats().await,
        StoreServer::s3().await,
    ] {
        let root = format!("cli-{:016x}", fastrand::u64(..));
        // The TTL is far longer than any wait in this test.
        let sandbox = Sandbox::on(store_url(server.scheme, &server.endpoint, &root, "ttl=40s"));
        let mut first = sandbox.start(&[], "echo $$ > first; exec sleep 1000");
        let pid = sandbox.wait_for_line("first");
        let mut second = sandbox.start(&[], "echo leads > second");
        eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
        common::kill("KILL", pid);
        assert_eq!(sandbox.wait_for_line("second"), "leads");
        assert_eq!((first.wait().code(), second.wait().code()), (Some(137), Some(0)));
        assert_eq!(sandbox.candidates(), [] as [&str; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_when_nats_is_cut_off() {
    StoreServer::nats().await.ends_in_time_when_cut_off("echo $$ > pids; exec sleep 1000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_nats_is_cut_off() {
    StoreServer::nats().await.is_dead_in_time(FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_nats() {
    StoreServer::nats().await.is_dead_in_time(FaultKind::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_nats() {
    StoreServer::nats().await.is_dead_in_time(FaultKind::Kill).await;
}

/// The exit code and output of `tenure doctor`.
fn doctor(url: &str) -> (Option<i32>, String) {
    let output = common::tenure_command(&["doctor", "--store", url]).output().unwrap();
    (output.status.code(), common::stdout(&output))
}

/// Hazard E1: the output names a version with a known bug, and what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_members_versions_and_their_bugs_on_etcd() {
    let server = StoreServer::etcd().await;
    let old_server = SharedEtcd::get(Version::Etcd34).await.unwrap();
    let old = old_server.endpoint();
    let (code, output) = doctor(&format!("etcd://{},127.0.0.1:1/doctor", server.endpoint));
    assert_eq!(code, Some(69), "{output}");
    // Whether it has known bugs depends on the version of the image.
    assert!(output.contains(&format!(" member {}: etcd 3.5.", server.endpoint)), "{output}");
    assert!(output.contains("leads its cluster"), "{output}");
    assert!(output.contains("problem  member 127.0.0.1:1: "), "{output}");
    for subject in ["quorum", "session", "entry"] {
        assert!(output.contains(&format!("ok       {subject}: ")), "{output}");
    }
    let (code, output) = doctor(&format!("etcd://{old}/doctor"));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("warning  member {old}: etcd 3.4.")), "{output}");
    assert!(
        output.contains("etcd-io/etcd#15247") && output.contains("to do: update it to 3.4.38"),
        "{output}"
    );
    let (code, output) = doctor(&format!("etcd://{}/doctor?ttl=1s", server.endpoint));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("warning  session: ") && output.contains("to do: ask for ttl=2s"), "{output}");
    let sandbox = Sandbox::on(format!("etcd://{}/doctor", server.endpoint));
    assert_eq!(sandbox.candidates(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_servers_and_what_they_grant_on_zookeeper() {
    let server = StoreServer::zookeeper().await;
    let (code, output) = doctor(&format!("zookeeper://{}/doctor?ttl=10s", server.endpoint));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("warning  server {}: ZooKeeper 3.9.", server.endpoint)), "{output}");
    assert!(output.contains("standalone, gave a session in"), "{output}");
    assert!(output.contains("ok       session: ") && output.contains("ok       entry: "), "{output}");
    let (code, output) = doctor(&format!("zookeeper://{}/doctor?ttl=30m", server.endpoint));
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("problem  session: ") && output.contains("min_ttl"), "{output}");
}

/// Hazard G8: the output names the version, and a verb that is missing, with what it is for.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_the_version_and_what_is_not_allowed_on_kubernetes() {
    let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let namespace = format!("cli-{:016x}", fastrand::u64(..));
    server.admin().create_namespace(&namespace).await.unwrap();
    let sandbox = |token| Sandbox::on_kubernetes(&server.endpoint(), token, &namespace, "ttl=4s");
    let (code, output) = doctor(&sandbox("admin-token").url);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("ok       API server: v"), "{output}");
    for subject in ["verb get", "verb create", "verb update", "verb watch", "verb list", "session", "entry"] {
        assert!(output.contains(&format!("ok       {subject}: ")), "{output}");
    }
    server.admin().allow(&namespace, "alice", &["get", "create", "update"]).await.unwrap();
    let (code, output) = doctor(&sandbox("alice-token").url);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("warning  verb watch: not allowed for leases"), "{output}");
    assert!(output.contains("to do: grant watch on leases.coordination.k8s.io by a Role"), "{output}");
    server.admin().allow(&namespace, "alice", &["get", "create"]).await.unwrap();
    let (code, output) = doctor(&sandbox("alice-token").url);
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("problem  verb update: not allowed for leases"), "{output}");
    let (code, output) = doctor(&sandbox("wrong").url);
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("problem  API server: ") && output.contains("check the token"), "{output}");
    assert!(!output.contains("verb get"), "{output}");
}

/// The credentials are in the environment, and wrong ones are reported without them.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tries_conditional_writes_on_s3() {
    let server = StoreServer::s3().await;
    let run = |secret: &str, arguments: &[&str]| {
        let mut command = common::tenure_command(arguments);
        command.env("TENURE_STORE", "s3://suite/doctor?ttl=4s");
        command.env("AWS_ENDPOINT_URL", format!("http://{}", server.endpoint));
        command.env("AWS_ACCESS_KEY_ID", "admin").env("AWS_SECRET_ACCESS_KEY", secret);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, output) = run("admin-secret", &["doctor"]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("ok       server http://{}: ", server.endpoint)), "{output}");
    for subject in [
        "conditional writes: honoured",
        "deletion: ",
        "list: ",
        "lifecycle: not checked",
        "session: ",
        "entry: ",
    ] {
        assert!(output.contains(&format!("ok       {subject}")), "{subject}: {output}");
    }
    let (code, output) = run("Quagmire0815", &["doctor"]);
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("SignatureDoesNotMatch") && !output.contains("Quagmire0815"), "{output}");
}

/// Nothing was created, so that there is nothing to remove: it ends at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_in_a_namespace_that_does_not_exist_ends_at_once() {
    let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let namespace = format!("cli-{:016x}", fastrand::u64(..));
    let sandbox = Sandbox::on_kubernetes(&server.endpoint(), "admin-token", &namespace, "");
    let begun = Instant::now();
    let (code, stderr) = common::code_and_stderr(&mut sandbox.run(&["--try", "--quiet"], "touch ran"));
    assert_eq!(code, Some(75), "{stderr}");
    assert!(stderr.contains("does the namespace exist?") && stderr.lines().count() == 1, "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// A wrong URL, login or database, and missing rights: one line at once, which says what to do, and shows no password.
#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_said_in_one_line() {
    const PASSWORD: &str = "Zanzibar4711";
    const WRONG: &str = "Quagmire0815";
    let settings = PostgresSettings::default().access_rules(&["host all all all scram-sha-256"]);
    let server = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    server.admin().add_user("app", PASSWORD).await.unwrap();
    let host = server.endpoint();
    let good = format!("postgres://app:{PASSWORD}@{host}/postgres");
    for (url, code, said) in [
        (
            format!("postgres://{host}/postgres"),
            2,
            "it names no user; give postgres://user@host1,host2/database",
        ),
        (format!("postgres://app@{host}"), 2, "it names no database"),
        ("postgres:///postgres".to_owned(), 2, "it names no host"),
        (format!("{good}?passwd={PASSWORD}"), 2, "unknown setting passwd; allowed are"),
        (format!("{good}?schema=a.b"), 2, "the schema \"a.b\" is not allowed"),
        (format!("{good}?target_session_attrs=any"), 2, "target_session_attrs=any is not read-write"),
        (format!("postgres://app@{host}/postgres"), 69, "set PGPASSWORD"),
        (
            format!("postgres://app:{WRONG}@{host}/postgres"),
            69,
            "password authentication failed for user \"app\"",
        ),
        (
            format!("postgres://nobody:{WRONG}@{host}/postgres"),
            69,
            "password authentication failed for user \"nobody\"",
        ),
        (
            format!("postgres://app:{PASSWORD}@{host}/nowhere"),
            69,
            "database \"nowhere\" does not exist; create it",
        ),
        (good.clone(), 69, "has to run: CREATE SCHEMA"),
    ] {
        let sandbox = Sandbox::on(&*url);
        let begun = Instant::now();
        for mut command in [sandbox.run(&[], "touch ran"), sandbox.tenure(&["leader"])] {
            let (exited, stderr) = common::code_and_stderr(&mut command);
            assert_eq!(exited, Some(code), "{url}: {stderr}");
            assert!(stderr.contains(said) && stderr.lines().count() == 1, "{url}: {stderr}");
            assert!(!stderr.contains(PASSWORD) && !stderr.contains(WRONG), "{stderr}");
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{url}: {:?}", begun.elapsed());
        assert!(!sandbox.file("ran").exists(), "{url}");
    }
    // An owner runs what was said.
    let refused = common::code_and_stderr(&mut Sandbox::on(&*good).tenure(&["leader"])).1;
    let (_, sql) = refused.split_once("has to run: ").unwrap();
    server.admin().execute(sql).await.unwrap();
    common::succeed(&mut Sandbox::on(good).run(&[], "true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_consul_is_cut_off() {
    StoreServer::consul().await.is_dead_in_time(FaultKind::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_consul() {
    StoreServer::consul().await.is_dead_in_time(FaultKind::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_when_consul_is_cut_off() {
    StoreServer::consul().await.ends_in_time_when_cut_off("echo $$ > pids; exec sleep 1000").await;
}

/// Consul's refusals, each in one line that names the remedy, and what the doctor says.
#[tokio::test(flavor = "multi_thread")]
async fn what_consul_refuses_is_said_in_one_line() {
    const WRONG: &str = "Quagmire0815";
    let settings = ConsulSettings::default().acl();
    let server = ConsulServer::start_with(Version::Consul18, &settings).await.unwrap();
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let token = admin.create_token("key_prefix \"acme/\" { policy = \"write\" }").await.unwrap().secret;
    let host = server.endpoint();
    for (url, code, said) in [
        ("consul:///acme".to_owned(), 2, "it names no host; give consul://host1,host2/prefix"),
        (format!("consul://{WRONG}@{host}"), 2, "Consul knows tokens only"),
        (format!("consul://{host}/a//b"), 2, "the prefix \"a//b\" is not allowed"),
        (format!("consul://{host}/acme"), 69, "key_prefix \"acme/\" { policy = \"write\" }"),
        (format!("consul://token:{token}@{host}/other"), 69, "key_prefix \"other/\" { policy = \"write\" }"),
        (format!("consul://token:{WRONG}@{host}/acme"), 69, "Consul does not know the token"),
    ] {
        let sandbox = Sandbox::on(&*url);
        for mut command in [sandbox.run(&[], "touch ran"), sandbox.tenure(&["leader"])] {
            let (exited, stderr) = common::code_and_stderr(&mut command);
            assert_eq!(exited, Some(code), "{url}: {stderr}");
            assert!(stderr.contains(said) && stderr.lines().count() == 1, "{url}: {stderr}");
            assert!(!stderr.contains(&token) && !stderr.contains(WRONG), "{stderr}");
        }
        assert!(!sandbox.file("ran").exists(), "{url}");
    }
    let good = format!("consul://token:{token}@{host}/acme");
    common::succeed(&mut Sandbox::on(&*good).run(&[], "true"));
    let (code, output) = doctor(&good);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("use three or five servers") && !output.contains(&token), "{output}");
}

/// A wrong URL or login, missing rights, and what fails over: one line at once, which says what to do, and shows no password.
#[tokio::test(flavor = "multi_thread")]
async fn what_redis_refuses_is_said_in_one_line() {
    const PASSWORD: &str = "Zanzibar4711";
    const WRONG: &str = "Quagmire0815";
    let server = RedisServer::start(Version::Redis70).await.unwrap();
    let cluster = RedisSettings::default().set("cluster-enabled", "yes");
    let cluster = RedisServer::start_with(Version::Valkey81, &cluster).await.unwrap();
    server.admin().set_user("app", PASSWORD, &["+info"]).await.unwrap();
    let (host, cluster) = (server.endpoint(), cluster.endpoint());
    let good = format!("redis://app:{PASSWORD}@{host}/0");
    for (url, code, said) in [
        (format!("redis://{host},127.0.0.1:1/0"), 2, "a failover to a replica loses safety"),
        (format!("redis+sentinel://app:{PASSWORD}@{host}/mymaster"), 2, "redis+sentinel fails over"),
        (format!("redis://app:{PASSWORD}@{host}/billing"), 2, "its path is not the number of a database"),
        (format!("{good}?passwd={PASSWORD}"), 2, "unknown setting passwd; allowed are"),
        (format!("redis://app:{WRONG}@{host}/0"), 69, "check the password, and that the user is on"),
        (format!("redis://{cluster}/0"), 69, "it is a node of a cluster, which fails over"),
        (good.clone(), 69, "has to run: ACL SETUSER app ~tenure &tenure +evalsha"),
    ] {
        let sandbox = Sandbox::on(&*url);
        for mut command in [sandbox.run(&[], "touch ran"), sandbox.tenure(&["leader"])] {
            let (exited, stderr) = common::code_and_stderr(&mut command);
            assert_eq!(exited, Some(code), "{url}: {stderr}");
            let errors: Vec<_> = stderr.lines().filter(|line| !line.contains("WARN")).collect();
            assert!(errors.len() == 1 && errors[0].contains(said), "{url}: {stderr}");
            assert!(!stderr.contains(PASSWORD) && !stderr.contains(WRONG), "{stderr}");
        }
        assert!(!sandbox.file("ran").exists(), "{url}");
    }
    // An administrator runs what was said.
    let refused = common::code_and_stderr(&mut Sandbox::on(&*good).tenure(&["leader"])).1;
    let (_, command) = refused.split_once("has to run: ").unwrap();
    let command: Vec<_> = command.lines().next().unwrap().split(' ').collect();
    server.admin().run(&command).await.unwrap();
    common::succeed(&mut Sandbox::on(&*good).run(&[], "true"));
    let (code, output) = doctor(&good);
    assert_eq!(code, Some(0), "{output}");
    let first = output.lines().next().unwrap();
    assert!(first.contains(&format!("server {host}: Redis 7.0.")), "{output}");
    assert!(first.contains("a failover to a replica loses safety"), "{output}");
}

/// Case 65, hazard G35: after the store was wiped, the check says that a resource refuses the leader, and the next step.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_that_a_wiped_store_assigns_tokens_that_a_resource_refuses() {
    let server = EtcdServer::start(Version::Etcd35).await.unwrap();
    let sandbox = Sandbox::on(format!("etcd://{}/x", server.endpoint()));
    for number in 0..100 {
        server.admin().put("other", number.to_string()).await.unwrap();
    }
    let run = "echo $TENURE_FENCING_TOKEN > token";
    common::succeed(&mut sandbox.run(&[], run));
    let mark = sandbox.wait_for_line("token");
    let doctor = || {
        let output = sandbox.tenure(&["doctor", "--fence", &mark]).output().unwrap();
        let output = (output.status.code(), common::stdout(&output));
        let at = output.1.find(" fence: ").unwrap_or_else(|| panic!("{output:?}"));
        (output.0, output.1[at..].to_owned())
    };
    let (code, said) = doctor();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nobody leads e, and the store has just assigned token"), "{said}");
    assert!(said.contains(&format!("a resource that has seen {mark} accepts it")), "{said}");

    server.wipe().await.unwrap();
    let (code, said) = doctor();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains(&format!("a resource that has seen {mark} refuses it")), "{said}");
    let _leader = sandbox.start(&["--id", "first"], &format!("{run}; sleep 1000"));
    eventually("the leader", || (sandbox.candidates() == ["first"]).then_some(()));
    let (code, said) = doctor();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("the leader of e, first, has token"), "{said}");
    for step in ["stop all candidates of e", "reset the mark of the resource to 0", "docs/guide/operating.md"]
    {
        assert!(said.contains(step), "{said}");
    }
}

/// Hosts with their versions and roles, and what matters in the settings of the database.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_hosts_and_settings_on_postgres() {
    let settings = PostgresSettings::default().set("fsync", "on");
    let server = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    let host = server.endpoint();
    let (code, output) = doctor(&format!("postgres://postgres@{host}/postgres"));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("ok       host {host}: PostgreSQL 17.")), "{output}");
    assert!(output.contains(", a primary, timeline 1"), "{output}");
    assert!(output.contains("ok       replication: no standby is connected"), "{output}");
    for subject in ["database", "notifications", "session", "entry"] {
        assert!(output.contains(&format!("ok       {subject}: ")), "{output}");
    }
    let (code, output) = doctor(&format!("postgres://postgres@{host},127.0.0.1:1/postgres"));
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("problem  host 127.0.0.1:1: ") && output.contains("to do: start it"), "{output}");

    // Each election has tokens of its own: that of the doctor's election says nothing about another one (hazard G35).
    let sandbox = Sandbox::on(format!("postgres://postgres@{host}/postgres"));
    for _ in 0..5 {
        common::succeed(&mut sandbox.run(&[], "echo $TENURE_FENCING_TOKEN > token"));
    }
    let mark = sandbox.wait_for_line("token");
    let doctor = |mark: &str| {
        let output = sandbox.tenure(&["doctor", "--fence", mark]).output().unwrap();
        (output.status.code(), common::stdout(&output))
    };
    let (code, output) = doctor(&mark);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("warning  fence: nobody leads e, so that its tokens are not known"), "{output}");
    let _leader = sandbox.start(&["--id", "first"], "sleep 1000");
    eventually("the leader", || (sandbox.candidates() == ["first"]).then_some(()));
    let (code, output) = doctor(&mark);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("a resource that has seen {mark} accepts it")), "{output}");
    let (code, output) = doctor("4711");
    assert_eq!(code, Some(69), "{output}");
    assert!(
        output.contains("the leader of e, first, has token 6: a resource that has seen 4711 refuses it"),
        "{output}"
    );
}

/// Case 50. Calls, heartbeats and the watch notice it; one line says so, and one that it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_of_a_cluster_is_said_once() {
    let cluster = EtcdCluster::start(Version::Etcd35).await.unwrap();
    let sandbox = Sandbox::on(format!("etcd://{}/x?ttl=4s", cluster.endpoints().join(",")));
    let mut leader = sandbox.start(&[], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    let mut waiting = sandbox.start(&["-v"], "true");
    eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
    let lines = |running: &mut RunningCommand| {
        let (lines, stderr) = (Arc::new(Mutex::new(Vec::new())), running.stderr());
        let read = Arc::clone(&lines);
        thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| read.lock().unwrap().push(line));
        });
        lines
    };
    let (of_leader, of_waiting) = (lines(&mut leader), lines(&mut waiting));
    let of = |all: &Mutex<Vec<String>>, endpoint: &str, said: &str| {
        let all = all.lock().unwrap();
        all.iter().filter(|line| line.contains(endpoint) && line.contains(said)).cloned().collect::<Vec<_>>()
    };
    // One after the other: each is used by one of them, for calls or for its watch.
    for down in 0..3 {
        let endpoint = &cluster.endpoints()[down];
        let fault = cluster.member(down).kill().await.unwrap();
        let begun = Instant::now();
        // Three heartbeats and more, and the watch.
        eventually("they notice it", || (begun.elapsed() > Duration::from_secs(8)).then_some(()));
        let (code, report) = doctor(&sandbox.url);
        assert_eq!(code, Some(69), "{report}");
        assert_eq!(report.lines().filter(|line| line.contains(endpoint.as_str())).count(), 1, "{report}");
        for all in [&of_leader, &of_waiting] {
            let said = of(all, endpoint, "does not answer");
            assert!(said.len() <= 1, "{said:?}");
        }
        fault.heal().await.unwrap();
        cluster.leader().await.unwrap();
    }
    for all in [&of_leader, &of_waiting] {
        let said = all.lock().unwrap().clone();
        let warned =
            said.iter().filter(|line| line.contains("an etcd member does not answer; using the others"));
        assert!((1..=3).contains(&warned.count()), "each has used one of them: {said:?}");
    }
    assert_eq!(sandbox.candidates().len(), 2);
}

/// Case 50. `etcdctl elect` is a candidate of Go's `concurrency.Election`.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_gos_library_is_said_to_take_no_resign_requests() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let root = format!("cli-{:016x}", fastrand::u64(..));
    let sandbox = Sandbox::on(format!("etcd://{}/{root}", server.endpoint()));
    let mut elect = Command::new("etcdctl");
    elect.env("ETCDCTL_API", "3").args(["--endpoints", &server.endpoint(), "elect"]);
    elect.args([&format!("/{root}/e"), "10.0.0.7:80"]).stdout(Stdio::null());
    let mut go = RunningCommand::start(&mut elect);
    let leader = eventually("Go leads", || sandbox.candidates().pop());
    let (code, stderr) = common::code_and_stderr(&mut sandbox.tenure(&["resign"]));
    assert_eq!(code, Some(69), "{stderr}");
    assert_eq!(
        stderr,
        format!(
            "tenure: cannot ask the leader {leader} to resign: it was not entered by tenure and reads no resign requests; stop \
             the program that entered it\n"
        )
    );
    assert_eq!(sandbox.candidates(), [leader]);
    go.signal("INT");
    go.wait();
}

/// Case 50. The reason is said once, and is the true one.
#[tokio::test(flavor = "multi_thread")]
async fn a_resign_request_without_space_is_refused_with_the_reason() {
    let server = EtcdServer::start(Version::Etcd35).await.unwrap();
    let sandbox = Sandbox::on(format!("etcd://{}/x", server.endpoint()));
    let _leader = sandbox.start(&[], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    server.admin().activate_no_space_alarm().await.unwrap();
    let (code, stderr) = common::code_and_stderr(&mut sandbox.tenure(&["resign"]));
    assert_eq!(code, Some(69), "{stderr}");
    assert_eq!(stderr.matches("NOSPACE").count(), 1, "{stderr}");
    assert!(!stderr.contains("no answer") && !stderr.contains("the store refuses"), "{stderr}");
}

/// Hazard C5: the output names the host, its version, and what is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_hosts_and_settings_on_mysql() {
    let (server, database) = StoreServer::mysql().await;
    let host = &server.endpoint;
    let (code, output) = doctor(&format!("mysql://root@{host}/{database}"));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("ok       host {host}: {host} (MariaDB 10.11.")), "{output}");
    for subject in ["durability", "database", "session", "entry"] {
        assert!(output.contains(&format!("ok       {subject}: ")), "{output}");
    }
    let (code, output) = doctor(&format!("mysql://root@{host},127.0.0.1:1/{database}"));
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("problem  host 127.0.0.1:1: "), "{output}");
    let sandbox = Sandbox::on(format!("mysql://root@{host}/{database}"));
    assert_eq!(sandbox.candidates(), [] as [&str; 0]);
    let (code, stderr) = common::code_and_stderr(
        &mut Sandbox::on(format!("mysql://nobody:Quagmire0815@{host}/{database}")).run(&["--quiet"], "true"),
    );
    assert!(code == Some(69) && stderr.lines().count() == 1, "{code:?} {stderr}");
    assert!(stderr.contains("check the user, the password") && !stderr.contains("Quagmire"), "{stderr}");
}
