//! `cargo xtask check`: all that can be said without running a test.

use anyhow::{Context, Result, ensure};

use crate::{
    metadata::Metadata,
    shell::{cargo, output, run, say},
    tools,
};

/// What others depend on: held to the stated Rust version.
const LIBRARIES: [&str; 7] = [
    "tenure",
    "tenure-axum",
    "tenure-core",
    "tenure-etcd",
    "tenure-local",
    "tenure-testkit",
    "tenure-zookeeper",
];
/// What may not be among the facade's default dependencies: it needs protoc to build.
const NEEDS_PROTOC: [&str; 4] = ["etcd-client", "prost-build", "tonic-build", "tonic-prost-build"];

/// Runs every check, to the first that fails.
///
/// # Errors
/// When one fails.
pub(crate) fn run_all() -> Result<()> {
    tools::ensure_for_build()?;
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))?;
    run(cargo(["doc", "--workspace", "--no-deps", "--all-features"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    let metadata = Metadata::load()?;
    each_feature_alone(&metadata)?;
    default_needs_no_protoc()?;
    one_crypto_provider()?;
    dependencies_keep_to_the_rust_version(&metadata)?;
    cargo_deny()
}

fn each_feature_alone(metadata: &Metadata) -> Result<()> {
    for package in
        ["tenure", "tenure-core", "tenure-testkit", "tenure-etcd", "tenure-zookeeper", "tenure-cli"]
    {
        let lint = |features: &str| {
            let chosen = ["--package", package, "--no-default-features", "--features", features];
            run(cargo(["clippy", "--quiet"]).args(chosen).args(["--", "-D", "warnings"]))
        };
        lint("")?;
        for feature in metadata.features(package)? {
            lint(&feature)?;
        }
    }
    Ok(())
}

fn default_needs_no_protoc() -> Result<()> {
    let tree = output(&mut cargo(["tree", "--package=tenure", "--edges=normal,build", "--prefix=none"]))?;
    let found: Vec<_> = tree
        .lines()
        .filter(|line| line.split(' ').next().is_some_and(|name| NEEDS_PROTOC.contains(&name)))
        .collect();
    ensure!(found.is_empty(), "tenure's default features need protoc, by {}", found.join(", "));
    say("tenure's default features need no protoc");
    Ok(())
}

/// With two of them in one process rustls panics when it chooses (docs/hazards.md, Z17).
fn one_crypto_provider() -> Result<()> {
    let tree = output(&mut cargo(["tree", "--workspace", "--all-features", "--edges=all", "--prefix=none"]))?;
    let has = |name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    ensure!(has("aws-lc-rs"), "rustls has no crypto provider");
    ensure!(!has("ring"), "rustls has two crypto providers: `cargo tree --workspace --all-features -i ring`");
    say("there is one crypto provider");
    Ok(())
}

fn dependencies_keep_to_the_rust_version(metadata: &Metadata) -> Result<()> {
    for library in LIBRARIES {
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

/// The advisories are left out: their database comes from a place that not every machine reaches.
fn cargo_deny() -> Result<()> {
    if output(&mut cargo(["deny", "--version"])).is_err() {
        say(
            "cargo-deny is not installed: licences and sources are NOT checked (`cargo install --locked cargo-deny`)",
        );
        return Ok(());
    }
    run(&mut cargo(["deny", "--all-features", "check", "bans", "licenses", "sources"]))
        .context("see deny.toml for the rules")
}
