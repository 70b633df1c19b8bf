//! `tenure top`: all elections, live in the terminal.

mod columns;
mod keys;
mod screen;
mod state;
mod terminal;

use std::{
    io::stdout,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use futures::{
    StreamExt as _,
    future::LocalBoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use signal_hook::consts::signal::{SIGCONT, SIGTSTP, SIGWINCH};
use tenure::{Candidate, Config, ElectionName, Elector, Error};
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use self::{
    screen::{Size, Styles, draw},
    state::{Action, State},
    terminal::Terminal,
};
use crate::{
    args::Top,
    elections::{Limits, Poller, read},
    exit::{self, error_text},
    resign::{has_resigned, resigned},
    signals,
    store::Store,
    text::escaped,
    waiting::{self, Limit},
};

/// How many elections are read at most.
const MAX_ELECTIONS: usize = 500;
/// How often the times are updated.
const TICK: Duration = Duration::from_secs(1);
/// How long the store may take to take a resign request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before an election is observed again after an error.
const OBSERVE_RETRY_DELAY: Duration = Duration::from_secs(5);
/// How many resignations are waited for at the same time.
const MAX_RESIGNATIONS: usize = 16;

/// Shows all elections until the user quits.
pub(crate) async fn top(options: &Top) -> Result<u8> {
    terminal::check()?;
    let mut signals = signals::subscribe()?;
    let store = Store::new(options.url.as_deref())?;
    let elector = store.connect(Config::new()).await?;
    let limits = Limits::of(MAX_ELECTIONS);
    let request = read(&elector, &options.prefix, limits, || {});
    let limit = options.timeout.unwrap_or(Limit::DEFAULT);
    let first = tokio::select! {
        first = waiting::answer(&*elector, &store, "reading the elections", limit, request) => first?,
        signal = signals::termination(&mut signals) => return Ok(exit::from_signal(signal.number)),
    };
    let mut poller = Poller::start(Arc::clone(&elector), options.prefix.clone(), limits, Some(first));

    let mut job_control = signals::subscribe_to(&[SIGTSTP, SIGCONT])?;
    let styles = Styles::new(anstream::AutoStream::choice(&stdout()) != anstream::ColorChoice::Never);
    let mut state = State::new(store.name.clone(), options.prefix.clone(), poller.latest());
    let terminal = Terminal::enter().context("cannot take the terminal")?;
    let mut keys = terminal::read_keys()?;
    let (notices, mut received_notices) = tokio::sync::mpsc::unbounded_channel();
    let mut resignations: FuturesUnordered<LocalBoxFuture<'_, ()>> = FuturesUnordered::new();
    let mut leaders: Option<BoxStream<'_, Result<Option<Candidate>, Error>>> = None;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (rows, page) = draw(&mut state, size(), Instant::now(), styles);
        terminal.show(rows);
        tokio::select! {
            is_polling = poller.changed() => {
                anyhow::ensure!(is_polling, "elections are not read any more");
                state.update(poller.latest());
            }
            key = keys.recv() => {
                // Without keys, the terminal is gone.
                let Some(key) = key else { return Ok(0) };
                match state.press(key, page) {
                    Action::Show => {}
                    Action::Redraw => terminal.clear(),
                    Action::Quit => return Ok(0),
                    Action::Follow(election) => leaders = Some(observe(&elector, &election)),
                    Action::Unfollow => leaders = None,
                    Action::Resign(_) if resignations.len() >= MAX_RESIGNATIONS => {
                        state.notify("too many leaders were asked and have not resigned yet".to_owned());
                    }
                    Action::Resign(election) => {
                        resignations.push(Box::pin(request_resign(&*elector, &store, election, notices.clone())));
                    }
                }
            }
            signal = signals.recv() => match signal {
                Some(signal) if signal.number == SIGWINCH => terminal.clear(),
                Some(signal) if signal.is_termination() => return Ok(exit::from_signal(signal.number)),
                _ => {}
            },
            signal = job_control.recv() => match signal {
                Some(signal) if signal.number == SIGTSTP => {
                    if !terminal.suspend()? {
                        state.notify("no shell would continue this process, so it does not stop".to_owned());
                    }
                }
                _ => terminal.resume()?,
            },
            leader = next(&mut leaders) => match leader {
                Ok(leader) => state.observe(leader.as_ref(), SystemTime::now()),
                Err(error) => state.notify(error_text(&error.into())),
            },
            Some(notice) = received_notices.recv() => state.notify(notice),
            Some(()) = resignations.next() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// The size of the terminal.
fn size() -> Size {
    let (columns, rows) =
        rustix::termios::tcgetwinsize(stdout()).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    let or = |number: u16, default: usize| if number == 0 { default } else { number.into() };
    Size { columns: or(columns, 80), rows: or(rows, 24) }
}

/// The leaders of an election. Goes on after an error.
fn observe(
    elector: &Arc<dyn Elector>,
    election: &ElectionName,
) -> BoxStream<'static, Result<Option<Candidate>, Error>> {
    let (elector, election) = (Arc::clone(elector), election.clone());
    let attempts = stream::iter(0..).then(move |attempt| {
        let (elector, election) = (Arc::clone(&elector), election.clone());
        async move {
            if attempt > 0 {
                sleep(OBSERVE_RETRY_DELAY).await;
            }
            elector.observe(election.as_str())
        }
    });
    attempts.flatten().boxed()
}

/// The next item of the stream, if there is one.
async fn next<T>(stream: &mut Option<BoxStream<'_, T>>) -> T {
    match stream {
        Some(stream) => match stream.next().await {
            Some(item) => item,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Asks the leader to resign, waits until it has, and says so.
async fn request_resign(
    elector: &dyn Elector,
    store: &Store,
    election: ElectionName,
    notices: UnboundedSender<String>,
) {
    let say = |text: String| {
        let _ = notices.send(text);
    };
    let election = election.as_str();
    let mut leaders = elector.observe(election);
    let asked = match timeout(REQUEST_TIMEOUT, elector.request_resign(election)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => return say(error_text(&error.into())),
        Err(_) => {
            let error = waiting::last_error(elector).map(|error| format!(": {error}")).unwrap_or_default();
            return say(format!(
                "no answer from {} within {}s{error}; the leader of {election} may have been asked to resign",
                store.name,
                REQUEST_TIMEOUT.as_secs()
            ));
        }
    };
    let Some(leader) = asked else { return say(format!("nobody leads {election}")) };
    let id = escaped(&leader.id);
    say(format!("{id} was asked to resign from {election}"));
    let ask_again = async || Ok(elector.request_resign(election).await?);
    let still_leads = |waited| {
        let waited = humantime::format_duration(waited);
        say(format!("{id} was asked to resign {waited} ago and still leads {election}"));
    };
    match resigned(&mut leaders, &leader, ask_again, still_leads).await {
        Ok(next) => say(has_resigned(&leader, next.as_ref(), election)),
        Err(error) => say(error_text(&error)),
    }
}
