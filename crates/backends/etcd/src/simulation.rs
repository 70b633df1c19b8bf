//! A simulated network under the backend: for this project's own simulation, and no part of what is promised.

use std::{fmt, sync::Arc, time::Duration};

use etcd_client::Channel;

/// What a connection to one member is made with, as the real one is.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// The member's URL.
    pub url: &'a str,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How often a connection with an open stream is pinged.
    pub ping_every: Duration,
    /// How long the answer to a ping may take.
    pub ping_timeout: Duration,
}

type Connector = dyn Fn(&Reach<'_>) -> Channel + Send + Sync;

/// Makes the channels that calls go through.
#[derive(Clone)]
pub struct Network(Arc<Connector>);

impl Network {
    /// A network whose members are reached by `connector`.
    pub fn new(connector: impl Fn(&Reach<'_>) -> Channel + Send + Sync + 'static) -> Self {
        Self(Arc::new(connector))
    }

    pub(crate) fn reach(&self, reach: &Reach<'_>) -> Channel {
        (self.0)(reach)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network(..)")
    }
}
