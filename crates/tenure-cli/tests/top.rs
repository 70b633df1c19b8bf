//! `tenure top` on a real terminal, as a person sees it.

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::process::{Command, Stdio};

use common::{RunningCommand, Sandbox, code_and_stderr, eventually, store_name};
use pty::Terminal;
use tenure_containers::{
    SharedConsul, SharedEtcd, SharedKubernetes, SharedPostgres, SharedZookeeper, Version,
};
use tenure_testkit::proxy::{Direction, Proxy};

/// `tenure top` on a terminal of this size.
fn top(sandbox: &Sandbox, arguments: &[&str], columns: u16, rows: u16) -> Terminal {
    Terminal::start(&sandbox.tenure(&[&["top"], arguments].concat()), columns, rows)
}

/// A candidate of an election.
fn start(sandbox: &Sandbox, election: &str, id: &str) -> RunningCommand {
    sandbox.start(&["--election", election, "--id", id, "--value", "10.0.0.1:80"], "sleep 1000")
}

/// A candidate of an election. Returns once it has entered.
fn candidate(sandbox: &Sandbox, election: &str, id: &str) -> RunningCommand {
    let entered = start(sandbox, election, id);
    eventually("its entry", || {
        let mut command = sandbox.tenure(&["candidates", "--election", election]);
        let listed = common::stdout(&common::succeed(&mut command));
        listed.lines().any(|line| line.starts_with(&format!("{id}\t"))).then_some(())
    });
    entered
}

/// The cells of the row of an election: its name, leader, time, waiting candidates, token and session.
fn cells(row: &str) -> Vec<&str> {
    row.trim_start_matches(['>', ' ']).split_whitespace().collect()
}

#[test]
fn leaders_and_their_changes_are_shown_live() {
    let sandbox = Sandbox::local();
    let mut first = candidate(&sandbox, "billing", "first");
    let _second = candidate(&sandbox, "billing", "second");
    let _other = candidate(&sandbox, "reports", "third");
    let mut top = top(&sandbox, &[], 80, 24);
    let row = top.wait_for_row("> billing");
    assert!(
        matches!(cells(&row)[..], ["billing", "first", since, "1", _, _] if since.starts_with('>')),
        "{row}"
    );
    assert!(top.rows()[0].starts_with(&sandbox.url), "the store: {:?}", top.rows());
    assert!(top.rows()[0].contains("2 elections"), "{:?}", top.rows());
    top.wait_for_row("none yet");
    first.signal("TERM");
    first.wait();
    let row = top.wait_for_row("second   ");
    assert!(
        matches!(cells(&row)[..], ["billing", "second", since, "0", _, _] if !since.starts_with('>')),
        "{row}"
    );
    assert!(top.wait_for_row("billing: second leads").contains(", after first"));
    let _late = candidate(&sandbox, "audit", "fourth");
    let row = top.wait_for_row("> billing");
    assert!(row.contains("second"), "an election that appears above does not take the selection: {row}");
    top.wait_for_row("audit: fourth leads");
    top.press("q");
    assert_eq!(top.code(), Some(0));
    eventually("the terminal as it was", || top.is_restored().then_some(()));
    assert!(!top.rows().iter().any(|row| row.contains("billing")), "{:#?}", top.rows());
}

#[test]
fn a_vacant_election_is_shown_as_vacant() {
    let sandbox = Sandbox::local();
    let mut first = candidate(&sandbox, "billing", "first");
    let top = top(&sandbox, &[], 80, 24);
    top.wait_for_row("> billing");
    first.signal("TERM");
    first.wait();
    let row = top.wait_for_row("(nobody)");
    assert!(matches!(cells(&row)[..], ["billing", "(nobody)", _, "0", "-", "-"]), "{row}");
    top.wait_for_row("billing: nobody leads, after first");
}

#[test]
fn the_selected_leader_resigns_by_key() {
    let sandbox = Sandbox::local();
    let _other = candidate(&sandbox, "a", "other");
    let mut first = candidate(&sandbox, "b", "first");
    let _second = candidate(&sandbox, "b", "second");
    let mut top = top(&sandbox, &[], 80, 24);
    top.wait_for_row("> a");
    top.press("\x1b[B");
    top.wait_for_row("> b");
    top.press("r");
    top.wait_for_row("ask first to resign from b? y or n");
    top.press("n");
    top.wait_for_row("nobody was asked to resign");
    assert!(top.wait_for_row("> b").contains("first"));
    top.press("r");
    top.wait_for_row("ask first to resign from b? y or n");
    top.press("y");
    top.wait_for_row("first has resigned; second leads b now");
    let (code, stderr) = first.code_and_stderr();
    assert_eq!(code, Some(76), "{stderr}");
    assert!(stderr.contains("leadership of b was lost: it was asked to resign"), "{stderr}");
    top.wait_for_row("b: second leads");
    assert!(
        top.rows().iter().any(|row| row.starts_with("  a ") && row.contains("other")),
        "{:#?}",
        top.rows()
    );
}

