//! `cargo xtask races`: runs the engine's threads and tasks in every order (loom) or in many (shuttle), and checks that random
//! sequences of calls notice a disabled safety rule.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::{
    failpoint_build::with_failpoints,
    shell::{cargo, run, say},
};

/// How to report.
#[derive(Args)]
pub(crate) struct Options {
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// What was run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    tests: u64,
    schedules: u64,
    failed: u64,
}

/// Checks races with loom, and then with shuttle.
///
/// # Errors
/// When a schedule breaks a property, or a disabled rule goes unnoticed.
pub(crate) fn check(options: &Options) -> Result<()> {
    let mut all = Outcome::default();
    let mut seconds = 0.0;
    for checker in ["loom", "shuttle"] {
        build(checker)?;
        let start = Instant::now();
        let outcome = explore(checker)?;
        let took = start.elapsed().as_secs_f64();
        say(format!(
            "{checker}: {} tests, {} failed, {} schedules in {took:.1} s",
            outcome.tests, outcome.failed, outcome.schedules
        ));
        all = Outcome {
            tests: all.tests + outcome.tests,
            schedules: all.schedules + outcome.schedules,
            failed: all.failed + outcome.failed,
        };
        seconds += took;
    }
    if options.json {
        let Outcome { tests, schedules, failed } = all;
        let seconds = (seconds * 10.0).round() / 10.0;
        println!(
            "{}",
            json!({ "tests": tests, "schedules": schedules, "failed": failed, "seconds": seconds })
        );
    }
    ensure!(all.failed == 0, "{} of {} tests failed", all.failed, all.tests);
    Ok(())
}

/// The tests, built with the checker's primitives and with failpoints.
fn tests(checker: &str) -> Result<Command> {
    let mut tests = cargo(["test", "--release", "--package", "tenure-core", "--lib"]);
    // These need failpoints but no checker.
    let others = ["--test", "engine", "--test", "applications"];
    tests.args((checker == "shuttle").then_some(others).into_iter().flatten());
    with_failpoints(&mut tests, Some(checker))?;
    Ok(tests)
}

fn build(checker: &str) -> Result<()> {
    run(tests(checker)?.arg("--no-run"))
}

/// Runs the tests. Their output is shown only when one fails, because tests of disabled rules print failures of their own.
fn explore(checker: &str) -> Result<Outcome> {
    let mut tests = tests(checker)?;
    let output = tests
        .args([
            "--quiet",
            "--no-fail-fast",
            "--",
            "--show-output",
            "engine::concurrency_tests",
            "sequences::",
            "broken::",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        println!("{said}");
    }
    let outcome = read(&said)?;
    for line in said.lines().filter(|line| line.starts_with(SCHEDULES)) {
        say(line);
    }
    if outcome.failed == 0 && !output.status.success() {
        bail!("the tests ended before their time ({})", output.status);
    }
    Ok(outcome)
}

/// The beginning of the line in which a test reports its number of schedules.
const SCHEDULES: &str = "races: ";

/// Reads the output of libtest and of the tests.
fn read(said: &str) -> Result<Outcome> {
    let sum = |of: &str, word: &str| -> u64 {
        let lines = said.lines().filter(|line| line.starts_with(of));
        lines.filter_map(|line| line.split(word).next()?.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let (passed, failed) = (sum("test result: ", " passed"), sum("test result: ", " failed"));
    ensure!(passed + failed > 0, "the tests ended without a result");
    Ok(Outcome { tests: passed + failed, schedules: sum(SCHEDULES, " schedules"), failed })
}

#[cfg(test)]
mod tests {
    use super::{Outcome, read};

    #[test]
    fn what_the_tests_say_is_added_up() {
        let said = "\nrunning 3 tests\n...\nraces: one: 12 schedules\n\nraces: two: 30 schedules\n\n\
            test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 23 filtered out; finished in 1.3s\n\
            running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2s\n";
        assert_eq!(read(said).unwrap(), Outcome { tests: 5, schedules: 42, failed: 1 });
        assert!(read("error: could not compile").is_err());
    }
}
