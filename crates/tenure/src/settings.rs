//! Election settings of a service, from its command line or its configuration file.

use std::{fmt, sync::Arc, time::Duration};

use tenure_core::{CandidateId, Config, ElectionName, Elector, Error, StoreUrl};

use crate::{
    connect::{CANDIDATE, CANDIDATE_VALUE, text_by_either_name},
    registry::Registry,
};

/// The store, election and candidate of a service, from its command line (feature `clap`) or its configuration file
/// (feature `serde`).
///
/// On a command line:
///
/// ```
/// # #[cfg(all(feature = "clap", feature = "memory"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct Arguments {
///     #[arg(long)]
///     port: u16,
///     #[command(flatten)]
///     election: tenure::Settings,
/// }
///
/// let arguments = Arguments::parse_from(["svc", "--port=80", "--store=memory:", "--election=billing", "--ttl=5s"]);
/// let elector = arguments.election.connect().await?;
/// let leadership = elector.campaign(&arguments.election.election).await?;
/// # leadership.resign().await?;
/// # Ok(()) }
/// # #[cfg(not(all(feature = "clap", feature = "memory")))]
/// # fn main() {}
/// ```
///
/// In a configuration file, here in JSON. Times are written as `10s` or `1m 30s`. Unknown fields are refused. The candidate's
/// fields are `candidate` or `id`, and `candidate_value` or `value`.
///
/// ```
/// # #[cfg(feature = "serde")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let settings: tenure::Settings = serde_json::from_str(
///     r#"{ "store": "etcd://10.0.0.1:2379/acme", "election": "billing", "ttl": "5s", "grace_period": "500ms" }"#,
/// )?;
/// assert_eq!(settings.ttl, Some(std::time::Duration::from_secs(5)));
/// assert!(serde_json::from_str::<tenure::Settings>(r#"{ "store": "memory:", "elections": "billing" }"#).is_err());
/// # Ok(()) }
/// # #[cfg(not(feature = "serde"))]
/// # fn main() {}
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
#[cfg_attr(feature = "clap", command(next_help_heading = "Election"))]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Settings {
    /// The store: etcd://HOSTS/PREFIX, zookeeper://HOSTS/ROOT, postgres://USER@HOSTS/DATABASE, consul://HOSTS/PREFIX,
    /// kubernetes:///NAMESPACE, nats://HOSTS/BUCKET,
    /// s3://BUCKET/PREFIX, mysql://USER@HOSTS/DATABASE,
    /// redis://HOST/0 or local:/DIRECTORY. Put passwords into the environment or into a file
    /// (?password_file=).
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "URL", env = "TENURE_STORE", hide_env_values = true)
    )]
    pub store: String,

    /// The name of the election.
    #[cfg_attr(feature = "clap", arg(long, value_name = "NAME", env = "TENURE_ELECTION"))]
    pub election: String,

    /// The candidate's id; by default host name, process id and a random number, on Kubernetes the pod's name and uid
    /// (POD_NAME, POD_UID).
    #[cfg_attr(feature = "clap", arg(long, value_name = "ID"))]
    #[cfg_attr(feature = "serde", serde(default, alias = "id"))]
    pub candidate: Option<String>,

    /// The candidate's value, which others can read: the address of the service, for example.
    #[cfg_attr(
        feature = "clap",
        arg(long = "candidate-value", value_name = "TEXT", env = "TENURE_CANDIDATE_VALUE")
    )]
    #[cfg_attr(feature = "serde", serde(default, alias = "candidate_value"))]
    pub value: Option<String>,

    /// How long the store keeps a session without a heartbeat; 10s by default.
    #[cfg_attr(feature = "clap", arg(long, value_name = "TIME", env = "TENURE_TTL", value_parser = StoreUrl::parse_duration))]
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde"))]
    pub ttl: Option<Duration>,

    /// How long before the deadline work is cancelled; a tenth of the TTL by default.
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "TIME", env = "TENURE_GRACE_PERIOD", value_parser = StoreUrl::parse_duration)
    )]
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde"))]
    pub grace_period: Option<Duration>,

    /// How long a resignation or a shutdown takes at most; 5s by default.
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "TIME", env = "TENURE_SHUTDOWN_TIMEOUT", value_parser = StoreUrl::parse_duration)
    )]
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde"))]
    pub shutdown_timeout: Option<Duration>,
}

impl fmt::Debug for Settings {
    /// Does not show a password in the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store =
            self.store.parse::<StoreUrl>().map_or_else(|_| "(invalid URL)".to_owned(), |url| url.to_string());
        f.debug_struct("Settings")
            .field("store", &store)
            .field("election", &self.election)
            .field("candidate", &self.candidate)
            .field("value", &self.value)
            .field("ttl", &self.ttl)
            .field("grace_period", &self.grace_period)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish()
    }
}

impl Settings {
    /// Settings for a store and an election, with defaults for the rest.
    pub fn new(store: impl Into<String>, election: impl Into<String>) -> Self {
        Self { store: store.into(), election: election.into(), ..Self::default() }
    }

