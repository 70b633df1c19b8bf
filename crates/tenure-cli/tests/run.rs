//! `tenure run` on a lock file: what the program gets, how it ends, and that no process of it outlives its term.

mod common;

use std::{
    fs,
    io::{PipeReader, PipeWriter, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use common::{
    CHECK_ALONE, RunningCommand, STUBBORN_PROGRAM, Sandbox, children, code_and_stderr, eventually,
    is_running, kill, stdout, succeed, tenure_command,
};

/// The process ids of the stubborn program.
fn stubborn_pids(sandbox: &Sandbox) -> Vec<String> {
    sandbox.wait_for_line("pids").split(' ').map(str::to_owned).collect()
}

#[test]
fn the_program_gets_its_term_in_the_environment() {
    let sandbox = Sandbox::local();
    let script = "echo $TENURE_ELECTION $TENURE_CANDIDATE $TENURE_FENCING_TOKEN; test -z \"$TENURE_DEADLINE_BOOTTIME_NS\"";
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let stderr = stdout(&succeed(&mut sandbox.run(&["--id", "node-1"], script)));
        let words: Vec<_> = stderr.split_whitespace().collect();
        assert_eq!(words[..2], ["e", "node-1"]);
        tokens.push(words[2].parse::<u64>().unwrap());
    }
    assert!(tokens[0] < tokens[1], "{tokens:?}");
}

#[test]
fn the_stores_url_can_set_the_ttl_and_the_grace_period() {
    let mut sandbox = Sandbox::local();
    let directory = sandbox.url.clone();
    let grace_period =
        |sandbox: &Sandbox| stdout(&succeed(&mut sandbox.run(&[], "echo $TENURE_GRACE_PERIOD_MS")));
    for (settings, millis) in [("ttl=2s", "200\n"), ("ttl=2s&grace_period=450ms", "450\n")] {
        sandbox.url = format!("{directory}?{settings}");
        assert_eq!(grace_period(&sandbox), millis, "{settings}");
    }
    sandbox.url = format!("{directory}?grace_period=50ms");
    let (refused, stderr) = code_and_stderr(&mut sandbox.run(&[], "touch ran"));
    assert_eq!(refused, Some(2), "{stderr}");
    assert!(stderr.contains("at least 100ms") && !sandbox.file("ran").exists(), "{stderr}");
}

#[test]
fn the_programs_exit_status_is_passed_on() {
    let sandbox = Sandbox::local();
    assert_eq!(code_and_stderr(&mut sandbox.run(&[], "exit 0")).0, Some(0));
    assert_eq!(code_and_stderr(&mut sandbox.run(&[], "exit 7")).0, Some(7));
    assert_eq!(code_and_stderr(&mut sandbox.run(&[], "kill -USR1 $$")).0, Some(128 + 10));
    assert_eq!(code_and_stderr(&mut sandbox.run(&[], "kill -KILL $$")).0, Some(128 + 9));
    let (missing, stderr) = code_and_stderr(&mut sandbox.tenure(&["run", "--", "no-such-program"]));
    assert_eq!(missing, Some(127), "{stderr}");
    assert!(stderr.contains("cannot run no-such-program"), "{stderr}");
    let (directory, stderr) = code_and_stderr(&mut sandbox.tenure(&["run", "--", "/"]));
    assert_eq!(directory, Some(126), "{stderr}");
    assert_eq!(sandbox.candidates(), [] as [&str; 0]);
}

#[test]
fn standard_input_output_and_error_are_the_programs() {
    let sandbox = Sandbox::local();
    let mut command = sandbox.run(&["--quiet"], "cat; echo to stderr >&2");
    let mut running =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(b"through and through\0\xff").unwrap();
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through and through\0\xff");
    assert_eq!(output.stderr, b"to stderr\n");
}

#[test]
fn one_program_runs_at_a_time_and_the_next_at_once_after_it() {
    let sandbox = Sandbox::local();
    let mut first = sandbox.start(&["--id", "first"], "echo $$ > first; sleep 1000");
    let pid = sandbox.wait_for_line("first");
    let mut second = sandbox.run(&["--id", "second"], "echo second > second");
    let mut second = RunningCommand::start(second.stderr(fs::File::create(sandbox.file("stderr")).unwrap()));
    eventually("a second candidate", || (sandbox.candidates() == ["first", "second"]).then_some(()));
    assert_eq!(
        sandbox.wait_for_line("stderr"),
        "tenure: waiting for leadership of e: first leads; queue position 2 of 2"
    );
    assert!(!sandbox.file("second").exists());
    kill("KILL", &pid);
    assert_eq!(sandbox.wait_for_line("second"), "second");
    assert_eq!(first.code_and_stderr().0, Some(137));
    assert_eq!(second.wait().code(), Some(0));
}

#[test]
fn a_candidate_that_is_not_elected_exits_with_its_own_code_and_leaves_no_entry() {
    let sandbox = Sandbox::local();
    let mut leader = sandbox.start(&[], "echo leads > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    assert_eq!(code_and_stderr(&mut sandbox.run(&["--try"], "touch tried")).0, Some(75));
    assert_eq!(code_and_stderr(&mut sandbox.run(&["--try", "-q"], "touch tried")), (Some(75), String::new()));
    for timeout in ["0", "50ms"] {
        let (code, stderr) = code_and_stderr(&mut sandbox.run(&["--timeout", timeout], "touch tried"));
        assert!(code == Some(75) && stderr.contains("not elected: not within"), "{timeout}: {stderr}");
    }
    let (code, stderr) = code_and_stderr(&mut sandbox.run(&["--try", "--timeout", "0"], "touch tried"));
    assert!(code == Some(75) && !stderr.contains("does not answer"), "the store answers: {stderr}");
    let mut waiting = sandbox.start(&[], "touch tried");
    eventually("a waiting candidate", || (sandbox.candidates().len() == 2).then_some(()));
    waiting.signal("INT");
    assert_eq!(waiting.wait().code(), Some(130));
    assert_eq!(sandbox.candidates().len(), 1, "the other candidate has left no entry");
    assert!(!sandbox.file("tried").exists());
    leader.signal("TERM");
    assert_eq!(leader.wait().code(), Some(143));
    assert_eq!(sandbox.candidates(), [] as [&str; 0]);
}

#[test]
fn signals_are_passed_on() {
    let sandbox = Sandbox::local();
    let script =
        "trap 'echo usr1 > usr1' USR1; trap 'exit 3' TERM; echo ready > ready; while :; do sleep 0.05; done";
    // A termination signal overrides `--restart always`.
    let mut running = sandbox.start(&["--restart", "always"], script);
    sandbox.wait_for_line("ready");
    running.signal("USR1");
    sandbox.wait_for_line("usr1");
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(3));
}

/// On a lock file there is no deadline to wait for: the guard also holds the lock, until everything is dead.
#[test]
fn nothing_runs_beside_the_next_leader_when_tenure_is_killed() {
    for group in [false, true] {
        let sandbox = Sandbox::local();
        let mut first = sandbox.start(&[], STUBBORN_PROGRAM);
        let pids = stubborn_pids(&sandbox);
        let mut second = sandbox.start(&["--quiet"], CHECK_ALONE);
        eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
        if group {
            first.signal_group("KILL")
        } else {
            first.signal("KILL")
        };
        assert_eq!(second.code_and_stderr(), (Some(0), String::new()), "with its group: {group}");
        assert!(pids.iter().all(|pid| !is_running(pid)), "{pids:?}");
        first.wait();
    }
}

/// The shell that executes tenure may have started other processes before.
#[test]
fn preexisting_processes_are_not_killed() {
    let sandbox = Sandbox::local();
    let script = format!(
        "sleep 1000 & echo $! > sidecar; exec {} run -- sh -c 'echo leads > leads; sleep 1000'",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(sandbox.file("")).stdin(Stdio::null());
    let mut running =
        RunningCommand::start(command.env("TENURE_STORE", &sandbox.url).env("TENURE_ELECTION", "e"));
    sandbox.wait_for_line("leads");
    let sidecar = sandbox.wait_for_line("sidecar");
    let guard = children(running.pid()).into_iter().find(|pid| *pid != sidecar).unwrap();
    kill("KILL", guard);
    assert_eq!(running.wait().code(), Some(137));
    assert!(is_running(&sidecar));
    kill("KILL", sidecar);
}

/// Tenure kills a guard that does not react, and the program.
#[test]
fn a_program_whose_guard_is_stopped_is_killed() {
    let sandbox = Sandbox::local();
    let mut first = sandbox.start(&["--ttl", "2s"], STUBBORN_PROGRAM);
    let pids = stubborn_pids(&sandbox);
    let mut second = sandbox.start(&["--quiet"], "echo leads > second; exec sleep 1000");
    eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
    kill("STOP", &children(first.pid())[0]);
    succeed(sandbox.tenure(&["resign"]).stdout(Stdio::null()));
    sandbox.wait_for_line("second");
    assert!(pids.iter().all(|pid| !is_running(pid)), "{pids:?}");
    assert_eq!(first.wait().code(), Some(76));
    second.signal("TERM");
    second.wait();
}

#[test]
fn a_stopped_program_gets_the_termination_signal() {
    let sandbox = Sandbox::local();
    let mut running = sandbox.start(&[], "echo $$ > pid; kill -STOP $$; sleep 1000");
    let pid = sandbox.wait_for_line("pid");
    eventually("a stopped program", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.contains(") T ").then_some(())
    });
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(143));
}

