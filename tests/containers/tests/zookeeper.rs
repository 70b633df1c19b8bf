//! ZooKeeper servers of every version are started and administered; faults are injected and healed.

use tenure_containers::{CreateMode, SharedZookeeper, Version, ZookeeperEnsemble, ZookeeperServer};

#[tokio::test]
async fn a_shared_server_shows_its_znodes_and_ends_sessions() {
    for version in Version::ZOOKEEPER {
        let server = SharedZookeeper::get(version).await.unwrap();
        let admin = server.admin();
        let root = format!("/testkit-{:016x}", fastrand::u64(..));
        admin.create(&format!("{root}/a/b"), "text").await.unwrap();
        assert!(admin.create(&format!("{root}/a/b"), "").await.is_err(), "it exists");
        assert_eq!(admin.get(&format!("{root}/a/b")).await.unwrap().unwrap().data, b"text");
        assert_eq!(admin.get(&format!("{root}/c")).await.unwrap(), None);

        let mut session = admin.session().await.unwrap();
        let path = session.create(&format!("{root}/n-"), "", CreateMode::EphemeralSequential).await.unwrap();
        let owner = admin.get(&path).await.unwrap().unwrap().owner;
        assert_eq!(owner, session.id());
        assert!(admin.sessions().await.unwrap().contains(&owner));
        let mut tree = admin.tree(&root).await.unwrap();
        tree.sort();
        assert_eq!(tree, [format!("{root}/a"), format!("{root}/a/b"), path.clone()]);

        // The operator ends the session.
        admin.expire_session(owner).await.unwrap();
        assert_eq!(admin.get(&path).await.unwrap(), None);
        assert!(!admin.sessions().await.unwrap().contains(&owner));
        assert!(session.check_alive().await.is_err());
        assert!(admin.expire_session(owner).await.is_err(), "there is no such session");
        admin.set(&format!("{root}/a"), "replaced").await.unwrap();
        let replaced = admin.get(&format!("{root}/a")).await.unwrap().unwrap();
        assert_eq!((replaced.data.as_slice(), replaced.version, replaced.children), (&b"replaced"[..], 1, 1));
        assert!(admin.set(&format!("{root}/c"), "").await.is_err(), "there is no such znode");
        assert!(admin.delete(&format!("{root}/a/b")).await.unwrap());
        assert!(!admin.delete(&format!("{root}/a/b")).await.unwrap());
        assert_eq!(admin.delete_recursive(&root).await.unwrap(), 2);
        assert_eq!(admin.get(&root).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_server_recovers_from_faults_on_3_8() {
    recovers_from_faults(Version::Zookeeper38).await;
}

#[tokio::test]
async fn a_server_recovers_from_faults_on_3_9() {
    recovers_from_faults(Version::Zookeeper39).await;
}

async fn recovers_from_faults(version: Version) {
    let server = ZookeeperServer::start(version).await.unwrap();
    let endpoint = server.endpoint();
    server.admin().create("/kept", "").await.unwrap();
    for kill in [true, false] {
        let fault = if kill { server.kill().await } else { server.stop().await }.unwrap();
        assert!(server.admin().health().await.is_err());
        fault.heal().await.unwrap();
        assert!(server.admin().get("/kept").await.unwrap().is_some());
    }
    let frozen = server.pause().await.unwrap();
    assert!(server.admin().get("/kept").await.is_err());
    frozen.heal().await.unwrap();
    server.wipe().await.unwrap();
    assert_eq!(server.endpoint(), endpoint);
    assert_eq!(server.admin().get("/kept").await.unwrap(), None);
}

#[tokio::test]
async fn programs_run_beside_a_server() {
    let server = ZookeeperServer::start(Version::Zookeeper38).await.unwrap();
    let mut program = server.run(&["sh", "-c", "echo a word; exit 1"]).await.unwrap();
    assert_eq!(program.wait_for("a ").await.unwrap(), "word");
    let nothing = program.wait_for("nothing").await.unwrap_err().to_string();
    assert!(nothing.contains("ended without printing \"nothing\""), "{nothing}");
    assert!(program.kill().await.is_err(), "it has ended");
}

/// On both versions kazoo connects, and its session outlives it when it is killed.
#[tokio::test]
async fn kazoo_runs_beside_a_server_until_it_is_killed() {
    const HOLD: &str = "import time, kazoo.client as k\n\
        client = k.KazooClient('127.0.0.1:2181', timeout=60)\n\
        client.start(); client.create('/held', ephemeral=True); print('holds', flush=True)\n\
        time.sleep(600)";
    for version in Version::ZOOKEEPER {
        let server = ZookeeperServer::start(version).await.unwrap();
        let mut kazoo = server.run(&["python3", "-c", HOLD]).await.unwrap();
        kazoo.wait_for("holds").await.unwrap();
        let owner = server.admin().get("/held").await.unwrap().unwrap().owner;
        kazoo.kill().await.unwrap();
        assert!(server.admin().sessions().await.unwrap().contains(&owner), "it did not close its session");
        server.admin().expire_session(owner).await.unwrap();
        assert_eq!(server.admin().get("/held").await.unwrap(), None);
    }
}

/// The image of ZooKeeper 3.8 has Curator and compiles the program from its source.
#[tokio::test]
async fn a_java_program_with_curator_runs_beside_a_server() {
    const PROGRAM: &str = "import org.apache.curator.framework.recipes.leader.LeaderLatch;\n\
        public class Loaded { public static void main(String[] a) { System.out.println(LeaderLatch.class); } }";
    let server = ZookeeperServer::start(Version::Zookeeper38).await.unwrap();
    let script = "echo \"$0\" >/data/Loaded.java; exec java -cp '/usr/share/java/*' /data/Loaded.java";
    let mut loaded = server.run(&["sh", "-ec", script, PROGRAM]).await.unwrap();
    loaded.wait_for("class org.apache.curator.framework.recipes.leader.LeaderLatch").await.unwrap();
}

#[tokio::test]
async fn an_ensemble_elects_another_leader() {
    let ensemble = ZookeeperEnsemble::start(Version::Zookeeper39).await.unwrap();
    let leader = ensemble.leader().await.unwrap();
    let killed = ensemble.member(leader).kill().await.unwrap();
    let next = ensemble.successor_of(leader).await.unwrap();
    assert_ne!(leader, next);
    ensemble.member(next).admin().create("/written", "meanwhile").await.unwrap();
    killed.heal().await.unwrap();
    assert!(ensemble.member(leader).admin().get("/written").await.unwrap().is_some());

    // An isolated leader steps down, and its peers elect another.
    let leader = ensemble.leader().await.unwrap();
    let isolated = ensemble.isolate_from_peers(leader).await.unwrap();
    let next = ensemble.successor_of(leader).await.unwrap();
    ensemble.member(next).admin().create("/written-too", "").await.unwrap();
    let alone = ensemble.member(leader).admin();
    assert!(!alone.four_letter_command("srvr").await.unwrap().is_empty(), "its clients still reach it");
    // For a while it may still report that it leads.
    assert!(alone.health().await.is_err(), "it has no quorum");
    isolated.heal().await.unwrap();
    assert!(ensemble.member(leader).admin().get("/written-too").await.unwrap().is_some());
}
