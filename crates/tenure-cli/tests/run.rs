//! `tenure run` on a lock file: what the program gets, how it ends, and that nothing of it outlives its term.

mod common;

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use common::{ALONE, Running, STUBBORN, Stage, bare, children, code, eventually, kill, runs, succeed, text};

fn stubborn(stage: &Stage) -> Vec<String> {
    stage.line("pids").split(' ').map(str::to_owned).collect()
}

#[test]
fn the_program_knows_its_term() {
    let stage = Stage::local();
    let script = "echo $TENURE_ELECTION $TENURE_CANDIDATE $TENURE_FENCING_TOKEN; test -z \"$TENURE_DEADLINE_BOOTTIME_NS\"";
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let said = text(&succeed(&mut stage.run(&["--id", "node-1"], script)));
        let words: Vec<_> = said.split_whitespace().collect();
        assert_eq!(words[..2], ["e", "node-1"]);
        tokens.push(words[2].parse::<u64>().unwrap());
    }
    assert!(tokens[0] < tokens[1], "{tokens:?}");
}

#[test]
fn the_stores_url_may_set_what_a_term_is_like() {
    let mut stage = Stage::local();
    let directory = stage.url.clone();
    let budget = |stage: &Stage| text(&succeed(&mut stage.run(&[], "echo $TENURE_GRACE_PERIOD_MS")));
    for (settings, millis) in [("ttl=2s", "200\n"), ("ttl=2s&grace_period=450ms", "450\n")] {
        stage.url = format!("{directory}?{settings}");
        assert_eq!(budget(&stage), millis, "{settings}");
    }
    stage.url = format!("{directory}?grace_period=50ms");
    let (refused, said) = code(&mut stage.run(&[], "touch ran"));
    assert_eq!(refused, Some(2), "{said}");
    assert!(said.contains("at least 100ms") && !stage.file("ran").exists(), "{said}");
}

#[test]
fn the_programs_end_is_passed_through() {
    let stage = Stage::local();
    assert_eq!(code(&mut stage.run(&[], "exit 0")).0, Some(0));
    assert_eq!(code(&mut stage.run(&[], "exit 7")).0, Some(7));
    assert_eq!(code(&mut stage.run(&[], "kill -USR1 $$")).0, Some(128 + 10));
    assert_eq!(code(&mut stage.run(&[], "kill -KILL $$")).0, Some(128 + 9));
    let (missing, said) = code(&mut stage.tenure(&["run", "--", "no-such-program"]));
    assert_eq!(missing, Some(127), "{said}");
    assert!(said.contains("cannot run no-such-program"), "{said}");
    let (directory, said) = code(&mut stage.tenure(&["run", "--", "/"]));
    assert_eq!(directory, Some(126), "{said}");
    assert_eq!(stage.candidates(), [] as [&str; 0]);
}

#[test]
fn what_goes_in_and_comes_out_is_the_programs() {
    let stage = Stage::local();
    let mut command = stage.run(&[], "cat; echo to stderr >&2");
    let mut running =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(b"through and through\0\xff").unwrap();
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through and through\0\xff");
    assert_eq!(output.stderr, b"to stderr\n");
}

#[test]
fn one_program_runs_at_a_time_and_the_next_at_once_after_it() {
    let stage = Stage::local();
    let mut first = stage.start(&["--id", "first"], "echo $$ > first; sleep 1000");
    let pid = stage.line("first");
    let mut second = stage.run(&["--id", "second"], "echo second > second");
    let mut second = Running::start(second.stderr(fs::File::create(stage.file("said")).unwrap()));
    eventually("a second candidate", || (stage.candidates() == ["first", "second"]).then_some(()));
    assert_eq!(stage.line("said"), "tenure: waiting to lead e: first leads; number 2 of 2");
    assert!(!stage.file("second").exists());
    kill("KILL", &pid);
    assert_eq!(stage.line("second"), "second");
    assert_eq!(first.code().0, Some(137));
    assert_eq!(second.end().code(), Some(0));
}

#[test]
fn who_is_not_elected_says_so() {
    let stage = Stage::local();
    let mut leader = stage.start(&[], "echo leads > leads; sleep 1000");
    stage.line("leads");
    assert_eq!(code(&mut stage.run(&["--try"], "touch tried")).0, Some(75));
    assert_eq!(code(&mut stage.run(&["--timeout", "50ms"], "touch tried")).0, Some(75));
    let mut waiting = stage.start(&[], "touch tried");
    eventually("a candidate that waits", || (stage.candidates().len() == 2).then_some(()));
    waiting.signal("INT");
    assert_eq!(waiting.end().code(), Some(130));
    assert_eq!(stage.candidates().len(), 1, "who gave up has left nothing");
    assert!(!stage.file("tried").exists());
    leader.signal("TERM");
    assert_eq!(leader.end().code(), Some(143));
    assert_eq!(stage.candidates(), [] as [&str; 0]);
}

