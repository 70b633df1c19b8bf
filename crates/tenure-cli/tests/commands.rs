//! The commands other than `run`, and what a waiting `run` prints.

mod common;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use common::{Sandbox, code_and_stderr, eventually, stdout, succeed, tenure_command};

#[test]
fn the_leader_and_waiting_candidates_are_printed() {
    let sandbox = Sandbox::local();
    assert_eq!(code_and_stderr(&mut sandbox.tenure(&["leader"])).0, Some(1), "there is no leader");
    let _first = sandbox.start(
        &["--id", "first", "--value", "10.0.0.1:80"],
        "echo $TENURE_FENCING_TOKEN > token; sleep 1000",
    );
    let token = sandbox.wait_for_line("token");
    let _second = sandbox.start(&["--id", "second", "--value", "tab\there"], "sleep 1000");
    eventually("a second candidate", || (sandbox.candidates() == ["first", "second"]).then_some(()));

    assert_eq!(stdout(&succeed(&mut sandbox.tenure(&["leader"]))), format!("first\t{token}\t10.0.0.1:80\n"));
    let all = stdout(&succeed(&mut sandbox.tenure(&["candidates"])));
    assert!(all.lines().nth(1).unwrap().ends_with("\\there"), "{all}");
    let leader: serde_json::Value =
        serde_json::from_str(&stdout(&succeed(&mut sandbox.tenure(&["leader", "--json"])))).unwrap();
    assert_eq!(leader["id"], "first");
    assert_eq!(leader["election"], "e");
    assert_eq!(leader["token"].to_string(), token);
    assert_eq!(leader["value"], "10.0.0.1:80");
}

/// Hazard G39: a program can work on after the command that runs it.
#[test]
fn a_resume_file_is_refused() {
    let sandbox = Sandbox::local();
    let store = "memory:e?resume=/tmp/resume";
    for arguments in [&["run", "--store", store, "--", "true"][..], &["candidates", "--store", store]] {
        let (code, said) = code_and_stderr(&mut sandbox.tenure(arguments));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("resume= is not allowed here"), "{said}");
    }
}

/// Bad usage has an exit code of its own, and the message says once what is wrong and what is right.
#[test]
fn a_wrong_url_is_bad_usage() {
    let sandbox = Sandbox::local();
    for (store, right) in [
        ("etcd://::1:2379", "[::1]:2379"),
        ("etcd://http://h:2379", "etcd://host1,host2/prefix"),
        ("127.0.0.1:2379", "a store URL looks like etcd://host:2379/prefix"),
        ("ectd://h", "did you mean etcd:?"),
        ("zk://h", "did you mean zookeeper:?"),
        ("zookeeper://h//a", "write each slash once"),
    ] {
        let (code, said) = code_and_stderr(&mut sandbox.tenure(&["candidates", "--store", store]));
        assert_eq!(code, Some(2), "{store}: {said}");
        assert_eq!(said.matches(right).count(), 1, "{store}: {said}");
    }
}

#[test]
fn every_change_of_leader_is_printed() {
    let sandbox = Sandbox::local();
    let mut command = sandbox.tenure(&["observe", "--json"]);
    let mut observing = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(observing.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["leader"], serde_json::Value::Null);
    let mut leader = sandbox.start(&["--id", "first"], "sleep 1000");
    let first = next();
    assert_eq!(first["leader"]["id"], "first");
    assert!(first["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{first}");
    leader.signal("TERM");
    leader.wait();
    assert_eq!(next()["leader"], serde_json::Value::Null);
    common::kill("TERM", observing.id());
    assert_eq!(observing.wait().unwrap().code(), Some(143));
}

#[test]
fn an_operator_can_ask_the_leader_to_resign() {
    let sandbox = Sandbox::local();
    assert_eq!(code_and_stderr(&mut sandbox.tenure(&["resign"])).0, Some(1), "there is no leader");
    let script =
        "trap 'echo stopped > stopped; exit 0' TERM; echo leads > leads; while :; do sleep 0.02; done";
    let mut first = sandbox.start(&["--id", "first"], script);
    sandbox.wait_for_line("leads");
    let mut second = sandbox.start(&["--id", "second"], "cat stopped > second");
    eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
    assert!(stdout(&succeed(&mut sandbox.tenure(&["resign"]))).starts_with("first\t"));
    assert_eq!(sandbox.wait_for_line("second"), "stopped");
    let (code, stderr) = first.code_and_stderr();
    assert_eq!(code, Some(76), "{stderr}");
    assert!(stderr.contains("leadership of e was lost: it was asked to resign"), "{stderr}");
    assert_eq!(second.wait().code(), Some(0));
}

#[test]
fn a_store_that_does_not_answer_is_not_waited_for_longer_than_the_timeout() {
    // No server listens on this port.
    let sandbox = Sandbox::on("zookeeper://127.0.0.1:1/");
    for command in ["leader", "candidates", "observe"] {
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(&[command, "--timeout", "0.05"]));
        assert_eq!(code, Some(69), "{stderr}");
        assert!(stderr.contains("no answer from zookeeper 127.0.0.1:1 within 50ms"), "{stderr}");
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(&[command, "--timeout", "0"]));
        assert_eq!(code, Some(69), "only none waits for ever: {stderr}");
    }
}

