//! The states of a candidate, and what every event does: one state machine from the campaign to the end of the leadership.
//!
//! [`transition`] is a `match` over all pairs without a wildcard: the compiler checks that none is forgotten. The tables in
//! `docs/contributing/architecture.md` are printed by the test below, which compares them.

use crate::LossReason;

/// Declares an enum whose variants have a text, for the documentation.
macro_rules! documented {
    ($(#[$doc:meta])* $name:ident { $($variant:ident: $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $(#[doc = $text] $variant,)*
        }

        #[cfg(test)]
        impl $name {
            const ALL: &[(Self, &str)] = &[$((Self::$variant, $text),)*];
        }
    };
}

documented! {
    /// What a candidate is doing. It has at most one request to the store or one pause in flight.
    State {
        Queued: "It waits for an earlier candidate of its elector in the same election.",
        Opening: "It waits for a session.",
        Entering: "Its request to enter is in flight. The store may execute it although its response is lost.",
        EnteringLater: "It pauses before it enters.",
        GivingUp: "Its caller has given up while the request to enter is in flight. It waits for the response: an entry that is known needs no repeated withdrawal.",
        Waiting: "Others are ahead of it.",
        WaitingLater: "It pauses before it waits again.",
        Proving: "Its entry leads, but the window of the session is not open, or not for as long as its grace period. It waits for a proven heartbeat.",
        Replacing: "Its entry is gone. What may be left of it is removed before it enters with a new one.",
        Reopening: "Its session has ended. It pauses before it goes on under another.",
        Leading: "It leads: checks compare the clock with the deadline of the session, and of the parent if there is one.",
        Stopping: "Its leadership has ended and its work is cancelled; at the deadline it is dropped. The entry stays until the work has stopped.",
        Withdrawing: "Its entry is being removed. That is repeated until the store confirms it or the session ends.",
        Ended: "Nothing of it is left.",
    }
}

documented! {
    /// What happens to a candidate.
    Event {
        Admitted: "No earlier candidate of its elector is left in the election.",
        SessionOpened: "A session for it is open.",
        Entered: "The store has answered the request to enter: others are ahead of it.",
        OtherLeads: "Another candidate leads, and the campaign does not wait.",
        Elected: "Its entry leads, and the window of the session is open.",
        Unproven: "Its entry leads, but the window of the session is not open for long enough.",
        Proven: "A heartbeat of its session was proven. Its entry may be gone meanwhile.",
        Failed: "A request has failed, and may be repeated.",
        Refused: "The store refuses a request for good.",
        RetryDue: "The pause is over.",
        EntryGone: "Its entry was deleted, as its watch has found.",
        ResignRequested: "It was asked to resign, through the store.",
        GivenUp: "The caller of the campaign has given up.",
        TermEnded: "Its term was ended: by its guard, by a check of the clock, by the end of its parent.",
        WorkStopped: "Its guard was dropped and its work has stopped, or its stop-by time has come.",
        Removed: "The store has confirmed that its entry is gone.",
        SessionEnded: "Its session has ended.",
        Panicked: "A backend has panicked in its request, or a log subscriber in an action; its session ends.",
        Closed: "The elector is being closed.",
    }
}

/// What the elector's task does for a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Joins the open session, or requests one.
    OpenSession,
    /// Sends the request to enter.
    Enter,
    /// Waits until the entry leads.
    WaitTurn,
    /// Asks for a proven heartbeat.
    Prove,
    /// Pauses before a request is repeated.
    Pause,
    /// Pauses before a new entry or a new session: longer each time.
    BackOff,
    /// Stops the request or pause in flight.
    StopRequest,
    /// Prepares a new request, with a new nonce.
    RenewRequest,
    /// Leaves a session that has ended.
    LeaveSession,
    /// Removes the entry.
    RemoveEntry,
    /// Begins the term, and gives the guard to the caller.
    BeginTerm,
    /// Ends the term for this reason, unless it has ended.
    EndTerm(LossReason),
    /// Reports the end of the term, and waits until the work has stopped.
    AwaitWork,
    /// Drops the work at once.
    DropWork,
    /// Gives the result to the caller, and admits the next candidate.
    Finish,
    /// Drops the caller without a result, and admits the next candidate.
    Abandon,
}

