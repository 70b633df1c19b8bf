//! Creates electors from URLs.

use std::sync::Arc;

use tenure_core::{CandidateId, Config, Elector, Error, OnClockJump, OnDisconnect, StoreUrl};

use crate::registry::Registry;

/// Creates an elector for the store and the settings in `url`.
///
/// | URL | store | feature |
/// |---|---|---|
/// | `memory:NAME` | this process; equal names share a store | `memory` |
/// | `local:/directory` | the processes of this machine that use the same directory | `local` |
/// | `etcd://host:2379,host:2379/prefix` | etcd | `etcd` |
/// | `etcd+srv://domain/prefix` | etcd, whose members DNS SRV records name | `srv` |
/// | `zookeeper://host:2181,host:2181/root` | ZooKeeper | `zookeeper` |
/// | `postgres://user@host:5432,host:5432/database` | PostgreSQL; also `postgresql://` | `postgres` |
/// | `consul://host:8500,host:8500/prefix` | Consul | `consul` |
/// | `kubernetes:///namespace` | the Leases of a Kubernetes cluster: that of the pod, or of the kubeconfig | `kubernetes` |
/// | `nats://host:4222,host:4222/bucket` | NATS JetStream | `nats` |
/// | `s3://bucket/prefix` | Amazon S3, or a server that speaks its protocol | `s3` |
/// | `mysql://user@host:3306,host:3306/database` | MariaDB, MySQL; also `mariadb://` | `mysql` |
/// | `redis://user@host:6379/0` | one Redis or Valkey server; also `valkey://` | `redis` |
///
/// This function sends no request to a server. If the store cannot be reached, the first campaign waits for it;
/// [`connect_checked`] fails instead. It works under any executor, and reads certificates and the local store's directory on
/// the current thread. A [`Registry`](crate::Registry) adds the schemes of other crates.
///
/// # Settings of every store
///
/// Settings follow the path as `?name=value&name=value`. Times are written as `10s`, `500ms` or `1m 30s`.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `ttl` | how long the store keeps a session without a heartbeat | 10 s |
/// | `drift` | the largest assumed difference of clock rates, as a fraction | 0.1 |
/// | `grace_period` | how long before the deadline work is cancelled | a tenth of the TTL |
/// | `request_timeout` | how long to wait for a response before the request is sent again | 5 s |
/// | `shutdown_timeout` | how long a resignation or a shutdown takes at most | 5 s |
/// | `on_disconnect` | what a leader does when a heartbeat fails: `hold` until the deadline, or `step_down` at once | `hold` |
/// | `resume` | a file with which a restarted process leads without waiting for the TTL: [`Config::with_resume_file`] says who may use it | none |
/// | `on_clock_jump` | what a leader does when the time of day jumps ahead: `lose` leadership, `stop_by_deadline` ([its work has until then](tenure_core::OnClockJump::StopByDeadline)), or `log` a warning and go on ([what that risks](tenure_core::OnClockJump::Log)) | `lose` |
/// | `candidate`, or `id` | the candidate's id | host name, process id and a random number; on Kubernetes [that of the pod](#kubernetes) |
/// | `candidate_value`, or `value` | the candidate's value, which others can read | empty |
///
/// Every part of the URL except the hosts can be percent-encoded. An `@` after the hosts must be encoded as `%40`, because
/// it could also belong to a password.
///
/// # etcd
///
/// The URL can contain `user:password@` before the hosts. The user needs read and write permission for all keys with the
/// prefix. The path is the prefix; the default is `/tenure`.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `password_file` | a file that contains the password, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the password | none |
/// | `connect_timeout` | how long to wait for a member to accept a connection before another one is tried | 1 s |
/// | `attempt_timeout` | how long to wait for the response of one member before another one is tried | 2 s |
/// | `hedge` | after this time without a response, the request is also sent to the next member | 300 ms |
/// | `member_list` | how often the cluster's member list is read, to use members that the URL does not name; `off` for never | 1 min |
///
/// With `etcd+srv` the members are those that the records of `_etcd-client._tcp.domain` name, or with TLS those of
/// `_etcd-client-ssl._tcp.domain`. They are looked up with the first request, as often as the member list, and soon after a
/// member did not answer.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `name_server` | the address and port of a name server, such as `127.0.0.1:8600` | those in `/etc/resolv.conf` |
///
/// # ZooKeeper
///
/// The URL can contain `user:password@` before the hosts. The path is the znode that contains the elections; it is created
/// if it does not exist, and the default is `/tenure`. ZooKeeper grants session timeouts from 2 to 20 ticks; with its
/// default tick, `ttl` can be from 4 s to 40 s.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `password_file` | a file that contains the password, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the password | none |
/// | `auth` | the authentication scheme: `digest`, or `sasl` (DIGEST-MD5; needs the feature `sasl`, and TLS to another machine) | `digest` |
/// | `acl` | who can change created znodes: `creator`, or `open` for everyone | `creator` if the URL has a user |
/// | `layout` | `tenure`, or `curator` or `kazoo` to share elections with those libraries | `tenure` |
/// | `min_ttl`, `max_ttl` | the bounds within which the servers can change the TTL | half and twice the `ttl` |
/// | `attempt_timeout` | the time limit for connecting to a server and for its answers | 2 s |
/// | `tick` | the servers' `tickTime`; if it is given and less than a quarter of the TTL, longer outages do not end the leadership | unknown |
///
/// # PostgreSQL
///
/// The URL contains the user, every host that may be the primary, and the database. The tables are created if there are none and the
/// user may do that. A password is in the URL or where one of the settings says, or else in the environment variable
/// `PGPASSWORD` or a file of libpq's; a server may need none.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `schema` | the schema of the tables; elections in different schemas are separate | `tenure` |
/// | `password_file` | a file that contains the password, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the password | none |
/// | `passfile` | a file of libpq's, with a password for each host | that of `PGPASSFILE`, or `~/.pgpass` |
/// | `target_session_attrs` | `read-write`: only the primary is used, as without it | `read-write` |
/// | `sslrootcert` | a PEM file with the certificate authorities (CAs) that sign the server's certificate, for TLS | no TLS |
/// | `sslcert`, `sslkey` | PEM files with a client certificate and its key | none |
/// | `sslmode` | `verify-full`, as with a `sslrootcert`, or `disable`; others do not check which server answers, and are refused | |
/// | `connect_timeout` | how long it may take to connect to a host | 2 s |
/// | `attempt_timeout` | how long the answer to a statement may take, before another connection is made | 2 s |
/// | `poll_interval` | how often a record is read while the server delivers no notifications | 1 s |
///
/// # Consul
///
/// The path is the prefix of the keys; the default is `tenure`. The hosts are agents of one datacenter, with port 8500 unless they name one; one
/// is used at a time. The ACL token is in the URL, as in `consul://token:TOKEN@host`, or where one of the settings says, or else in the
/// environment variable `CONSUL_HTTP_TOKEN`.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `password_file` | a file that contains the token, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the token | none |
/// | `dc` | the datacenter | that of the agent |
/// | `attempt_timeout` | how long the answer to a request may take, before the next one is sent to the next host | 2 s |
/// | `poll_interval` | how often a record is read while Consul gives no hints of changes | 1 s |
///
/// # Kubernetes
///
/// The path is the namespace; without one it is that of the pod's service account, or of the kubeconfig's context. The URL has no host and no
/// login: in a pod they are those of the service account, elsewhere those of the kubeconfig. Every election is a Lease with its name.
///
/// If the environment variables `POD_NAME` and `POD_UID` are set, as by the downward API, they are the default of `candidate`: `NAME_UID`.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `kubeconfig` | a kubeconfig file | in a pod its service account; elsewhere `KUBECONFIG`, or `~/.kube/config` |
/// | `context` | a context of the kubeconfig | its current context |
/// | `attempt_timeout` | how long the answer to a request may take, before it is sent again | 2 s |
/// | `leader_label` | whether this pod, which `POD_NAME` names, has the label `tenure/leader` while it leads | `false` |
///
/// # NATS
///
/// The URL can contain `user:password@` before the hosts. The path is the key-value bucket. It is created if there is none and the user may do that.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `password_file` | a file that contains the password, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the password | none |
/// | `token_file` | a file that contains a token, instead of a user and a password | none |
/// | `credentials` | a file with a JWT and its key, as `nsc` makes it | none |
/// | `nkey_file` | a file with the seed of an nkey | none |
/// | `replicas` | how many replicas the bucket has if it is created here | 3 in a cluster, 1 on a single server |
/// | `inbox_prefix` | the prefix of the reply subjects | `_INBOX` |
/// | `monitor` | the servers' monitoring ports, `host:8222,host:8222`, at which the doctor reads `sync_interval` | none |
/// | `attempt_timeout` | how long the answer to a request may take, before another connection is made | 2 s |
/// | `poll_interval` | how often an observer reads a record; a waiting candidate and a leader read it ten times less often, because changes are announced, also without permission for the announcements | 1 s |
///
/// # S3
///
/// The host is the bucket, and the path the prefix of the objects; the default is `tenure`. The URL can contain `KEY:SECRET@` before the bucket. Without
/// a key the credentials are those of the environment: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (with `AWS_SESSION_TOKEN`), a
/// web identity, or the role of the task, the pod or the machine. The files of the AWS tools (`~/.aws`) are not read.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `region` | the region of the bucket | `AWS_REGION`, `AWS_DEFAULT_REGION`, or `us-east-1` |
/// | `endpoint` | the URL of another server than Amazon's, such as `https://s3.example:9000` | `AWS_ENDPOINT_URL_S3`, or `AWS_ENDPOINT_URL` |
/// | `password_file` | a file that contains the secret of the key, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the secret | none |
/// | `attempt_timeout` | how long the answer to a request may take | 2 s |
/// | `poll_interval` | how often a record is read; the provider charges for each read (`docs/guide/operating/s3.md` in the repository has the cost) | 2 s |
///
/// # MariaDB and MySQL
///
/// The URL contains the user, every host that may be the primary, and the database. The tables are created if there are none and the user may
/// do that. A server may need no password.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `password_file` | a file that contains the password, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the password | none |
/// | `durability` | `unsafe` allows a server that loses acknowledged writes when its machine crashes; two candidates may lead after that, with the same fencing token | refused |
/// | `attempt_timeout` | the time after which a request is given up, connecting included | 2 s |
/// | `poll_interval` | how often a record is read | 1 s |
///
/// # Redis
///
/// **A single node: a failover to a replica loses safety: two candidates can lead, and tokens can repeat.** URLs of Sentinel and Cluster are
/// refused. The path is the number of the database; the default is 0. The user of `requirepass` is `default`.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `prefix` | the key of the hash with the records, and the channel of the notifications | `tenure` |
/// | `password_file` | a file that contains the password, so that the URL does not; it can be rotated | none |
/// | `password_env` | the name of an environment variable that contains the password | none |
/// | `failover` | `unsafe` allows several hosts, of which the primary is used, and a node of a cluster | one host |
/// | `attempt_timeout` | how long connecting, and the answer to a request, may take, before another connection is made | 2 s |
/// | `poll_interval` | how often a record is read while the server delivers no notifications | 1 s |
///
/// # TLS
///
/// Stores use TLS if a certificate authority is given (feature `tls`). The servers' names are verified. The
/// files are read again for new connections, so that certificates can be rotated while a leader leads.
///
/// PostgreSQL has libpq's names for these settings. S3 speaks TLS in any case, and trusts the system's certificate authorities (CAs) without a `ca`. Kubernetes has none: the service account or the kubeconfig says it.
///
/// | setting | meaning |
/// |---|---|
/// | `ca` | a PEM file with the certificate authorities (CAs) that sign the servers' certificates |
/// | `cert`, `key` | PEM files with the client's certificate and its key, if the servers require one |
///
/// # Local
///
/// The local store works among the processes of one machine, and refuses network file systems and FUSE. The directory is created if it does not exist.
///
/// # Errors
/// If the URL or a setting is invalid, if a setting is unknown, or if the feature of the store is not enabled. The error
/// says what is allowed, and never contains a password.
pub async fn connect(url: &str) -> Result<Arc<dyn Elector>, Error> {
    connect_with(url, Config::new()).await
}

