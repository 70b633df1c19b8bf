//! The highest fencing token that an elector has seen in each election, and what a lower one means.
//!
//! Tokens increase from term to term. When one is lower than a token that was seen *before the request for it was sent*, the
//! store was wiped, restored from a snapshot, or exchanged. A late answer is no such case.

use std::collections::HashMap;

use crate::{ElectionName, FencingToken};

/// The number of elections whose marks are kept. When there are more, the half with the lowest marks is dropped.
const MAX_MARKS: usize = 65_536;

/// A token that is lower than one that was seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRegression {
    pub(crate) election: ElectionName,
    pub(crate) token: FencingToken,
    /// The highest token before.
    pub(crate) highest: FencingToken,
}

/// What a token that was seen has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SeenToken {
    /// The mark stays.
    Unchanged,
    /// It is the highest one.
    Raised,
    /// It is lower than the mark, which it replaces, so that each regression is reported once.
    Regressed(TokenRegression),
}

/// The marks of one elector.
#[derive(Debug, Default)]
pub(crate) struct TokenMarks {
    marks: HashMap<ElectionName, FencingToken>,
    regressions: u64,
    latest: Option<TokenRegression>,
    /// The regressions that are to be logged; `None` while the next one is logged at once.
    unlogged: Option<u64>,
}

impl TokenMarks {
    /// The marks that an earlier process has left.
    pub(crate) fn with(marks: impl IntoIterator<Item = (ElectionName, FencingToken)>) -> Self {
        Self { marks: marks.into_iter().collect(), ..Self::default() }
    }

    /// The highest token seen in `election`.
    pub(crate) fn mark(&self, election: &ElectionName) -> Option<FencingToken> {
        self.marks.get(election).copied()
    }

    /// A token of this elector's own new term.
    pub(crate) fn won(&mut self, election: &ElectionName, token: FencingToken) -> SeenToken {
        self.seen(election, token, self.mark(election))
    }

    /// The token of a leader. `before` is the mark that was read before the request was sent; for a stream, its previous
    /// token, or the mark before it began.
    pub(crate) fn seen(
        &mut self,
        election: &ElectionName,
        token: FencingToken,
        before: Option<FencingToken>,
    ) -> SeenToken {
        let mark = self.mark(election);
        if mark < before || (mark == Some(token)) {
            // Another answer has shown the regression meanwhile, or there is nothing new.
            return SeenToken::Unchanged;
        }
        if let Some(highest) = before.filter(|before| token < *before) {
            self.set(election, token);
            let regression = TokenRegression { election: election.clone(), token, highest };
            self.regressions += 1;
            self.latest = Some(regression.clone());
            self.unlogged = self.unlogged.map(|count| count + 1);
            return SeenToken::Regressed(regression);
        }
        if mark > Some(token) {
            return SeenToken::Unchanged;
        }
        self.set(election, token);
        SeenToken::Raised
    }

    fn set(&mut self, election: &ElectionName, token: FencingToken) {
        if let Some(mark) = self.marks.get_mut(election) {
            *mark = token;
            return;
        }
        if self.marks.len() >= MAX_MARKS {
            let mut highest = self.highest(MAX_MARKS / 2);
            self.marks = highest.drain(..).collect();
        }
        self.marks.insert(election.clone(), token);
    }

    /// The `count` highest marks. etcd and ZooKeeper number all elections together: there these are the newest ones.
    pub(crate) fn highest(&self, count: usize) -> Vec<(ElectionName, FencingToken)> {
        let mut lowest = None;
        if self.marks.len() > count {
            let mut tokens: Vec<_> = self.marks.values().copied().collect();
            let (_, token, _) = tokens.select_nth_unstable_by(count, |a, b| b.cmp(a));
            lowest = Some(*token);
        }
        let higher = self.marks.iter().filter(|(_, token)| Some(**token) > lowest);
        let equal = self.marks.iter().filter(|(_, token)| Some(**token) == lowest);
        let highest = higher.chain(equal).take(count);
        highest.map(|(election, token)| (election.clone(), *token)).collect()
    }

    /// Whether a regression has to be logged at once. The caller does it, and then calls [`take_unlogged`](Self::take_unlogged)
    /// now and then until it returns `None`.
    pub(crate) fn is_log_due(&mut self) -> bool {
        let is_due = self.unlogged.is_none();
        self.unlogged.get_or_insert(0);
        is_due
    }

