//! What is told while waiting: the place in the queue, and who leads since when.

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

/// For how long nothing is told.
const AT_FIRST: Duration = Duration::from_millis(300);
/// How often a terminal's line is written again.
const LIVE: Duration = Duration::from_secs(1);
/// How often it is looked how things stand, where nothing is heard.
const PLAIN: Duration = Duration::from_secs(5);

/// Tells on the standard error how the campaign goes, until it is dropped: a terminal has one line that lives,
/// anything else a line a change.
pub(crate) async fn tell(elector: &dyn Elector, election: &str, id: &str) {
    let live = stderr().is_terminal();
    let bold = if live && colored() { Style::new().bold() } else { Style::new() };
    let mut line = Line::new(live);
    let mut leaders = elector.observe(election);
    // Whoever leads at once has nothing to tell.
    tokio::time::sleep(AT_FIRST).await;
    let mut ticks = interval(if live { LIVE } else { PLAIN });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader: Option<(Candidate, Instant)> = None;
    loop {
        tokio::select! {
            next = leaders.next() => match next {
                Some(Ok(next)) => leader = next.map(|next| (next, Instant::now())),
                // The campaign says the same.
                Some(Err(_)) => {}
                None => return,
            },
            _ = ticks.tick() => {}
        }
        let status = elector.status();
        let what = match (&status.connection, &leader) {
            (Connection::Retrying, _) => {
                let error = status.last_error.as_deref().unwrap_or("no reason is known");
                format!("the store does not answer, and is asked again: {error}")
            }
            (_, Some((leader, since))) => {
                let since = if live { seconds(since.elapsed()) } else { String::new() };
                let place = queue(elector, election, id).await;
                let place =
                    place.map(|(place, all)| format!("; number {place} of {all}")).unwrap_or_default();
                format!("{bold}{}{bold:#} leads{since}{place}", leader.id.escape_debug())
            }
            // Not for long.
            (_, None) => continue,
        };
        line.write(&format!("tenure: waiting to lead {election}: {what}"));
    }
}

/// Our place among how many candidates.
async fn queue(elector: &dyn Elector, election: &str, id: &str) -> Option<(usize, usize)> {
    let all = elector.candidates(election).await.ok()?;
    let place = all.iter().position(|candidate| candidate.id == id)?;
    Some((place + 1, all.len()))
}

/// Whether a terminal is to have colours (`NO_COLOR` and the like).
fn colored() -> bool {
    anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never
}

fn seconds(since: Duration) -> String {
    format!(", seen for {}", humantime::format_duration(Duration::from_secs(since.as_secs())))
}

/// The line, written by a thread of its own: nobody who does not read it holds up a campaign.
struct Line {
    live: bool,
    last: String,
    /// What is to be written; what finds no room is not.
    writer: SyncSender<String>,
}

impl Line {
    fn new(live: bool) -> Self {
        let (writer, written) = sync_channel::<String>(16);
        // It ends with the process, should its reader never read. Without it nothing is told.
        let _ = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            for text in written {
                let _ = write!(stderr(), "{text}");
            }
        });
        Self { live, last: String::new(), writer }
    }

    fn write(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        let _ = self.writer.try_send(if self.live { format!("\r\x1b[K{text}") } else { format!("{text}\n") });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.live && !self.last.is_empty() {
            let _ = self.writer.try_send("\r\x1b[K".to_owned());
        }
    }
}