/// What an event does in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The next state, and what is done.
    To(State, &'static [Action]),
    /// Nothing, for this reason.
    Ignored(&'static str),
}

/// What `event` does to a candidate in `state`.
pub(crate) const fn transition(state: State, event: Event) -> Transition {
    use Action::*;
    use Event::*;
    use State::*;
    use Transition::{Ignored, To};
    match (state, event) {
        (Queued, Admitted) => To(Opening, &[OpenSession]),
        (Queued | Opening, GivenUp) => To(Ended, &[Finish]),
        (Queued | Opening, Closed) => To(Ended, &[Abandon]),

        (Opening, SessionOpened) => To(Entering, &[Enter]),
        (Opening, Refused) => To(Ended, &[Finish]),

        (Entering, Entered) => To(Waiting, &[WaitTurn]),
        // While it proves, only by a test that disables the check of its entry.
        (Entering | Waiting | Proving, Elected) => To(Leading, &[BeginTerm]),
        (Entering | Waiting, Unproven) => To(Proving, &[Prove]),
        (Proving, Proven) => To(Waiting, &[WaitTurn]),
        (Entering, Failed) => To(EnteringLater, &[Pause]),
        (Entering, GivenUp) => To(GivingUp, &[]),
        (Entering | GivingUp, OtherLeads) => To(Withdrawing, &[RemoveEntry]),
        (Entering | GivingUp | Waiting, Refused) => To(Withdrawing, &[RemoveEntry]),
        (GivingUp, Entered | Elected | Unproven | Failed) => To(Withdrawing, &[RemoveEntry]),
        (GivingUp, SessionEnded) => To(Ended, &[StopRequest, Finish]),
        (EnteringLater, RetryDue) => To(Entering, &[Enter]),

        (Waiting, Failed) => To(WaitingLater, &[Pause]),
        (WaitingLater, RetryDue) => To(Waiting, &[WaitTurn]),
        (Waiting | WaitingLater, EntryGone) => To(Replacing, &[StopRequest, RemoveEntry]),
        (Replacing, Removed) => To(EnteringLater, &[RenewRequest, BackOff]),
        (Replacing, GivenUp) => To(Withdrawing, &[]),
        (EnteringLater | Waiting | WaitingLater | Proving, GivenUp) => {
            To(Withdrawing, &[StopRequest, RemoveEntry])
        }

        (Entering | EnteringLater | Waiting | WaitingLater | Proving | Replacing, SessionEnded) => {
            To(Reopening, &[StopRequest, LeaveSession, RenewRequest, BackOff])
        }
        (Reopening, RetryDue) => To(Opening, &[OpenSession]),
        (Reopening, GivenUp) => To(Ended, &[StopRequest, Finish]),
        (Reopening, Closed) => To(Ended, &[StopRequest, Abandon]),

        (Leading, TermEnded | SessionEnded) => To(Stopping, &[AwaitWork]),
        (Leading, EntryGone) => To(Stopping, &[EndTerm(LossReason::EntryGone), AwaitWork]),
        (Leading, ResignRequested) => To(Stopping, &[EndTerm(LossReason::ResignRequested), AwaitWork]),
        (Stopping, EntryGone) => To(Stopping, &[DropWork]),
        (Stopping, WorkStopped) => To(Withdrawing, &[RemoveEntry]),
        (Leading, Panicked) => To(Stopping, &[DropWork, AwaitWork]),
        (Stopping, Panicked) => To(Ended, &[StopRequest, DropWork, Abandon]),
        (Withdrawing, Removed) => To(Ended, &[Finish]),
        (Withdrawing, SessionEnded) => To(Ended, &[StopRequest, Finish]),

        (
            Queued | Opening | Entering | EnteringLater | GivingUp | Waiting | WaitingLater | Proving
            | Replacing | Reopening | Withdrawing,
            Panicked,
        ) => To(Ended, &[StopRequest, Abandon]),

        (Ended, _) => Ignored("It has ended."),
        (_, Admitted) => Ignored("It has been admitted already."),
        (_, SessionOpened) => Ignored("It does not wait for a session."),
        (_, Proven) => Ignored("It does not wait for that."),
        (_, Entered | OtherLeads | Elected | Unproven | Failed | Refused | RetryDue | Removed) => {
            Ignored("It has no such request in flight.")
        }
        (Queued | Opening | Reopening, SessionEnded) => Ignored("It has no session."),
        (Stopping, SessionEnded) => Ignored("Its session is closed once the work has stopped."),
        (
            Queued | Opening | Entering | EnteringLater | GivingUp | Replacing | Reopening | Withdrawing,
            EntryGone,
        ) => Ignored("It has no entry, or removes it."),
        (Proving, EntryGone) => Ignored("Its entry is not watched yet."),
        (_, ResignRequested) => Ignored("It does not lead."),
        (Leading | Stopping, GivenUp) => Ignored("Its caller has the guard."),
        (GivingUp | Withdrawing, GivenUp) => Ignored("It withdraws already."),
        (_, TermEnded) => Ignored("It has no term, or stops already."),
        (_, WorkStopped) => Ignored("Nothing waits for its work."),
        (
            Entering | EnteringLater | GivingUp | Waiting | WaitingLater | Proving | Replacing | Leading
            | Stopping | Withdrawing,
            Closed,
        ) => Ignored("Its session ends, too."),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/contributing/architecture.md");
    const BEGIN: &str = "<!-- The state machine: printed by rules/candidate_state.rs -->\n";
    const END: &str = "<!-- The end of the state machine -->\n";

    /// All transitions, as the rows of a table: state, event, next state, actions.
    fn transitions() -> Vec<(State, Event, State, &'static [Action])> {
        let pairs = State::ALL
            .iter()
            .flat_map(|(state, _)| Event::ALL.iter().map(move |(event, _)| (*state, *event)));
        pairs
            .filter_map(|(state, event)| match transition(state, event) {
                Transition::To(next, actions) => Some((state, event, next, actions)),
                Transition::Ignored(_) => None,
            })
            .collect()
    }

    fn tables() -> String {
        let mut text = String::from("\n| state | what holds |\n|---|---|\n");
        for (state, meaning) in State::ALL {
            writeln!(text, "| *{state:?}* | {meaning} |").unwrap();
        }
        text += "\n| event | what has happened |\n|---|---|\n";
        for (event, meaning) in Event::ALL {
            writeln!(text, "| {event:?} | {meaning} |").unwrap();
        }
        text += "\n| state | event | next state | actions |\n|---|---|---|---|\n";
        for (state, event, next, actions) in transitions() {
            let actions: Vec<_> = actions.iter().map(|action| format!("{action:?}")).collect();
            writeln!(text, "| *{state:?}* | {event:?} | *{next:?}* | {} |", actions.join(", ")).unwrap();
        }
        text += "\nAll other events change nothing, and none changes an *Ended* candidate:\n\n";
        text += "| event | states | why it is ignored |\n|---|---|---|\n";
        for (event, _) in Event::ALL {
            let mut ignored: Vec<(&str, Vec<String>)> = Vec::new();
            for (state, _) in State::ALL.iter().filter(|(state, _)| *state != State::Ended) {
                let Transition::Ignored(why) = transition(*state, *event) else { continue };
                let state = format!("*{state:?}*");
                match ignored.iter_mut().find(|(reason, _)| *reason == why) {
                    Some((_, states)) => states.push(state),
                    None => ignored.push((why, vec![state])),
                }
            }
            for (why, states) in ignored {
                writeln!(text, "| {event:?} | {} | {why} |", states.join(", ")).unwrap();
            }
        }
        text + "\n"
    }

    #[test]
    fn the_page_shows_this_state_machine() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let shown = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(shown, _)| shown);
        let expected = tables();
        assert!(shown == Some(&*expected), "the page has to contain:\n{BEGIN}{expected}{END}");
    }

    /// From every state a candidate can come to its end, and nothing leaves the end.
    #[test]
    fn every_candidate_can_end() {
        let transitions = transitions();
        let mut ends = vec![State::Ended];
        while let Some((state, ..)) =
            transitions.iter().find(|(state, _, next, _)| ends.contains(next) && !ends.contains(state))
        {
            ends.push(*state);
        }
        assert_eq!(ends.len(), State::ALL.len(), "{ends:?}");
        assert!(transitions.iter().all(|(state, ..)| *state != State::Ended));
    }

    /// Hazard G5: an entry is removed only after its work has stopped: a leader's state changes to *Withdrawing* by no other
    /// event.
    #[test]
    fn a_leader_withdraws_only_after_its_work_has_stopped() {
        for (state, event, next, actions) in transitions() {
            if matches!(state, State::Leading | State::Stopping) {
                let removes = actions.contains(&Action::RemoveEntry);
                assert_eq!(removes, event == Event::WorkStopped, "{state:?} {event:?}");
                assert_eq!(next == State::Withdrawing, removes);
            }
        }
    }

    /// A candidate that ends answers or drops its caller exactly once.
    #[test]
    fn every_end_answers_the_caller() {
        for (state, event, next, actions) in transitions() {
            let answers =
                actions.iter().filter(|action| matches!(action, Action::Finish | Action::Abandon)).count();
            assert_eq!(answers, usize::from(next == State::Ended), "{state:?} {event:?}");
        }
    }
}
