//! For this project's simulation and fuzz targets only. Not part of the public API.

#[cfg(feature = "simulation")]
mod network {
    use std::{fmt, sync::Arc, time::Duration};

    use etcd_client::Channel;

    /// The connection options of one member.
    #[derive(Clone, Copy, Debug)]
    pub struct Endpoint<'a> {
        /// The member's URL.
        pub url: &'a str,
        /// How long connecting may take.
        pub connect_timeout: Duration,
        /// How often a connection with an open stream is pinged.
        pub ping_interval: Duration,
        /// How long the answer to a ping may take.
        pub ping_timeout: Duration,
    }

    type Connector = dyn Fn(&Endpoint<'_>) -> Channel + Send + Sync;

    /// A simulated network, which replaces the real one.
    #[derive(Clone)]
    pub struct Network(Arc<Connector>);

    impl Network {
        /// A network that connects to members by `connector`.
        pub fn new(connector: impl Fn(&Endpoint<'_>) -> Channel + Send + Sync + 'static) -> Self {
            Self(Arc::new(connector))
        }

        pub(crate) fn connect(&self, endpoint: &Endpoint<'_>) -> Channel {
            (self.0)(endpoint)
        }
    }

    impl fmt::Debug for Network {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Network(..)")
        }
    }
}

#[cfg(feature = "simulation")]
pub use network::{Endpoint, Network};

#[cfg(fuzzing)]
mod parsers {
    use tenure_core::ElectionName;

    use crate::{
        election::keys::{self, Keys},
        known_bugs,
    };

    /// The prefix of all entries of `election` below `prefix`.
    pub fn election_key(prefix: &str, election: &ElectionName) -> String {
        Keys::new(prefix).election_prefix(election)
    }

    /// The key of the entry of `lease`.
    pub fn entry_key(prefix: &str, election: &ElectionName, lease: i64) -> String {
        Keys::new(prefix).entry(election, lease)
    }

    /// Whether a key with this lease is a candidate of the election with this prefix.
    pub fn names_its_lease(election_prefix: &str, key: &[u8], lease: i64) -> bool {
        keys::names_its_lease(election_prefix, key, lease)
    }

    /// The known bugs of an etcd version, and what to do about them.
    pub fn known_bug(version: &str) -> Option<(String, String)> {
        known_bugs::known_bugs(version, false)
    }
}

#[cfg(fuzzing)]
pub use parsers::{election_key, entry_key, known_bug, names_its_lease};
