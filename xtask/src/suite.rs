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
    let mut chosen: Vec<_> = options.packages.iter().flat_map(|package| ["--package", package]).collect();
    if chosen.is_empty() {
        chosen.push("--workspace");
    }
    // Tools and images come over the network, while compiling keeps the processors busy.
    thread::scope(|scope| {
        let prepared = scope.spawn(|| tools::ensure_for_tests().and_then(|()| images::ensure(&IMAGES)));
        run(cargo(["test", "--no-run", "--quiet", "--all-features"]).args(&chosen))?;
        prepared.join().unwrap_or_else(|_| bail!("installing what the tests need has panicked"))
    })?;
    remove_leftovers();
    let servers = Servers::start(&IMAGES)?;

    let mut tests = cargo(["nextest", "run", "--all-features"]);
    tests.args(&chosen);
    let tested = run(servers.announce_to(&mut tests).args(&options.nextest));
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
