//! From a URL to an elector.

use std::sync::Arc;

use tenure_core::{CandidateId, Config, Elector, Error, OnDisconnect, StoreElector, StoreUrl, spi::Backend};

/// An elector on the store that `url` names, with the settings in the URL.
///
/// | URL | store | feature |
/// |---|---|---|
/// | `memory:NAME` | within this process; the same name is the same store | `memory` |
/// | `local:/directory` | the processes of this machine that share the directory | `local` |
/// | `etcd://host:2379,host:2379/prefix` | etcd | `etcd` |
/// | `zookeeper://host:2181,host:2181/root` | ZooKeeper | `zookeeper` |
///
/// Every store takes these settings, as `?name=value&name=value`:
///
/// | setting | what | default |
/// |---|---|---|
/// | `ttl` | after how much silence the store lets go, such as `10s` | 10 s |
/// | `drift` | bound on the difference of clock rates, a fraction | 0.1 |
/// | `grace_period` | time before the deadline kept for work to stop | a tenth of the TTL |
/// | `request_timeout` | after how long an unanswered request is tried again | 5 s |
/// | `shutdown_timeout` | how long a resignation or shutdown waits at most | 5 s |
/// | `on_disconnect` | `hold` or `step_down` | `hold` |
/// | `id` | who this candidate is | host, process id and a random number |
/// | `value` | what others can read of it | nothing |
///
/// Everything but the hosts may be percent-encoded. An `@` behind the hosts has to be (`%40`), for it could be that of a password.
///
/// etcd takes `user:password@` before its hosts, and these settings besides:
///
/// | setting | what | default |
/// |---|---|---|
/// | `password_file` | a file with the password, so that no URL holds it; it may rotate | none |
/// | `password_env` | the name of an environment variable with the password, likewise | none |
/// | `connect_timeout` | after how long a member that does not accept is given up for now | 1 s |
/// | `attempt_timeout` | after how long one member's answer is given up for now | 2 s |
/// | `hedge` | after how long the next member is asked as well | 300 ms |
///
/// Its user has to be allowed to read and write everything below the prefix. The path is the
/// prefix; without one it is `/tenure`.
///
/// ZooKeeper takes `user:password@` before its hosts, and these settings besides:
///
/// | setting | what | default |
/// |---|---|---|
/// | `password_file` | a file with the password, so that no URL holds it; it may rotate | none |
/// | `password_env` | the name of an environment variable with the password, likewise | none |
/// | `auth` | how the user proves who it is: `digest`, or `sasl` (DIGEST-MD5; feature `sasl`; to another machine with TLS only) | `digest` |
/// | `acl` | who may change what is created: `creator`, or `open` for everybody | `creator` where there is a login |
/// | `layout` | `tenure`, or `curator` or `kazoo` to stand in one election with theirs | `tenure` |
/// | `min_ttl`, `max_ttl` | the bounds within which the servers may change the TTL | half and twice the `ttl` |
/// | `attempt_timeout` | after how long one server's answer is given up | 2 s |
/// | `tick` | the servers' `tickTime`: with it, where it is at most an eighth of the TTL, longer outages are ridden out | unknown |
///
/// The path is the znode below which elections lie, and is made when missing; without one it is
/// `/tenure`. ZooKeeper grants 2 to 20 of its ticks: by default, a `ttl` from 4 s to 40 s.
///
/// Both speak TLS when an authority is given (feature `tls`), and check the servers' names:
///
/// | setting | what |
/// |---|---|
/// | `ca` | a PEM file with the authorities that vouch for the servers |
/// | `cert`, `key` | PEM files with our own certificate and its key, where the servers ask for one |
///
/// These files are read again when connections are made: certificates may rotate while a leader leads.
///
/// The local store works between the processes of one machine, needs a tokio runtime with
/// `enable_all`, and refuses network file systems.
///
/// Nothing is asked of the store yet: one that cannot be reached now is waited for by the first
/// campaign.
///
/// # Errors
/// An illegal URL or setting, an unknown setting, a store whose feature is not compiled in. The
/// text says what is allowed, and never shows a password.
pub async fn connect(url: &str) -> Result<Arc<dyn Elector>, Error> {
    connect_with(url, Config::new()).await
}

