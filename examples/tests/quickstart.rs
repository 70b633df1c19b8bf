//! One of two processes greets. When it is killed, the other one takes over.

use std::process::Command;

use tenure_testkit::program::Program;

fn token(line: &str) -> u64 {
    line.rsplit_once("token ").and_then(|(_, token)| token.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn one_of_two_greets_and_the_other_takes_over_when_it_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let start = || Program::start(Command::new(env!("CARGO_BIN_EXE_quickstart")).arg(&store)).unwrap();
    let mut first = start();
    let first_token = token(&first.wait_for("hello from"));
    let mut second = start();
    first.wait_for("hello from");
    first.wait_for("hello from");
    assert_eq!(second.lines(), [] as [&str; 0], "it must wait");
    first.kill();
    assert!(token(&second.wait_for("hello from")) > first_token);
}
