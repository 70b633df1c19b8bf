//! What the suite has to be told about a store: how to reach it, how to disturb it, and how to
//! see what is left in it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::spi::Backend;

/// A store under test, with a namespace of its own for one case.
///
/// What a harness cannot do it declares in [`capabilities`](Self::capabilities); the cases that need it
/// are then not for this store.
#[async_trait]
pub trait Harness: Send + Sync {
    /// What can be done to this store.
    fn capabilities(&self) -> HarnessCapabilities;

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
    async fn remaining_state(&self) -> Vec<String>;
}

/// What a [`Harness`] can do to its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HarnessCapabilities {
    /// Clients have a [`FaultInjector`] that can be cut.
    pub connection_faults: bool,
    /// Entries can be deleted behind their candidate's back.
    pub entry_deletion: bool,
    /// Sessions can be ended behind their client's back.
    pub session_expiry: bool,
    /// Strangers can leave something among the entries.
    pub foreign_entries: bool,
}

impl HarnessCapabilities {
    /// Nothing can be done to the store.
    pub const NONE: Self = Self {
        connection_faults: false,
        entry_deletion: false,
        session_expiry: false,
        foreign_entries: false,
    };
    /// Everything can be done to it.
    pub const ALL: Self =
        Self { connection_faults: true, entry_deletion: true, session_expiry: true, foreign_entries: true };

    /// The same, with or without lines.
    pub const fn connection_faults(mut self, yes: bool) -> Self {
        self.connection_faults = yes;
        self
    }

    /// The same, with or without the ending of sessions.
    pub const fn session_expiry(mut self, yes: bool) -> Self {
        self.session_expiry = yes;
        self
    }

    /// The same, with or without litter.
    pub const fn foreign_entries(mut self, yes: bool) -> Self {
        self.foreign_entries = yes;
        self
    }

    /// The same, with or without the deletion of entries.
    pub const fn entry_deletion(mut self, yes: bool) -> Self {
        self.entry_deletion = yes;
        self
    }
}

/// One client of the store.
#[derive(Clone, Debug)]
pub struct Client {
    /// What its elector is built on.
    pub backend: Arc<dyn Backend>,
    /// Its line to the store, where there is one to cut.
    pub faults: Option<Arc<dyn FaultInjector>>,
}

/// The line between one client and its store.
pub trait FaultInjector: fmt::Debug + Send + Sync {
    /// Drops what is under way, and refuses what comes.
    fn cut(&self);
    /// Swallows everything both ways, and says nothing: a cable that was pulled.
    fn partition(&self);
    /// Swallows only what the store answers: requests are carried out, unheard.
    fn drop_responses(&self);
    /// Lets everything pass again.
    fn heal(&self);
}

impl FaultInjector for crate::proxy::Proxy {
    fn cut(&self) {
        self.cut();
    }
    fn partition(&self) {
        self.blackhole(crate::proxy::Direction::Both);
    }
    fn drop_responses(&self) {
        self.blackhole(crate::proxy::Direction::ToClient);
    }
    fn heal(&self) {
        self.heal();
        // What was under way over a pulled cable is broken for good.
        self.reset_connections();
    }
}

impl FaultInjector for tenure_core::memory::Link {
    fn cut(&self) {
        use tenure_core::memory::{Op, Path, Side};
        self.set(&Op::ALL, Side::Request, Path::Refuse);
        self.set(&[Op::Watch], Side::Answer, Path::Lose);
    }
    fn partition(&self) {
        self.cut();
    }
    fn drop_responses(&self) {
        use tenure_core::memory::{Op, Path, Side};
        self.set(&Op::ALL, Side::Answer, Path::Lose);
    }
    fn heal(&self) {
        self.heal();
    }
}