#[test]
fn completions_manual_page_and_help_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&succeed(&mut tenure_command(&["completions", shell]))).contains("tenure"), "{shell}");
    }
    let page = stdout(&succeed(&mut tenure_command(&["man"])));
    assert!(page.contains(".TH tenure 1"), "{page}");
    assert!(page.contains("TENURE_LOG_FORMAT") && page.contains("69 the store refuses"), "{page}");
    let help = stdout(&succeed(&mut tenure_command(&["run", "--help"])));
    for expected in ["TENURE_FENCING_TOKEN", "--stop-signal", "Exit codes"] {
        assert!(help.contains(expected), "{help}");
    }
}

#[test]
fn a_closed_standard_output_is_no_error() {
    for arguments in [&["completions", "bash"][..], &["man"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = tenure_command(arguments).stdout(writer).stderr(Stdio::piped()).spawn();
        let output = output.unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{arguments:?}");
    }
}

/// Case 53. No page refers to one that does not exist.
#[test]
fn every_manual_page_that_a_page_names_exists() {
    let sandbox = Sandbox::local();
    let directory = sandbox.file("man");
    succeed(&mut tenure_command(&["man", "--dir", directory.to_str().unwrap()]));
    let page = |name: &str| std::fs::read_to_string(directory.join(format!("{name}.1")));
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap().replace("\\-", "-");
        for named in text.split("tenure-").skip(1).filter_map(|rest| rest.split_once("(1)")) {
            if named.0.bytes().all(|byte| byte.is_ascii_lowercase()) {
                assert!(page(&format!("tenure-{}", named.0)).is_ok(), "{}", named.0);
                count += 1;
            }
        }
        assert!(!text.contains("__guard"), "{text}");
    }
    assert!(count >= 7, "{count}");
    let run = page("tenure-run").unwrap();
    for text in ["75 if not elected", "76 if leadership was lost", "TENURE_FENCING_TOKEN", "TENURE_TTL"] {
        assert!(run.contains(text), "{text}: {run}");
    }
    assert!(page("tenure-leader").unwrap().contains("1 nobody leads"));
}

/// Case 52.
#[test]
fn commands_say_that_nobody_leads_and_who_has_resigned() {
    let sandbox = Sandbox::local();
    for command in ["leader", "resign"] {
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(&[command]));
        assert_eq!((code, stderr), (Some(1), format!("tenure: nobody leads e in {}\n", sandbox.url)));
    }
    let _first = sandbox.start(&["--candidate", "first"], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    let header = on_a_terminal(&sandbox, "candidates");
    assert!(header.contains("ID     TOKEN") && header.contains("VALUE"), "{header:?}");
    let (code, stderr) = code_and_stderr(&mut sandbox.tenure(&["resign"]));
    assert!(code == Some(0) && stderr.contains("tenure: first has resigned; nobody leads e"), "{stderr}");
}

/// The queue position is found for an id from the store's URL, too.
#[test]
fn a_waiting_candidate_prints_the_leader_and_its_queue_position() {
    let mut sandbox = Sandbox::local();
    let _first = sandbox.start(&["--id", "first"], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    sandbox.url.push_str("?id=named-by-the-url");
    let mut second = sandbox.start(&["--timeout", "2s"], "true");
    let (code, stderr) = second.code_and_stderr();
    assert_eq!(code, Some(75), "{stderr}");
    assert!(stderr.contains("waiting for leadership of e: first leads; queue position 2 of 2"), "{stderr}");
}

#[test]
fn doctor_finds_no_problem_with_a_good_store() {
    let sandbox = Sandbox::local();
    let output = stdout(&succeed(&mut tenure_command(&["doctor", "--store", &sandbox.url])));
    for (subject, expected) in [
        ("directory", "on no file system whose locks are known to be unsuitable"),
        ("entry", "entered the election"),
    ] {
        let line = output.lines().find(|line| line.starts_with(&format!("ok       {subject}: ")));
        assert!(line.is_some_and(|line| line.contains(expected)), "{output}");
    }
    assert!(output.contains("clock: "), "{output}");
    assert!(!output.contains('\u{1b}'), "no colors on a pipe");
    let report = stdout(&succeed(&mut tenure_command(&["doctor", "--json", "--store", &sandbox.url])));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["worst"] == "good" || report["worst"] == "warning", "{report}");
    assert!(report["diagnoses"].as_array().is_some_and(|diagnoses| diagnoses.len() >= 4), "{report}");
}