/// As with `nohup`, or in the background of a shell.
#[test]
fn ignored_signals_stay_ignored() {
    let sandbox = Sandbox::local();
    let script = format!(
        "trap '' HUP INT; exec {} run -- sh -c 'grep SigIgn /proc/self/status > ignored; sleep 1000'",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(sandbox.file("")).stdin(Stdio::null());
    let mut running =
        RunningCommand::start(command.env("TENURE_STORE", &sandbox.url).env("TENURE_ELECTION", "e"));
    let ignored = sandbox.wait_for_line("ignored");
    let ignored = u64::from_str_radix(ignored.split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(ignored & 0b11, 0b11, "HUP and INT");
    running.signal("HUP");
    running.signal("INT");
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(143));
}

#[test]
fn a_closed_standard_error_does_not_stop_it() {
    let sandbox = Sandbox::local();
    let mut command = sandbox
        .run(&["--restart", "on-failure", "--backoff", "1ms"], "test -e again || { touch again; exit 1; }");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut running = RunningCommand::start(command.env("TENURE_LOG", "trace").stderr(writer));
    drop((command, reader));
    assert_eq!(running.wait().code(), Some(0));
}

/// A pipe that is full, and whose other end is open but not read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Only until it is full: the command must see a pipe that blocks.
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'\n'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// It would neither end nor handle a signal.
#[test]
fn a_full_standard_error_does_not_stop_it() {
    let sandbox = Sandbox::local();
    let (_reader, writer) = full_pipe();
    let start = |options: &[&str], script: &str| {
        RunningCommand::start(sandbox.run(options, script).stderr(writer.try_clone().unwrap()))
    };
    let mut leader = start(&[], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    assert_eq!(start(&["--try"], "true").wait().code(), Some(75));
    succeed(sandbox.tenure(&["resign"]).stdout(Stdio::null()));
    assert_eq!(leader.wait().code(), Some(76));
    let mut refused = sandbox.tenure(&["run", "--id", "a b", "--", "true"]);
    assert_eq!(RunningCommand::start(refused.stderr(writer)).wait().code(), Some(2));
}

#[test]
fn no_process_is_left_when_the_guard_is_killed() {
    let sandbox = Sandbox::local();
    let mut running = sandbox.start(&[], STUBBORN_PROGRAM);
    let pids = stubborn_pids(&sandbox);
    let guard = children(running.pid());
    assert_eq!(guard.len(), 1);
    kill("KILL", &guard[0]);
    assert_eq!(running.wait().code(), Some(137));
    assert!(pids.iter().all(|pid| !is_running(pid)), "{pids:?}");
}

#[test]
fn processes_that_the_program_leaves_are_killed() {
    let sandbox = Sandbox::local();
    let script = format!("({STUBBORN_PROGRAM}) & while ! test -s pids; do sleep 0.01; done; exit 4");
    assert_eq!(code_and_stderr(&mut sandbox.run(&[], &script)).0, Some(4));
    let pids = stubborn_pids(&sandbox);
    assert!(pids.len() == 3 && pids.iter().all(|pid| !is_running(pid)), "{pids:?}");
}

#[test]
fn a_failed_program_is_restarted_if_wanted() {
    let sandbox = Sandbox::local();
    let script = "echo x >> count; test $(wc -l < count) -ge 3";
    let short_backoff = ["--backoff", "1ms"];
    assert_eq!(
        code_and_stderr(
            &mut sandbox.run(&["--restart", "on-failure", short_backoff[0], short_backoff[1]], script)
        )
        .0,
        Some(0)
    );
    assert_eq!(fs::read_to_string(sandbox.file("count")).unwrap().lines().count(), 3);

    let mut always =
        sandbox.start(&["--restart", "always", short_backoff[0], short_backoff[1]], "echo x >> often");
    eventually("many terms", || {
        let count = fs::read_to_string(sandbox.file("often")).ok()?.lines().count();
        (count >= 4).then_some(())
    });
    always.signal("TERM");
    let code = always.wait().code();
    assert!(code == Some(143) || code == Some(0), "{code:?}");
}

#[test]
fn many_terms_do_not_fill_the_log() {
    let sandbox = Sandbox::local();
    let options = ["--restart", "always", "--backoff", "1ms", "--max-backoff", "1ms"];
    let mut always = sandbox.start(&options, "echo x >> terms");
    eventually("many terms", || {
        (fs::read_to_string(sandbox.file("terms")).ok()?.lines().count() >= 30).then_some(())
    });
    always.signal("TERM");
    let (_, stderr) = always.code_and_stderr();
    let lines = stderr.lines().filter(|line| line.contains(" leads e ")).count();
    // Those of three terms, and one in 10 s: the terms take at most 30 s.
    assert!((6..=9).contains(&lines), "{stderr}");
}

/// As in a container whose entrypoint is tenure.
#[test]
fn as_the_first_process_it_reaps_orphans() {
    // An orphan that tenure has not started, like one of a container's health check. The program waits until it is
    // reaped. The second one is dead already when tenure starts.
    let dead = "(setsid sleep 0 & echo $! > orphan); read -r pid < orphan
        while read -r stat < /proc/$pid/stat; do case $stat in *') Z '*) break;; esac; done";
    for orphan in ["(setsid sleep 0.05 &)", dead] {
        as_the_first_process_it_reaps(orphan);
    }
}

fn as_the_first_process_it_reaps(orphan: &str) {
    let sandbox = Sandbox::local();
    let script = format!(
        "{orphan}
        exec {} run -- sh -c 'while cat /proc/[0-9]*/stat 2>/dev/null | grep -q \"(sleep)\"; do :; done; exit 5'",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
    unshare.env("TENURE_STORE", &sandbox.url).env("TENURE_ELECTION", "e").stdin(Stdio::null());
    unshare.current_dir(sandbox.file(""));
    let (ended, stderr) = code_and_stderr(&mut unshare);
    assert_eq!(ended, Some(5), "{stderr}");
}

/// Case 49.
#[test]
fn a_program_that_becomes_a_daemon_is_named() {
    let sandbox = Sandbox::local();
    let daemon =
        "setsid sh -c 'echo $$ > daemon; exec sleep 1000' & while ! test -s daemon; do sleep 0.01; done
        echo x >> terms";
    let (code, stderr) = code_and_stderr(&mut sandbox.run(&[], daemon));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stderr.matches("must stay in the foreground").count(), 1, "{stderr}");
    assert!(stderr.contains("left 1 of its processes running"), "only what ran is counted: {stderr}");
    assert!(!is_running(&sandbox.wait_for_line("daemon")));
    let mut always = sandbox.start(&["--restart", "always", "--backoff", "20ms"], daemon);
    eventually("several terms", || {
        (fs::read_to_string(sandbox.file("terms")).ok()?.lines().count() >= 4).then_some(())
    });
    always.signal("TERM");
    let (_, stderr) = always.code_and_stderr();
    assert_eq!(stderr.matches("must stay in the foreground").count(), 1, "{stderr}");
}

/// A terminal sends the interrupt to the program, too, and the guard does not know.
#[test]
fn an_interrupted_program_is_not_blamed_for_what_it_leaves() {
    let sandbox = Sandbox::local();
    let program = "trap \"exit 0\" INT; sleep 1000 & echo > ready; wait";
    let line = format!("exec {} run -- sh -c '{program}'", env!("CARGO_BIN_EXE_tenure"));
    let mut command = Command::new("script");
    command.args(["--quiet", "--command", &line, "/dev/null"]).current_dir(sandbox.file(""));
    command.env("TENURE_STORE", &sandbox.url).env("TENURE_ELECTION", "e");
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sandbox.wait_for_line("ready");
    // Control-C.
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(b"\x03").unwrap();
    let shown = stdout(&running.wait_with_output().unwrap());
    assert!(shown.contains("leads e with token") && !shown.contains("foreground"), "{shown}");
}

/// Case 48. The same settings as in the library, by variables and options, and no silent precedence.
#[test]
fn variables_set_what_options_set() {
    let sandbox = Sandbox::local();
    let mut command = sandbox.run(&[], "echo $TENURE_GRACE_PERIOD_MS > grace; exec sleep 1000");
    command.env("TENURE_GRACE_PERIOD", "0.25").env("TENURE_CANDIDATE_VALUE", "here").env("TENURE_TTL", "2");
    let _running = RunningCommand::start(&mut command);
    assert_eq!(sandbox.wait_for_line("grace"), "250");
    let leader = common::stdout(&succeed(&mut sandbox.tenure(&["leader"])));
    assert!(leader.ends_with("\there\n"), "{leader}");
    let store = format!("{}?ttl=10&candidate=a&shutdown_timeout=3s&candidate_value=x", sandbox.url);
    for options in [
        ["--ttl", "2s"],
        ["--candidate", "b"],
        ["--id", "b"],
        ["--shutdown-timeout", "2s"],
        ["--candidate-value", "y"],
    ] {
        let mut run = sandbox.run(&options, "true");
        let (code, stderr) = code_and_stderr(run.env("TENURE_STORE", &store));
        assert!(code == Some(2) && stderr.contains("give one of them"), "{stderr}");
    }
    let mut doctor = tenure_command(&["doctor", "--ttl", "2s", "--store", &store]);
    let (code, stderr) = code_and_stderr(&mut doctor);
    assert!(code == Some(2) && stderr.contains("--ttl (or TENURE_TTL) is 2s: give one of them"), "{stderr}");
    let mut same = sandbox.run(&["--ttl", "10s", "--id", "a", "--try"], "true");
    assert_eq!(code_and_stderr(same.env("TENURE_STORE", &store)).0, Some(75), "the first leads");
}

#[test]
fn an_empty_variable_counts_as_unset_except_the_store() {
    let sandbox = Sandbox::local();
    let mut run = sandbox.run(&[], "true");
    for name in ["TENURE_LOG_FORMAT", "TENURE_TTL", "TENURE_GRACE_PERIOD", "TENURE_SHUTDOWN_TIMEOUT"] {
        run.env(name, "");
    }
    let (code, stderr) = code_and_stderr(&mut run);
    assert_eq!(code, Some(0), "{stderr}");
    let (code, stderr) = code_and_stderr(run.env("TENURE_STORE", ""));
    assert!(code == Some(2) && !stderr.contains("no --store"), "{stderr}");
}

#[test]
fn bad_usage_is_refused_at_once() {
    let sandbox = Sandbox::local();
    let refused = |arguments: &[&str], what: &str| {
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(what), "{arguments:?}: {stderr}");
    };
    refused(&["run"], "COMMAND");
    refused(&["run", "--ttl", "10 parsecs", "--", "true"], "parsecs");
    refused(&["run", "--ttl", "10ms", "--", "true"], "it must be from 1s to 1day");
    refused(&["run", "--grace-period", "9s", "--", "true"], "at most 3s 333ms");
    refused(&["run", "--grace-period", "50ms", "--", "true"], "at least 100ms");
    refused(&["run", "--stop-signal", "NOPE", "--", "true"], "allowed are HUP");
    refused(&["run", "--id", "a b", "--", "true"], "a b");
    refused(&["run", "--election", "a/b", "--", "true"], "a/b");
    refused(&["run", "--store", "raft://x", "--", "true"], "use memory:");
    refused(&["leader", "--store", "etcd:/nowhere"], "etcd");
    let (missing, stderr) = code_and_stderr(&mut tenure_command(&["leader"]));
    assert_eq!(missing, Some(2));
    assert!(stderr.contains("--election"), "{stderr}");
}

