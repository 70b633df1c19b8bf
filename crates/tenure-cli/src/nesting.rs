//! What the `tenure run` processes above this process lead. A candidate for the same would wait for its own ancestor.

use std::env;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{exit::UsageError, store::Store};

/// The program's variable, a JSON array.
pub(crate) const VARIABLE: &str = "TENURE_LEADERSHIPS";

#[derive(Serialize, Deserialize)]
struct Led {
    election: String,
    /// The store's scheme and path.
    store: (String, String),
    hosts: Vec<String>,
}

impl Led {
    fn new(store: &Store, election: &str) -> Result<Self, tenure::Error> {
        let url = store.parsed()?;
        let path = url.path().trim_end_matches('/').to_owned();
        let hosts = url.hosts().to_vec();
        Ok(Self { election: election.to_owned(), store: (url.scheme().to_owned(), path), hosts })
    }

    /// Whether it is the same election, as far as the URLs tell: two lists of a cluster's hosts have one in common.
    fn is_same(&self, other: &Self) -> bool {
        let same_hosts =
            self.hosts == other.hosts || self.hosts.iter().any(|host| other.hosts.contains(host));
        self.election == other.election && self.store == other.store && same_hosts
    }
}

fn led_above() -> Vec<Led> {
    env::var(VARIABLE).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Refuses an election that an ancestor leads.
pub(crate) fn refuse(store: &Store, election: &str) -> Result<()> {
    let wanted = Led::new(store, election)?;
    if !led_above().iter().any(|led| led.is_same(&wanted)) {
        return Ok(());
    }
    Err(UsageError(format!(
        "this process runs under `tenure run` as the leader of {election}: another candidate for {election} would wait for \
         its own ancestor; name another election with --election, or remove {VARIABLE} from the environment of a process \
         that outlives it"
    ))
    .into())
}

/// The variable of a program that runs while this process leads `election`.
pub(crate) fn value(store: &Store, election: &str) -> Result<String> {
    let mut led = led_above();
    led.push(Led::new(store, election)?);
    Ok(serde_json::to_string(&led)?)
}
