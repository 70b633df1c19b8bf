//! Builds programs with failpoints, in which safety rules can be disabled.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    shell::{cargo, run, target},
    tools,
};

/// Builds a program with failpoints in a target directory of its own, and returns its path. With `tokio_unstable`, tokio takes its
/// random choices from a seed.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn build(package: &str) -> Result<PathBuf> {
    build_program(package, package, &[])
}

/// Builds the program `name` of a package, as [`build`] does, with further arguments for cargo.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn build_program(package: &str, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    tools::ensure_for_build()?;
    let target = target();
    let target = std::path::absolute(target)?.join("sim");
    let mut build = cargo(["build", "--release", "--package", package]);
    build
        .args(arguments)
        .env("RUSTFLAGS", "--cfg tokio_unstable --cfg tenure_mutants")
        .env("CARGO_TARGET_DIR", &target);
    run(&mut build)?;
    Ok(target.join("release").join(name))
}
