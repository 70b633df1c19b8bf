//! The programs that the build and the tests need, installed when they are missing.

use anyhow::{Context, Result, ensure};

use crate::{
    apt, docker,
    shell::{cargo, exists, output, run, say},
};

/// What the build of all packages needs: protoc, for etcd's protocol. The C compiler
/// for SQLite and aws-lc is there already, for Rust links with it.
///
/// # Errors
/// When something is missing that cannot be installed here.
pub(crate) fn ensure_for_build() -> Result<()> {
    let given = std::env::var_os("PROTOC").is_some();
    if !given && !exists("protoc") {
        apt::install("protobuf-compiler", "protoc")?;
    }
    Ok(())
}

/// What the tests need besides.
///
/// # Errors
/// When something is missing that cannot be installed here.
pub(crate) fn ensure_for_tests() -> Result<()> {
    if !exists("etcdctl") {
        apt::install("etcd-client", "etcdctl, against which elections are tested,")?;
    }
    docker::ensure()?;
    if output(&mut cargo(["nextest", "--version"])).is_err() {
        say("cargo-nextest is missing: building it, which takes some minutes");
        run(&mut cargo(["install", "--locked", "cargo-nextest"]))
            .context("cargo-nextest is missing: install it by hand")?;
        ensure!(
            output(&mut cargo(["nextest", "--version"])).is_ok(),
            "cargo-nextest was installed but is not found: put cargo's bin directory into PATH"
        );
    }
    Ok(())
}
