//! The programs that the build and the tests need, installed when they are missing.

use anyhow::{Context, Result, ensure};

use crate::{
    apt, docker,
    shell::{cargo, command, exists, output, run, say},
};

/// What the build of all packages needs: protoc, for etcd's protocol. The C compiler
/// for SQLite and aws-lc is there already, for Rust links with it.
///
/// # Errors
/// When something is missing that cannot be installed here.
pub(crate) fn ensure_for_build() -> Result<()> {
    if protoc_serves() {
        return Ok(());
    }
    // The second holds protobuf's own definitions, which the first only recommends.
    apt::install("protobuf-compiler", "protoc")?;
    apt::install("libprotobuf-dev", "what protoc includes")?;
    ensure!(
        protoc_serves(),
        "protoc cannot read google/protobuf/descriptor.proto: install protobuf whole, or name it in PROTOC"
    );
    Ok(())
}

/// Whether there is a protoc that finds protobuf's own definitions, as etcd's protocol needs.
fn protoc_serves() -> bool {
    let Ok(folder) = tempfile::tempdir() else { return false };
    let probe = folder.path().join("probe.proto");
    let text = "syntax = \"proto3\";\nimport \"google/protobuf/descriptor.proto\";\n";
    let protoc = std::env::var("PROTOC").unwrap_or_else(|_| "protoc".to_owned());
    std::fs::write(&probe, text).is_ok()
        && output(
            command(&protoc, ["probe.proto", "--descriptor_set_out=probe.bin"]).current_dir(folder.path()),
        )
        .is_ok()
}

/// What the tests need besides.
///
/// # Errors
/// When something is missing that cannot be installed here.
pub(crate) fn ensure_for_tests() -> Result<()> {
    if !exists("etcdctl") {
        apt::install("etcd-client", "etcdctl, against which elections are tested,")?;
    }
    if !exists("python3") {
        apt::install("python3", "python3, in which a test has a program whose main thread exits,")?;
    }
    docker::ensure()?;
    ensure_installed("nextest")
}

/// What fuzzing needs besides.
///
/// # Errors
/// When it is missing and cannot be installed here.
pub(crate) fn ensure_for_fuzzing() -> Result<()> {
    ensure_installed("fuzz")
}

/// What the dependencies' rules are checked with.
///
/// # Errors
/// When it is missing and cannot be installed here.
pub(crate) fn ensure_for_dependencies() -> Result<()> {
    ensure_installed("deny")
}

/// A command of cargo's, built here when it is missing.
fn ensure_installed(name: &str) -> Result<()> {
    let serves = || output(&mut cargo([name, "--version"])).is_ok();
    if serves() {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    say(format!("{package} is missing: building it, which takes some minutes"));
    run(&mut cargo(["install", "--locked", &package]))
        .with_context(|| format!("{package} is missing: install it by hand"))?;
    ensure!(serves(), "{package} was installed but is not found: put cargo's bin directory into PATH");
    Ok(())
}
