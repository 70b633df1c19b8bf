//! Who leads under one session. One task looks after all of them, so that each costs what has to be remembered of it
//! and no task of its own: their entries are watched together, and whoever leads no more is given back by a task for that.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument as _, debug, error, info, info_span};

use super::{entry::Standing, entry_watcher::each, session::Session, term::Term};
use crate::{
    BootInstant, LossReason,
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, EntryEvent, EntryWatcher},
    sync::{Mutex, sleep},
};

/// A place in the election, held.
pub(crate) type Permit = Option<OwnedSemaphorePermit>;

/// What the task is told.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Somebody leads.
    Leads(Leading),
    /// The leadership of this entry is over.
    Over(u64),
    /// A confirming read did not find this entry.
    Gone(u64),
    /// The work under this leadership has stopped, and its entry is about to be removed.
    Stopped(u64),
}

/// A leadership, until it has been given back.
///
/// Whatever becomes of whoever looks after it: when this is dropped, its entry counts as gone and its leadership as over. Also when a
/// backend panics, whoever resigns must not wait for ever.
#[derive(Debug)]
pub(crate) struct Leading {
    term: Arc<Term>,
    /// See [`Standing`].
    uncertain: bool,
    permit: Permit,
    /// The session is closed after this.
    _counted: TaskTrackerToken,
    finished: bool,
    /// Whether the store has confirmed that the entry is gone.
    confirmed: bool,
}

impl Leading {
    pub(crate) fn new(term: Arc<Term>, uncertain: bool, permit: Permit) -> Self {
        let _counted = term.session.entries.token();
        Self { term, uncertain, permit, _counted, finished: false, confirmed: false }
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        if !self.finished {
            self.term.session.end(LossReason::SessionGivenUp);
            // Nobody waits for its work any more.
            self.term.drop_work();
        }
        self.term.tell_over();
        self.term.set_departed(self.confirmed);
    }
}

/// Notices on their way to the task.
#[derive(Debug)]
pub(crate) struct Notices {
    /// `None` when nobody hears them any more.
    put: Mutex<Option<Vec<Notice>>>,
    told: Notify,
}

impl Notices {
    pub(crate) fn new() -> Self {
        Self { put: Mutex::new(Some(Vec::new())), told: Notify::new() }
    }

    /// Puts a notice there, and wakes the task. When nobody hears it, it is dropped, and with it a leadership.
    pub(crate) fn put(&self, notice: Notice) {
        let mut put = self.put.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(notices) = &mut *put else {
            drop(put);
            drop(notice);
            return;
        };
        notices.push(notice);
        drop(put);
        self.told.notify_one();
    }

    /// What has been put there.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    async fn heard(&self) -> Vec<Notice> {
        loop {
            let heard = self.put.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(std::mem::take);
            if let Some(heard) = heard.filter(|heard| !heard.is_empty()) {
                return heard;
            }
            self.told.notified().await;
        }
    }

    /// From now on nobody hears them.
    fn close(&self) {
        let unheard = self.put.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(unheard);
    }
}

/// Looks after all who lead under a session. Made before its task is spawned: should the task be dropped before its first
/// poll, nobody waits for it in vain.
pub(crate) struct LeadersTask(Arc<Session>);

impl Drop for LeadersTask {
    fn drop(&mut self) {
        self.0.notices.close();
    }
}

/// So many new leaders have their entries watched at once. Of more that come together, those who campaign go first.
const FEW: usize = 16;
/// When no other has come for so long, they are watched,
const QUIET: Duration = Duration::from_millis(50);
/// and in any case after so long.
const LATEST: Duration = Duration::from_millis(500);

impl LeadersTask {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        Self(Arc::clone(session))
    }

    /// Runs until the session has been closed.
    pub(crate) async fn run(self) {
        look_after(&self.0).await;
    }
}

