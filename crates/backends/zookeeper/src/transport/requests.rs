//! The requests that elections send over a [`Connection`].

use zookeeper_client::{Acl, Acls, CreateMode, Error, Stat};

use super::{connection::Connection, watch::Watch, znode_stat::UNREADABLE};

impl Connection {
    /// Creates a znode. With a sequential mode, `path` is a prefix. Returns the znode's full path and its stat.
    pub(crate) async fn create(
        &self,
        path: &str,
        data: &[u8],
        mode: CreateMode,
        acls: Acls<'static>,
    ) -> Result<(String, Stat), Error> {
        self.request(|client| async move {
            let (stat, number) = client.create(path, data, &mode.with_acls(acls)).await?;
            let is_sequential = matches!(mode, CreateMode::EphemeralSequential);
            Ok((if is_sequential { format!("{path}{number}") } else { path.to_owned() }, stat))
        })
        .await
    }

    /// Deletes a znode. Succeeds if it does not exist.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), Error> {
        let deleted = self.request(|client| async move { client.delete(path, None).await }).await;
        none_if_missing(deleted).map(|_| ())
    }

    /// Replaces the data of a znode if it has this version. Returns whether it had.
    pub(crate) async fn set_version(&self, path: &str, data: &[u8], version: i32) -> Result<bool, Error> {
        let written = self.request(|client| async move { client.set_data(path, data, Some(version)).await });
        match written.await {
            Ok(_) => Ok(true),
            Err(Error::BadVersion | Error::NoNode) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, Stat)>, Error> {
        none_if_missing(self.request(|client| async move { client.get_data(path).await }).await)
    }

    pub(crate) async fn acl(&self, path: &str) -> Result<Vec<Acl>, Error> {
        self.request(|client| async move { client.get_acl(path).await }).await.map(|(acls, _)| acls)
    }

    /// The stat of a znode; [`UNREADABLE`] if it exists and the user may not read it.
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        match self.request(|client| async move { client.check_stat(path).await }).await {
            // Since 3.9, `exists` needs permission (ZOOKEEPER-2590).
            Err(Error::NoAuth) => Ok(Some(UNREADABLE)),
            outcome => outcome,
        }
    }

    pub(crate) async fn children(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        none_if_missing(self.request(|client| async move { client.list_children(path).await }).await)
    }

    /// The children of a znode, and a watch for a child that is created or deleted.
    pub(crate) async fn watch_children(&self, path: &str) -> Result<Option<(Vec<String>, Watch<'_>)>, Error> {
        let watched = self.request(|client| async move { client.list_and_watch_children(path).await }).await;
        Ok(none_if_missing(watched)?.map(|(children, watcher)| (children, self.watches.watch(watcher))))
    }

    /// A watch for the creation of a znode; `None` if it exists.
    pub(crate) async fn watch_creation(&self, path: &str) -> Result<Option<Watch<'_>>, Error> {
        let watched = self.request(|client| async move { client.check_and_watch_stat(path).await }).await;
        let (stat, watcher) = watched?;
        Ok(stat.is_none().then(|| self.watches.watch(watcher)))
    }

    /// The data of a znode, and a watch for a change of the data or the deletion of the znode.
    pub(crate) async fn watch_data(&self, path: &str) -> Result<Option<(Vec<u8>, Stat, Watch<'_>)>, Error> {
        let watched = self.request(|client| async move { client.get_and_watch_data(path).await }).await;
        Ok(none_if_missing(watched)?.map(|(data, stat, watcher)| (data, stat, self.watches.watch(watcher))))
    }

    /// A watch for the deletion of a candidate's znode.
    ///
    /// It watches the znode's children, of which it has none. Unlike a watch on its data it does not fire when the value
    /// changes.
    pub(crate) async fn watch_deletion(&self, path: &str) -> Result<Option<(Stat, Watch<'_>)>, Error> {
        let watched = self.request(|client| async move { client.get_and_watch_children(path).await }).await;
        if matches!(watched, Err(Error::NoAuth)) {
            return self.watch_siblings(path).await;
        }
        Ok(none_if_missing(watched)?.map(|(_, stat, watcher)| (stat, self.watches.watch(watcher))))
    }

    /// Like [`watch_deletion`](Self::watch_deletion), for a znode that the user may not read. Servers send no events for
    /// those (ZOOKEEPER-4799), so the parent's children are watched.
    async fn watch_siblings(&self, path: &str) -> Result<Option<(Stat, Watch<'_>)>, Error> {
        let Some((parent, name)) = path.rsplit_once('/') else { return Ok(None) };
        let Some((names, watch)) = self.watch_children(parent).await? else { return Ok(None) };
        if !names.iter().any(|other| other == name) {
            return Ok(None);
        }
        Ok(self.stat(path).await?.map(|stat| (stat, watch)))
    }

    /// Waits until the server has applied everything that a quorum had committed before this call.
    ///
    /// Sends a write that is refused, which needs a quorum all the same. A `sync` does not: a leader that was frozen
    /// and deposed answers it from its old state, for up to half a tick.
    pub(crate) async fn barrier(&self, path: &str) -> Result<(), Error> {
        // With a version that no znode has, so that a znode that somebody created there is not deleted.
        let refused = self.request(|client| async move { client.delete(path, Some(i32::MAX)).await }).await;
        match refused {
            Ok(()) | Err(Error::NoNode | Error::BadVersion | Error::NotEmpty | Error::NoAuth) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Brings the server up to date with the store's leader, for the reads that follow.
    pub(crate) async fn sync(&self) -> Result<(), Error> {
        self.request(|client| async move { client.sync("/").await }).await
    }
}

fn none_if_missing<T>(outcome: Result<T, Error>) -> Result<Option<T>, Error> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}
