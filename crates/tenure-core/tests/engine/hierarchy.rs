//! Parent and child leaderships: the loss of either ends both, and promise S3 holds for both.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use tenure_core::{Connection, Elector, Hierarchy, Leadership, LossReason, SimClock, memory::MemoryStore};

use crate::host::{
    Host, TTL, UNTIL_DEADLINE, UNTIL_STOP, assert_nothing_left, endless_work, sleep, until, within,
};

/// A member of a group, with one session in the store of the group and one in the store of the top election.
struct Member {
    group: Host,
    elector: Arc<Hierarchy>,
}

impl Member {
    fn new(groups: &MemoryStore, top: &MemoryStore, id: &str, group: &str) -> Self {
        Self::with_grace_period(groups, top, id, group, TTL / 10)
    }

    /// A member with this grace period at the top.
    fn with_grace_period(
        groups: &MemoryStore,
        top: &MemoryStore,
        id: &str,
        group: &str,
        grace_period: Duration,
    ) -> Self {
        let clock = SimClock::new();
        let (groups, top) = (
            Host::with(groups, id, clock.clone(), |config| config),
            Host::with(top, id, clock, |config| config.with_grace_period(grace_period)),
        );
        let hierarchy = Hierarchy::new(top.elector.clone(), group).unwrap();
        let elector = Arc::new(hierarchy.with_group_elector(groups.elector.clone()));
        Self { group: groups, elector }
    }

