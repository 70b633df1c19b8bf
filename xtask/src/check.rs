//! `cargo xtask check`: all that can be said without running a test.

use anyhow::{Result, ensure};

use crate::{
    dependencies, lints,
    metadata::Metadata,
    shell::{cargo, root, run, say},
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
/// Runs every check, to the first that fails.
///
/// # Errors
/// When one fails.
pub(crate) fn run_all() -> Result<()> {
    tools::ensure_for_build()?;
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    // A workspace of its own, with the same rules.
    let fuzz =
        ["fmt", "--manifest-path=tests/fuzz/Cargo.toml", "--", "--check", "--config-path=rustfmt.toml"];
    run(cargo(fuzz).current_dir(root()?))?;
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))?;
    run(cargo(["doc", "--workspace", "--no-deps", "--all-features"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    let metadata = Metadata::load()?;
    each_feature_alone(&metadata)?;
    lints::check(&metadata)?;
    dependencies_keep_to_the_rust_version(&metadata)?;
    dependencies::check()
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