/// Case 44. Root has one store, whatever its environment: a shell and cron must not elect one leader each.
#[test]
fn the_default_store_of_root_does_not_depend_on_the_environment() {
    let sandbox = Sandbox::local();
    // As root, where /var/lib is empty.
    let script = "mount -t tmpfs none /var/lib && exec sh -ec '
        HOME=/root \"$0\" run --id first -- sleep 1000 2> first & first=$!
        while ! grep -q local:/var/lib/tenure first; do sleep 0.02; done
        while ! HOME=/root \"$0\" leader > /dev/null 2>&1; do sleep 0.02; done
        for home in HOME=/tmp -uHOME XDG_STATE_HOME=/tmp; do
            env $home \"$0\" run --try -- touch ran 2>> others && exit 1
        done
        kill $first; wait $first || true' \"$0\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_tenure")]);
    unshare.env("TENURE_ELECTION", "e").env_remove("TENURE_STORE").env_remove("XDG_STATE_HOME");
    let (code, stderr) = code_and_stderr(unshare.current_dir(sandbox.file("")).stdin(Stdio::null()));
    assert_eq!(code, Some(0), "{stderr}");
    let others = fs::read_to_string(sandbox.file("others")).unwrap();
    assert_eq!(others.matches("one leader among the processes that use local:/var/lib/tenure").count(), 3);
    assert_eq!(others.matches("not elected: first leads e").count(), 3, "{others}");
}

