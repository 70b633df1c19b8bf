//! What goes wrong in a run, when, and for how long.

use std::{collections::BTreeSet, sync::PoisonError, time::Duration};

use fastrand::Rng;

use super::{
    cluster::MEMBERS,
    host::{ELECTIONS, TTL, host_name, member_name},
    play::{HOSTS, World},
};

/// How finely time is simulated.
pub(super) const TICK: Duration = Duration::from_millis(2);
/// How long a message takes at most while nothing is wrong; most take a fifth of it.
pub(super) const LATENCY: Duration = Duration::from_millis(12);

/// What will be done when.
pub(super) struct Faults {
    random: Rng,
    operator_interferes: bool,
    next: Duration,
    scheduled: Vec<(Duration, Scheduled)>,
    /// What is wrong at present with which host's line to which member.
    links: BTreeSet<(usize, usize)>,
    pub(super) count: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Scheduled {
    RestoreLink(usize, usize),
    RestoreMember(usize),
    StartMember(usize),
    StartHost(usize),
    /// Whoever led this election by this token has noticed by now that its entry is gone.
    Noticed(String, u64),
}

impl Faults {
    pub(super) fn new(random: Rng, operator_interferes: bool) -> Self {
        Self {
            random,
            operator_interferes,
            next: Duration::from_secs(2),
            scheduled: Vec::new(),
            links: BTreeSet::new(),
            count: 0,
        }
    }

    /// Called after every step.
    pub(super) fn step(&mut self, world: &mut World) {
        let now = world.sim.elapsed();
        self.do_what_is_due(world, now);
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(self.random.u64(50..2_500));
        self.cause(world);
        if self.operator_interferes && self.random.u8(..4) == 0 {
            self.interfere(world);
        }
        self.count += 1;
    }

    fn do_what_is_due(&mut self, world: &mut World, now: Duration) {
        while let Some(n) = self.scheduled.iter().position(|(when, _)| *when <= now) {
            let (_, scheduled) = self.scheduled.remove(n);
            self.carry_out(world, scheduled);
        }
    }

    fn carry_out(&mut self, world: &mut World, scheduled: Scheduled) {
        match scheduled {
            Scheduled::RestoreLink(host, member) => {
                if self.links.remove(&(host, member)) {
                    restore_link(world, host, member);
                }
            }
            Scheduled::RestoreMember(member) => self.restore_member(world, member),
            Scheduled::StartMember(member) => {
                world.cluster.change(|state| {
                    state.members[member].up = true;
                    state.restore(member);
                });
                world.sim.bounce(member_name(member));
            }
            Scheduled::StartHost(host) => world.sim.bounce(host_name(host)),
            Scheduled::Noticed(election, token) => {
                let mut history = world.history.lock();
                if history.working().contains(&(election.clone(), token)) {
                    history.violated("S1", format!("{election}: {token} leads on without an entry"));
                }
            }
        }
    }

    fn later(&mut self, world: &World, most: u64, scheduled: Scheduled) {
        let after = Duration::from_millis(self.random.u64(100..most));
        self.scheduled.push((world.sim.elapsed() + after, scheduled));
    }

    /// Causes one fault.
    fn cause(&mut self, world: &mut World) {
        let (host, member) = (self.random.usize(..HOSTS), self.random.usize(..MEMBERS));
        let leader = world.cluster.read().leader.unwrap_or(member);
        match self.random.u8(..26) {
            0..=8 => self.degrade_link(world, host, member),
            9 => self.cut_off(world, member),
            10 => self.cut_off(world, leader),
            11 => self.freeze(world, member),
            12 => self.freeze(world, leader),
            13 => self.crash_member(world, member),
            14..=16 => self.stall(world, leader),
            17 => self.stall(world, member),
            18 | 19 => world.cluster.change(|state| {
                if state.has_quorum() {
                    state.elect();
                }
            }),
            20 => self.lag(world, member),
            21 => self.compact(world),
            22 => self.crash_host(world, host),
            23 => self.jump(world, host),
            _ => self.isolate_with_stalled_leader(world, leader),
        }
    }

    fn degrade_link(&mut self, world: &mut World, host: usize, member: usize) {
        if !self.links.insert((host, member)) {
            return;
        }
        let (from, to) = (host_name(host), member_name(member));
        match self.random.u8(..6) {
            // Messages are delayed, as when TCP retransmits.
            0 | 1 => world.sim.hold(from, to),
            // Connections are lost with their messages, without an error to either side.
            2 => world.sim.partition(from, to),
            3 if self.random.bool() => world.sim.partition_oneway(from, to),
            3 => world.sim.partition_oneway(to, from),
            4 => {
                let most = Duration::from_millis(self.random.u64(50..3_000));
                world.sim.set_link_max_message_latency(from, to, most);
            }
            _ => world.sim.set_link_fail_rate(from, to, 0.002 + self.random.f64() / 100.0),
        }
        self.later(world, 12_000, Scheduled::RestoreLink(host, member));
    }

    fn cut_off(&mut self, world: &World, member: usize) {
        world.cluster.change(|state| state.members[member].cut_off = true);
        self.later(world, 8_000, Scheduled::RestoreMember(member));
    }

