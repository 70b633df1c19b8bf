//! The reference model: which candidate may lead after a sequence of calls and faults.

use std::time::Duration;

use proptest::{prelude::*, sample::select, strategy::Union};
use proptest_state_machine::ReferenceStateMachine;
use tenure_core::memory::{Delivery, Direction, Op, Proof};

use crate::host::TTL;

/// The number of electors.
pub(super) const HOSTS: usize = 3;

/// After this time without faults, none has an effect any more.
pub(super) const SETTLING: Duration = TTL.saturating_mul(4);

/// A call, or a fault.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Campaign {
        host: usize,
    },
    TryCampaign {
        host: usize,
    },
    /// A campaign that is dropped after the timeout, unless it leads by then.
    CampaignWithTimeout {
        host: usize,
        timeout: Duration,
    },
    /// Ends a campaign or a leadership.
    End {
        id: usize,
        kind: EndKind,
    },
    /// Runs work under a leadership.
    Work {
        id: usize,
        kind: WorkKind,
    },
    SetValue {
        id: usize,
    },
    /// Closes an elector and replaces it by another one.
    Restart {
        host: usize,
    },
    CutLink {
        host: usize,
    },
    Fault {
        host: usize,
        op: Op,
        direction: Direction,
        delivery: Delivery,
    },
    HealLink {
        host: usize,
    },
    /// The store expires the session of an elector.
    ExpireSession {
        host: usize,
    },
    /// An operator deletes the entries of an elector.
    DeleteEntries {
        host: usize,
    },
    AdvanceTime {
        time: Duration,
    },
    /// Heals all links, and advances time until no fault has an effect any more.
    Settle,
}

/// How a leadership is ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum EndKind {
    Resign,
    Drop,
    BeginAndDrop,
}

/// How work reacts to its cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkKind {
    StopsWhenCancelled,
    IgnoresCancellation,
    Panics,
}

/// A call of `campaign`, until it fails or is dropped, or its leadership has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidacy {
    pub(super) id: usize,
    pub(super) host: usize,
}

/// The expected state of an election.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) proof: Proof,
    /// The id of the next candidacy.
    next_id: usize,
    /// The candidacies with an entry in the store, in order. The first leads.
    queue: Vec<Candidacy>,
    /// The candidacies that wait for another candidacy of the same elector to end.
    queued_locally: Vec<Candidacy>,
    /// The candidacies whose state is not predicted, because of a fault.
    uncertain: Vec<Candidacy>,
    /// The electors without a fault since the last `Settle`.
    undisturbed: [bool; HOSTS],
    /// Whether the first in the queue has work that ignores cancellation.
    leader_ignores_cancellation: bool,
    /// Whether no dropped leadership is still being released.
    releases_are_complete: bool,
    /// The time that the steps have taken.
    now: Duration,
    /// The time from which on the session of each elector has proven its heartbeats. While its candidate is neither the
    /// leader nor next in line, a session sends none.
    proven_from: [Duration; HOSTS],
}

impl Model {
    /// The candidacy that was started last.
    pub(super) fn newest(&self) -> usize {
        self.next_id - 1
    }

    fn all(&self) -> impl Iterator<Item = Candidacy> {
        [&self.queue, &self.queued_locally, &self.uncertain].into_iter().flatten().copied()
    }

    /// Whether this candidacy may still exist.
    pub(super) fn may_exist(&self, id: usize) -> bool {
        self.all().any(|candidacy| candidacy.id == id)
    }

    /// Whether this candidacy exists and no fault affects it.
    pub(super) fn is_certain(&self, id: usize) -> bool {
        self.may_exist(id) && self.uncertain.iter().all(|candidacy| candidacy.id != id)
    }

    /// The candidacy that leads, if one of the queue does.
    pub(super) fn first(&self) -> Option<usize> {
        self.queue.first().map(|candidacy| candidacy.id)
    }

    /// Whether the first in the queue leads now, and no candidate does if the queue is empty.
    pub(super) fn is_settled(&self) -> bool {
        self.queue.first().is_none_or(|first| self.proven_from[first.host] <= self.now)
            && self.uncertain.is_empty()
            && self.releases_are_complete
            && self.undisturbed.iter().all(|undisturbed| *undisturbed)
    }