#[test]
fn an_election_is_followed() {
    let sandbox = Sandbox::local();
    let mut first = candidate(&sandbox, "billing", "first");
    let mut second = candidate(&sandbox, "billing", "second");
    let mut top = top(&sandbox, &[], 80, 24);
    top.wait_for_row("> billing");
    top.press("\r");
    assert_eq!(top.wait_for_row_that_begins("election  "), "election  billing");
    assert_eq!(top.wait_for_row_that_begins("leader    "), "leader    first");
    assert_eq!(top.wait_for_row_that_begins("value     "), "value     10.0.0.1:80");
    top.wait_for_row("2  second");
    first.signal("TERM");
    first.wait();
    top.wait_for_row("second leads with token");
    assert_eq!(top.wait_for_row_that_begins("leader    second"), "leader    second");
    second.signal("TERM");
    second.wait();
    top.wait_for_row("leader    (nobody)");
    top.wait_for_row("nobody leads, after second");
    top.press("\x1b");
    top.wait_for_row("> billing");
}

#[test]
fn a_terminal_can_be_narrow_small_and_change_its_size() {
    let sandbox = Sandbox::local();
    let _candidates: Vec<_> = ["alpha", "beta", "gamma", "delta"]
        .map(|name| candidate(&sandbox, name, &format!("{name}-{}", "0123456789abcdef")))
        .into();
    let mut top = top(&sandbox, &[], 60, 24);
    top.wait_for_row("> alpha");
    let rows = top.rows();
    assert!(rows.iter().any(|row| row.contains("ELECTION") && row.contains("SINCE")), "{rows:#?}");
    assert!(rows[0].ends_with('Z'), "up to the last column: {rows:#?}");
    assert_eq!(rows[23], "up/down select   enter follow   r resign   q quit");
    top.resize(30, 6);
    top.wait_until("three elections and the keys on six rows", |rows| {
        (rows.len() == 6 && rows[5].starts_with("up/down") && rows[3].starts_with("  beta")).then_some(())
    });
    for name in ["beta", "delta", "gamma"] {
        top.press("j");
        top.wait_for_row(&format!("> {name}"));
    }
    top.resize(100, 30);
    top.wait_for_row("LAST CHANGES");
    top.wait_for_row("gamma-0123456789abcdef");
}

#[test]
fn signals_end_it_and_restore_the_terminal() {
    let sandbox = Sandbox::local();
    let _candidate = candidate(&sandbox, "billing", "first");
    for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("QUIT", 131)] {
        let mut top = top(&sandbox, &[], 80, 24);
        top.wait_for_row("> billing");
        assert!(!top.is_restored(), "{name}");
        match name {
            // Ctrl-C and Ctrl-backslash.
            "INT" => top.press("\x03"),
            "QUIT" => top.press("\x1c"),
            name => top.signal(name),
        }
        assert_eq!(top.code(), Some(code), "{name}");
        eventually("the terminal as it was", || top.is_restored().then_some(()));
    }
}

/// With a shell that has job control: the terminal belongs to the shell while top is stopped, and to top again afterwards.
#[test]
fn ctrl_z_stops_it_and_restores_the_terminal_meanwhile() {
    let sandbox = Sandbox::local();
    let _candidate = candidate(&sandbox, "billing", "first");
    let script = format!(
        "set -m; {} top; echo stopped with $?; read line; fg; echo ended with $?; read line",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).env("TENURE_STORE", &sandbox.url);
    let mut shell = Terminal::start(&shell, 80, 24);
    shell.wait_for_row("> billing");
    assert!(!shell.is_restored());
    shell.press("\x1a");
    shell.wait_for_row("stopped with 147");
    assert!(shell.is_restored());
    shell.press("\n");
    shell.wait_for_row("> billing");
    assert!(!shell.is_restored());
    shell.press("q");
    shell.wait_for_row("ended with 0");
    assert!(shell.is_restored());
}

/// As in a container without a shell. A stop would be for ever.
#[test]
fn ctrl_z_does_not_stop_it_where_nobody_would_continue_it() {
    let sandbox = Sandbox::local();
    let _candidate = candidate(&sandbox, "billing", "first");
    let mut top = top(&sandbox, &[], 80, 24);
    top.wait_for_row("> billing");
    top.press("\x1a");
    top.wait_for_row("no shell would continue this process");
    top.press("q");
    assert_eq!(top.code(), Some(0));
}

/// As after `docker exec` or in a job of CI: the ids of the session and of the process group read as 0.
#[test]
fn its_session_may_be_outside_its_pid_namespace() {
    let sandbox = Sandbox::local();
    let _candidate = candidate(&sandbox, "billing", "first");
    let tenure = env!("CARGO_BIN_EXE_tenure");
    let script = format!("{tenure} top; {tenure} run --election other -- true; echo ended with $?");
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
    unshare.env("TENURE_STORE", &sandbox.url);
    let mut top = Terminal::start(&unshare, 80, 24);
    top.wait_for_row("> billing");
    top.press("\x1a");
    top.wait_for_row("no shell would continue this process");
    top.press("q");
    top.wait_for_row("ended with 0");
    assert_eq!(top.code(), Some(0));
}

