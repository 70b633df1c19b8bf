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
    assert!(said.contains("leadership of e was lost: an operator asked for it"), "{said}");
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
