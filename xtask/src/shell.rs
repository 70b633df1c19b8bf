//! Running commands, saying which.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Tells the person at the terminal what happens next.
pub(crate) fn say(what: impl std::fmt::Display) {
    eprintln!("xtask: {what}");
}

/// A command from a program and its arguments.
pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// The folder of the workspace.
///
/// # Errors
/// When there is none above this package's.
pub(crate) fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a folder")
}

/// The cargo that runs this.
pub(crate) fn cargo<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut cargo = command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()), arguments);
    if let Some(compiler) = PROTOBUF_COMPILER.get() {
        cargo.env("PROTOC", compiler);
    }
    cargo
}

/// The protobuf compiler that cargo is told of; unset when the environment has one already.
static PROTOBUF_COMPILER: OnceLock<String> = OnceLock::new();

/// Names the protobuf compiler to every cargo that is started from now on.
pub(crate) fn use_protobuf_compiler(path: String) {
    // Whoever was first has named the same one.
    let _ = PROTOBUF_COMPILER.set(path);
}

/// Where cargo builds: `CARGO_TARGET_DIR`, or `target`.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Shows the command, and runs it with its output shown too.
///
/// # Errors
/// When it cannot be run or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    say(format!("$ {shown}"));
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    say(format!("  done in {:.1} s", start.elapsed().as_secs_f32()));
    Ok(())
}

/// Runs the command with what it prints shown, but for an object of JSON, which is returned; and whether the command
/// succeeded.
///
/// # Errors
/// When it cannot be run, or prints what looks like JSON and is none.
pub(crate) fn run_for_json(command: &mut Command) -> Result<(Option<Value>, bool)> {
    let shown = shown(command);
    say(format!("$ {shown}"));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let printed = child.stdout.take().context("its output was piped")?;
    let mut found = None;
    for line in BufReader::new(printed).lines() {
        let line = line?;
        match line.starts_with('{') {
            true => found = Some(serde_json::from_str(&line).with_context(|| line.clone())?),
            false => println!("{line}"),
        }
    }
    Ok((found, child.wait()?.success()))
}

/// Runs commands as [`run_for_json`], so many at a time. What each prints is shown once it has ended.
///
/// # Errors
/// As for [`run_for_json`], once the others have ended.
pub(crate) fn run_all_for_json(
    commands: Vec<Command>,
    at_a_time: usize,
) -> Result<Vec<(Option<Value>, bool)>> {
    let mut outcomes: Vec<_> = commands.iter().map(|_| None).collect();
    let waiting = Mutex::new(commands.into_iter().zip(&mut outcomes));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some((mut command, outcome)) = next() {
                    *outcome = Some(run_for_json_unseen(&mut command));
                }
            });
        }
    });
    outcomes.into_iter().map(|outcome| outcome.context("a thread has panicked")?).collect()
}

fn run_for_json_unseen(command: &mut Command) -> Result<(Option<Value>, bool)> {
    let shown = shown(command);
    say(format!("$ {shown}"));
    let start = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let mut text = format!("{shown}: after {:.0} s\n", start.elapsed().as_secs_f32());
    let mut found = None;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.starts_with('{') {
            true => found = Some(serde_json::from_str(line).with_context(|| line.to_owned())?),
            false => text.extend([line, "\n"]),
        }
    }
    print!("{text}");
    Ok((found, output.status.success()))
}

/// Runs the command unseen and returns what it printed.
///
/// # Errors
/// When it cannot be run or fails, with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{shown}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{shown}` failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The same, ended when it takes longer than `limit`.
///
/// # Errors
/// Also when it was ended.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let shown = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let mut stderr = child.stderr.take().context("stderr was piped")?;
    let said = thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            None => {
                child.kill()?;
                child.wait()?;
                bail!("`{shown}` took longer than {limit:?}");
            }
        }
    };
    let said = said.join().unwrap_or_default();
    ensure!(status.success(), "`{shown}` failed: {}", said.trim());
    Ok(said)
}

/// Whether there is such a program in PATH.
pub(crate) fn exists(program: &str) -> bool {
    let tried = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    !tried.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
