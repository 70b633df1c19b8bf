//! The work of a term: runs it, cancels and drops it on time, and reports it when it overruns the deadline.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use tracing::{Level, error, info_span};

use super::{
    in_flight_work::{PollGuard, WorkOwner},
    term::{ActivePolls, Term},
};
use crate::{
    BootInstant, LossReason, Lost, OnOverrun, Overrun,
    engine::runtime::callbacks::catch_panic,
    failpoints::{SafetyRule, is_disabled},
    sync::atomic::Ordering,
    telemetry,
};

impl Term {
    /// Enforces the deadlines of the term, for the watchdog. Returns when to check again; `None` when no
    /// deadline is left.
    pub(super) fn enforce_all_deadlines(self: &Arc<Self>) -> Option<BootInstant> {
        if is_disabled(SafetyRule::CheckClock) || is_disabled(SafetyRule::NeverReopenWindow) {
            return None;
        }
        if self.enforce().is_ok() {
            return Some(self.cancel_at(Duration::ZERO));
        }
        if self.work.is_empty() {
            return None;
        }
        let now = self.session.shared.clock.now();
        let stop_by = self.stop_by();
        let margin = self.session.drop_margin();
        if now < stop_by - margin {
            return Some(stop_by - margin);
        }
        let cold = self.cold();
        let first = cold.drop_requested_at.set(now);
        if first {
            self.request_drop();
        }
        // A process that was stopped resumes past its deadline. Its work is dropped at its next poll: there has
        // to be time for that poll to begin and to drop the work.
        let drop_requested = cold.drop_requested_at.get().unwrap_or(now);
        let drop_begun = BootInstant::from_nanos(cold.drop_begun_at.load(Ordering::Acquire));
        let overrun_at = stop_by.max(drop_requested.max(drop_begun) + margin);
        if let ActivePolls::AbortSlot(slot) = &cold.active_polls {
            slot.arm(overrun_at);
            // No poll has begun since the drop was requested, so a poll that goes on now is a long one. It is
            // reported before the deadline, because at the deadline the process is aborted.
            let report_at = drop_requested.max(drop_begun) + margin / 2;
            if now < report_at {
                return Some(report_at);
            }
            if slot.active_polls().load(Ordering::SeqCst) > 0
                && !cold.overrun_reported.swap(true, Ordering::AcqRel)
            {
                self.report_overrun(
                    "work does not stop; the process is aborted at the deadline if it still has not",
                );
            }
            return (now < overrun_at).then_some(overrun_at);
        }
        if now < overrun_at {
            return Some(overrun_at);
        }
        // Work that is not being polled does nothing, and its next poll drops it.
        if cold.active_polls.count().load(Ordering::SeqCst) > 0
            && !cold.overrun_reported.swap(true, Ordering::AcqRel)
        {
            self.overrun();
        }
        None
    }

    /// Handles work that has gone on past its stop-by time: it blocks its thread, or the runtime is blocked.
    fn overrun(&self) {
        self.report_overrun(
            "work has not stopped by the deadline; only its fencing token protects the resource now",
        );
        let shared = &self.session.shared;
        match &shared.config.on_overrun {
            OnOverrun::Log => {}
            OnOverrun::Hook(hook) => {
                let (hook, election) = (Arc::clone(hook), self.election().clone());
                let overrun = Overrun { election: election.clone(), token: self.token };
                let reporter = shared.reporter.clone();
                shared.callbacks.defer(move || {
                    if catch_panic(|| hook(&overrun)).is_none() {
                        reporter.log(Level::ERROR, move || error!(%election, "the overrun hook panicked"));
                    }
                });
            }
            // Only in simulated time: otherwise the abort timer's thread aborts.
            OnOverrun::Abort => std::process::abort(),
        }
    }

    fn report_overrun(&self, message: &'static str) {
        let reporter = &self.session.shared.reporter;
        reporter.measured(|| telemetry::work_overran(self.election()));
        let (election, candidate) = (self.election().clone(), self.candidate_id().clone());
        let token = self.token.get();
        reporter.log(Level::ERROR, move || error!(%election, %candidate, token, "{message}"));
    }

