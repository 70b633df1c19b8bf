//! `cargo xtask test`: everything that the tests need, and then the tests.

use std::thread;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    catalog::IMAGES,
    images,
    servers::{Servers, remove_leftovers},
    shell::{cargo, run},
    tools,
};

/// What to test: everything, unless a choice is made. The documentation's examples are
/// run with everything only.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this package's tests; may be given again
    #[arg(long = "package", short)]
    packages: Vec<String>,
    /// Passed on to `cargo nextest run`, to choose tests
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// Runs the tests.
///
/// # Errors
/// When something is missing that cannot be installed here, or a test fails.
pub(crate) fn test(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    tools::ensure_for_tests()?;
    let tests = || {
        let mut tests = cargo(["nextest", "run", "--all-features"]);
        tests.args(options.packages.is_empty().then_some("--workspace"));
        tests.args(options.packages.iter().flat_map(|package| ["--package", package]));
        tests
    };
    // Making images is mostly fetching and unpacking: meanwhile the tests are compiled.
    thread::scope(|scope| {
        let images = scope.spawn(|| images::ensure(&IMAGES));
        let compiled = run(tests().arg("--no-run"));
        images.join().unwrap_or_else(|_| bail!("making the images has panicked"))?;
        compiled
    })?;
    remove_leftovers();
    let servers = Servers::start(&IMAGES)?;
    let tested = run(servers.announce_to(tests().args(&options.nextest)));
    if !options.packages.is_empty() || !options.nextest.is_empty() {
        return tested;
    }
    let mut examples = cargo(["test", "--doc", "--workspace", "--all-features", "--quiet"]);
    let documented = run(servers.announce_to(&mut examples));
    tested.and(documented)
}

/// Writes what the command prints under real faults into `docs/guide/troubleshooting.md`.
///
/// # Errors
/// When something is missing that cannot be installed here, or a fault does not show what it should.
pub(crate) fn write_transcripts() -> Result<()> {
    tools::ensure_for_build()?;
    tools::ensure_for_tests()?;
    images::ensure(&IMAGES)?;
    let servers = Servers::start(&IMAGES)?;
    // One at a time: all write the same page.
    let mut tests = cargo(["nextest", "run", "--all-features", "--workspace", "--test-threads=1", "-E"]);
    tests.arg("package(tenure-cli) and binary(transcripts)").env("TENURE_WRITE_TRANSCRIPTS", "1");
    run(servers.announce_to(&mut tests))
}
