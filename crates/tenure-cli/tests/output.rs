//! What is written to the standard error: as text, as JSON, to a pipe and to a terminal.

mod common;

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use common::{Sandbox, children, code_and_stderr, eventually, kill};

/// Case 43. Each line is an object with a level and a message.
fn assert_json(what: &str, stderr: &str) {
    for line in stderr.lines() {
        let object: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{what}: {error}: {line}"));
        assert!(object["level"].is_string() && object["timestamp"].is_string(), "{what}: {line}");
        assert!(object["fields"]["message"].is_string(), "{what}: {line}");
    }
    assert!(!stderr.is_empty(), "{what}");
}

#[test]
fn every_line_is_json() {
    let sandbox = Sandbox::local();
    let json = ["--log-format", "json"];
    let mut first = sandbox.start(&[&json[..], &["--id", "first"]].concat(), "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    assert_json(
        "not elected",
        &code_and_stderr(&mut sandbox.run(&[&json[..], &["--try"]].concat(), "true")).1,
    );
    let waited = [&json[..], &["--timeout", "2s"]].concat();
    assert_json("waiting", &code_and_stderr(&mut sandbox.run(&waited, "true")).1);
    kill("KILL", &children(first.pid())[0]);
    assert_json("a killed guard", &first.code_and_stderr().1);
    for (what, arguments) in [
        ("a usage error", &["run", "--log-format=json", "--nonsense"][..]),
        ("a wrong URL", &["leader", "--log-format=json", "--store", "ectd://h"]),
        ("no such program", &["run", "--log-format=json", "--", "/no/such/program"]),
        (
            "a silent store",
            &["leader", "--log-format=json", "--store", "zookeeper://127.0.0.1:1", "--timeout=2s"],
        ),
    ] {
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(arguments));
        assert_ne!(code, Some(0), "{what}");
        assert_json(what, &stderr);
    }
    let mut by_variable = sandbox.tenure(&["run", "-vv", "--", "true"]);
    assert_json("a variable", &code_and_stderr(by_variable.env("TENURE_LOG_FORMAT", "json")).1);
}

/// The option wins over the variable, also in the guard and in the process that executes the program.
#[test]
fn text_is_text_although_the_variable_says_json() {
    let sandbox = Sandbox::local();
    for arguments in [
        &["run", "--log-format=text", "--nonsense"][..],
        &["run", "--log-format", "text", "--nonsense"],
        &["run", "--log-format=text", "--", "/no/such/program"],
    ] {
        let (code, stderr) = code_and_stderr(sandbox.tenure(arguments).env("TENURE_LOG_FORMAT", "json"));
        assert_ne!(code, Some(0), "{arguments:?}");
        assert!(!stderr.is_empty() && !stderr.contains('{'), "{arguments:?}: {stderr}");
    }
}

#[test]
fn nothing_is_colored_in_a_pipe() {
    let sandbox = Sandbox::on("zookeeper://127.0.0.1:1");
    let (_, stderr) = code_and_stderr(&mut sandbox.run(&["-vv", "--timeout", "2s"], "true"));
    assert!(stderr.contains("WARN") && !stderr.contains('\u{1b}'), "{stderr}");
}

/// Case 54. One line each.
#[test]
fn run_says_that_it_leads_and_why_no_more() {
    let sandbox = Sandbox::local();
    let mut first = sandbox.start(&["--id", "first"], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    common::succeed(sandbox.tenure(&["resign"]).stdout(Stdio::null()));
    let (_, stderr) = first.code_and_stderr();
    let [first, second] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("{stderr}") };
    assert!(first.starts_with("tenure: leads e with token "), "{stderr}");
    assert_eq!(second, "tenure: leadership of e was lost: it was asked to resign");
}

/// The rows of a terminal with this width, to which these bytes were written.
fn rows(bytes: &str, width: usize) -> Vec<String> {
    let (mut rows, mut column) = (vec![String::new()], 0);
    let mut characters = bytes.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\r' => column = 0,
            '\n' => {
                rows.push(String::new());
                column = 0;
            }
            '\u{1b}' => {
                let sequence: String =
                    characters.by_ref().skip(1).take(8).take_while(|c| !c.is_alphabetic()).collect();
                // Only `\x1b[K` erases, and it has no number.
                if sequence.is_empty() {
                    let row = rows.last_mut().unwrap();
                    *row = row.chars().take(column).collect();
                }
            }
            _ => {
                if column == width {
                    rows.push(String::new());
                    column = 0;
                }
                let row = rows.last_mut().unwrap();
                *row =
                    row.chars().take(column).chain([character]).chain(row.chars().skip(column + 1)).collect();
                column += 1;
            }
        }
    }
    rows
}

/// On a terminal with 60 columns, while the store does not answer: log lines and the status line do not mix.
#[test]
fn a_terminal_keeps_its_rows() {
    let line = format!(
        "stty cols 60; exec {} run --store zookeeper://127.0.0.1:1/x --election e --timeout 7s -- true",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut command = Command::new("script");
    command.args(["--quiet", "--command", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    let mut running = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = String::new();
    running.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    eventually("its end", || running.try_wait().unwrap());
    let rows = rows(&shown, 60);
    let beginning = |text: &str| rows.iter().filter(|row| row.starts_with(text)).count();
    let containing = |text: &str| rows.iter().filter(|row| row.contains(text)).count();
    assert!(shown.contains("\r\u{1b}[Ktenure: waiting for leadership of e"), "{shown:?}");
    assert_eq!(containing("waiting for leadership"), 0, "the status line is removed at the end: {rows:#?}");
    assert_eq!(beginning("tenure: not elected: not within 7s"), 1, "{rows:#?}");
    assert_eq!(beginning("tenure: zookeeper 127.0.0.1:1 does not answer"), 1, "{rows:#?}");
    assert!(rows.iter().all(|row| row.matches("WARN").count() <= 1), "{rows:#?}");
}
