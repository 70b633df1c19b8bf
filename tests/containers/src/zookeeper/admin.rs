//! Administers the znodes and sessions of a ZooKeeper server, without tenure and without a ZooKeeper client library.

use std::{collections::BTreeSet, io};

use crate::{
    error::ContainerError,
    health::eventually,
    zookeeper::{
        frame::AclEntry,
        protocol::{end_session, four_letter_command},
        session::{ALL_PERMISSIONS, AdminSession, CreateMode, Znode, no_answer},
    },
};

/// Administers one ZooKeeper server, as an operator would.
#[derive(Clone, Debug)]
pub struct ZookeeperAdmin {
    endpoint: String,
    login: Option<(String, String)>,
}

impl ZookeeperAdmin {
    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), login: None }
    }

    /// A client of the same server whose sessions authenticate. The scheme `digest` takes `user:password`.
    pub fn with_auth(&self, scheme: &str, auth: &str) -> Self {
        Self { endpoint: self.endpoint.clone(), login: Some((scheme.to_owned(), auth.to_owned())) }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Opens a session.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn session(&self) -> Result<AdminSession, ContainerError> {
        AdminSession::open(&self.endpoint, self.login.as_ref()).await
    }

    /// Succeeds when the server is ready: standalone, or a member of an ensemble with a quorum.
    ///
    /// # Errors
    /// When it is not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        session.sync().await?;
        session.close().await
    }

    /// Creates a persistent znode, and its missing ancestors.
    ///
    /// # Errors
    /// When the znode exists, or the server refuses or does not answer.
    pub async fn create(&self, path: &str, data: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        for (end, _) in path.match_indices('/').skip(1) {
            session.create_if_missing(&path[..end]).await?;
        }
        session.create(path, data, CreateMode::Persistent).await?;
        session.close().await
    }

    /// The znode at `path`, if it exists.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn get(&self, path: &str) -> Result<Option<Znode>, ContainerError> {
        let mut session = self.session().await?;
        let znode = session.get(path).await?;
        session.close().await?;
        Ok(znode)
    }

    /// Replaces the data of the znode at `path`.
    ///
    /// # Errors
    /// When the znode does not exist, or the server refuses or does not answer.
    pub async fn set(&self, path: &str, data: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        session.set(path, data).await?;
        session.close().await
    }

    /// The names of the children of the znode at `path`; none if it does not exist.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn children(&self, path: &str) -> Result<Vec<String>, ContainerError> {
        let mut session = self.session().await?;
        let children = session.children(path).await?;
        session.close().await?;
        Ok(children)
    }

    /// The paths of all descendants of the znode at `path`, as this server has them.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn tree(&self, path: &str) -> Result<Vec<String>, ContainerError> {
        let mut session = self.session().await?;
        let mut paths = vec![path.trim_end_matches('/').to_owned()];
        let mut listed = 0;
        while let Some(path) = paths.get(listed).cloned() {
            let children = session.children(&path).await?;
            paths.extend(children.iter().map(|name| format!("{path}/{name}")));
            listed += 1;
        }
        session.close().await?;
        Ok(paths.split_off(1))
    }

    /// Deletes the znode at `path`; returns whether it existed.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn delete(&self, path: &str) -> Result<bool, ContainerError> {
        let mut session = self.session().await?;
        let deleted = session.delete(path).await?;
        session.close().await?;
        Ok(deleted)
    }

    /// Deletes the znode at `path` and all its descendants; returns their number.
    ///
    /// # Errors
    /// When another client creates a descendant meanwhile, or the server refuses or does not answer.
    pub async fn delete_recursive(&self, path: &str) -> Result<usize, ContainerError> {
        let mut paths = self.tree(path).await?;
        paths.insert(0, path.to_owned());
        let mut session = self.session().await?;
        let mut deleted = 0;
        // Descendants come after their ancestors.
        for path in paths.iter().rev() {
            deleted += usize::from(session.delete(path).await?);
        }
        session.close().await?;
        Ok(deleted)
    }

    /// Replaces the access control list of the znode at `path`.
    ///
    /// # Errors
    /// When the znode does not exist, this user may not change the list, or the server does not answer.
    pub async fn set_acl(&self, path: &str, acl: &[AclEntry<'_>]) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        session.set_acl(path, acl).await?;
        session.close().await
    }

    /// The scheme and id of the authenticated user, as an access control list has them.
    ///
    /// # Errors
    /// When this client does not authenticate, or the server refuses or does not answer.
    pub async fn identity(&self) -> Result<(String, String), ContainerError> {
        let mut session = self.session().await?;
        let path = format!("/identity-{:x}", session.id());
        session.create_with_acl(&path, "", CreateMode::Ephemeral, &[(ALL_PERMISSIONS, "auth", "")]).await?;
        let acl = session.acl(&path).await?;
        session.close().await?;
        let anonymous = || ContainerError::Unexpected("the session has no authenticated user".to_owned());
        acl.into_iter().next().map(|(_, scheme, id)| (scheme, id)).ok_or_else(anonymous)
    }

    /// Ends the session of another client, which deletes its ephemeral znodes.
    ///
    /// # Errors
    /// When the session does not exist, or the server does not answer.
    pub async fn expire_session(&self, session: i64) -> Result<(), ContainerError> {
        if !self.sessions().await?.contains(&session) {
            return Err(ContainerError::Unexpected(format!("session {session:#x} does not exist")));
        }
        // The owner may resume the session in between.
        eventually("the session to end", async || {
            let ended = end_session(&self.endpoint, session).await;
            if self.sessions().await?.contains(&session) {
                let error = ended.err().unwrap_or_else(|| io::ErrorKind::Interrupted.into());
                return Err(no_answer(&self.endpoint, "closeSession", error));
            }
            Ok(())
        })
        .await
    }

    /// The ids of all sessions. Only a standalone server and the leader of an ensemble know them.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn sessions(&self) -> Result<BTreeSet<i64>, ContainerError> {
        let dump = self.four_letter_command("dump").await?;
        let sets = dump.split("ephemeral nodes dump").next().unwrap_or_default();
        let ids = sets.lines().filter_map(|line| line.trim().strip_prefix("0x"));
        Ok(ids.filter_map(|id| u64::from_str_radix(id, 16).ok()).map(u64::cast_signed).collect())
    }

    /// The server's answer to a four-letter command: `srvr`, `mntr`, `wchp` …
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn four_letter_command(&self, command: &str) -> Result<String, ContainerError> {
        let answer = four_letter_command(&self.endpoint, command).await;
        answer.map_err(|error| no_answer(&self.endpoint, command, error))
    }
}
