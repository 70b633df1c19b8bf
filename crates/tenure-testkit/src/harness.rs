//! What the conformance suite needs to know about a store: how to connect to it, how to inject faults, and how to list
//! what remains in it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure_core::spi::Backend;

/// A store under test. Each case uses a harness of its own, with a namespace of its own in the store.
///
/// A harness declares what it can do in [`capabilities`](Self::capabilities). Cases that need more are skipped for this
/// store, and the methods that it does not declare are never called.
#[async_trait]
pub trait Harness: Send + Sync {
    /// What this harness can do to its store.
    fn capabilities(&self) -> HarnessCapabilities;

    /// A new client of the store, independent of all others, like a client in another process.
    async fn client(&self) -> Client;

    /// The TTL of the candidates' sessions. It should be as short as the store can grant.
    fn ttl(&self) -> Duration;

    /// Deletes one entry, as an operator would. `session` and `token` identify it and are as
    /// [`Candidate`](tenure_core::Candidate) shows them.
    async fn delete_entry(&self, election: &str, session: &str, token: u64);

    /// Ends a session in the store without its client.
    async fn expire_session(&self, session: &str);

    /// Stores something that no candidate created beside the entries of `election`.
    async fn add_foreign_entries(&self, election: &str);

    /// Whether everything that [`add_foreign_entries`](Self::add_foreign_entries) stored still exists unchanged.
    async fn foreign_entries_untouched(&self, election: &str) -> bool;

    /// Describes every entry and session of tenure that remains in the store. Foreign entries do not count.
    async fn remaining_state(&self) -> Vec<String>;
}

/// What a [`Harness`] can do to its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HarnessCapabilities {
    /// Clients have a [`FaultInjector`] for their connections.
    pub connection_faults: bool,
    /// Entries can be deleted without their candidate.
    pub entry_deletion: bool,
    /// Sessions can be ended without their client.
    pub session_expiry: bool,
    /// Foreign entries can be stored beside the entries of candidates.
    pub foreign_entries: bool,
}

impl HarnessCapabilities {
    /// No capability.
    pub const NONE: Self = Self {
        connection_faults: false,
        entry_deletion: false,
        session_expiry: false,
        foreign_entries: false,
    };
    /// All capabilities.
    pub const ALL: Self =
        Self { connection_faults: true, entry_deletion: true, session_expiry: true, foreign_entries: true };

    /// Sets [`connection_faults`](Self#structfield.connection_faults).
    pub const fn connection_faults(mut self, yes: bool) -> Self {
        self.connection_faults = yes;
        self
    }

    /// Sets [`entry_deletion`](Self#structfield.entry_deletion).
    pub const fn entry_deletion(mut self, yes: bool) -> Self {
        self.entry_deletion = yes;
        self
    }

    /// Sets [`session_expiry`](Self#structfield.session_expiry).
    pub const fn session_expiry(mut self, yes: bool) -> Self {
        self.session_expiry = yes;
        self
    }

    /// Sets [`foreign_entries`](Self#structfield.foreign_entries).
    pub const fn foreign_entries(mut self, yes: bool) -> Self {
        self.foreign_entries = yes;
        self
    }
}

/// One client of the store.
#[derive(Clone, Debug)]
pub struct Client {
    /// The backend for the client's elector.
    pub backend: Arc<dyn Backend>,
    /// Injects faults into the client's connections, where the harness can do that.
    pub faults: Option<Arc<dyn FaultInjector>>,
}

/// Injects faults into the connections between one client and its store.
pub trait FaultInjector: fmt::Debug + Send + Sync {
    /// Resets open connections, and refuses new ones.
    fn cut(&self);
    /// Loses everything in both directions while connections stay open, like a network partition.
    fn partition(&self);
    /// Loses only the store's responses. Requests reach the store and are carried out.
    fn drop_responses(&self);
    /// Ends all faults.
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
        // A connection that was open during a partition does not recover.
        self.reset_connections();
    }
}

impl FaultInjector for tenure_core::memory::Link {
    fn cut(&self) {
        use tenure_core::memory::{Delivery, Direction, Op};
        self.set(&Op::ALL, Direction::Request, Delivery::Fail);
        self.set(&[Op::Watch], Direction::Response, Delivery::Drop);
    }
    fn partition(&self) {
        self.cut();
    }
    fn drop_responses(&self) {
        use tenure_core::memory::{Delivery, Direction, Op};
        self.set(&Op::ALL, Direction::Response, Delivery::Drop);
    }
    fn heal(&self) {
        self.heal();
    }
}
