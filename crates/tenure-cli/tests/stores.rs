//! `tenure run` on stores whose leaders have deadlines: the program, and all that it has started, is dead before the
//! next node leads, whatever happens to tenure and to its line to the store.

mod common;

use std::time::{Duration, Instant};

use common::{ALONE, STUBBORN, Stage, eventually, runs};
use tenure_containers::{SharedEtcd, SharedZookeeper, Version};
use tenure_testkit::proxy::{Direction, Proxy};

const TERM: [&str; 4] = ["--grace-period", "600ms", "--stop-signal", "INT"];

/// What is done to the first node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    /// Its line to the store is silent.
    Cut,
    /// tenure is stopped, and the program is not.
    Stop,
    /// All of its process group is.
    StopGroup,
    /// tenure is killed.
    Kill,
}

/// Where a server listens, and how the store is named: scheme, name and settings.
struct Place {
    endpoint: String,
    scheme: &'static str,
    settings: &'static str,
}

impl Place {
    async fn etcd() -> Self {
        let endpoint = SharedEtcd::get(Version::Etcd35).await.unwrap().endpoint();
        Self { endpoint, scheme: "etcd", settings: "ttl=4s" }
    }

    async fn zookeeper() -> Self {
        let endpoint = SharedZookeeper::get(Version::Zookeeper39).await.unwrap().endpoint();
        Self { endpoint, scheme: "zookeeper", settings: "ttl=4s" }
    }

    /// The program does not listen to the signal that tells it to stop.
    async fn is_dead_in_time(&self, blow: Blow) {
        let line = Proxy::start(&self.endpoint).await.unwrap();
        let root = format!("cli-{:016x}", fastrand::u64(..));
        let url = |endpoint: &str| format!("{}://{endpoint}/{root}?{}", self.scheme, self.settings);
        let mut stage = Stage::on(url(&line.endpoint()));
        let mut first =
            stage.start(&TERM, &format!("test -n \"$TENURE_DEADLINE_BOOTTIME_NS\" || exit 1; {STUBBORN}"));
        let pids = stage.line("pids");
        stage.url = url(&self.endpoint);
        let mut second = stage.start(&["--quiet"], ALONE);
        eventually("a second candidate", || (stage.candidates().len() == 2).then_some(()));
        match blow {
            Blow::Cut => line.blackhole(Direction::Both),
            Blow::Stop => first.signal("STOP"),
            Blow::StopGroup => first.signal_group("STOP"),
            Blow::Kill => first.signal("KILL"),
        }
        assert_eq!(second.code(), (Some(0), String::new()), "{blow:?}");
        assert!(pids.split(' ').all(|pid| !runs(pid)), "{blow:?}: {pids}");
        if matches!(blow, Blow::Stop | Blow::StopGroup) {
            first.signal("CONT");
        }
        let (code, said) = first.code();
        if blow != Blow::Kill {
            assert_eq!(code, Some(76), "{blow:?}: {said}");
            assert!(said.contains("leadership of e was lost: no heartbeat was confirmed in time"), "{said}");
        }
    }
}

/// How long an end takes at most, on a busy machine.
const END: Duration = Duration::from_secs(10);

impl Place {
    /// With the store cut off, and deadlines far away: a signal ends `tenure run` in its shutdown timeout, with the program.
    async fn ends_in_time_when_cut_off(&self, program: &str) {
        let line = Proxy::start(&self.endpoint).await.unwrap();
        let root = format!("cli-{:016x}", fastrand::u64(..));
        let stage = Stage::on(format!("{}://{}/{root}?ttl=30s", self.scheme, line.endpoint()));
        let mut run = stage.start(&[], program);
        let pids = stage.line("pids");
        line.blackhole(Direction::Both);
        let begun = Instant::now();
        run.signal("TERM");
        let (code, said) = run.code();
        let took = begun.elapsed();
        assert!(took < END, "{took:?}: {said}");
        assert!(
            said.contains("the store has not confirmed") || said.contains("was not confirmed"),
            "{code:?}: {said}"
        );
        assert!(pids.split(' ').all(|pid| !runs(pid)), "{pids}");
    }
}

