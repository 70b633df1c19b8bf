//! What the dependencies may be: which come with which features, their licences and sources, and known advisories.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    shell::{cargo, output, output_within, root, run, say},
    tools,
};

/// The crates that need a protobuf compiler to build.
const PROTOC: &[&str] = &["prost-build", "tonic-build", "tonic-prost-build"];
/// What speaks TLS.
const TLS: &[&str] = &["rustls", "tokio-rustls", "futures-rustls", "rustls-webpki", "aws-lc-rs"];
/// The crypto providers that are not ours, and TLS by a library of the system's.
const OTHER_TLS: &[&str] = &["ring", "openssl", "openssl-sys", "native-tls", "boring-sys", "mbedtls"];
/// The backends, each with its client.
const ETCD: &[&str] = &["tenure-etcd", "etcd-client", "tonic"];
const ZOOKEEPER: &[&str] = &["tenure-zookeeper", "zookeeper-client"];
const POSTGRES: &[&str] = &["tenure-postgres", "tokio-postgres"];
const CONSUL: &[&str] = &["tenure-consul", "reqwest"];
/// The recipe of several backends.
const CAS: &[&str] = &["tenure-cas"];
const KUBERNETES: &[&str] = &["tenure-kubernetes", "kube", "k8s-openapi"];
const NATS: &[&str] = &["tenure-nats", "async-nats"];
const S3: &[&str] = &["tenure-s3", "object_store"];
const MYSQL: &[&str] = &["tenure-mysql", "mysql_async"];
const REDIS: &[&str] = &["tenure-redis", "redis"];
const LOCAL: &[&str] = &["tenure-local", "inotify"];
const AXUM: &[&str] = &["tenure-axum", "axum"];

/// What a choice of the facade's features brings, and what it must not.
struct Choice {
    features: &'static str,
    with: &'static [&'static str],
    without: &'static [&'static [&'static str]],
}

/// Each feature by itself brings its own and nobody else's, and TLS comes when it is asked for.
const CHOICES: [Choice; 18] = [
    Choice {
        features: "default",
        with: &["tenure-local"],
        without: &[
            PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, AXUM,
        ],
    },
    Choice {
        features: "",
        with: &["tenure-mmap"],
        without: &[
            PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, LOCAL,
            AXUM,
        ],
    },
    Choice {
        features: "memory",
        with: &[],
        without: &[
            PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, LOCAL,
            AXUM,
        ],
    },
    Choice {
        features: "local",
        with: &["tenure-local"],
        without: &[
            PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, AXUM,
        ],
    },
    // tonic has axum for its servers.
    Choice {
        features: "etcd",
        with: &["etcd-client"],
        without: &[TLS, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, LOCAL],
    },
    Choice {
        features: "zookeeper",
        with: &["zookeeper-client"],
        without: &[PROTOC, TLS, ETCD, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, LOCAL, AXUM],
    },
    Choice {
        features: "postgres",
        with: &["tokio-postgres"],
        without: &[PROTOC, TLS, ETCD, ZOOKEEPER, CONSUL, REDIS, KUBERNETES, NATS, S3, MYSQL, LOCAL, AXUM],
    },
    Choice {
        features: "redis",
        with: &["redis"],
        without: &[PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, KUBERNETES, NATS, S3, MYSQL, LOCAL, AXUM],
    },
    Choice {
        features: "consul",
        with: &["reqwest"],
        without: &[PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, REDIS, KUBERNETES, NATS, S3, MYSQL, LOCAL, AXUM],
    },
    // An API server always speaks TLS.
    Choice {
        features: "kubernetes",
        with: &["kube", "rustls", "aws-lc-rs"],
        without: &[PROTOC, ETCD, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, NATS, S3, MYSQL, LOCAL, AXUM],
    },
    // The clients of NATS and of S3 cannot be built without rustls.
    Choice {
        features: "nats",
        with: &["async-nats", "rustls", "aws-lc-rs"],
        without: &[PROTOC, ETCD, ZOOKEEPER, POSTGRES, CONSUL, KUBERNETES, S3, MYSQL, LOCAL, AXUM],
    },
    Choice {
        features: "s3",
        with: &["object_store", "rustls", "aws-lc-rs"],
        without: &[PROTOC, ETCD, ZOOKEEPER, POSTGRES, KUBERNETES, NATS, MYSQL, LOCAL, AXUM],
    },
    Choice {
        features: "mysql",
        with: &["mysql_async"],
        without: &[PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, KUBERNETES, NATS, S3, LOCAL, AXUM],
    },
    Choice {
        features: "mysql,tls",
        with: &["mysql_async", "aws-lc-rs", "rustls"],
        without: &[PROTOC, ETCD, ZOOKEEPER, POSTGRES, CONSUL, KUBERNETES, NATS, S3, LOCAL, AXUM],
    },
    Choice {
        features: "axum",
        with: &["axum"],
        without: &[
            PROTOC, TLS, ETCD, ZOOKEEPER, POSTGRES, CONSUL, REDIS, CAS, KUBERNETES, NATS, S3, MYSQL, LOCAL,
        ],
    },
    Choice {
        features: "zookeeper,tls",
        with: &["aws-lc-rs", "rustls"],
        without: &[PROTOC, ETCD, LOCAL, AXUM],
    },
    Choice {
        features: "consul,tls",
        with: &["aws-lc-rs", "rustls", "reqwest"],
        without: &[PROTOC, ETCD, ZOOKEEPER, POSTGRES, KUBERNETES, LOCAL, AXUM],
    },
    Choice { features: "etcd,zookeeper,tls", with: &["aws-lc-rs", "rustls"], without: &[LOCAL] },
];