#[test]
fn without_a_terminal_it_says_at_once_what_to_use_instead() {
    let sandbox = Sandbox::on("zookeeper://127.0.0.1:1/x");
    let (code, stderr) = code_and_stderr(sandbox.tenure(&["top"]).stdout(Stdio::piped()));
    assert_eq!(code, Some(2), "{stderr}");
    for text in ["the standard output is not one", "`tenure elections`", "`tenure observe`"] {
        assert!(stderr.contains(text), "{stderr}");
    }
    let mut dumb = Terminal::start(sandbox.tenure(&["top"]).env("TERM", "dumb"), 200, 24);
    dumb.wait_for_row("TERM names none");
    assert_eq!(dumb.code(), Some(2));
}

#[test]
fn colors_are_only_there_if_wanted() {
    let sandbox = Sandbox::local();
    let _candidate = candidate(&sandbox, "billing", "first");
    let with_colors = top(&sandbox, &[], 80, 24);
    with_colors.wait_for_row("> billing");
    assert!(with_colors.is_inverse("> billing"));
    let without = Terminal::start(sandbox.tenure(&["top"]).env("NO_COLOR", "1"), 80, 24);
    without.wait_for_row("> billing");
    let bytes = without.bytes();
    assert!(
        !bytes.split("\x1b[").skip(1).any(|sequence| {
            sequence.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
        }),
        "{bytes:?}"
    );
}

#[test]
fn what_others_wrote_is_escaped() {
    let sandbox = Sandbox::local();
    let _candidate =
        sandbox.start(&["--id", "x", "--value", "a\x1b]0;title\x07\nb"], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    let mut top = top(&sandbox, &[], 80, 24);
    top.wait_for_row("> e");
    top.press("f");
    assert_eq!(top.wait_for_row_that_begins("value     "), "value     a\\u{1b}]0;title\\u{7}\\nb");
    assert!(!top.bytes().contains("\x1b]0;"));
}

#[test]
fn a_store_that_does_not_answer_at_the_start_is_named() {
    let sandbox = Sandbox::on("zookeeper://127.0.0.1:1/x");
    let mut top = top(&sandbox, &["--timeout", "2s"], 300, 24);
    let row = top.wait_for_row("no answer from");
    assert!(row.contains("reading the elections") && row.contains("zookeeper 127.0.0.1:1"), "{row}");
    assert!(row.contains("tenure doctor"), "{row}");
    assert_eq!(top.code(), Some(69));
    assert!(top.is_restored());
}

/// An outage takes a few rows that are updated. What was read last stays, and no log line is written over it.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_shown_in_place() {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let postgres = SharedPostgres::get(Version::Postgres17).await.unwrap();
    let consul = SharedConsul::get(Version::Consul18).await.unwrap();
    let kubernetes = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let root = format!("cli-{:016x}", fastrand::u64(..));
    kubernetes.admin().create_namespace(&root).await.unwrap();
    for (scheme, endpoint) in [
        ("etcd", etcd.endpoint()),
        ("zookeeper", zookeeper.endpoint()),
        ("postgres", postgres.endpoint()),
        ("consul", consul.endpoint()),
        ("kubernetes", kubernetes.endpoint()),
    ] {
        let proxy = Proxy::start(&endpoint).await.unwrap();
        let healthy = Sandbox::on_server(scheme, &endpoint, &root, "");
        let mut first = candidate(&healthy, "billing", "first");
        let _second = match scheme {
            // It shows the leader only.
            "kubernetes" => start(&healthy, "billing", "second"),
            _ => candidate(&healthy, "billing", "second"),
        };
        let sandbox = Sandbox::on_server(scheme, &proxy.endpoint(), &root, "");
        let mut top = top(&sandbox, &[], 100, 24);
        top.wait_for_row("> billing");
        proxy.blackhole(Direction::Both);
        let row = top.wait_for_row("no answer from");
        assert!(row.contains(&store_name(scheme, &proxy.endpoint(), &root)), "{row}");
        top.wait_until("the outage's length", |rows| {
            let row = rows.iter().find(|row| row.contains("no answer from"))?;
            (row.contains(" for 7s") || row.contains(" for 8s")).then_some(())
        });
        top.wait_for_row("`tenure doctor` examines the store");
        let rows = top.rows();
        assert!(rows.iter().any(|row| row.starts_with("> billing") && row.contains("first")), "{rows:#?}");
        assert!(rows.iter().filter(|row| row.starts_with("no answer from")).count() == 1, "{rows:#?}");
        assert!(!top.bytes().contains("WARN"), "{:?}", top.bytes());
        first.signal("TERM");
        first.wait();
        proxy.heal();
        top.wait_until("an answer", |rows| {
            (!rows.iter().any(|row| row.starts_with("no answer"))
                && rows.iter().any(|row| row.contains("billing: second leads")))
            .then_some(())
        });
        top.press("q");
        assert_eq!(top.code(), Some(0), "{scheme}");
        eventually("the terminal as it was", || top.is_restored().then_some(()));
        assert!(!top.rows().iter().any(|row| row.contains("WARN")), "{:#?}", top.rows());
    }
}