async fn look_after(session: &Arc<Session>) {
    let mut leaders = Leaders::new(session);
    let mut has_ended = false;
    loop {
        let quiet = leaders.quiet_after();
        tokio::select! {
            biased;
            heard = session.notices.heard() => heard.into_iter().for_each(|notice| leaders.hear(notice)),
            () = session.stop.cancelled(), if !has_ended => {
                has_ended = true;
                leaders.all_over();
            }
            () = session.closed.wait() => return,
            () = sleep(quiet.unwrap_or_default()), if quiet.is_some() => {
                leaders.together = 0;
                leaders.watch_new();
            }
            parting = leaders.parting() => match parting {
                Ok((number, parting)) => leaders.part(number, parting),
                Err(error) => {
                    debug!(session = session.spi.id(), %error, "the own entries are watched no more");
                    leaders.watch_no_more(match error.kind() {
                        BackendErrorKind::SessionGone => LossReason::SessionExpired,
                        _ => LossReason::SessionGivenUp,
                    });
                }
            },
        }
    }
}

/// All who lead under one session, by the numbers of their entries.
struct Leaders<'a> {
    session: &'a Arc<Session>,
    standing: BTreeMap<u64, Leading>,
    /// Those whose work has been told to stop: it may go on for a while, but not beside a successor.
    stopping: BTreeMap<u64, Arc<Term>>,
    watch: Watch,
    /// Those whose entries are not watched yet, and since when the first of them is not.
    new: Vec<u64>,
    since: BootInstant,
    /// How many have come one soon after the other, and when the last did.
    together: usize,
    last: BootInstant,
}

/// The watch on all their entries.
enum Watch {
    /// Nobody has led yet.
    None,
    Of(Box<dyn EntryWatcher>),
    /// It has failed for good, and the session with it.
    Over,
}

impl<'a> Leaders<'a> {
    fn new(session: &'a Arc<Session>) -> Self {
        Self {
            session,
            standing: BTreeMap::new(),
            stopping: BTreeMap::new(),
            watch: Watch::None,
            new: Vec::new(),
            since: BootInstant::NEVER,
            together: 0,
            last: BootInstant::NEVER,
        }
    }

    /// Whatever listens to what happens here may panic, and so may a backend: no leadership is forgotten for that.
    fn hear(&mut self, notice: Notice) {
        self.guarded(|leaders| match notice {
            Notice::Leads(leading) => leaders.leads(leading),
            Notice::Over(number) => leaders.over(number),
            Notice::Gone(number) => leaders.part(number, EntryEvent::Deleted),
            Notice::Stopped(number) => {
                leaders.stopping.remove(&number);
                leaders.let_go(number);
            }
        });
    }

    fn leads(&mut self, leading: Leading) {
        let term = Arc::clone(&leading.term);
        let number = term.number();
        self.standing.insert(number, leading);
        let now = self.session.shared.clock.now();
        self.last = now;
        self.together += 1;
        if self.new.is_empty() {
            self.since = now;
        }
        self.new.push(number);
        if term.live().gone.is_set() {
            term.lose(LossReason::EntryGone);
        }
        // Its guard may have been dropped before this was heard.
        if term.reason().is_some() {
            self.over(number);
        }
        if self.together <= FEW || now.since(self.since) >= LATEST {
            self.watch_new();
        }
    }

    /// After how long no other leader will have come for a while; `None` when that is so already.
    fn quiet_after(&self) -> Option<Duration> {
        (self.together > 0).then(|| (self.last + QUIET).since(self.session.shared.clock.now()))
    }

    /// Watches the entries that are not watched yet.
    fn watch_new(&mut self) {
        let new = std::mem::take(&mut self.new);
        if is_disabled(SafetyRule::WatchOwnEntry) {
            return;
        }
        self.guarded(|leaders| {
            for number in new {
                let standing = leaders.standing.get(&number).map(|leading| &leading.term);
                let Some(term) = standing.or_else(|| leaders.stopping.get(&number)).cloned() else {
                    continue;
                };
                if let Some(watch) = leaders.watch() {
                    watch.add(number, term.entry());
                }
            }
        });
    }