/// Hazard G30, case 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_when_etcd_is_cut_off() {
    Place::etcd().await.ends_in_time_when_cut_off("echo $$ > pids; exec sleep 1000").await;
}

/// Hazard G30, case 9: also with a program that does not stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_stubborn_program_in_time_when_zookeeper_is_cut_off() {
    Place::zookeeper().await.ends_in_time_when_cut_off(STUBBORN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_etcd_is_cut_off() {
    Place::etcd().await.is_dead_in_time(Blow::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_etcd() {
    Place::etcd().await.is_dead_in_time(Blow::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_its_job_is_stopped_on_etcd() {
    Place::etcd().await.is_dead_in_time(Blow::StopGroup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_etcd() {
    Place::etcd().await.is_dead_in_time(Blow::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_zookeeper_is_cut_off() {
    Place::zookeeper().await.is_dead_in_time(Blow::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_stopped_on_zookeeper() {
    Place::zookeeper().await.is_dead_in_time(Blow::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_dead_in_time_when_tenure_is_killed_on_zookeeper() {
    Place::zookeeper().await.is_dead_in_time(Blow::Kill).await;
}

/// Leadership goes on at once, and not after a TTL, when the program is killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_leads_at_once_when_the_program_is_killed() {
    for place in [Place::etcd().await, Place::zookeeper().await] {
        let root = format!("cli-{:016x}", fastrand::u64(..));
        // Far longer than anybody waits here.
        let stage = Stage::on(format!("{}://{}/{root}?ttl=40s", place.scheme, place.endpoint));
        let mut first = stage.start(&[], "echo $$ > first; exec sleep 1000");
        let pid = stage.line("first");
        let mut second = stage.start(&[], "echo leads > second");
        eventually("a second candidate", || (stage.candidates().len() == 2).then_some(()));
        common::kill("KILL", pid);
        assert_eq!(stage.line("second"), "leads");
        assert_eq!((first.end().code(), second.end().code()), (Some(137), Some(0)));
        assert_eq!(stage.candidates(), [] as [&str; 0]);
    }
}

/// What `tenure doctor` prints, and its exit code.
fn doctor(url: &str) -> (Option<i32>, String) {
    let output = common::bare(&["doctor", "--store", url]).output().unwrap();
    (output.status.code(), common::text(&output))
}

/// Hazard E1: a version with a known bug is named, and so is what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_members_versions_and_their_bugs_on_etcd() {
    let place = Place::etcd().await;
    let old = SharedEtcd::get(Version::Etcd34).await.unwrap().endpoint();
    let (code, said) = doctor(&format!("etcd://{},127.0.0.1:1/doctor", place.endpoint));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains(&format!("ok       member {}: etcd 3.5.", place.endpoint)), "{said}");
    assert!(said.contains("leads its cluster"), "{said}");
    assert!(said.contains("problem  member 127.0.0.1:1: "), "{said}");
    for subject in ["quorum", "session", "entry"] {
        assert!(said.contains(&format!("ok       {subject}: ")), "{said}");
    }
    let (code, said) = doctor(&format!("etcd://{old}/doctor"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("warning  member {old}: etcd 3.4.")), "{said}");
    assert!(said.contains("etcd-io/etcd#15247") && said.contains("to do: update it to 3.4.31"), "{said}");
    let (code, said) = doctor(&format!("etcd://{}/doctor?ttl=1s", place.endpoint));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning  session: ") && said.contains("to do: ask for ttl=2s"), "{said}");
    let left = Stage::on(format!("etcd://{}/doctor", place.endpoint));
    assert_eq!(left.candidates(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_servers_and_what_they_grant_on_zookeeper() {
    let place = Place::zookeeper().await;
    let (code, said) = doctor(&format!("zookeeper://{}/doctor?ttl=10s", place.endpoint));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("warning  server {}: ZooKeeper 3.9.", place.endpoint)), "{said}");
    assert!(said.contains("standalone, gave a session in"), "{said}");
    assert!(said.contains("ok       session: ") && said.contains("ok       entry: "), "{said}");
    let (code, said) = doctor(&format!("zookeeper://{}/doctor?ttl=30m", place.endpoint));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("problem  session: ") && said.contains("min_ttl"), "{said}");
}
