//! ZooKeeper in containers: started, looked at, broken and mended.

use tenure_testkit::containers::{Lifetime, SharedZookeeper, Version, ZookeeperEnsemble, ZookeeperServer};

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
        let path = session.create(&format!("{root}/n-"), "", Lifetime::EphemeralSequential).await.unwrap();
        let owner = admin.get(&path).await.unwrap().unwrap().owner;
        assert_eq!(owner, session.id());
        assert!(admin.sessions().await.unwrap().contains(&owner));
        let mut tree = admin.tree(&root).await.unwrap();
        tree.sort();
        assert_eq!(tree, [format!("{root}/a"), format!("{root}/a/b"), path.clone()]);

        // Somebody else ends it.
        admin.expire_session(owner).await.unwrap();
        assert_eq!(admin.get(&path).await.unwrap(), None);
        assert!(!admin.sessions().await.unwrap().contains(&owner));
        assert!(session.look().await.is_err());
        assert!(admin.expire_session(owner).await.is_err(), "there is no such session");
        for path in [format!("{root}/a/b"), format!("{root}/a"), root] {
            assert!(admin.delete(&path).await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_server_of_ones_own_is_broken_and_mended() {
    let server = ZookeeperServer::start(Version::Zookeeper39).await.unwrap();
    server.admin().create("/kept", "").await.unwrap();
    let killed = server.kill().await.unwrap();
    assert!(server.admin().health().await.is_err());
    killed.heal().await.unwrap();
    assert!(server.admin().get("/kept").await.unwrap().is_some());
    let frozen = server.pause().await.unwrap();
    assert!(server.admin().get("/kept").await.is_err());
    frozen.heal().await.unwrap();
    server.wipe().await.unwrap();
    assert_eq!(server.admin().get("/kept").await.unwrap(), None);
}

#[tokio::test]
async fn programs_run_beside_a_server() {
    let server = ZookeeperServer::start(Version::Zookeeper38).await.unwrap();
    let kazoo = server.run(&["python3", "-c", "import kazoo.client; print('kazoo')"]).await.unwrap();
    assert_eq!(kazoo.output().await, ["kazoo"]);
    let curator = "/usr/share/java/curator-recipes.jar";
    let mut list = server.run(&["sh", "-c", &format!("ls {curator}; exit 1")]).await.unwrap();
    list.until(curator).await.unwrap();
    let nothing = list.until("nothing").await.unwrap_err().to_string();
    assert!(nothing.contains("ended without \"nothing\""), "{nothing}");
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

    // Cut off, the leader gives up, and its peers elect.
    let leader = ensemble.leader().await.unwrap();
    let cut_off = ensemble.cut_off(leader).await.unwrap();
    let next = ensemble.successor_of(leader).await.unwrap();
    ensemble.member(next).admin().create("/written-too", "").await.unwrap();
    cut_off.heal().await.unwrap();
    assert!(ensemble.member(leader).admin().get("/written-too").await.unwrap().is_some());
}
