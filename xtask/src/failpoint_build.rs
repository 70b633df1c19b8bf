//! Builds with failpoints, in which safety rules can be disabled.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    shell::{cargo, run, target},
    tools,
};

/// The setting with which a build has failpoints.
const FAILPOINTS: &str = "tenure_mutants";

/// Builds a program with failpoints in a target directory of its own, and returns its path. With `tokio_unstable`, tokio takes its
/// random choices from a seed.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn build(package: &str) -> Result<PathBuf> {
    tools::ensure_for_build()?;
    let mut build = cargo(["build", "--release", "--package", package]);
    run(with_failpoints(&mut build, None)?)?;
    Ok(target_dir()?.join("release").join(package))
}

/// Builds the program `name` with failpoints, of the dependencies that the tests have compiled. Only the packages of this workspace are optimized.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn build_beside_tests(name: &str) -> Result<PathBuf> {
    tools::ensure_for_build()?;
    let mut build = cargo(["build", "--workspace", "--all-features", "--bin", name]);
    for setting in ["profile.dev.opt-level=2", "profile.dev.package.'*'.opt-level=0"] {
        build.args(["--config", setting]);
    }
    let wrapper = wrapper(&target_dir()?, &[FAILPOINTS.to_owned()])?;
    run(build.env("RUSTC_WORKSPACE_WRAPPER", wrapper))?;
    // Moved, because an ordinary build would replace it while it runs; and so that nothing else takes it for an ordinary build.
    let built = target_dir()?.join(name);
    fs::rename(target().join("debug").join(name), &built)
        .with_context(|| format!("cannot move {name} to {}", built.display()))?;
    Ok(built)
}

/// Lets a command of cargo's build with failpoints and, if one is named, with a checker of races.
///
/// Only the packages of this workspace are compiled with these settings: their dependencies are built once, whatever is checked.
///
/// # Errors
/// When the compiler's wrapper cannot be written.
pub(crate) fn with_failpoints<'a>(cargo: &'a mut Command, checker: Option<&str>) -> Result<&'a mut Command> {
    let target = target_dir()?;
    let settings: Vec<_> = checker.map(|checker| format!("tenure_{checker}")).into_iter().collect();
    let wrapper = wrapper(&target, &[settings, vec![FAILPOINTS.to_owned()]].concat())?;
    Ok(cargo
        .env("RUSTFLAGS", "--cfg tokio_unstable")
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper)
        .env("CARGO_TARGET_DIR", target))
}

fn target_dir() -> Result<PathBuf> {
    Ok(std::path::absolute(target())?.join("sim"))
}

/// A program that runs the compiler with these settings. cargo compiles anew what another wrapper has compiled.
fn wrapper(target: &Path, settings: &[String]) -> Result<PathBuf> {
    let path = target.join(format!("rustc-with-{}", settings.join("-")));
    let flags: Vec<_> = settings.iter().map(|setting| format!("--cfg {setting}")).collect();
    let script = format!("#!/bin/sh\nexec \"$@\" {}\n", flags.join(" "));
    if fs::read_to_string(&path).is_ok_and(|found| found == script) {
        return Ok(path);
    }
    let write = || {
        fs::create_dir_all(target)?;
        fs::write(&path, &script)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
