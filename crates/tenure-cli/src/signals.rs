//! Signals: their names, and receiving those that are passed on to the program.

use std::{
    fs, io, process,
    str::FromStr,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use rustix::process::Signal;
use signal_hook::{
    consts::signal::{
        SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGIO, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
        SIGUSR2, SIGWINCH,
    },
    iterator::{SignalsInfo, exfiltrator::WithOrigin},
    low_level::siginfo::Cause,
};
use tokio::sync::mpsc;

use crate::{exit, processes::reap_orphans};

const NAMES: [(&str, Signal); 10] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("WINCH", Signal::WINCH),
    ("CONT", Signal::CONT),
];

/// Signals that would end or stop a process.
const FATAL_SIGNALS: [i32; 11] =
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGALRM, SIGIO];

/// Makes this process ignore the signals that would end or stop it, as far as that is possible.
///
/// # Errors
/// If they cannot be handled.
pub(crate) fn ignore_signals() -> io::Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in not_ignored(&FATAL_SIGNALS)? {
        signal_hook::flag::register(signal, Arc::clone(&ignored))?;
    }
    Ok(())
}

/// A signal that can stop a program, or that is passed on to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardableSignal(Signal);

impl ForwardableSignal {
    pub(crate) fn signal(self) -> Signal {
        self.0
    }

    /// Whether the signal asks a process to end.
    pub(crate) fn is_termination(self) -> bool {
        [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&self.0)
    }

    pub(crate) fn from_number(number: i32) -> Option<Self> {
        NAMES.iter().map(|(_, signal)| *signal).find(|signal| signal.as_raw() == number).map(Self)
    }
}

impl std::fmt::Display for ForwardableSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = NAMES.iter().find(|(_, signal)| *signal == self.0);
        f.write_str(name.map_or("?", |(name, _)| name))
    }
}

impl FromStr for ForwardableSignal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let by_name = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| Self(*signal));
        by_name.or_else(|| Self::from_number(name.parse().ok()?)).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("allowed are {}, or their numbers", names.join(", "))
        })
    }
}

/// A signal that this process received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedSignal {
    pub(crate) number: i32,
    /// Whether the terminal sent it. It then went to the whole foreground process group.
    pub(crate) from_terminal: bool,
}

impl ReceivedSignal {
    /// Whether the signal asks this process to end.
    pub(crate) fn is_termination(self) -> bool {
        matches!(self.number, SIGHUP | SIGINT | SIGQUIT | SIGTERM)
    }
}

/// Those of `signals` that were not ignored when this process was started.
///
/// `nohup` starts a process with ignored signals, and so does a shell that runs it in the background. They stay
/// ignored, for the program too.
///
/// # Errors
/// If the ignored signals cannot be read from `/proc`.
pub(crate) fn not_ignored(signals: &[i32]) -> io::Result<Vec<i32>> {
    let status = fs::read("/proc/self/status")?;
    let status = String::from_utf8_lossy(&status);
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let ignored = ignored
        .ok_or_else(|| io::Error::other("/proc/self/status does not say which signals are ignored"))?;
    Ok(signals.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect())
}

/// Receives all signals that are passed on to the program, from now on. Also reaps orphans on `SIGCHLD`.
pub(crate) fn subscribe() -> io::Result<mpsc::UnboundedReceiver<ReceivedSignal>> {
    let mut numbers = not_ignored(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH])?;
    numbers.push(SIGCHLD);
    receive(&numbers)
}

/// Receives these signals from now on, if they were not ignored when this process was started.
pub(crate) fn subscribe_to(numbers: &[i32]) -> io::Result<mpsc::UnboundedReceiver<ReceivedSignal>> {
    receive(&not_ignored(numbers)?)
}

fn receive(numbers: &[i32]) -> io::Result<mpsc::UnboundedReceiver<ReceivedSignal>> {
    let mut signals = SignalsInfo::<WithOrigin>::new(numbers)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for origin in signals.forever() {
            if origin.signal == SIGCHLD {
                reap_orphans();
                continue;
            }
            let from_terminal = matches!(origin.cause, Cause::Kernel);
            if sender.send(ReceivedSignal { number: origin.signal, from_terminal }).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Makes process 1 of a container end at a termination signal. Without a handler, the kernel ignores those for process 1.
///
/// # Errors
/// If the signals cannot be handled.
pub(crate) fn end_at_termination() -> io::Result<()> {
    let mut signals = SignalsInfo::<WithOrigin>::new(not_ignored(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM])?)?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(origin) = signals.forever().next() {
            process::exit(exit::from_signal(origin.signal).into());
        }
    })?;
    Ok(())
}

/// Waits for a signal that asks this process to end. Discards others.
pub(crate) async fn termination(signals: &mut mpsc::UnboundedReceiver<ReceivedSignal>) -> ReceivedSignal {
    loop {
        match signals.recv().await {
            Some(signal) if signal.is_termination() => return signal,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_its_name_or_number() {
        for text in ["TERM", "term", "SIGTERM", "sigterm", "15"] {
            assert_eq!(text.parse(), Ok(ForwardableSignal(Signal::TERM)), "{text}");
        }
        assert_eq!(ForwardableSignal(Signal::USR1).to_string(), "USR1");
        for text in ["", "SIG", "TERMINATE", "0", "-9", "99"] {
            let refused = ForwardableSignal::from_str(text).unwrap_err();
            assert!(refused.starts_with("allowed are HUP, INT"), "{text}: {refused}");
        }
    }
}
