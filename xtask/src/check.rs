//! `cargo xtask check`: all that can be said without running a test.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::{
    dependencies, lints,
    metadata::Metadata,
    shell::{cargo, root, run, say},
    tools,
};

/// The published packages.
const PUBLISHED: [&str; 17] = [
    "tenure-mmap",
    "tenure-core",
    "tenure-etcd",
    "tenure-local",
    "tenure-zookeeper",
    "tenure-cas",
    "tenure-postgres",
    "tenure-consul",
    "tenure-kubernetes",
    "tenure-nats",
    "tenure-s3",
    "tenure-mysql",
    "tenure-redis",
    "tenure-axum",
    "tenure-testkit",
    "tenure",
    "tenure-cli",
];

/// Runs every check, to the first that fails.
///
/// # Errors
/// When one fails.
pub(crate) fn run_all() -> Result<()> {
    tools::ensure_for_build()?;
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    // Workspaces of their own, with the same rules.
    for manifest in ["--manifest-path=tests/fuzz/Cargo.toml", "--manifest-path=tests/third-party/Cargo.toml"]
    {
        let format = ["fmt", manifest, "--", "--check", "--config-path=rustfmt.toml"];
        run(cargo(format).current_dir(root()?))?;
    }
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))?;
    run(cargo(["doc", "--workspace", "--no-deps", "--all-features"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    let metadata = Metadata::load()?;
    lints::check(&metadata)?;
    dependencies_keep_to_the_rust_version(&metadata)?;
    manifests_are_complete(&metadata)?;
    dependencies::check()
}

/// Checks each feature without the others, packs every published package, in the order of their dependencies, and builds each from what was
/// packed. It compiles the dependencies many times over, so that it is a command of its own.
///
/// # Errors
/// When a feature or a package does not compile.
pub(crate) fn publishable() -> Result<()> {
    tools::ensure_for_build()?;
    let metadata = Metadata::load()?;
    each_feature_alone(&metadata)?;
    manifests_are_complete(&metadata)?;
    let mut pack = cargo(["package", "--quiet", "--allow-dirty"]);
    pack.args(PUBLISHED.iter().flat_map(|package| ["--package", package]));
    run(&mut pack)
}

/// Checks that every published package is in the list here, and has what publishing needs.
fn manifests_are_complete(metadata: &Metadata) -> Result<()> {
    let published = metadata.published();
    ensure!(
        published == BTreeSet::from(PUBLISHED),
        "the published packages are {published:?}, but the list here says {PUBLISHED:?}"
    );
    for package in PUBLISHED {
        let missing = metadata.missing_for_publishing(package)?;
        ensure!(missing.is_empty(), "the manifest or folder of {package} lacks {}", missing.join(", "));
    }
    Ok(())
}

fn each_feature_alone(metadata: &Metadata) -> Result<()> {
    for package in PUBLISHED {
        let lint = |features: &str| {
            let chosen = ["--package", package, "--no-default-features", "--features", features];
            run(cargo(["clippy", "--quiet"]).args(chosen).args(["--", "-D", "warnings"]))
        };
        // Without its feature this one leaves the version of Kubernetes' API to the program, and does not compile by itself.
        if package != "tenure-kubernetes" {
            lint("")?;
        }
        for feature in metadata.features(package)? {
            lint(&feature)?;
        }
    }
    Ok(())
}

fn dependencies_keep_to_the_rust_version(metadata: &Metadata) -> Result<()> {
    for library in PUBLISHED {
        let stated = metadata.rust_version(library)?;
        let too_new = metadata.too_new_for(library, stated)?;
        ensure!(
            too_new.is_empty(),
            "{library} states Rust {stated}, but {}; choose an older version of it, or state a newer Rust",
            too_new.join(", ")
        );
    }
    say("no dependency of the libraries needs a newer Rust than they state");
    Ok(())
}