/// Like [`connect`], with `config` for the settings that the URL does not contain.
///
/// # Errors
/// See [`connect`].
pub async fn connect_with(url: &str, config: Config) -> Result<Arc<dyn Elector>, Error> {
    Registry::builtin().connect_with(url, config).await
}

/// Like [`connect`], and fails now if the store cannot be used: for a service that ends at its start rather than wait for
/// its store.
///
/// Checks the store as [`Elector::check`] does: opens a session, reads, and closes the session. Returns after two request
/// timeouts at the latest (`request_timeout`, 5 s by default).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure::Error> {
/// let elector = tenure::connect_checked("memory:").await?;
/// let leadership = elector.campaign("billing").await?;
/// # leadership.resign().await
/// # }
/// ```
///
/// # Errors
/// Those of [`connect`] and of [`Elector::check`]: [`Error::Unavailable`] if the store does not answer,
/// [`Error::Unauthorized`] or [`Error::Refused`] if it refuses, in the words of the first campaign.
///
/// # Cancellation safety
/// Dropping the future leaves at most a session that expires by itself.
pub async fn connect_checked(url: &str) -> Result<Arc<dyn Elector>, Error> {
    connect_checked_with(url, Config::new()).await
}

/// Like [`connect_checked`], with `config` for the settings that the URL does not contain.
///
/// # Errors
/// See [`connect_checked`].
pub async fn connect_checked_with(url: &str, config: Config) -> Result<Arc<dyn Elector>, Error> {
    let elector = connect_with(url, config).await?;
    elector.check().await?;
    Ok(elector)
}