#[test]
fn signals_are_passed_on() {
    let stage = Stage::local();
    let script =
        "trap 'echo usr1 > usr1' USR1; trap 'exit 3' TERM; echo ready > ready; while :; do sleep 0.05; done";
    // Told to end by a signal, it is not begun again.
    let mut running = stage.start(&["--restart", "always"], script);
    stage.line("ready");
    running.signal("USR1");
    stage.line("usr1");
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(3));
}

/// On a lock file nobody waits for a deadline: the kernel keeps the lock for as long as the guard has it too.
#[test]
fn nothing_runs_beside_the_next_leader_when_tenure_is_killed() {
    for group in [false, true] {
        let stage = Stage::local();
        let mut first = stage.start(&[], STUBBORN);
        let pids = stubborn(&stage);
        let mut second = stage.start(&["--quiet"], ALONE);
        eventually("a second candidate", || (stage.candidates().len() == 2).then_some(()));
        if group {
            first.signal_group("KILL")
        } else {
            first.signal("KILL")
        };
        assert_eq!(second.code(), (Some(0), String::new()), "its group: {group}");
        assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
        first.end();
    }
}

/// Whoever started tenure may have started other things before, which are none of its business.
#[test]
fn what_was_there_before_is_spared() {
    let stage = Stage::local();
    let script = format!(
        "sleep 1000 & echo $! > sidecar; exec {} run -- sh -c 'echo leads > leads; sleep 1000'",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(stage.file("")).stdin(Stdio::null());
    let mut running = Running::start(command.env("TENURE_STORE", &stage.url).env("TENURE_ELECTION", "e"));
    stage.line("leads");
    let sidecar = stage.line("sidecar");
    let guard = children(running.pid()).into_iter().find(|pid| *pid != sidecar).unwrap();
    kill("KILL", guard);
    assert_eq!(running.end().code(), Some(137));
    assert!(runs(&sidecar));
    kill("KILL", sidecar);
}

/// A guard that does nothing any more is not waited for.
#[test]
fn a_program_whose_guard_is_stopped_is_killed_all_the_same() {
    let stage = Stage::local();
    let mut first = stage.start(&["--ttl", "2s"], STUBBORN);
    let pids = stubborn(&stage);
    let mut second = stage.start(&["--quiet"], "echo leads > second; exec sleep 1000");
    eventually("a second candidate", || (stage.candidates().len() == 2).then_some(()));
    kill("STOP", &children(first.pid())[0]);
    succeed(stage.tenure(&["resign"]).stdout(Stdio::null()));
    stage.line("second");
    assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
    assert_eq!(first.end().code(), Some(76));
    second.signal("TERM");
    second.end();
}

#[test]
fn a_program_that_was_stopped_hears_of_its_end() {
    let stage = Stage::local();
    let mut running = stage.start(&[], "echo $$ > pid; kill -STOP $$; sleep 1000");
    let pid = stage.line("pid");
    eventually("a stopped program", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.contains(") T ").then_some(())
    });
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(143));
}

