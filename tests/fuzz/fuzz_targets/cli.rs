//! What the command `tenure` reads and prints: arguments, orders to its guard, signals, processes, directories, candidates.
//!
//! The first word says what the rest is: `args`, one argument a line; `orders`, lines of JSON; `signal`; `stat`, a line of
//! `/proc/PID/stat`; `dir`, a directory; `shown`, a candidate's value.

#![no_main]
// The command has no library: these are its files, of which not everything is called here.
#![allow(dead_code)]

#[path = "../../../crates/tenure-cli/src/args.rs"]
mod args;
#[path = "../../../crates/tenure-cli/src/exit.rs"]
mod exit;
#[path = "../../../crates/tenure-cli/src/guard_protocol.rs"]
mod guard_protocol;
#[path = "../../../crates/tenure-cli/src/limits.rs"]
mod limits;
#[path = "../../../crates/tenure-cli/src/output.rs"]
mod output;
#[path = "../../../crates/tenure-cli/src/processes/mod.rs"]
mod processes;
#[path = "../../../crates/tenure-cli/src/serve/address.rs"]
mod serve;
#[path = "../../../crates/tenure-cli/src/signals.rs"]
mod signals;
#[path = "../../../crates/tenure-cli/src/store.rs"]
mod store;
#[path = "../../../crates/tenure-cli/src/waiting.rs"]
mod waiting;

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    net::Shutdown,
    os::unix::{ffi::OsStrExt as _, net::UnixStream},
    path::Path,
};

use args::{Arguments, Command};
use clap::Parser as _;
use guard_protocol::{GuardCommand, GuardEvent, LineReader, encode_line};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use signals::ForwardableSignal;
use tenure::{Candidate, FencingToken, StoreUrl};

fuzz_target!(|data: &[u8]| {
    let cut = data.iter().position(|byte| byte.is_ascii_whitespace()).unwrap_or(data.len());
    let (kind, rest) = (&data[..cut], data.get(cut + 1..).unwrap_or_default());
    let text = str::from_utf8(rest);
    match (kind, text) {
        (b"args", _) => arguments(rest),
        (b"orders", _) => orders_to_the_guard(rest),
        (b"dir", _) => directory(rest),
        (b"shown", _) => candidate(rest),
        (b"signal", Ok(text)) => signal(text),
        (b"stat", Ok(text)) => process(text),
        _ => {}
    }
});

/// The command's messages, which are discarded here.
mod messages {
    pub(crate) fn print(_: &str) {}

    pub(crate) fn try_print(_: &str) -> bool {
        true
    }
}

/// What is accepted is what was given.
fn arguments(lines: &[u8]) {
    let given: Vec<OsString> =
        lines.split(|byte| *byte == b'\n').map(|line| OsStr::from_bytes(line).into()).collect();
    let Ok(read) = Arguments::try_parse_from([OsString::from("tenure")].into_iter().chain(given.clone()))
    else {
        return;
    };
    if let Command::Run(run) = read.command {
        let after =
            given.iter().position(|argument| argument == "--").expect("a program comes after two dashes");
        assert_eq!(run.command, given[after + 1..], "another program is run than was given");
        assert!(!run.command.is_empty());
    }
}

/// Lines that arrive in pieces are those that arrive at once, and are written as they are read.
fn orders_to_the_guard(lines: &[u8]) {
    fn both<M: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(lines: &[u8]) {
        let whole = read::<M>(&[lines]);
        let (first, second) = lines.split_at(lines.len() / 2);
        assert_eq!(whole, read::<M>(&[first, second]), "it matters where the lines are cut");
        let written: String =
            whole.iter().flatten().map(|message| encode_line(message).expect("it can be written")).collect();
        if let Some(messages) = whole {
            assert_eq!(Some(messages), read::<M>(&[written.as_bytes()]));
        }
    }
    both::<GuardCommand>(lines);
    both::<GuardEvent>(lines);
}

/// What is read of the pieces, one after the other; `None` when a line is none of ours.
fn read<M: DeserializeOwned>(pieces: &[&[u8]]) -> Option<Vec<M>> {
    let (mut here, mut there) = UnixStream::pair().expect("there are sockets");
    let (mut lines, mut all) = (LineReader::default(), Vec::new());
    for piece in pieces.iter().flat_map(|piece| piece.chunks(4096)) {
        here.write_all(piece).expect("it is read");
        all.extend(lines.read(&mut there).ok()?.expect("nothing is shut down yet"));
    }
    here.shutdown(Shutdown::Write).expect("it is open");
    assert!(lines.read::<M>(&mut there).ok()?.is_none(), "something is read that nobody wrote");
    Some(all)
}

fn signal(text: &str) {
    match text.parse::<ForwardableSignal>() {
        Ok(signal) => {
            assert_eq!(signal.to_string().parse(), Ok(signal));
            assert_eq!(ForwardableSignal::from_number(signal.signal().as_raw()), Some(signal));
        }
        Err(said) => assert!(said.starts_with("allowed are ")),
    }
}

/// Whatever a process is called, its parent and beginning are those that stand behind its name.
fn process(stat: &str) {
    let read = processes::proc::parse_stat(1, stat);
    if !stat.contains(')') {
        assert_eq!(read, None);
        let named = |name: &str| {
            processes::proc::parse_stat(1, &format!("1 ({name}) S 42 {} 4711 0", "0 ".repeat(17).trim_end()))
        };
        assert_eq!(named(stat), named("sh"));
        assert!(named(stat).is_some());
    }
}

/// The URL of a directory leads to that directory, or is refused.
fn directory(path: &[u8]) {
    let Ok(url) = store::local_url(Path::new(OsStr::from_bytes(path))).parse::<StoreUrl>() else {
        let fits = str::from_utf8(path).is_ok_and(|path| !path.chars().any(char::is_control));
        assert!(!fits, "{path:?}");
        return;
    };
    assert_eq!(url.hosts(), [""; 0], "a directory is taken for a host");
    assert_eq!(url.path().as_bytes(), path);
}

/// A candidate is one line, whatever it has written: for people without anything that a terminal obeys, and in JSON whole.
fn candidate(payload: &[u8]) {
    let candidate = Candidate::decode("entry", "session", payload, FencingToken::new(7));
    let printed = |json: &[&str]| {
        let arguments = Arguments::try_parse_from([&["tenure", "leader", "--election", "e"], json].concat());
        let Command::Leader(query) = arguments.expect("it is well formed").command else {
            panic!("another command")
        };
        output::candidate_line(&query, &candidate).expect("it can be printed")
    };
    let json: serde_json::Value = serde_json::from_str(&printed(&["--json"])).expect("it is JSON");
    assert_eq!(
        (&json["id"], &json["value"]),
        (&candidate.id.as_str().into(), &candidate.value_lossy().into())
    );
    assert_eq!((&json["token"], &json["session"]), (&7.into(), &"session".into()));
    assert!(!printed(&["--json"]).contains(|c| c < ' '));
    let line = anstream::adapter::strip_str(&printed(&[])).to_string();
    assert!(
        line.matches('\t').count() <= 2 && line.chars().all(|c| c == '\t' || !c.is_control()),
        "{line:?}"
    );
    assert_eq!(line.split('\t').next(), Some(candidate.id.escape_debug().to_string().as_str()));
}