/// The time limit for fetching the advisory database.
const ADVISORY_TIMEOUT: Duration = Duration::from_secs(120);

/// Checks all of it.
///
/// # Errors
/// When a rule is broken; the error names the crate.
pub(crate) fn check() -> Result<()> {
    CHOICES.iter().try_for_each(check_choice)?;
    say("each feature brings what it needs, and no more; default features need no protobuf compiler");
    one_crypto_provider()?;
    tools::ensure_for_dependencies()?;
    for manifest in MANIFESTS {
        run(deny(manifest)?.args(["check", "bans", "licenses", "sources"]))
            .context("see deny.toml for the rules")?;
    }
    advisories()
}

fn check_choice(choice: &Choice) -> Result<()> {
    let chosen = ["--package=tenure", "--no-default-features", "--features", choice.features];
    let shape = ["--edges=normal,build", "--target=all", "--prefix=none"];
    let tree = output(cargo(["tree"]).args(chosen).args(shape))?;
    judge(choice, &tree)
}

/// Whether `tree`, a crate a line, is as the choice has to have it.
fn judge(Choice { features, with, without }: &Choice, tree: &str) -> Result<()> {
    let why =
        |name: &str| format!("`cargo tree -p tenure --no-default-features -F \"{features}\" -i {name}`");
    for name in without.iter().copied().chain([OTHER_TLS]).flatten() {
        let found = versions(tree, name);
        ensure!(found.is_empty(), "tenure's features {features:?} bring {name}: see {}", why(name));
    }
    for name in *with {
        let found = versions(tree, name);
        ensure!(
            found.len() == 1,
            "tenure's features {features:?} bring {name} {} times, not once: see {}",
            found.len(),
            why(name)
        );
    }
    Ok(())
}

/// With two of them in one process rustls panics when it chooses (docs/assurance/hazards.md, Z17).
fn one_crypto_provider() -> Result<()> {
    let tree = output(&mut cargo([
        "tree",
        "--workspace",
        "--all-features",
        "--edges=normal,build,dev",
        "--prefix=none",
    ]))?;
    ensure!(versions(&tree, "aws-lc-rs").len() == 1, "rustls has no crypto provider, or two versions of it");
    for name in OTHER_TLS {
        ensure!(
            versions(&tree, name).is_empty(),
            "rustls has another crypto provider: `cargo tree --workspace --all-features -i {name}`"
        );
    }
    say("there is one crypto provider");
    Ok(())
}

/// The versions of a crate in a tree of which each line is `name vVERSION …`.
fn versions<'a>(tree: &'a str, name: &str) -> Vec<&'a str> {
    let mut found: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split_once(' ').filter(|(found, _)| *found == name))
        .filter_map(|(_, rest)| rest.split(' ').next())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The workspace, and that of the fuzz targets, to which the same applies.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "tests/fuzz/Cargo.toml"];

fn deny(manifest: &str) -> Result<Command> {
    let mut deny = cargo(["deny", "--all-features", "--config", "deny.toml", "--manifest-path", manifest]);
    deny.current_dir(root()?);
    Ok(deny)
}

/// Known advisories. Whether their database could be fetched is asked first and by itself, so that an
/// advisory is never taken for a missing network, nor the other way round.
fn advisories() -> Result<()> {
    if let Err(error) = output_within(deny("Cargo.toml")?.args(["fetch", "db"]), ADVISORY_TIMEOUT) {
        say(format!("{error:#}"));
        say("ADVISORIES ARE NOT CHECKED: their database cannot be fetched from here. Before a release run");
        say("  `cargo xtask check` where https://github.com/RustSec/advisory-db can be reached");
        return Ok(());
    }
    for manifest in MANIFESTS {
        run(deny(manifest)?.args(["check", "advisories"]))
            .context("a dependency has an advisory or was yanked (see above): update it")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICE: Choice = Choice { features: "etcd", with: &["etcd-client"], without: &[TLS] };

    fn refused(tree: &str) -> String {
        judge(&CHOICE, tree).unwrap_err().to_string()
    }

    #[test]
    fn a_tree_has_what_is_asked_for_once_and_nothing_else() {
        judge(
            &CHOICE,
            "tenure v0.1.0 (/a b)\netcd-client v0.21.1\netcd-client v0.21.1 (*)\nring-like v1.0.0",
        )
        .unwrap();
        for (tree, said) in [
            ("tenure v0.1.0", "bring etcd-client 0 times"),
            ("etcd-client v1.0.0\netcd-client v2.0.0", "bring etcd-client 2 times"),
            ("etcd-client v1.0.0\nrustls v0.23.0", "bring rustls: see `cargo tree"),
            ("etcd-client v1.0.0\nring v0.17.0", "bring ring: see"),
        ] {
            assert!(refused(tree).contains(said), "{}", refused(tree));
        }
    }
}
