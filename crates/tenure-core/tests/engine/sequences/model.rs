//! Who may lead, after which calls and faults.

use std::time::Duration;

use proptest::{prelude::*, sample::select, strategy::Union};
use proptest_state_machine::ReferenceStateMachine;
use tenure_core::{
    memory::{Op, Path, Side},
    spi::HeartbeatProof,
};

use crate::host::TTL;

/// How many electors there are.
pub(super) const HOSTS: usize = 3;

/// A call, or a fault.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Campaign {
        host: usize,
    },
    TryCampaign {
        host: usize,
    },
    /// A campaign that is given up after a while, unless it leads by then.
    Impatient {
        host: usize,
        patience: Duration,
    },
    /// Gives a campaign up, or a leadership back.
    Leave {
        id: usize,
        how: How,
    },
    /// Work under a leadership.
    Work {
        id: usize,
        kind: Kind,
    },
    SetValue {
        id: usize,
    },
    /// Closes an elector, and makes another in its place.
    Restart {
        host: usize,
    },
    Cut {
        host: usize,
    },
    Fault {
        host: usize,
        op: Op,
        side: Side,
        path: Path,
    },
    Heal {
        host: usize,
    },
    /// The store ends the session of an elector.
    Expire {
        host: usize,
    },
    /// Somebody deletes the entry of an elector.
    Delete {
        host: usize,
    },
    Pass {
        time: Duration,
    },
    /// Mends all lines, and lets time pass until nothing is left of any fault.
    Settle,
}

/// How a leadership is given back.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Resign,
    Drop,
    BeginAndDrop,
}

/// How work behaves when it is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Obeys,
    Ignores,
    Panics,
}

/// A call to campaign, until it has failed, was given up, or its leadership was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidacy {
    pub(super) id: usize,
    pub(super) host: usize,
}

/// What is known of an election without looking at it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) proof: HeartbeatProof,
    /// The id of the next candidacy.
    next: usize,
    /// Who stands in the store, in order; the first leads.
    line: Vec<Candidacy>,
    /// Who waits for another candidacy of the same elector to end.
    behind: Vec<Candidacy>,
    /// Those of whom it is not known where they stand, nor whether they still do: faults have met them.
    unsure: Vec<Candidacy>,
    /// The electors that no fault has met since the last settling.
    steady: [bool; HOSTS],
    /// Whether the first in line has work that does not stop by itself.
    stubborn: bool,
    /// Whether no leadership is about to end that nobody holds any more.
    calm: bool,
}

impl Model {
    /// The candidacy that was begun last.
    pub(super) fn newest(&self) -> usize {
        self.next - 1
    }

    fn all(&self) -> impl Iterator<Item = Candidacy> {
        [&self.line, &self.behind, &self.unsure].into_iter().flatten().copied()
    }

    /// Whether anything of this candidacy may be left.
    pub(super) fn lives(&self, id: usize) -> bool {
        self.all().any(|candidacy| candidacy.id == id)
    }

    /// Whether no fault has met this candidacy.
    pub(super) fn is_certain(&self, id: usize) -> bool {
        self.lives(id) && self.unsure.iter().all(|candidacy| candidacy.id != id)
    }

    /// The one that leads if any of those in line does.
    pub(super) fn first(&self) -> Option<usize> {
        self.line.first().map(|candidacy| candidacy.id)
    }

    /// Whether the first in line leads at this moment, and nobody does where there is none.
    pub(super) fn is_settled(&self) -> bool {
        self.unsure.is_empty() && self.calm && self.steady.iter().all(|steady| *steady)
    }

    /// A candidacy has ended.
    pub(super) fn remove(&mut self, id: usize) {
        if let Some(place) = self.unsure.iter().position(|candidacy| candidacy.id == id) {
            // It may have led, with work that goes on.
            let host = self.unsure.remove(place).host;
            return self.disturb(host);
        }
        self.behind.retain(|candidacy| candidacy.id != id);
        let Some(place) = self.line.iter().position(|candidacy| candidacy.id == id) else { return };
        let host = self.line.remove(place).host;
        if place == 0 && std::mem::take(&mut self.stubborn) {
            // Its entry stands until its work was dropped, and its elector's next candidate waits for that.
            self.disturb(host);
        } else if let Some(next) = self.behind.iter().position(|candidacy| candidacy.host == host) {
            self.line.push(self.behind.remove(next));
        }
    }

    /// From now on it is not known what becomes of this elector's candidacies.
    fn disturb(&mut self, host: usize) {
        self.steady[host] = false;
        self.calm = false;
        if self.line.first().is_some_and(|first| first.host == host) {
            self.stubborn = false;
        }
        for known in [&mut self.line, &mut self.behind] {
            self.unsure.extend(known.extract_if(.., |candidacy| candidacy.host == host));
        }
    }