/// Case 44. Other users have a store each, and there is no store that nobody has named.
#[test]
fn the_default_store_of_others_is_in_their_home() {
    let sandbox = Sandbox::local();
    let home = sandbox.file("a home");
    fs::create_dir(&home).unwrap();
    for directory in [&home, &sandbox.file("")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let tenure = sandbox.file("tenure");
    fs::copy(env!("CARGO_BIN_EXE_tenure"), &tenure).unwrap();
    let as_user = |variables: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=54321", "--clear-groups"]).arg(&tenure).args(["run", "-q", "--election", "e"]);
        command.args(["--", "true"]).current_dir(&home).stdin(Stdio::null());
        for name in ["HOME", "XDG_STATE_HOME", "TENURE_STORE"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().map(|name| (name, &home)));
        code_and_stderr(&mut command)
    };
    for variables in [&["HOME"][..], &["HOME", "XDG_STATE_HOME"]] {
        let (code, stderr) = as_user(variables);
        assert_eq!(code, Some(0), "{stderr}");
        let directory = home.join(".local/state/tenure");
        assert!(directory.join("tokens/e").exists() && !home.join("tenure").exists(), "{variables:?}");
        assert!(
            stderr.contains("that use local:/") && stderr.contains("/.local/state/tenure"),
            "also with -q: {stderr}"
        );
    }
    for variables in [&[][..], &["XDG_STATE_HOME"]] {
        let (code, stderr) = as_user(variables);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("use --store, for example"), "{stderr}");
    }
}