    /// A candidacy has ended.
    pub(super) fn remove(&mut self, id: usize) {
        if let Some(position) = self.uncertain.iter().position(|candidacy| candidacy.id == id) {
            // It may have led, with work that still runs.
            let host = self.uncertain.remove(position).host;
            return self.disturb(host);
        }
        self.queued_locally.retain(|candidacy| candidacy.id != id);
        let Some(position) = self.queue.iter().position(|candidacy| candidacy.id == id) else { return };
        let host = self.queue.remove(position).host;
        if position == 0 && std::mem::take(&mut self.leader_ignores_cancellation) {
            // Its entry remains until its work was dropped, and the next candidacy of its elector waits for that.
            self.disturb(host);
        } else if let Some(position) = self.queued_locally.iter().position(|candidacy| candidacy.host == host)
        {
            self.queue.push(self.queued_locally.remove(position));
        }
    }

    /// From now on the candidacies of this elector are not predicted.
    fn disturb(&mut self, host: usize) {
        self.undisturbed[host] = false;
        self.releases_are_complete = false;
        if self.queue.first().is_some_and(|first| first.host == host) {
            self.leader_ignores_cancellation = false;
        }
        for predicted in [&mut self.queue, &mut self.queued_locally] {
            self.uncertain.extend(predicted.extract_if(.., |candidacy| candidacy.host == host));
        }
    }

    /// Takes `time`, in which the first two in the store send heartbeats. An uncertain candidacy may be one of them.
    fn advance(&mut self, time: Duration) {
        self.now += time;
        if matches!(self.proof, Proof::LaterHeartbeats { .. }) {
            let is_uncertain = |host: &usize| self.uncertain.iter().any(|other| other.host == *host);
            let others = (0..HOSTS).filter(is_uncertain).count();
            for waiting in self.queue.iter().skip(2_usize.saturating_sub(others)) {
                self.proven_from[waiting.host] = self.now + TTL;
            }
        }
    }

    fn has_uncertain(&self, host: usize) -> bool {
        !self.undisturbed[host] || self.uncertain.iter().any(|candidacy| candidacy.host == host)
    }

    fn campaign(&mut self, host: usize) {
        let candidacy = Candidacy { id: self.next_id, host };
        self.next_id += 1;
        if self.has_uncertain(host) {
            self.uncertain.push(candidacy);
        } else if self.queue.iter().any(|other| other.host == host) {
            self.queued_locally.push(candidacy);
        } else {
            self.queue.push(candidacy);
        }
    }

    fn try_campaign(&mut self, host: usize) {
        let candidacy = Candidacy { id: self.next_id, host };
        self.next_id += 1;
        if self.has_uncertain(host) || self.queue.is_empty() && !self.is_settled() {
            self.uncertain.push(candidacy);
        } else if self.queue.is_empty() {
            self.queue.push(candidacy);
        }
    }
}

