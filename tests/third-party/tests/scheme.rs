//! A program that uses the backend by its scheme.

use tenure::{Registry, Settings};

fn registry() -> Registry {
    let mut registry = Registry::builtin();
    registry.register("acme", acme_store::open).unwrap();
    registry
}

async fn refusal(url: &str) -> String {
    registry().connect(url).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_program_connects_by_the_scheme() {
    let registry = registry();
    let one = registry.connect("acme:billing?ttl=5s&id=one").await.unwrap();
    let two = Settings::new("acme:billing", "e").connect_in(&registry).await.unwrap();
    let leadership = one.campaign("e").await.unwrap();
    assert_eq!(two.leader("e").await.unwrap().unwrap().id, "one");
    assert!(two.try_campaign("e").await.unwrap().is_none());
    let (next, resigned) = tokio::join!(two.campaign("e"), leadership.resign());
    resigned.unwrap();
    next.unwrap().resign().await.unwrap();
    // The built-in schemes are still there.
    registry.connect("memory:").await.unwrap();
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_what_is_allowed() {
    for (url, expected) in [
        ("acme:", "it has a host or no name; give acme:NAME"),
        ("acme://host/x", "it has a host or no name; give acme:NAME"),
        ("acme:x?delay=1s", "unknown setting delay; allowed are candidate, "),
        ("acme:x?ttl=1ms", "it must be from 1s to 1day"),
        ("acne:x", "there is no store \"acne\"; did you mean acme:? use memory:, local:, etcd:"),
    ] {
        let refused = refusal(url).await;
        assert!(refused.contains(expected), "{url}: {refused}");
    }
    let refused = registry().register("acme", acme_store::open).unwrap_err().to_string();
    assert!(refused.contains("\"acme\" cannot be registered: it is registered already"), "{refused}");
    // Other registries do not have the scheme.
    assert!(tenure::connect("acme:x").await.is_err());
}