/// As by `nohup`, or by a shell that runs it in the background.
#[test]
fn what_is_ignored_stays_so() {
    let stage = Stage::local();
    let script = format!(
        "trap '' HUP INT; exec {} run -- sh -c 'grep SigIgn /proc/self/status > ignored; sleep 1000'",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(stage.file("")).stdin(Stdio::null());
    let mut running = Running::start(command.env("TENURE_STORE", &stage.url).env("TENURE_ELECTION", "e"));
    let ignored = stage.line("ignored");
    let ignored = u64::from_str_radix(ignored.split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(ignored & 0b11, 0b11, "HUP and INT");
    running.signal("HUP");
    running.signal("INT");
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(143));
}

#[test]
fn nobody_has_to_listen() {
    let stage = Stage::local();
    let mut command = stage
        .run(&["--restart", "on-failure", "--backoff", "1ms"], "test -e again || { touch again; exit 1; }");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut running = Running::start(command.env("TENURE_LOG", "trace").stderr(writer));
    drop((command, reader));
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn nothing_is_left_when_the_guard_is_killed() {
    let stage = Stage::local();
    let mut running = stage.start(&[], STUBBORN);
    let pids = stubborn(&stage);
    let guard = children(running.pid());
    assert_eq!(guard.len(), 1);
    kill("KILL", &guard[0]);
    assert_eq!(running.end().code(), Some(137));
    assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
}

#[test]
fn what_the_program_leaves_behind_ends_with_it() {
    let stage = Stage::local();
    let script = format!("({STUBBORN}) & while ! test -s pids; do sleep 0.01; done; exit 4");
    assert_eq!(code(&mut stage.run(&[], &script)).0, Some(4));
    let pids = stubborn(&stage);
    assert!(pids.len() == 3 && pids.iter().all(|pid| !runs(pid)), "{pids:?}");
}

#[test]
fn a_program_that_fails_is_begun_again_when_that_is_wanted() {
    let stage = Stage::local();
    let script = "echo x >> count; test $(wc -l < count) -ge 3";
    let quick = ["--backoff", "1ms"];
    assert_eq!(code(&mut stage.run(&["--restart", "on-failure", quick[0], quick[1]], script)).0, Some(0));
    assert_eq!(fs::read_to_string(stage.file("count")).unwrap().lines().count(), 3);

    let mut always = stage.start(&["--restart", "always", quick[0], quick[1]], "echo x >> often");
    eventually("many terms", || {
        let count = fs::read_to_string(stage.file("often")).ok()?.lines().count();
        (count >= 4).then_some(())
    });
    always.signal("TERM");
    let code = always.end().code();
    assert!(code == Some(143) || code == Some(0), "{code:?}");
}

/// As it is in a container whose entrypoint is tenure.
#[test]
fn the_first_process_of_all_buries_what_others_leave() {
    let stage = Stage::local();
    // An orphan that tenure has not started, as of a health check from outside; it is looked for until it is buried.
    let script = format!(
        "(setsid sleep 0.05 &)
        exec {} run -- sh -c 'while cat /proc/[0-9]*/stat 2>/dev/null | grep -q \"(sleep)\"; do :; done; exit 5'",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
    unshare.env("TENURE_STORE", &stage.url).env("TENURE_ELECTION", "e").stdin(Stdio::null());
    let (ended, said) = code(&mut unshare);
    assert_eq!(ended, Some(5), "{said}");
}

#[test]
fn bad_usage_is_told_at_once() {
    let stage = Stage::local();
    let refused = |arguments: &[&str], what: &str| {
        let (code, said) = code(&mut stage.tenure(arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(what), "{arguments:?}: {said}");
    };
    refused(&["run"], "COMMAND");
    refused(&["run", "--ttl", "10 parsecs", "--", "true"], "parsecs");
    refused(&["run", "--ttl", "10ms", "--", "true"], "it must be from 1s to 1day");
    refused(&["run", "--grace-period", "9s", "--", "true"], "at most 3s 333ms");
    refused(&["run", "--grace-period", "50ms", "--", "true"], "at least 100ms");
    refused(&["run", "--stop-signal", "NOPE", "--", "true"], "allowed are HUP");
    refused(&["run", "--id", "a b", "--", "true"], "a b");
    refused(&["run", "--election", "a/b", "--", "true"], "a/b");
    refused(&["run", "--store", "redis://x", "--", "true"], "allowed are");
    refused(&["leader", "--store", "etcd:/nowhere"], "etcd");
    let (missing, said) = code(&mut bare(&["leader"]));
    assert_eq!(missing, Some(2));
    assert!(said.contains("--election"), "{said}");
}

#[test]
fn without_a_store_it_is_a_directory_of_the_users() {
    let stage = Stage::local();
    let home = stage.file("a home");
    fs::create_dir(&home).unwrap();
    for (variable, below) in [("XDG_STATE_HOME", ""), ("HOME", ".local/state")] {
        let mut command = bare(&["run", "--election", "e", "--", "true"]);
        succeed(command.env_remove("XDG_STATE_HOME").env(variable, &home));
        assert!(home.join(below).join("tenure/tokens/e").exists(), "{variable}");
    }
}

#[test]
fn a_running_command_is_ended_with_the_test() {
    // The tests above rely on it: whatever fails, nothing is left.
    let stage = Stage::local();
    let running = stage.start(&[], STUBBORN);
    let pids = stubborn(&stage);
    drop::<Running>(running);
    eventually("the end of the program", || pids.iter().all(|pid| !runs(pid)).then_some(()));
}
