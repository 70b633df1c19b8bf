//! The progress of a campaign: who the leader is, and the candidate's queue position.

use std::{
    io::stderr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use anstyle::Style;
use futures::StreamExt as _;
use tenure::{Candidate, Connection, Elector};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{messages, waiting};

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
    let on_terminal = messages::on_terminal();
    let bold = if messages::has_colors() { Style::new().bold() } else { Style::new() };
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
            // Elsewhere the log has it.
            (Connection::Retrying, _) if !on_terminal => continue,
            (Connection::Retrying, _) => {
                format!("retrying: {}", waiting::outage("the store", status.last_error.as_deref()))
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
        line.update(&format!("waiting for leadership of {election}: {status_text}"));
    }
}

/// The position of the candidate `id`, counted from 1, and the number of candidates.
async fn queue_position(elector: &dyn Elector, election: &str, id: &str) -> Option<(usize, usize)> {
    let candidates = elector.candidates(election).await.ok()?;
    let position = candidates.iter().position(|candidate| candidate.id == id)?;
    Some((position + 1, candidates.len()))
}

fn seen_for(elapsed: Duration) -> String {
    format!(", seen for {}", humantime::format_duration(Duration::from_secs(elapsed.as_secs())))
}

/// Shows the line on a thread of its own, so that a blocked standard error does not delay the campaign.
struct StatusLine {
    last: String,
    /// Whether the line is not shown any more.
    is_over: Arc<AtomicBool>,
    /// Lines are dropped while this channel is full.
    writer: SyncSender<String>,
}

impl StatusLine {
    fn new(on_terminal: bool) -> Self {
        let (writer, lines) = sync_channel::<String>(16);
        let is_over = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&is_over);
        // The thread may block until the process ends. If it cannot be started, nothing is printed.
        let _ = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            for text in lines {
                match on_terminal {
                    true => {
                        messages::set_status_line(&clip(&format!("tenure: {text}"), columns()), &has_ended);
                    }
                    false => messages::inform(&text),
                }
            }
        });
        Self { last: String::new(), is_over, writer }
    }

    fn update(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        let _ = self.writer.try_send(text.to_owned());
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        messages::try_remove_status_line();
    }
}

/// The width of the terminal.
fn columns() -> usize {
    let columns = rustix::termios::tcgetwinsize(stderr()).map_or(0, |size| size.ws_col);
    if columns == 0 { 80 } else { columns.into() }
}

/// Shortens a text to less than `columns`, so that it stays on one row. Styles take no column.
fn clip(text: &str, columns: usize) -> String {
    let (mut clipped, mut shown, mut in_style) = (String::new(), 0, false);
    for character in text.chars() {
        in_style |= character == '\x1b';
        if !in_style {
            shown += 1;
            if shown >= columns {
                // A style that began before must end.
                return clipped + if text.contains('\x1b') { "\x1b[0m" } else { "" };
            }
        }
        clipped.push(character);
        in_style &= character != 'm';
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_fits_its_row() {
        assert_eq!(clip("0123456789", 11), "0123456789");
        assert_eq!(clip("0123456789", 10), "012345678");
        assert_eq!(clip("01\x1b[1m23\x1b[0m45", 4), "01\x1b[1m2\x1b[0m");
    }
}
