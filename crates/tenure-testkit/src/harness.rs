//! What the suite has to be told about a store: how to reach it, how to disturb it, and how to
//! see what is left in it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::spi::Backend;

/// A store under test, with a namespace of its own for one case.
///
/// What a harness cannot do it declares in [`abilities`](Self::abilities); the cases that need it
/// are then not for this store.
#[async_trait]
pub trait Harness: Send + Sync {
    /// What can be done to this store.
    fn abilities(&self) -> Abilities;

    /// Another client of the store, as another process would have it.
    async fn client(&self) -> Client;

    /// The TTL to ask for: short, but as the store can grant it.
    fn ttl(&self) -> Duration;

    /// Deletes one entry behind its candidate's back. `session` and `token` are as
    /// [`Candidate`](tenure_core::Candidate) shows them.
    async fn delete_entry(&self, election: &str, session: &str, token: u64);

    /// Ends a session behind its client's back.
    async fn expire_session(&self, session: &str);

    /// Puts something that no candidate made where the entries of `election` are.
    async fn add_foreign_entries(&self, election: &str);

    /// Whether what [`add_foreign_entries`](Self::add_foreign_entries) put there is still there, untouched.
    async fn foreign_entries_untouched(&self, election: &str) -> bool;

    /// Everything of ours that is left in the store: entries and sessions, in words. Litter is not ours.
    async fn leftovers(&self) -> Vec<String>;
}

/// What a [`Harness`] can do to its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abilities {
    /// Clients have a [`Line`] that can be cut.
    pub lines: bool,
    /// Entries can be deleted behind their candidate's back.
    pub deletes: bool,
    /// Sessions can be ended behind their client's back.
    pub expires: bool,
    /// Strangers can leave something among the entries.
    pub foreign_entries: bool,
}

impl Abilities {
    /// Nothing can be done to the store.
    pub const NONE: Self = Self { lines: false, deletes: false, expires: false, foreign_entries: false };
    /// Everything can be done to it.
    pub const ALL: Self = Self { lines: true, deletes: true, expires: true, foreign_entries: true };

    /// The same, with or without lines.
    pub const fn lines(mut self, yes: bool) -> Self {
        self.lines = yes;
        self
    }

    /// The same, with or without the ending of sessions.
    pub const fn expires(mut self, yes: bool) -> Self {
        self.expires = yes;
        self
    }

    /// The same, with or without litter.
    pub const fn foreign_entries(mut self, yes: bool) -> Self {
        self.foreign_entries = yes;
        self
    }

    /// The same, with or without the deletion of entries.
    pub const fn deletes(mut self, yes: bool) -> Self {
        self.deletes = yes;
        self
    }
}

/// One client of the store.
#[derive(Clone, Debug)]
pub struct Client {
    /// What its elector is built on.
    pub backend: Arc<dyn Backend>,
    /// Its line to the store, where there is one to cut.
    pub line: Option<Arc<dyn Line>>,
}

/// The line between one client and its store.
pub trait Line: fmt::Debug + Send + Sync {
    /// Drops what is under way, and refuses what comes.
    fn cut(&self);
    /// Swallows everything both ways, and says nothing: a cable that was pulled.
    fn silence(&self);
    /// Swallows only what the store answers: requests are carried out, unheard.
    fn swallow_answers(&self);
    /// Lets everything pass again.
    fn heal(&self);
}

impl Line for crate::proxy::Proxy {
    fn cut(&self) {
        self.cut();
    }
    fn silence(&self) {
        self.blackhole(crate::proxy::Direction::Both);
    }
    fn swallow_answers(&self) {
        self.blackhole(crate::proxy::Direction::ToClient);
    }
    fn heal(&self) {
        self.heal();
        // What was under way over a pulled cable is broken for good.
        self.reset_connections();
    }
}

impl Line for tenure_core::memory::Link {
    fn cut(&self) {
        use tenure_core::memory::{Delivery, Direction, Op};
        self.set(&Op::ALL, Direction::Request, Delivery::Fail);
        self.set(&[Op::Watch], Direction::Response, Delivery::Drop);
    }
    fn silence(&self) {
        self.cut();
    }
    fn swallow_answers(&self) {
        use tenure_core::memory::{Delivery, Direction, Op};
        self.set(&Op::ALL, Direction::Response, Delivery::Drop);
    }
    fn heal(&self) {
        self.heal();
    }
}