/// Case 47. It would wait behind its own parent.
#[test]
fn a_nested_run_of_the_same_election_is_refused() {
    let sandbox = Sandbox::local();
    for option in ["", "--election e"] {
        let script = format!("exec {} run {option} -- touch ran", env!("CARGO_BIN_EXE_tenure"));
        let (code, stderr) = code_and_stderr(&mut sandbox.run(&[], &script));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("runs under `tenure run` as the leader of e"), "{stderr}");
        assert!(!sandbox.file("ran").exists());
    }
    let tenure = env!("CARGO_BIN_EXE_tenure");
    let deep = format!("exec {tenure} run --election other -- {tenure} run --election e -- touch ran");
    let (code, stderr) = code_and_stderr(&mut sandbox.run(&[], &deep));
    assert!(code == Some(2) && stderr.contains("as the leader of e"), "{stderr}");
    assert!(!sandbox.file("ran").exists());
    let another = format!("exec {tenure} run --store {}-2 -- true", sandbox.url);
    let (code, stderr) = code_and_stderr(&mut sandbox.run(&[], &another));
    assert_eq!(code, Some(0), "the same name in another store: {stderr}");
    let inner = "echo $TENURE_ELECTION $TENURE_FENCING_TOKEN > inner";
    let outer = format!(
        "echo $TENURE_ELECTION > outer; exec {} run --election other -- sh -c '{inner}'",
        env!("CARGO_BIN_EXE_tenure")
    );
    assert_eq!(code_and_stderr(&mut sandbox.run(&[], &outer)).0, Some(0));
    assert_eq!(sandbox.wait_for_line("outer"), "e");
    assert!(sandbox.wait_for_line("inner").starts_with("other "));
}

#[test]
fn a_running_command_is_killed_with_the_test() {
    // The tests above rely on it, so that a failing test leaves no process.
    let sandbox = Sandbox::local();
    let running = sandbox.start(&[], STUBBORN_PROGRAM);
    let pids = stubborn_pids(&sandbox);
    drop::<RunningCommand>(running);
    eventually("the end of the program", || pids.iter().all(|pid| !is_running(pid)).then_some(()));
}