    fn freeze(&mut self, world: &mut World, member: usize) {
        world.cluster.change(|state| state.members[member].frozen = true);
        for host in 0..HOSTS {
            if self.links.insert((host, member)) {
                world.sim.hold(host_name(host), member_name(member));
            }
        }
        self.later(world, 9_000, Scheduled::RestoreMember(member));
    }

    fn stall(&mut self, world: &World, member: usize) {
        world.cluster.change(|state| state.members[member].stalled = true);
        self.later(world, 12_000, Scheduled::RestoreMember(member));
    }

    fn lag(&mut self, world: &World, member: usize) {
        let lag = Duration::from_millis(self.random.u64(1..2_000));
        world.cluster.change(|state| state.members[member].lag = lag);
        self.later(world, 8_000, Scheduled::RestoreMember(member));
    }

    fn crash_member(&mut self, world: &mut World, member: usize) {
        if !world.cluster.read().members[member].up {
            return;
        }
        world.cluster.change(|state| state.members[member].up = false);
        (0..HOSTS).for_each(|host| cut_link(world, host, member));
        world.sim.crash(member_name(member));
        (0..HOSTS).for_each(|host| restore_link(world, host, member));
        self.later(world, 6_000, Scheduled::StartMember(member));
    }

    fn crash_host(&mut self, world: &mut World, host: usize) {
        if !world.sim.is_host_running(host_name(host)) {
            return;
        }
        (0..MEMBERS).for_each(|member| cut_link(world, host, member));
        world.sim.crash(host_name(host));
        (0..MEMBERS).for_each(|member| restore_link(world, host, member));
        self.later(world, 8_000, Scheduled::StartHost(host));
    }

    /// The host was suspended, or paused with every clock but the time of day.
    fn jump(&mut self, world: &World, host: usize) {
        let by = Duration::from_millis(self.random.u64(1..8_000));
        let clock = world.hosts[host].clock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clock) = &*clock {
            if self.random.bool() { clock.jump(by) } else { clock.jump_wall(by / 6) }
        }
    }

    fn compact(&mut self, world: &World) {
        world.cluster.change(|state| {
            let behind = self.random.i64(..10);
            drop(state.store.compact((state.store.revision - behind).max(1)));
        });
    }

    /// The leader's disk stalls, and some hosts reach no other member (hazard E14).
    fn isolate_with_stalled_leader(&mut self, world: &mut World, leader: usize) {
        self.stall(world, leader);
        for host in 0..HOSTS {
            if self.random.bool() {
                continue;
            }
            for member in (0..MEMBERS).filter(|member| *member != leader) {
                if self.links.insert((host, member)) {
                    world.sim.hold(host_name(host), member_name(member));
                    self.later(world, 12_000, Scheduled::RestoreLink(host, member));
                }
            }
        }
    }

    /// An operator deletes a leader's entry or revokes its lease. The leader has to notice.
    fn interfere(&mut self, world: &World) {
        let election = format!("e{}", self.random.usize(..ELECTIONS));
        let head = world.cluster.read().store.head(&format!("/tenure/{election}/")).cloned();
        let Some(head) = head else { return };
        let by_lease = self.random.bool();
        let done = world.cluster.change(|state| {
            if state.has_quorum() && by_lease {
                drop(state.store.revoke(state.now, head.lease));
            } else if state.has_quorum() {
                state.store.delete_key(state.now, &head.key);
            }
            state.has_quorum()
        });
        if !done {
            return;
        }
        let noticed = Scheduled::Noticed(election, head.create_revision.unsigned_abs());
        self.scheduled.push((world.sim.elapsed() + TTL * 4, noticed));
    }

    fn restore_member(&mut self, world: &mut World, member: usize) {
        let revokes = self.operator_interferes;
        world.cluster.change(|state| {
            if revokes && state.members[member].stalled && state.has_quorum() {
                // The revocations of the time in which it stalled reach the new leader now (hazard E1).
                let overdue = state.members[member].lessor.overdue(state.now);
                state.revoke_all(&overdue);
            }
            state.restore(member);
        });
        for host in 0..HOSTS {
            if self.links.remove(&(host, member)) {
                restore_link(world, host, member);
            }
        }
    }

    /// Ends all faults.
    pub(super) fn restore_all(&mut self, world: &mut World) {
        for (_, scheduled) in std::mem::take(&mut self.scheduled) {
            // A leader that has just lost its entry may still have to notice.
            if !matches!(scheduled, Scheduled::Noticed(..)) {
                self.carry_out(world, scheduled);
            }
        }
    }
}

/// Cuts the link before a crash, so that the host sends nothing while its runtime drops connections in an arbitrary order.
fn cut_link(world: &mut World, host: usize, member: usize) {
    let (from, to) = (host_name(host), member_name(member));
    world.sim.set_link_fail_rate(from.as_str(), to.as_str(), 0.0);
    world.sim.partition(from, to);
}

fn restore_link(world: &mut World, host: usize, member: usize) {
    let (from, to) = (host_name(host), member_name(member));
    world.sim.set_link_fail_rate(from.as_str(), to.as_str(), 0.0);
    world.sim.set_link_max_message_latency(from.as_str(), to.as_str(), LATENCY);
    world.sim.release(from, to);
}