/// The same, on top of `config`; settings in the URL win.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(url: &str, config: Config) -> Result<Arc<dyn Elector>, Error> {
    let url: StoreUrl = url.parse()?;
    let config = settings(&url, config)?;
    let backend = backend(&url).await?;
    url.deny_unknown()?;
    Ok(Arc::new(StoreElector::new(backend, config)?))
}

pub(crate) fn settings(url: &StoreUrl, mut config: Config) -> Result<Config, Error> {
    if let Some(ttl) = url.duration("ttl")? {
        config = config.with_ttl(ttl);
    }
    if let Some(drift) = url.parsed("drift", "a fraction such as 0.1")? {
        config = config.with_drift(drift);
    }
    if let Some(budget) = url.duration("grace_period")? {
        config = config.with_grace_period(budget);
    }
    if let Some(timeout) = url.duration("request_timeout")? {
        config = config.with_request_timeout(timeout);
    }
    if let Some(timeout) = url.duration("shutdown_timeout")? {
        config = config.with_shutdown_timeout(timeout);
    }
    match url.text("on_disconnect") {
        None => {}
        Some("hold") => config = config.with_on_disconnect(OnDisconnect::HoldUntilDeadline),
        Some("step_down") => config = config.with_on_disconnect(OnDisconnect::StepDown),
        Some(other) => {
            return Err(url
                .invalid(format!("on_disconnect={other} is not allowed: it must be hold or step_down"))
                .into());
        }
    }
    if let Some(id) = url.text("id") {
        config = config.with_id(CandidateId::new(id)?);
    }
    if let Some(value) = url.text("value") {
        config = config.with_value(value);
    }
    config.validate()?;
    Ok(config)
}

async fn backend(url: &StoreUrl) -> Result<Arc<dyn Backend>, Error> {
    match url.scheme() {
        #[cfg(feature = "memory")]
        "memory" => Ok(Arc::new(memory(url)?)),
        #[cfg(feature = "local")]
        "local" => {
            let config = tenure_local::LocalConfig::from_url(url)?;
            Ok(Arc::new(tenure_local::LocalBackend::from_config(&config)?))
        }
        #[cfg(feature = "etcd")]
        "etcd" => {
            let config = tenure_etcd::EtcdConfig::from_url(url)?;
            Ok(Arc::new(tenure_etcd::EtcdBackend::new(config)?))
        }
        #[cfg(feature = "zookeeper")]
        "zookeeper" => {
            let config = tenure_zookeeper::ZookeeperConfig::from_url(url)?;
            Ok(Arc::new(tenure_zookeeper::ZookeeperBackend::new(config)?))
        }
        known if ["memory", "local", "etcd", "zookeeper"].contains(&known) => Err(url
            .invalid(format!(
                "this program was built without tenure's feature {known:?}; add it in Cargo.toml"
            ))
            .into()),
        other => Err(url
            .invalid(format!(
                "there is no store {other:?}; allowed are memory:, local:, etcd: and zookeeper:"
            ))
            .into()),
    }
}

/// The stores of this process, by name: two electors on `memory:a` stand in the same elections.
#[cfg(feature = "memory")]
fn memory(url: &StoreUrl) -> Result<tenure_core::memory::MemoryBackend, Error> {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
    };

    use tenure_core::memory::MemoryStore;

    static STORES: Mutex<Option<HashMap<String, MemoryStore>>> = Mutex::new(None);

    if !url.hosts().is_empty() {
        return Err(url.invalid("a memory store has no host; write memory: or memory:NAME").into());
    }
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let store = stores.get_or_insert_default().entry(url.path().to_owned()).or_default();
    Ok(store.backend())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs connect in tasks of their own.
    #[test]
    fn connecting_can_be_spawned() {
        fn is_send(_: impl Send) {}
        is_send(connect("memory:e"));
        is_send(connect_with("memory:e", Config::new()));
    }
}