/// The names of the setting for the candidate's id.
pub(crate) const CANDIDATE: [&str; 2] = ["candidate", "id"];
/// The names of the setting for the candidate's value.
pub(crate) const CANDIDATE_VALUE: [&str; 2] = ["candidate_value", "value"];

/// The setting that has two names.
///
/// # Errors
/// When the URL has both.
pub(crate) fn text_by_either_name<'a>(url: &'a StoreUrl, names: [&str; 2]) -> Result<Option<&'a str>, Error> {
    match names.map(|name| url.text(name)) {
        [Some(_), Some(_)] => {
            let [long, short] = names;
            Err(url.invalid(format!("{long} and {short} are the same setting: give one of them")).into())
        }
        [long, short] => Ok(long.or(short)),
    }
}

/// Overrides `config` with the settings in the URL that do not depend on the store.
pub(crate) fn apply_url_settings(url: &StoreUrl, mut config: Config) -> Result<Config, Error> {
    if let Some(ttl) = url.duration("ttl")? {
        config = config.with_ttl(ttl);
    }
    if let Some(drift) = url.parsed("drift", "a fraction such as 0.1")? {
        config = config.with_drift(drift);
    }
    if let Some(grace_period) = url.duration("grace_period")? {
        config = config.with_grace_period(grace_period);
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
    if let Some(path) = url.text("resume") {
        config = config.with_resume_file(path);
    }
    match url.text("on_clock_jump") {
        None => {}
        Some("lose") => config = config.with_on_clock_jump(OnClockJump::Lose),
        Some("stop_by_deadline") => config = config.with_on_clock_jump(OnClockJump::StopByDeadline),
        Some("log") => config = config.with_on_clock_jump(OnClockJump::Log),
        Some(other) => {
            return Err(url
                .invalid(format!(
                    "on_clock_jump={other} is not allowed: it must be lose, stop_by_deadline or log"
                ))
                .into());
        }
    }
    if let Some(id) = text_by_either_name(url, CANDIDATE)? {
        config = config.with_id(CandidateId::new(id)?);
    }
    if let Some(value) = text_by_either_name(url, CANDIDATE_VALUE)? {
        config = config.with_value(value);
    }
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The futures are `Send`, so that a program can connect in a spawned task.
    #[test]
    fn the_connect_futures_are_send() {
        fn is_send(_: impl Send) {}
        is_send(connect("memory:e"));
        is_send(connect_with("memory:e", Config::new()));
        is_send(connect_checked("memory:e"));
    }
}