    /// The number of regressions since the last call, and the latest one. After `None`, the next one is logged at once.
    pub(crate) fn take_unlogged(&mut self) -> Option<(u64, TokenRegression)> {
        let count = self.unlogged.filter(|count| *count > 0);
        self.unlogged = count.map(|_| 0);
        Some((count?, self.latest.clone()?))
    }

    /// The number of regressions, and the latest one.
    pub(crate) fn regressions(&self) -> Option<(u64, &TokenRegression)> {
        self.latest.as_ref().map(|latest| (self.regressions, latest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn election(name: &str) -> ElectionName {
        ElectionName::new(name).unwrap()
    }

    fn token(number: u64) -> FencingToken {
        FencingToken::new(number).unwrap()
    }

    /// Hazard G35: a lower token is a regression once, and only if the mark was there before the request was sent.
    #[test]
    fn only_a_token_below_an_earlier_mark_is_a_regression() {
        let (mut marks, e) = (TokenMarks::default(), election("e"));
        assert_eq!(marks.won(&e, token(7)), SeenToken::Raised);
        assert_eq!(marks.won(&e, token(7)), SeenToken::Unchanged, "the same term");
        let before = marks.mark(&e);
        assert_eq!(marks.won(&e, token(9)), SeenToken::Raised);
        assert_eq!(marks.seen(&e, token(7), before), SeenToken::Unchanged, "a late answer");
        assert_eq!(marks.seen(&e, token(8), None), SeenToken::Unchanged, "the first of a stream");
        assert_eq!(marks.won(&election("other"), token(1)), SeenToken::Raised);
        let before = marks.mark(&e);
        let regression = TokenRegression { election: e.clone(), token: token(2), highest: token(9) };
        assert_eq!(marks.won(&e, token(2)), SeenToken::Regressed(regression.clone()));
        for late in [3, 9, 10] {
            assert_eq!(marks.seen(&e, token(late), before), SeenToken::Unchanged, "reported already");
        }
        assert_eq!(marks.won(&e, token(3)), SeenToken::Raised);
        assert_eq!(marks.regressions(), Some((1, &regression)));
    }

    proptest! {
        /// Tokens that increase in the store are never a regression, in whatever order the answers come.
        #[test]
        fn increasing_tokens_never_regress(delays in proptest::collection::vec(0_usize..10, 1..50)) {
            let (mut marks, e) = (TokenMarks::default(), election("e"));
            // Each is sent at its index, reads the token of that moment, and is answered later.
            let mut answers: Vec<_> = delays.iter().enumerate().map(|(sent, delay)| (sent + delay, sent)).collect();
            answers.sort_unstable();
            let mut before = Vec::new();
            let mut answers = answers.into_iter().peekable();
            for now in 0..delays.len() + 10 {
                before.push(marks.mark(&e));
                while let Some((_, sent)) = answers.next_if(|(at, _)| *at == now) {
                    let seen = marks.seen(&e, token(sent as u64 + 1), before[sent]);
                    prop_assert!(!matches!(seen, SeenToken::Regressed(_)));
                }
            }
        }

        #[test]
        fn the_highest_marks_are_kept(tokens in proptest::collection::vec(1_u64..20, 0..40), count in 1_usize..50) {
            let marks = TokenMarks::with(
                tokens.iter().enumerate().map(|(n, number)| (election(&n.to_string()), token(*number))));
            let mut kept: Vec<_> = marks.highest(count).into_iter().map(|(_, token)| token.get()).collect();
            kept.sort_unstable_by(|a, b| b.cmp(a));
            let mut expected = tokens;
            expected.sort_unstable_by(|a, b| b.cmp(a));
            expected.truncate(count);
            prop_assert_eq!(kept, expected);
        }
    }

    #[test]
    fn the_number_of_marks_is_bounded() {
        let mut marks = TokenMarks::default();
        for n in 1..=MAX_MARKS as u64 + 1 {
            marks.won(&election(&format!("e{n}")), token(n));
        }
        assert_eq!(marks.marks.len(), MAX_MARKS / 2 + 1);
        assert_eq!(marks.mark(&election("e1")), None);
        assert!(marks.mark(&election(&format!("e{MAX_MARKS}"))).is_some());
    }

    /// A hash map that has just grown has a mark in 7 of 16 slots, each with a byte of its own.
    #[test]
    fn a_mark_needs_less_than_64_bytes() {
        assert!((size_of::<(ElectionName, FencingToken)>() + 1) * 16 / 7 < 64);
    }
}