    /// The watch, begun when there was none.
    fn watch(&mut self) -> Option<&mut Box<dyn EntryWatcher>> {
        if matches!(self.watch, Watch::None) {
            self.watch = Watch::Of(self.session.spi.entry_watcher().unwrap_or_else(|| each(self.session)));
        }
        match &mut self.watch {
            Watch::Of(watch) => Some(watch),
            Watch::None | Watch::Over => None,
        }
    }

    /// Whoever led under this entry leads no more.
    fn over(&mut self, number: u64) {
        let Some(leading) = self.standing.remove(&number) else { return };
        let stops = !leading.term.works.have_stopped() && !is_disabled(SafetyRule::StopWorkBeforeLeaving);
        if stops {
            self.stopping.insert(number, Arc::clone(&leading.term));
            if matches!(self.watch, Watch::Over) {
                leading.term.drop_work();
            }
        } else {
            // It may be in the middle of a request, and hold what the departure waits for.
            self.let_go(number);
        }
        let term = &leading.term;
        let span = info_span!("candidate", election = %term.election(), candidate = %term.candidate());
        self.session.shared.runtime.spawn(give_back(leading, stops).instrument(span));
    }

    fn all_over(&mut self) {
        while let Some(number) = self.standing.keys().next().copied() {
            self.guarded(|leaders| leaders.over(number));
        }
    }

    /// The store has told something of an entry.
    fn part(&mut self, number: u64, parting: EntryEvent) {
        self.guarded(|leaders| match (leaders.standing.get(&number), parting) {
            // Its own word that it is over comes back as a notice.
            (Some(leading), EntryEvent::Deleted) => leading.term.lose(LossReason::EntryGone),
            (Some(leading), EntryEvent::ResignRequested) => {
                let entry = leading.term.entry();
                info!(election = %entry.election, entry = %entry.key, "asked to resign");
                leading.term.lose(LossReason::ResignRequested);
            }
            (None, EntryEvent::Deleted) => {
                if let Some(term) = leaders.stopping.get(&number) {
                    term.drop_work();
                }
            }
            (None, EntryEvent::ResignRequested) => {}
        });
    }

    fn let_go(&mut self, number: u64) {
        self.guarded(|leaders| {
            if let Watch::Of(watch) = &mut leaders.watch {
                watch.remove(number);
            }
        });
    }

    /// What becomes of an entry next; never returns while none is watched.
    async fn parting(&mut self) -> Result<(u64, EntryEvent), BackendError> {
        let Watch::Of(watch) = &mut self.watch else { return std::future::pending().await };
        match AssertUnwindSafe(async { watch.next().await }).catch_unwind().await {
            Ok(parting) => parting,
            Err(_) => {
                self.panicked();
                std::future::pending().await
            }
        }
    }

    /// Calls what may panic.
    fn guarded(&mut self, call: impl FnOnce(&mut Self)) {
        if std::panic::catch_unwind(AssertUnwindSafe(|| call(self))).is_err() {
            self.panicked();
        }
    }

    fn panicked(&mut self) {
        // What listens to events may be what has panicked.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
            error!(
                session = self.session.spi.id(),
                "something has panicked that looks after leaderships; their session ends"
            );
        }));
        self.watch_no_more(LossReason::SessionGivenUp);
    }

    /// Nobody would hear that an entry is gone any more: the session ends, and no work stops at leisure.
    fn watch_no_more(&mut self, reason: LossReason) {
        let watch = std::mem::replace(&mut self.watch, Watch::Over);
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(watch)));
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.session.end(reason)));
        for term in self.stopping.values() {
            term.drop_work();
        }
    }
}

/// Waits until the work of a leadership that is over has stopped; then removes its entry.
async fn give_back(mut leading: Leading, stops: bool) {
    let term = Arc::clone(&leading.term);
    term.tell_over();
    if stops {
        Box::pin(term.wait_stopped()).await;
        term.session.tell(Notice::Stopped(term.number()));
    }
    let mut standing = Standing::of(&term, leading.uncertain);
    leading.confirmed = Box::pin(standing.depart(&term.session)).await;
    // Before anybody is told: whoever has resigned may stand again at once.
    leading.permit = None;
    leading.finished = true;
}
