//! The programs that the build and the tests need, installed when they are missing.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{
    apt, docker,
    shell::{self, cargo, command, exists, output, run, say, target},
};

/// Where the tools that only the build needs are installed, under the target directory.
const TOOLS: &str = "tools";

/// How tools are compiled: they run for seconds, and the link-time optimization that some of them ask for takes minutes.
const TOOL_PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
];

/// Makes sure of a protobuf compiler, which the build of etcd's client needs: the one that `PROTOC` names, or `protoc`
/// itself, which is installed where that is possible, or protox, a compiler in Rust, which is built and named to every
/// command that this process starts. The C compiler for SQLite and aws-lc is there already, for Rust links with it.
///
/// # Errors
/// When protox cannot be built.
pub(crate) fn ensure_for_build() -> Result<()> {
    let named = std::env::var("PROTOC").ok();
    if named.is_some_and(|compiler| compiles_protocols(&compiler)) || compiles_protocols("protoc") {
        return Ok(());
    }
    let folder = std::path::absolute(target())?.join(TOOLS);
    let protox = folder.join("bin").join("protox").display().to_string();
    if !compiles_protocols(&protox) {
        let packages = ["protobuf-compiler", "libprotobuf-dev"];
        let installed: Result<()> =
            packages.iter().try_for_each(|package| apt::install(package, "a protobuf compiler"));
        if installed.is_ok() && compiles_protocols("protoc") {
            return Ok(());
        }
        say("no protobuf compiler is here: building protox, which takes a minute");
        run(install("protox")?.args(["--features", "bin", "--root"]).arg(&folder))
            .context("cannot build protox: install protoc, or name a protobuf compiler in PROTOC")?;
        ensure!(compiles_protocols(&protox), "protox was built but does not compile a file");
    }
    shell::use_protobuf_compiler(protox);
    Ok(())
}

/// Whether this compiler finds protobuf's own definitions, which etcd's protocol includes.
fn compiles_protocols(compiler: &str) -> bool {
    let Ok(folder) = tempfile::tempdir() else { return false };
    let probe = folder.path().join("probe.proto");
    let text = "syntax = \"proto3\";\nimport \"google/protobuf/descriptor.proto\";\n";
    std::fs::write(&probe, text).is_ok()
        && output(
            command(compiler, ["probe.proto", "--descriptor_set_out=probe.bin"]).current_dir(folder.path()),
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
        apt::install("python3", "python3, in which tests have a client of the sidecar and other programs,")?;
    }
    if output(&mut command("python3", ["-c", "import openapi_spec_validator"])).is_err() {
        let purpose = "openapi-spec-validator, with which the sidecar's interface is checked,";
        apt::install("python3-openapi-spec-validator", purpose)?;
    }
    if !exists("curl") {
        apt::install("curl", "curl, with which the sidecar's client in shell is tested,")?;
    }
    if !exists("promtool") {
        apt::install("prometheus", "Prometheus, with which the alert rules and the dashboard are tested,")?;
    }
    if !exists("bindfs") {
        apt::install("bindfs", "bindfs, with which a test mounts a directory twice over FUSE,")?;
    }
    for (program, package) in [("chromium", "chromium"), ("chromedriver", "chromium-driver")] {
        if !exists(program) {
            apt::install(package, &format!("{program}, with which the sidecar's web page is tested,"))?;
        }
    }
    docker::ensure()?;
    ensure_for_packages()?;
    ensure_installed("nextest")
}

/// What a Debian package is made with.
///
/// # Errors
/// When it is missing and cannot be installed here.
pub(crate) fn ensure_for_packages() -> Result<()> {
    if !exists("dpkg-shlibdeps") {
        apt::install("dpkg-dev", "dpkg-shlibdeps, which finds the libraries that a package depends on,")?;
    }
    ensure_installed("deb")
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
    run(&mut install(&package)?).with_context(|| format!("{package} is missing: install it by hand"))?;
    ensure!(serves(), "{package} was installed but is not found: put cargo's bin directory into PATH");
    Ok(())
}

/// The command that builds a tool from its source. Tools share what they depend on.
fn install(package: &str) -> Result<Command> {
    let mut install = cargo(["install", "--locked", package]);
    let shared = std::path::absolute(target())?.join(TOOLS).join("build");
    install.envs(TOOL_PROFILE).env("CARGO_TARGET_DIR", shared);
    Ok(install)
}
