//! `cargo xtask fuzz`: fuzzes every parser.

use std::{
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    shell::{cargo, output, root, run, say, target},
    tools,
};

/// The memory limit of a target, in MiB.
const MAX_MEMORY_MIB: u32 = 1024;
/// The time limit for one input, in seconds.
const INPUT_TIMEOUT_SECONDS: u32 = 5;
/// The longest input, in bytes.
const MAX_INPUT_BYTES: u32 = 4096;

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct Options {
    /// For how many seconds each target is fuzzed; 300 and more to look for something
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Only this target; may be given again
    #[arg(long = "target", short)]
    targets: Vec<String>,
}

/// Fuzzes each target, to the first input that breaks one.
///
/// # Errors
/// When a target does not build, or an input breaks it; the error has the input's path.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    tools::ensure_for_fuzzing()?;
    let known = output(&mut cargo_fuzz(["list"])?)?;
    let known: Vec<&str> = known.lines().collect();
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(&target.as_str())) {
        bail!("there is no target {unknown}; allowed are {}", known.join(", "));
    }
    let chosen = |target: &str| options.targets.is_empty() || options.targets.iter().any(|one| one == target);
    let chosen: Vec<_> = known.into_iter().filter(|target| chosen(target)).collect();
    ensure!(!chosen.is_empty(), "`cargo fuzz list` names no target");
    // All at once, so that the time of each is spent on inputs.
    run(&mut cargo_fuzz(["build", "--sanitizer=none"])?)?;
    run_all(&chosen, options.seconds)?;
    say(format!("{} targets, {} s each: no input broke any", chosen.len(), options.seconds));
    Ok(())
}

/// Runs the targets, as many at a time as there are processors, to the first one that fails.
fn run_all(targets: &[&str], seconds: u32) -> Result<()> {
    let queue = Mutex::new(targets.iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let work = || {
            while let Some(target) = next() {
                if let Err(failed) = run_target(target, seconds) {
                    // No further one is begun.
                    while next().is_some() {}
                    return Err(failed);
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a thread has panicked")))
            .collect()
    });
    outcomes.into_iter().collect()
}

/// Starts from the corpus in the repository. New inputs are not added to it.
fn run_target(target: &str, seconds: u32) -> Result<()> {
    let found = tempfile::tempdir()?;
    let kept = root()?.join("tests/fuzz/corpus").join(target);
    ensure!(
        kept.is_dir(),
        "the target {target} has no inputs to begin with: put some into {}",
        kept.display()
    );
    let mut fuzzing = cargo_fuzz(["run", "--sanitizer=none", target])?;
    fuzzing.args([found.path(), &kept]).arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-rss_limit_mb={MAX_MEMORY_MIB}"),
        format!("-timeout={INPUT_TIMEOUT_SECONDS}"),
        format!("-max_len={MAX_INPUT_BYTES}"),
        "-verbosity=0".to_owned(),
        "-print_final_stats=1".to_owned(),
    ]);
    let words = root()?.join(format!("tests/fuzz/dictionaries/{target}.dict"));
    if words.is_file() {
        fuzzing.arg(format!("-dict={}", words.display()));
    }
    say(format!("{target}: {seconds} s"));
    let output = fuzzing.stdin(Stdio::null()).output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        match breaking(&said) {
            Some(path) => bail!("the target {target} is broken by {path}"),
            None => bail!("the target {target} failed ({}) without an input: see above", output.status),
        }
    }
    say(format!("{target}: {} inputs, none broke it", inputs(&said).context("libFuzzer counted no inputs")?));
    Ok(())
}

/// The number of inputs, from the output of libFuzzer.
fn inputs(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?.trim().parse().ok()
}

/// The path of the failing input, from the output of libFuzzer.
fn breaking(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path)
}

/// A cargo-fuzz command. cargo-fuzz needs unstable compiler options, which `RUSTC_BOOTSTRAP` permits on a stable compiler. No
/// memory sanitizer is used, because the code has no `unsafe`.
fn cargo_fuzz<const N: usize>(arguments: [&str; N]) -> Result<Command> {
    let target = target();
    let root = root()?;
    let mut fuzz = cargo(["fuzz"]);
    fuzz.args(&arguments[..1])
        .arg("--fuzz-dir=tests/fuzz")
        .args(&arguments[1..])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", root.join(target).join("fuzz"))
        .current_dir(root);
    Ok(fuzz)
}

#[cfg(test)]
mod tests {
    use super::{breaking, inputs};

    #[test]
    fn inputs_are_counted() {
        let said =
            "INFO: Running\nstat::number_of_executed_units: 298952\nstat::peak_rss_mb:              70\n";
        assert_eq!(inputs(said), Some(298_952));
        assert_eq!(inputs("error: could not compile"), None);
    }

    #[test]
    fn the_input_that_broke_a_target_is_named() {
        let said = "SUMMARY: libFuzzer: deadly signal\nartifact_prefix='x/'; Test unit written to x/crash-27\nBase64: My4=\n";
        assert_eq!(breaking(said), Some("x/crash-27"));
        assert_eq!(breaking("INFO: Running"), None);
    }
}