    async fn lead(&self) -> Leadership {
        within(Duration::from_secs(120), self.elector.campaign("e")).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn groups_elect_leaders_who_elect_one_leader() {
    let store = MemoryStore::new();
    let members = ["a", "b", "c", "d"].map(|id| {
        let group = if id < "c" { "north" } else { "south" };
        Member::new(&store, &store, id, group)
    });
    let first = members[0].lead().await;
    let waiting: Vec<_> = members[1..]
        .iter()
        .map(|member| {
            let elector = Arc::clone(&member.elector);
            tokio::spawn(async move {
                let leadership = elector.campaign("e").await.unwrap();
                let token = leadership.fencing_token();
                leadership.resign().await.map(|()| token)
            })
        })
        .collect();
    until("the second group has a leader", || store.entries("e").len() == 2).await;
    until("all have entered", || store.entries("e.north").len() + store.entries("e.south").len() == 4).await;
    let leader = members[0].elector.leader("e").await.unwrap().unwrap();
    assert_eq!(leader.id, "a");
    let of_north = members[3].elector.group_leader("e").await.unwrap().unwrap();
    assert!(["c", "d"].contains(&of_north.id.as_str()));
    assert_eq!(members[0].elector.candidates("e").await.unwrap().len(), 2);
    assert!(members[0].elector.leadership("e").is_some_and(|own| own.is_leader()));
    let token = first.fencing_token();
    first.resign().await.unwrap();
    let mut tokens = vec![token];
    for campaign in waiting {
        tokens.push(within(TTL * 20, campaign).await.unwrap().unwrap());
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!((tokens[0], tokens.len()), (token, 4), "each member led once, after the first");
    for member in &members {
        member.elector.close().await;
    }
    assert_nothing_left(&store).await;
}

/// Both tiers can use one elector, and share its session.
#[tokio::test(start_paused = true)]
async fn both_tiers_may_share_an_elector() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let elector = Hierarchy::new(host.elector.clone(), "g").unwrap();
    let leadership = elector.campaign("e").await.unwrap();
    assert_eq!(store.sessions().len(), 1);
    assert!(elector.try_campaign("e").await.unwrap().is_none(), "the election is taken");
    leadership.resign().await.unwrap();
    assert_eq!(store.entry_count(), 0, "both entries are gone when the resignation has returned");
    let again = elector.try_campaign("e").await.unwrap().unwrap();
    drop(again);
    until("both entries are gone", || store.entry_count() == 0).await;
    let refused = elector.campaign("no/name").await.unwrap_err();
    assert!(refused.to_string().contains("no/name"), "{refused}");
}

/// The leadership in the group ends. So does the one at the top, with all its work, before the group has another leader.
#[tokio::test(start_paused = true)]
async fn the_loss_of_the_group_ends_both() {
    let (groups, top) = (MemoryStore::new(), MemoryStore::new());
    let (a, b) = (Member::new(&groups, &top, "a", "g"), Member::new(&groups, &top, "b", "g"));
    let first = a.lead().await;
    let (is_running, _) = endless_work(&first);
    let next = {
        let elector = Arc::clone(&b.elector);
        tokio::spawn(async move { elector.campaign("e").await.unwrap() })
    };
    until("the second waits in the group", || groups.entries("e.g").len() == 2).await;
    a.group.link.cut();
    sleep(UNTIL_STOP - Duration::from_secs(4)).await;
    assert!(first.is_leader(), "a short outage costs no leadership");
    let reason = within(TTL, first.lost()).await;
    assert_eq!((reason, first.loss()), (LossReason::ParentLost, Some(LossReason::ParentLost)));
    assert!(!next.is_finished());
    until("the work was dropped", || !is_running.load(SeqCst)).await;
    assert_eq!(groups.entries("e.g").len(), 2, "the group's entry was removed before the work had stopped");
    let second = within(TTL * 3, next).await.unwrap();
    assert!(second.is_leader() && !first.is_leader());
    assert!(second.fencing_token() > first.fencing_token());
}

/// The leadership at the top ends. The one in the group is resigned, and another member of the group can lead both.
#[tokio::test(start_paused = true)]
async fn the_loss_of_the_top_ends_both() {
    let (groups, top) = (MemoryStore::new(), MemoryStore::new());
    let (a, b) = (Member::new(&groups, &top, "a", "g"), Member::new(&groups, &top, "b", "g"));
    let first = a.lead().await;
    let next = {
        let elector = Arc::clone(&b.elector);
        tokio::spawn(async move { elector.campaign("e").await.unwrap() })
    };
    until("the second waits in the group", || groups.entries("e.g").len() == 2).await;
    assert!(top.delete_entry("e", first.fencing_token().get()));
    assert_eq!(within(Duration::from_secs(5), first.lost()).await, LossReason::EntryGone);
    drop(first);
    let second = within(TTL * 3, next).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(groups.entries("e.g").len(), 1);
}

/// Hazards G1, G25: a check compares the clock with both deadlines, even before the engine has noticed the loss.
#[tokio::test(start_paused = true)]
async fn the_first_check_after_a_pause_denies_leadership_when_the_group_is_lost() {
    let (groups, top) = (MemoryStore::new(), MemoryStore::new());
    let member = Member::new(&groups, &top, "a", "g");
    let leadership = member.lead().await;
    member.group.link.cut();
    sleep(Duration::from_secs(6)).await;
    let before = leadership.deadline();
    assert!(leadership.is_leader());
    // Heartbeats extend the deadline at the top; the one of the group does not change.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(leadership.deadline(), before, "the deadline is the earlier of the two");
    assert!(leadership.remaining() < UNTIL_DEADLINE - Duration::from_secs(4));
    member.group.clock.jump(Duration::from_secs(3));
    assert!(!leadership.is_leader());
    assert_eq!(leadership.ensure().unwrap_err().reason, LossReason::ParentLost);
}

/// Hazard G2: the watchdog cancels the work at the top on time although its own session is alive, and work that was cancelled
/// before has only the time that the group has.
#[tokio::test(start_paused = true)]
async fn work_that_is_stopping_has_no_longer_than_the_group() {
    let (groups, top) = (MemoryStore::new(), MemoryStore::new());
    let member = Member::new(&groups, &top, "a", "g");
    let leadership = member.lead().await;
    let (is_running, _) = endless_work(&leadership);
    sleep(Duration::from_millis(1)).await;
    leadership.request_resign();
    sleep(Duration::from_millis(100)).await;
    assert!(is_running.load(SeqCst), "it has until the deadline");
    let group = groups.entries("e.g")[0].revision;
    assert!(groups.delete_entry("e.g", group));
    until("the work was dropped", || !is_running.load(SeqCst)).await;
    assert!(leadership.remaining() > UNTIL_DEADLINE - Duration::from_secs(3) || !leadership.is_leader());
    assert_eq!(leadership.loss(), Some(LossReason::Resigned), "the first reason stays");
}

/// Hazard G6: at whatever point a campaign is dropped, no entry is left at either level.
#[tokio::test(start_paused = true)]
async fn a_campaign_that_is_dropped_leaves_nothing_at_either_level() {
    let (groups, top) = (MemoryStore::new(), MemoryStore::new());
    let (a, b) = (Member::new(&groups, &top, "a", "north"), Member::new(&groups, &top, "b", "south"));
    let first = a.lead().await;
    {
        let elector = Arc::clone(&b.elector);
        let campaign = tokio::spawn(async move { elector.campaign("e").await.map(drop) });
        until("it waits at the top", || top.entries("e").len() == 2).await;
        campaign.abort();
    }
    until("only the leader is left", || top.entries("e").len() == 1 && groups.entry_count() == 1).await;
    assert!(first.is_leader());
    assert!(b.elector.try_campaign("e").await.unwrap().is_none());
    assert_eq!((top.entries("e").len(), groups.entry_count()), (1, 1));
    // A candidate that loses its group while it waits at the top campaigns in the group again.
    let elector = Arc::clone(&b.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await.unwrap() });
    until("it waits at the top", || top.entries("e").len() == 2).await;
    let lost = groups.entries("e.south")[0].revision;
    groups.delete_entry("e.south", lost);
    until("it has entered the group again", || {
        groups.entries("e.south").first().is_some_and(|entry| entry.revision != lost)
    })
    .await;
    first.resign().await.unwrap();
    let second = within(TTL, campaign).await.unwrap();
    a.elector.close().await;
    b.elector.close().await;
    assert_eq!(second.loss(), Some(LossReason::Closed));
    drop(second);
    assert_nothing_left(&top).await;
    assert_nothing_left(&groups).await;
}

/// Hierarchies can be nested: the loss at the bottom ends the leadership at the top.
#[tokio::test(start_paused = true)]
async fn tiers_can_be_stacked() {
    let store = MemoryStore::new();
    let [racks, halls, top] = ["a"; 3].map(|id| Host::new(&store, id));
    let hall =
        Hierarchy::new(halls.elector.clone(), "rack-1").unwrap().with_group_elector(racks.elector.clone());
    let elector = Hierarchy::new(top.elector.clone(), "hall-1").unwrap().with_group_elector(Arc::new(hall));
    let leadership = elector.campaign("e").await.unwrap();
    assert_eq!(elector.status().connection, Connection::Connected);
    let lowest = "e.hall-1.rack-1";
    assert_eq!(store.entries(lowest).len(), 1);
    assert!(store.delete_entry(lowest, store.entries(lowest)[0].revision));
    assert_eq!(within(Duration::from_secs(5), leadership.lost()).await, LossReason::ParentLost);
    drop(leadership);
    until("all have left", || store.entry_count() == 0).await;
}

/// Promise S3: work at the top has its grace period before the deadline of the group too, whose own grace period is shorter.
#[tokio::test(start_paused = true)]
async fn the_grace_period_is_kept_before_both_deadlines() {
    let (groups, top) = (MemoryStore::new(), MemoryStore::new());
    let grace_period = Duration::from_secs(3);
    let member = Member::with_grace_period(&groups, &top, "a", "g", grace_period);
    let leadership = member.lead().await;
    assert_eq!(leadership.grace_period(), grace_period);
    let token = leadership.cancellation_token();
    member.group.link.cut();
    within(TTL, token.cancelled()).await;
    let left = leadership.remaining();
    assert!(left > grace_period - Duration::from_millis(50), "{left:?} was left when the work was cancelled");
    assert_eq!(leadership.loss(), Some(LossReason::ParentLost));
    // The leadership in the group itself is not over yet.
    let in_the_group = member.group.elector.leadership("e.g");
    assert!(in_the_group.is_some_and(|group| group.is_leader() && group.grace_period() < grace_period));
    drop(leadership);

    // A grace period that the session does not allow is refused.
    member.group.link.heal();
    let leadership = member.lead().await;
    let refused = leadership.run_with_grace_period(TTL, async {}).await.unwrap_err();
    assert!(refused.to_string().contains("grace period 10s is not allowed"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_group_with_a_dot_in_its_name_is_refused() {
    let host = Host::new(&MemoryStore::new(), "a");
    let refused = Hierarchy::new(host.elector.clone(), "b.c").unwrap_err();
    assert_eq!(refused.to_string(), "group \"b.c\" is not allowed: a group's name must not contain a dot");
    assert!(Hierarchy::new(host.elector.clone(), "no/name").is_err());
}