    /// Runs `work` until it returns, or until its stop-by time.
    ///
    /// The end of the term is polled before the work, so that work which was not polled for a while is
    /// dropped and not resumed.
    pub(crate) async fn run<F: Future>(self: &Arc<Self>, work: F) -> Result<F::Output, Lost> {
        // Counted before the check: a thread that ends the term after the check waits for this work.
        let _work_guard = self.work.begin();
        if self.is_forked() {
            return Err(Lost::new(LossReason::Forked));
        }
        let cold = self.cold();
        self.enforce()?;
        // Adds the fencing token to all events that the work logs.
        let span = info_span!("leadership", election = %self.election(), candidate = %self.candidate_id(), token = self.token.get());
        let mut drop_now = self.session.shared.runtime.relayed(cold.drop_now.wait());
        let mut work = Some(PolledWork::new(self, work));
        std::future::poll_fn(|context| {
            // Counted before the clock is read: a thread that sees no poll after the stop-by time knows that
            // none begins.
            let _poll_guard = self.begin_poll();
            if self.is_forked() {
                drop(work.take());
                return Poll::Ready(Err(Lost::new(LossReason::Forked)));
            }
            // With the rule disabled the work goes on, and what has returned must not be polled again.
            let must_drop = !is_disabled(SafetyRule::DropWorkAtDeadline)
                && (drop_now.poll_unpin(context).is_ready() || self.is_drop_due());
            if must_drop {
                let reason = self.reason().unwrap_or(LossReason::Deadline);
                self.drop_in_poll(work.take());
                return Poll::Ready(Err(Lost::new(reason)));
            }
            let _span = span.enter();
            work.as_mut().map_or(Poll::Pending, |work| work.poll(context)).map(Ok)
        })
        .await
    }

    /// Drops work in its poll. The drop may come late and may block, so the watchdog checks again.
    fn drop_in_poll<F>(self: &Arc<Self>, work: Option<PolledWork<'_, F>>) {
        let shared = &self.session.shared;
        self.cold().drop_begun_at.store(shared.clock.now().as_nanos(), Ordering::Release);
        shared.watchdog.wake();
        drop(work);
    }

    fn begin_poll(self: &Arc<Self>) -> PollGuard<'_> {
        PollGuard::begin(self.cold().active_polls.count(), self.with_parents().map(|term| term.owner()))
    }

    fn owner(self: &Arc<Self>) -> WorkOwner {
        WorkOwner { term: Arc::as_ptr(self).addr(), elector: Arc::as_ptr(&self.session.shared).addr() }
    }

    /// Whether the caller is work of this term, of one of its parents, or of its child. Such a caller must not
    /// wait for the end of the term: it would wait for itself.
    pub(crate) fn is_called_by_its_work(self: &Arc<Self>) -> bool {
        PollGuard::any(|polled| self.with_parents().any(|term| term.owner().term == polled.term))
    }

    fn is_drop_due(self: &Arc<Self>) -> bool {
        self.enforce().is_err()
            && self.session.shared.clock.now() >= self.stop_by() - self.session.drop_margin()
    }

    /// Waits until all work has stopped and the guard was dropped, at most until the stop-by time.
    pub(crate) async fn wait_work_stopped(&self) {
        tokio::select! {
            biased;
            () = self.work.wait_stopped() => {}
            () = self.session.shared.clock.sleep_until(self.stop_by()) => {}
        }
    }
}

/// Work whose drop counts as a poll: a drop may block as well.
struct PolledWork<'a, F> {
    term: &'a Arc<Term>,
    future: Option<Pin<Box<F>>>,
}

impl<'a, F: Future> PolledWork<'a, F> {
    fn new(term: &'a Arc<Term>, future: F) -> Self {
        Self { term, future: Some(Box::pin(future)) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut self.future {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for PolledWork<'_, F> {
    fn drop(&mut self) {
        let _poll_guard = self.term.begin_poll();
        drop(self.future.take());
    }
}