fn host() -> impl Strategy<Value = usize> {
    0..HOSTS
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn fault() -> impl Strategy<Value = Step> {
    let direction = select(vec![Direction::Request, Direction::Response]);
    let delay = millis(1..12_000).prop_map(Delivery::Delay);
    let delivery = prop_oneof![Just(Delivery::Drop), Just(Delivery::Fail), Just(Delivery::Hold), delay];
    // The requests whose outcome matters most are drawn more often.
    let op = prop_oneof![Just(Op::Enter), Just(Op::Leave), Just(Op::Heartbeat), select(Op::ALL.to_vec())];
    (host(), op, direction, delivery).prop_map(|(host, op, direction, delivery)| Step::Fault {
        host,
        op,
        direction,
        delivery,
    })
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let proofs = vec![Proof::Answer, Proof::Read, Proof::LaterHeartbeats { gap: TTL / 4 }];
        let new = |proof| Self {
            proof,
            next_id: 0,
            queue: Vec::new(),
            queued_locally: Vec::new(),
            uncertain: Vec::new(),
            undisturbed: [true; HOSTS],
            leader_ignores_cancellation: false,
            releases_are_complete: true,
            now: Duration::ZERO,
            proven_from: [Duration::ZERO; HOSTS],
        };
        select(proofs).prop_map(new).boxed()
    }

    fn transitions(model: &Self) -> BoxedStrategy<Step> {
        let mut steps = vec![
            (6, host().prop_map(|host| Step::Campaign { host }).boxed()),
            (2, host().prop_map(|host| Step::TryCampaign { host }).boxed()),
            (
                2,
                (host(), millis(1..20_000))
                    .prop_map(|(host, timeout)| Step::CampaignWithTimeout { host, timeout })
                    .boxed(),
            ),
            (1, host().prop_map(|host| Step::Restart { host }).boxed()),
            (1, host().prop_map(|host| Step::CutLink { host }).boxed()),
            (3, fault().boxed()),
            (2, host().prop_map(|host| Step::HealLink { host }).boxed()),
            (1, host().prop_map(|host| Step::ExpireSession { host }).boxed()),
            (1, host().prop_map(|host| Step::DeleteEntries { host }).boxed()),
            (3, millis(1..15_000).prop_map(|time| Step::AdvanceTime { time }).boxed()),
            (2, Just(Step::Settle).boxed()),
        ];
        let existing: Vec<_> = model.all().map(|candidacy| candidacy.id).collect();
        if !existing.is_empty() {
            // The predicted leader in about half of the cases.
            let leader = model.first().unwrap_or(existing[0]);
            let id = || prop_oneof![Just(leader), select(existing.clone())];
            let end = select(vec![EndKind::Resign, EndKind::Drop, EndKind::BeginAndDrop]);
            let work =
                select(vec![WorkKind::StopsWhenCancelled, WorkKind::IgnoresCancellation, WorkKind::Panics]);
            steps.extend([
                (6, (id(), end).prop_map(|(id, kind)| Step::End { id, kind }).boxed()),
                (4, (id(), work).prop_map(|(id, kind)| Step::Work { id, kind }).boxed()),
                (1, id().prop_map(|id| Step::SetValue { id }).boxed()),
            ]);
        }
        Union::new_weighted(steps).boxed()
    }

    fn preconditions(model: &Self, step: &Step) -> bool {
        match step {
            Step::End { id, .. } | Step::Work { id, .. } | Step::SetValue { id } => model.may_exist(*id),
            _ => true,
        }
    }

    fn apply(mut model: Self, step: &Step) -> Self {
        match *step {
            Step::Campaign { host } => model.campaign(host),
            Step::TryCampaign { host } => model.try_campaign(host),
            Step::CampaignWithTimeout { host, .. } => {
                model.uncertain.push(Candidacy { id: model.next_id, host });
                model.next_id += 1;
            }
            Step::End { id, .. } => model.remove(id),
            Step::Work { id, kind } => {
                model.leader_ignores_cancellation |=
                    kind == WorkKind::IgnoresCancellation && model.first() == Some(id)
            }
            Step::Restart { host } => {
                if model.queue.first().is_some_and(|first| first.host == host) {
                    model.leader_ignores_cancellation = false;
                }
                for candidacies in [&mut model.queue, &mut model.queued_locally, &mut model.uncertain] {
                    candidacies.retain(|candidacy| candidacy.host != host);
                }
                // Its next session begins with a proven heartbeat.
                model.proven_from[host] = Duration::ZERO;
            }
            Step::CutLink { host }
            | Step::Fault { host, .. }
            | Step::ExpireSession { host }
            | Step::DeleteEntries { host } => model.disturb(host),
            Step::Settle => {
                model.undisturbed = [true; HOSTS];
                model.releases_are_complete = true;
            }
            Step::SetValue { .. } | Step::HealLink { .. } | Step::AdvanceTime { .. } => {}
        }
        model.advance(match *step {
            Step::AdvanceTime { time } => time,
            Step::Settle => SETTLING,
            _ => Duration::ZERO,
        });
        model
    }
}