    /// The configuration of an elector with these settings.
    ///
    /// It does not contain the settings in the store's URL, which [`connect`](Self::connect) reads.
    ///
    /// # Errors
    /// If the candidate's id or the URL is invalid, or if a setting in the URL differs from the one here: neither takes
    /// precedence.
    pub fn config(&self) -> Result<Config, Error> {
        self.refuse_contradictions(&self.store.parse()?)?;
        let mut config = Config::new();
        if let Some(id) = &self.candidate {
            config = config.with_id(CandidateId::new(id)?);
        }
        if let Some(value) = &self.value {
            config = config.with_value(value.as_str());
        }
        if let Some(ttl) = self.ttl {
            config = config.with_ttl(ttl);
        }
        if let Some(grace_period) = self.grace_period {
            config = config.with_grace_period(grace_period);
        }
        if let Some(timeout) = self.shutdown_timeout {
            config = config.with_shutdown_timeout(timeout);
        }
        Ok(config)
    }

    /// Checks that no setting has one value here and another one in the URL.
    fn refuse_contradictions(&self, url: &StoreUrl) -> Result<(), Error> {
        for (name, here) in [
            ("ttl", self.ttl),
            ("grace_period", self.grace_period),
            ("shutdown_timeout", self.shutdown_timeout),
        ] {
            if let (Some(here), Some(setting)) = (here, url.duration(name)?)
                && here != setting
            {
                let (flag, variable) = (name.replace('_', "-"), name.to_uppercase());
                let [here, setting] = [here, setting].map(humantime::format_duration);
                return Err(url
                    .invalid(format!(
                        "its {name} is {setting}, and --{flag} (or TENURE_{variable}) is {here}: give \
                         one of them"
                    ))
                    .into());
            }
        }
        for (names, options, here) in [
            (CANDIDATE, "--candidate", &self.candidate),
            (CANDIDATE_VALUE, "--candidate-value (or TENURE_CANDIDATE_VALUE)", &self.value),
        ] {
            if let (Some(here), Some(setting)) = (here, text_by_either_name(url, names)?)
                && here != setting
            {
                let [name, _] = names;
                return Err(url
                    .invalid(format!("its {name} differs from {options}: give one of them"))
                    .into());
            }
        }
        Ok(())
    }

    /// Creates an elector with these settings and those in the store's URL, and checks the election's name.
    ///
    /// # Errors
    /// See [`connect`](crate::connect()) and [`config`](Self::config). Also if the election's name is invalid.
    pub async fn connect(&self) -> Result<Arc<dyn Elector>, Error> {
        self.connect_in(&Registry::builtin()).await
    }

    /// Like [`connect`](Self::connect), with the schemes of `registry`.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    pub async fn connect_in(&self, registry: &Registry) -> Result<Arc<dyn Elector>, Error> {
        ElectionName::new(&self.election)?;
        registry.connect_with(&self.store, self.config()?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for store in ["etcd://me:s3cret@h/acme", "etcd://me:s3cret@h /acme", "s3cret"] {
            let shown = format!("{:?}", Settings::new(store, "billing"));
            assert!(shown.contains("billing") && !shown.contains("s3cret"), "{shown}");
        }
    }

    /// Case 48.
    #[test]
    fn a_setting_that_the_url_contradicts_is_refused() {
        let all = Settings {
            candidate: Some("me".to_owned()),
            value: Some("here".to_owned()),
            ttl: Some(Duration::from_secs(10)),
            grace_period: Some(Duration::from_secs(1)),
            shutdown_timeout: Some(Duration::from_secs(3)),
            ..Settings::default()
        };
        for (setting, named) in [
            ("candidate=you", "its candidate differs from --candidate"),
            ("id=you", "its candidate differs from --candidate"),
            (
                "candidate_value=there",
                "its candidate_value differs from --candidate-value (or TENURE_CANDIDATE_VALUE)",
            ),
            ("value=there", "its candidate_value differs from --candidate-value (or TENURE_CANDIDATE_VALUE)"),
            ("ttl=11s", "its ttl is 11s, and --ttl (or TENURE_TTL) is 10s"),
            ("grace_period=2s", "--grace-period (or TENURE_GRACE_PERIOD) is 1s"),
            ("shutdown_timeout=2s", "--shutdown-timeout (or TENURE_SHUTDOWN_TIMEOUT) is 3s"),
            ("id=me&candidate=me", "candidate and id are the same setting"),
        ] {
            let settings = Settings { store: format!("memory:?{setting}"), ..all.clone() };
            let error = settings.config().unwrap_err().to_string();
            assert!(error.contains(named) && error.ends_with("give one of them"), "{error}");
        }
        let equal = "memory:?candidate=me&value=here&ttl=10&grace_period=1000ms&shutdown_timeout=3s";
        assert_eq!(Settings { store: equal.to_owned(), ..all }.config().unwrap().id().as_str(), "me");
    }
}