/// Case 65: whether a resource that has stored a token accepts the leader.
#[test]
fn doctor_compares_the_leader_with_the_token_of_a_resource() {
    let sandbox = Sandbox::local();
    let doctor = |token: &str| {
        let output = sandbox.tenure(&["doctor", "--fence", token]).output().unwrap();
        let line = stdout(&output).lines().find(|line| line.contains(" fence: ")).map(str::to_owned);
        (output.status.code(), line.unwrap_or_else(|| panic!("{output:?}")))
    };
    let (code, line) = doctor("7");
    assert!(code == Some(0) && line.starts_with("warning  fence: nobody leads e"), "{line}");
    let _leader = sandbox.start(&["--id", "first"], "echo $TENURE_FENCING_TOKEN > token; sleep 1000");
    let token = sandbox.wait_for_line("token");
    let (code, line) = doctor(&token);
    assert_eq!(code, Some(0), "{line}");
    let ok = format!(
        "ok       fence: the leader of e, first, has token {token}: a resource that has seen {token} accepts it"
    );
    assert_eq!(line, ok);
    let next = token.parse::<u64>().unwrap() + 1;
    let (code, line) = doctor(&next.to_string());
    assert!(code == Some(69) && line.starts_with("problem  fence: the leader of e, first, has"), "{line}");
    let mut alone = tenure_command(&["doctor", "--store", &sandbox.url, "--fence", "7"]);
    let (code, stderr) = code_and_stderr(&mut alone);
    assert!(code == Some(2) && stderr.contains("--election"), "{stderr}");
    assert_eq!(code_and_stderr(&mut sandbox.tenure(&["doctor", "--fence", "0"])).0, Some(2));
}

#[test]
fn doctor_reports_a_missing_store_and_says_what_to_do() {
    let (code, _) = code_and_stderr(&mut tenure_command(&["doctor", "--store", "local:/proc/no"]));
    assert_eq!(code, Some(69));
    let output = tenure_command(&["doctor", "--json", "--store", "local:/proc/no"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["worst"], "problem");
    assert!(report["diagnoses"][0]["text"].as_str().unwrap().contains("/proc/no"), "{report}");
    let output = tenure_command(&["doctor", "--store", "zookeeper://127.0.0.1:1/?request_timeout=500ms"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
    let output = stdout(&output);
    assert!(output.contains("problem  server 127.0.0.1:1: cannot open a session"), "{output}");
    assert!(output.contains("to do: start it"), "{output}");
    assert!(output.contains("problem  session: "), "{output}");
}

/// The output of a command on a terminal, which the program `script` emulates.
fn on_a_terminal(sandbox: &Sandbox, line: &str) -> String {
    let mut command = std::process::Command::new("script");
    let line = format!("{} {line}", env!("CARGO_BIN_EXE_tenure"));
    command.args(["--quiet", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    command
        .env("TENURE_STORE", &sandbox.url)
        .env("TENURE_ELECTION", "e")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    stdout(&succeed(&mut command))
}

#[test]
fn a_terminal_gets_colors_and_a_line_that_is_updated_in_place() {
    let sandbox = Sandbox::local();
    let _first = sandbox.start(&["--id", "first"], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    let shown = on_a_terminal(&sandbox, "leader");
    assert!(shown.contains("\u{1b}[1mfirst\u{1b}[0m"), "{shown:?}");
    assert!(on_a_terminal(&sandbox, "doctor").contains("\u{1b}[1m\u{1b}[32mok"), "green");
    let waiting = on_a_terminal(&sandbox, "run --timeout 2s -- true || true");
    assert!(
        waiting.contains("\r\u{1b}[K") && waiting.contains("first\u{1b}[0m leads, seen for"),
        "{waiting:?}"
    );
    assert!(stdout(&succeed(&mut sandbox.tenure(&["leader"]))).starts_with("first\t"), "no colors on a pipe");
}