    fn has_unsure(&self, host: usize) -> bool {
        !self.steady[host] || self.unsure.iter().any(|candidacy| candidacy.host == host)
    }

    fn campaign(&mut self, host: usize) {
        let candidacy = Candidacy { id: self.next, host };
        self.next += 1;
        if self.has_unsure(host) {
            self.unsure.push(candidacy);
        } else if self.line.iter().any(|other| other.host == host) {
            self.behind.push(candidacy);
        } else {
            self.line.push(candidacy);
        }
    }

    fn try_campaign(&mut self, host: usize) {
        let candidacy = Candidacy { id: self.next, host };
        self.next += 1;
        if self.has_unsure(host) || self.line.is_empty() && !self.is_settled() {
            self.unsure.push(candidacy);
        } else if self.line.is_empty() {
            self.line.push(candidacy);
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
    let side = select(vec![Side::Request, Side::Answer]);
    let delay = millis(1..12_000).prop_map(Path::Delay);
    let path = prop_oneof![Just(Path::Lose), Just(Path::Refuse), Just(Path::Hold), delay];
    // More often those whose outcome matters most.
    let op = prop_oneof![Just(Op::Enter), Just(Op::Leave), Just(Op::Heartbeat), select(Op::ALL.to_vec())];
    (host(), op, side, path).prop_map(|(host, op, side, path)| Step::Fault { host, op, side, path })
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let proofs = vec![
            HeartbeatProof::Answer,
            HeartbeatProof::Read,
            HeartbeatProof::NextHeartbeat { gap: TTL / 4 },
        ];
        let new = |proof| Self {
            proof,
            next: 0,
            line: Vec::new(),
            behind: Vec::new(),
            unsure: Vec::new(),
            steady: [true; HOSTS],
            stubborn: false,
            calm: true,
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
                    .prop_map(|(host, patience)| Step::Impatient { host, patience })
                    .boxed(),
            ),
            (1, host().prop_map(|host| Step::Restart { host }).boxed()),
            (1, host().prop_map(|host| Step::Cut { host }).boxed()),
            (3, fault().boxed()),
            (2, host().prop_map(|host| Step::Heal { host }).boxed()),
            (1, host().prop_map(|host| Step::Expire { host }).boxed()),
            (1, host().prop_map(|host| Step::Delete { host }).boxed()),
            (3, millis(1..15_000).prop_map(|time| Step::Pass { time }).boxed()),
            (2, Just(Step::Settle).boxed()),
        ];
        let living: Vec<_> = model.all().map(|candidacy| candidacy.id).collect();
        if !living.is_empty() {
            // As often as not whoever leads, as far as that is known.
            let leader = model.first().unwrap_or(living[0]);
            let id = || prop_oneof![Just(leader), select(living.clone())];
            let how = select(vec![How::Resign, How::Drop, How::BeginAndDrop]);
            let kind = select(vec![Kind::Obeys, Kind::Ignores, Kind::Panics]);
            steps.extend([
                (6, (id(), how).prop_map(|(id, how)| Step::Leave { id, how }).boxed()),
                (4, (id(), kind).prop_map(|(id, kind)| Step::Work { id, kind }).boxed()),
                (1, id().prop_map(|id| Step::SetValue { id }).boxed()),
            ]);
        }
        Union::new_weighted(steps).boxed()
    }

    fn preconditions(model: &Self, step: &Step) -> bool {
        match step {
            Step::Leave { id, .. } | Step::Work { id, .. } | Step::SetValue { id } => model.lives(*id),
            _ => true,
        }
    }

    fn apply(mut model: Self, step: &Step) -> Self {
        match *step {
            Step::Campaign { host } => model.campaign(host),
            Step::TryCampaign { host } => model.try_campaign(host),
            Step::Impatient { host, .. } => {
                model.unsure.push(Candidacy { id: model.next, host });
                model.next += 1;
            }
            Step::Leave { id, .. } => model.remove(id),
            Step::Work { id, kind } => model.stubborn |= kind == Kind::Ignores && model.first() == Some(id),
            Step::Restart { host } => {
                if model.line.first().is_some_and(|first| first.host == host) {
                    model.stubborn = false;
                }
                for candidacies in [&mut model.line, &mut model.behind, &mut model.unsure] {
                    candidacies.retain(|candidacy| candidacy.host != host);
                }
            }
            Step::Cut { host } | Step::Fault { host, .. } | Step::Expire { host } | Step::Delete { host } => {
                model.disturb(host)
            }
            Step::Settle => {
                model.steady = [true; HOSTS];
                model.calm = true;
            }
            Step::SetValue { .. } | Step::Heal { .. } | Step::Pass { .. } => {}
        }
        model
    }
}
