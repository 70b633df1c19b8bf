//! `tenure leader`, `candidates`, `observe`, and what is printed for shells and readers.

mod common;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use common::{Stage, bare, code, eventually, succeed, text};

#[test]
fn who_leads_and_who_waits_is_told() {
    let stage = Stage::local();
    assert_eq!(code(&mut stage.tenure(&["leader"])).0, Some(1), "nobody leads");
    let _first = stage.start(
        &["--id", "first", "--value", "10.0.0.1:80"],
        "echo $TENURE_FENCING_TOKEN > token; sleep 1000",
    );
    let token = stage.line("token");
    let _second = stage.start(&["--id", "second", "--value", "tab\there"], "sleep 1000");
    eventually("a second candidate", || (stage.candidates() == ["first", "second"]).then_some(()));

    assert_eq!(text(&succeed(&mut stage.tenure(&["leader"]))), format!("first\t{token}\t10.0.0.1:80\n"));
    let all = text(&succeed(&mut stage.tenure(&["candidates"])));
    assert!(all.lines().nth(1).unwrap().ends_with("\\there"), "{all}");
    let leader: serde_json::Value =
        serde_json::from_str(&text(&succeed(&mut stage.tenure(&["leader", "--json"])))).unwrap();
    assert_eq!(leader["id"], "first");
    assert_eq!(leader["election"], "e");
    assert_eq!(leader["token"].to_string(), token);
    assert_eq!(leader["value"], "10.0.0.1:80");
}

#[test]
fn every_change_is_told() {
    let stage = Stage::local();
    let mut command = stage.tenure(&["observe", "--json"]);
    let mut observing = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(observing.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["leader"], serde_json::Value::Null);
    let mut leads = stage.start(&["--id", "first"], "sleep 1000");
    assert_eq!(next()["leader"]["id"], "first");
    leads.signal("TERM");
    leads.end();
    assert_eq!(next()["leader"], serde_json::Value::Null);
    common::kill("TERM", observing.id());
    assert_eq!(observing.wait().unwrap().code(), Some(143));
}

#[test]
fn an_operator_can_ask_the_leader_to_resign() {
    let stage = Stage::local();
    assert_eq!(code(&mut stage.tenure(&["resign"])).0, Some(1), "nobody leads");
    let script =
        "trap 'echo stopped > stopped; exit 0' TERM; echo leads > leads; while :; do sleep 0.02; done";
    let mut first = stage.start(&["--id", "first"], script);
    stage.line("leads");
    let mut second = stage.start(&["--id", "second"], "cat stopped > second");
    eventually("a second candidate", || (stage.candidates().len() == 2).then_some(()));
    assert!(text(&succeed(&mut stage.tenure(&["resign"]))).starts_with("first\t"));
    assert_eq!(stage.line("second"), "stopped");
    let (code, said) = first.code();
    assert_eq!(code, Some(76), "{said}");
    assert!(said.contains("leadership of e was lost: it was asked to resign"), "{said}");
    assert_eq!(second.end().code(), Some(0));
}

#[test]
fn a_store_that_does_not_answer_is_not_waited_for_longer_than_wanted() {
    // A port that nobody listens at.
    let stage = Stage::on("zookeeper://127.0.0.1:1/");
    for looks in ["leader", "candidates", "observe"] {
        let (code, said) = code(&mut stage.tenure(&[looks, "--timeout", "50ms"]));
        assert_eq!(code, Some(70), "{said}");
        assert!(said.contains("no answer within 50ms"), "{said}");
    }
}

#[test]
fn shells_and_readers_are_served() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&succeed(&mut bare(&["completions", shell]))).contains("tenure"), "{shell}");
    }
    let page = text(&succeed(&mut bare(&["man"])));
    assert!(page.contains(".TH tenure 1"), "{page}");
    let help = text(&succeed(&mut bare(&["run", "--help"])));
    for promised in ["TENURE_FENCING_TOKEN", "--stop-signal", "Exit codes"] {
        assert!(help.contains(promised), "{help}");
    }
}

/// The place in the queue is told to whoever is named by the URL, too.
#[test]
fn a_waiting_candidate_says_who_leads_and_which_place_it_has() {
    let mut stage = Stage::local();
    let _first = stage.start(&["--id", "first"], "echo > leads; sleep 1000");
    stage.line("leads");
    stage.url.push_str("?id=named-by-the-url");
    let mut second = stage.start(&["--timeout", "2s"], "true");
    let (code, said) = second.code();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("waiting to lead e: first leads; number 2 of 2"), "{said}");
}

#[test]
fn a_store_that_is_fit_is_said_to_be() {
    let stage = Stage::local();
    let printed = text(&succeed(&mut bare(&["doctor", "--store", &stage.url])));
    for (subject, said) in [("directory", "no network file system"), ("entry", "entered the election")] {
        let line = printed.lines().find(|line| line.starts_with(&format!("ok       {subject}: ")));
        assert!(line.is_some_and(|line| line.contains(said)), "{printed}");
    }
    assert!(printed.contains("clock: "), "{printed}");
    assert!(!printed.contains('\u{1b}'), "a pipe has no colours");
    let report = text(&succeed(&mut bare(&["doctor", "--json", "--store", &stage.url])));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["worst"] == "good" || report["worst"] == "warning", "{report}");
    assert!(report["diagnoses"].as_array().is_some_and(|diagnoses| diagnoses.len() >= 4), "{report}");
}

#[test]
fn a_store_that_is_not_there_is_a_problem_and_it_is_said_what_to_do() {
    let (code, _) = code(&mut bare(&["doctor", "--store", "local:/proc/no"]));
    assert_eq!(code, Some(69));
    let output =
        bare(&["doctor", "--store", "zookeeper://127.0.0.1:1/?request_timeout=500ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let printed = text(&output);
    assert!(printed.contains("problem  server 127.0.0.1:1: it gives no session"), "{printed}");
    assert!(printed.contains("to do: start it"), "{printed}");
    assert!(printed.contains("problem  session: "), "{printed}");
}

/// What a command prints on a terminal, which `script` makes for it.
fn on_a_terminal(stage: &Stage, line: &str) -> String {
    let mut command = std::process::Command::new("script");
    let line = format!("{} {line}", env!("CARGO_BIN_EXE_tenure"));
    command.args(["--quiet", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    command
        .env("TENURE_STORE", &stage.url)
        .env("TENURE_ELECTION", "e")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    text(&succeed(&mut command))
}

#[test]
fn a_terminal_has_colours_and_a_line_that_lives() {
    let stage = Stage::local();
    let _first = stage.start(&["--id", "first"], "echo > leads; sleep 1000");
    stage.line("leads");
    let shown = on_a_terminal(&stage, "leader");
    assert!(shown.contains("\u{1b}[1mfirst\u{1b}[0m"), "{shown:?}");
    assert!(on_a_terminal(&stage, "doctor").contains("\u{1b}[1m\u{1b}[32mok"), "green");
    let waiting = on_a_terminal(&stage, "run --timeout 2s -- true || true");
    assert!(
        waiting.contains("\r\u{1b}[K") && waiting.contains("first\u{1b}[0m leads, seen for"),
        "{waiting:?}"
    );
    assert!(text(&succeed(&mut stage.tenure(&["leader"]))).starts_with("first\t"), "a pipe has none");
}
