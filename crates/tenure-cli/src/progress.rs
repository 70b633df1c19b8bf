//! The progress of a campaign: who the leader is, and the candidate's queue position.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

use anstyle::Style;
use futures::StreamExt as _;
use tenure::{Candidate, Connection, Elector};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How long a campaign must last before its progress is printed.
const INITIAL_DELAY: Duration = Duration::from_millis(300);
/// How often the line is updated on a terminal.
const TERMINAL_UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the status is checked for changes where the output is not a terminal.
const PLAIN_UPDATE_INTERVAL: Duration = Duration::from_secs(5);

/// Prints the progress of a campaign to the standard error, until it is dropped.
///
/// On a terminal it updates one line in place. Elsewhere it prints one line per change.
pub(crate) async fn report(elector: &dyn Elector, election: &str, id: &str) {
    let on_terminal = stderr().is_terminal();
    let bold = if on_terminal && colors_enabled() { Style::new().bold() } else { Style::new() };
    let mut line = StatusLine::new(on_terminal);
    let mut leaders = elector.observe(election);
    // A candidate that is elected at once prints nothing.
    tokio::time::sleep(INITIAL_DELAY).await;
    let mut ticks = interval(if on_terminal { TERMINAL_UPDATE_INTERVAL } else { PLAIN_UPDATE_INTERVAL });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader: Option<(Candidate, Instant)> = None;
    loop {
        tokio::select! {
            next = leaders.next() => match next {
                Some(Ok(next)) => leader = next.map(|next| (next, Instant::now())),
                // The campaign returns the same error.
                Some(Err(_)) => {}
                None => return,
            },
            _ = ticks.tick() => {}
        }
        let status = elector.status();
        let status_text = match (&status.connection, &leader) {
            (Connection::Retrying, _) => {
                let error = status.last_error.as_deref().unwrap_or("the reason is unknown");
                format!("the store does not answer; retrying: {error}")
            }
            (_, Some((leader, since))) => {
                let since = if on_terminal { seen_for(since.elapsed()) } else { String::new() };
                let position = queue_position(elector, election, id).await;
                let position = position
                    .map(|(position, count)| format!("; queue position {position} of {count}"))
                    .unwrap_or_default();
                format!("{bold}{}{bold:#} leads{since}{position}", leader.id.escape_debug())
            }
            // This candidate or another one is about to be elected.
            (_, None) => continue,
        };
        line.update(&format!("tenure: waiting for leadership of {election}: {status_text}"));
    }
}

/// The position of the candidate `id`, counted from 1, and the number of candidates.
async fn queue_position(elector: &dyn Elector, election: &str, id: &str) -> Option<(usize, usize)> {
    let candidates = elector.candidates(election).await.ok()?;
    let position = candidates.iter().position(|candidate| candidate.id == id)?;
    Some((position + 1, candidates.len()))
}

/// Whether colors are wanted on a terminal (`NO_COLOR` and the like).
fn colors_enabled() -> bool {
    anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never
}

fn seen_for(elapsed: Duration) -> String {
    format!(", seen for {}", humantime::format_duration(Duration::from_secs(elapsed.as_secs())))
}

/// Writes the line on a thread of its own, so that a blocked standard error does not delay the campaign.
struct StatusLine {
    on_terminal: bool,
    last: String,
    /// Lines are dropped while this channel is full.
    writer: SyncSender<String>,
}

impl StatusLine {
    fn new(on_terminal: bool) -> Self {
        let (writer, lines) = sync_channel::<String>(16);
        // The thread may block until the process ends. If it cannot be started, nothing is printed.
        let _ = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            for text in lines {
                let _ = write!(stderr(), "{text}");
            }
        });
        Self { on_terminal, last: String::new(), writer }
    }

    fn update(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        let _ = self.writer.try_send(if self.on_terminal {
            format!("\r\x1b[K{text}")
        } else {
            format!("{text}\n")
        });
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.on_terminal && !self.last.is_empty() {
            let _ = self.writer.try_send("\r\x1b[K".to_owned());
        }
    }
}
