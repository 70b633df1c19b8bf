//! Signals: their names, and those that are passed on to the program.

use std::{fs, io, str::FromStr, thread};

use rustix::process::Signal;
use signal_hook::{
    consts::signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::{SignalsInfo, exfiltrator::WithOrigin},
    low_level::siginfo::Cause,
};
use tokio::sync::mpsc;

use crate::processes::reap_orphans;

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

/// A signal that a program can be told to stop with, or that is passed on to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StopSignal(Signal);

impl StopSignal {
    pub(crate) fn signal(self) -> Signal {
        self.0
    }

    /// Whether it asks for an end.
    pub(crate) fn ends(self) -> bool {
        [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&self.0)
    }

    pub(crate) fn from_number(number: i32) -> Option<Self> {
        NAMES.iter().map(|(_, signal)| *signal).find(|signal| signal.as_raw() == number).map(Self)
    }
}

impl std::fmt::Display for StopSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = NAMES.iter().find(|(_, signal)| *signal == self.0);
        f.write_str(name.map_or("?", |(name, _)| name))
    }
}

impl FromStr for StopSignal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| Self(*signal));
        named.or_else(|| Self::from_number(name.parse().ok()?)).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("allowed are {}, or their numbers", names.join(", "))
        })
    }
}

/// A signal that this process got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) number: i32,
    /// Whether the terminal sent it, to everybody in front of it.
    pub(crate) by_terminal: bool,
}

impl Received {
    /// Whether whoever sent it wants an end.
    pub(crate) fn ends(self) -> bool {
        matches!(self.number, SIGHUP | SIGINT | SIGQUIT | SIGTERM)
    }
}

/// Those of `signals` that this process was not told to ignore when it was started: by `nohup`, say, or by a shell
/// that runs it in the background. What is ignored stays so, for the program too.
///
/// # Errors
/// When it cannot be read which those are: they are not guessed.
pub(crate) fn not_ignored(signals: &[i32]) -> io::Result<Vec<i32>> {
    let status = fs::read("/proc/self/status")?;
    let status = String::from_utf8_lossy(&status);
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let ignored = ignored
        .ok_or_else(|| io::Error::other("/proc/self/status does not say which signals are ignored"))?;
    Ok(signals.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect())
}

/// Hears all signals that are passed on, from now on.
pub(crate) fn listen() -> io::Result<mpsc::UnboundedReceiver<Received>> {
    let mut heard = not_ignored(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH])?;
    heard.push(SIGCHLD);
    let mut signals = SignalsInfo::<WithOrigin>::new(heard)?;
    let (tell, told) = mpsc::unbounded_channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for origin in signals.forever() {
            if origin.signal == SIGCHLD {
                reap_orphans();
                continue;
            }
            let by_terminal = matches!(origin.cause, Cause::Kernel);
            if tell.send(Received { number: origin.signal, by_terminal }).is_err() {
                return;
            }
        }
    })?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_its_name_or_number() {
        for text in ["TERM", "term", "SIGTERM", "sigterm", "15"] {
            assert_eq!(text.parse(), Ok(StopSignal(Signal::TERM)), "{text}");
        }
        assert_eq!(StopSignal(Signal::USR1).to_string(), "USR1");
        for text in ["", "SIG", "TERMINATE", "0", "-9", "99"] {
            let refused = StopSignal::from_str(text).unwrap_err();
            assert!(refused.starts_with("allowed are HUP, INT"), "{text}: {refused}");
        }
    }
}
