//! A server's znodes and sessions, handled without tenure and without a ZooKeeper client.

use std::{collections::BTreeSet, io};

use super::{
    super::{ContainerError, health::eventually},
    wire::{Answer, Failure, Frame, Wire, code, end_session, four_letters, op},
};

/// Administers one ZooKeeper server, as an operator would.
#[derive(Clone, Debug)]
pub struct ZookeeperAdmin {
    endpoint: String,
    login: Option<(String, String)>,
}

/// A znode with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// Its data.
    pub data: Vec<u8>,
    /// The number of the transaction that created it.
    pub czxid: i64,
    /// How often its data was replaced.
    pub version: i32,
    /// The session that it ends with; zero when it ends with none.
    pub owner: i64,
    /// How many znodes lie directly below it.
    pub children: i32,
}

/// How long a znode is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// As long as its session.
    Ephemeral,
    /// As long as its session, with a number put behind its name.
    EphemeralSequential,
    /// Until it is empty.
    Container,
}

/// Whom a znode permits what: the permissions' bits (1 to read, 2 to write, 4 to create below, 8 to delete below, 16 to
/// permit), a scheme and an id.
pub type Permitted<'a> = (i32, &'a str, &'a str);

/// All permissions, as ZooKeeper counts them.
const EVERYTHING: i32 = 31;
/// Everybody may do everything.
const OPEN: [Permitted<'_>; 1] = [(EVERYTHING, "world", "anyone")];

/// A session of an operator's own, for as long as this is kept, and at most a minute.
#[derive(Debug)]
pub struct AdminSession {
    endpoint: String,
    wire: Wire,
}

impl ZookeeperAdmin {
    /// Administers the server at `endpoint`, `host:port`.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), login: None }
    }

    /// The same, authenticated: with the scheme `digest`, as `user:password`.
    pub fn with_auth(&self, scheme: &str, auth: &str) -> Self {
        Self { endpoint: self.endpoint.clone(), login: Some((scheme.to_owned(), auth.to_owned())) }
    }

    /// Where the server listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Opens a session.
    ///
    /// # Errors
    /// When the server does not serve.
    pub async fn session(&self) -> Result<AdminSession, ContainerError> {
        let wire = Wire::connect(&self.endpoint).await;
        let mut wire = wire.map_err(|error| no_answer(&self.endpoint, "connect", error))?;
        if let Some((scheme, auth)) = &self.login {
            wire.authenticate(scheme, auth).await.map_err(|error| failure(&self.endpoint, "auth", error))?;
        }
        Ok(AdminSession { endpoint: self.endpoint.clone(), wire })
    }

    /// Succeeds when the server serves: alone, or as a member with a quorum.
    ///
    /// # Errors
    /// When it does not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        session.sync().await?;
        session.close().await
    }

    /// Creates a persistent znode, and what is above it.
    ///
    /// # Errors
    /// Also when it exists.
    pub async fn create(&self, path: &str, data: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        for (end, _) in path.match_indices('/').skip(1) {
            session.create_if_missing(&path[..end]).await?;
        }
        session.create(path, data, Lifetime::Persistent).await?;
        session.close().await
    }

    /// The znode at `path`.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn get(&self, path: &str) -> Result<Option<Znode>, ContainerError> {
        let mut session = self.session().await?;
        let znode = session.get(path).await?;
        session.close().await?;
        Ok(znode)
    }

    /// Replaces the data at `path`.
    ///
    /// # Errors
    /// Also when there is no such znode.
    pub async fn set(&self, path: &str, data: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        session.set(path, data).await?;
        session.close().await
    }

    /// The names of the znodes below `path`; none when there is no such znode.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn children(&self, path: &str) -> Result<Vec<String>, ContainerError> {
        let mut session = self.session().await?;
        let children = session.children(path).await?;
        session.close().await?;
        Ok(children)
    }

    /// The paths of all znodes below `path`, as this server shows them.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn tree(&self, path: &str) -> Result<Vec<String>, ContainerError> {
        let mut session = self.session().await?;
        let mut paths = vec![path.trim_end_matches('/').to_owned()];
        let mut looked_at = 0;
        while let Some(path) = paths.get(looked_at).cloned() {
            let children = session.children(&path).await?;
            paths.extend(children.iter().map(|name| format!("{path}/{name}")));
            looked_at += 1;
        }
        session.close().await?;
        Ok(paths.split_off(1))
    }

    /// Deletes the znode at `path`; whether there was one.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn delete(&self, path: &str) -> Result<bool, ContainerError> {
        let mut session = self.session().await?;
        let deleted = session.delete(path).await?;
        session.close().await?;
        Ok(deleted)
    }

    /// Deletes the znode at `path` and all below it; how many there were.
    ///
    /// # Errors
    /// Also when somebody adds to it meanwhile.
    pub async fn delete_recursive(&self, path: &str) -> Result<usize, ContainerError> {
        let mut paths = self.tree(path).await?;
        paths.insert(0, path.to_owned());
        let mut session = self.session().await?;
        let mut deleted = 0;
        // What lies deeper comes later.
        for path in paths.iter().rev() {
            deleted += usize::from(session.delete(path).await?);
        }
        session.close().await?;
        Ok(deleted)
    }

    /// Says anew who may do what with the znode at `path`.
    ///
    /// # Errors
    /// Also when there is no such znode, or this user may not.
    pub async fn set_acl(&self, path: &str, acl: &[Permitted<'_>]) -> Result<(), ContainerError> {
        let mut session = self.session().await?;
        session.set_acl(path, acl).await?;
        session.close().await
    }

    /// Who we are to the server that we have authenticated to: a scheme and an id, as an ACL has them.
    ///
    /// # Errors
    /// Also when we are nobody.
    pub async fn identity(&self) -> Result<(String, String), ContainerError> {
        let mut session = self.session().await?;
        let path = format!("/identity-{:x}", session.id());
        session.create_for(&path, "", Lifetime::Ephemeral, &[(EVERYTHING, "auth", "")]).await?;
        let acl = session.acl(&path).await?;
        session.close().await?;
        let malformed = || ContainerError::Malformed(format!("{path} belongs to nobody"));
        acl.into_iter().next().map(|(_, scheme, id)| (scheme, id)).ok_or_else(malformed)
    }

    /// Ends somebody else's session, and with it all its ephemeral znodes.
    ///
    /// # Errors
    /// Also when there is no such session.
    pub async fn expire_session(&self, session: i64) -> Result<(), ContainerError> {
        if !self.sessions().await?.contains(&session) {
            return Err(ContainerError::Malformed(format!("there is no session {session:#x}")));
        }
        // Its owner may take it back in between.
        eventually("the end of a session", async || {
            let ended = end_session(&self.endpoint, session).await;
            if self.sessions().await?.contains(&session) {
                let error = ended.err().unwrap_or_else(|| io::ErrorKind::Interrupted.into());
                return Err(no_answer(&self.endpoint, "end a session", error));
            }
            Ok(())
        })
        .await
    }

    /// The sessions that a server alone, or the leader of several, has; without this call's own.
    ///
    /// # Errors
    /// When the server does not serve.
    pub async fn sessions(&self) -> Result<BTreeSet<i64>, ContainerError> {
        let said = self.four_letters("dump").await?;
        let sets = said.split("ephemeral nodes dump").next().unwrap_or_default();
        let ids = sets.lines().filter_map(|line| line.trim().strip_prefix("0x"));
        Ok(ids.filter_map(|id| u64::from_str_radix(id, 16).ok()).map(u64::cast_signed).collect())
    }

    /// What the server says to one of its words of four letters: `srvr`, `mntr`, `wchp` …
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn four_letters(&self, word: &str) -> Result<String, ContainerError> {
        four_letters(&self.endpoint, word).await.map_err(|error| no_answer(&self.endpoint, word, error))
    }
}

impl AdminSession {
    /// The session's id.
    pub fn id(&self) -> i64 {
        self.wire.session()
    }

    /// Creates a znode that everybody may use, and returns its path.
    ///
    /// # Errors
    /// Also when it exists.
    pub async fn create(
        &mut self,
        path: &str,
        data: impl AsRef<[u8]>,
        lifetime: Lifetime,
    ) -> Result<String, ContainerError> {
        self.create_permitting(path, data, lifetime, EVERYTHING).await
    }

    /// The same, permitting everybody only `permissions`: 1 to read, 2 to write, 4 to create below, 8 to
    /// delete below, 16 to permit.
    ///
    /// # Errors
    /// Also when it exists.
    pub async fn create_permitting(
        &mut self,
        path: &str,
        data: impl AsRef<[u8]>,
        lifetime: Lifetime,
        permissions: i32,
    ) -> Result<String, ContainerError> {
        self.create_for(path, data, lifetime, &[(permissions, "world", "anyone")]).await
    }

    /// The same, for those whom `acl` names.
    ///
    /// # Errors
    /// Also when it exists.
    pub async fn create_for(
        &mut self,
        path: &str,
        data: impl AsRef<[u8]>,
        lifetime: Lifetime,
        acl: &[Permitted<'_>],
    ) -> Result<String, ContainerError> {
        let created = self.try_create(path, data.as_ref(), lifetime, acl).await;
        created.map_err(|error| failure(&self.endpoint, &format!("create {path}"), error))
    }

    async fn try_create(
        &mut self,
        path: &str,
        data: &[u8],
        lifetime: Lifetime,
        acl: &[Permitted<'_>],
    ) -> Result<String, Failure> {
        let (op, flags) = match lifetime {
            Lifetime::Persistent => (op::CREATE, 0),
            Lifetime::Ephemeral => (op::CREATE, 1),
            Lifetime::EphemeralSequential => (op::CREATE, 3),
            Lifetime::Container => (op::CREATE_CONTAINER, 4),
        };
        let mut body = Frame::default();
        body.text(path).buffer(data).acl(acl).int(flags);
        Ok(self.wire.ask(op, body).await?.text()?)
    }

    async fn create_if_missing(&mut self, path: &str) -> Result<(), ContainerError> {
        match self.try_create(path, &[], Lifetime::Persistent, &OPEN).await {
            Ok(_) | Err(Failure::Refused(code::NODE_EXISTS)) => Ok(()),
            Err(error) => Err(failure(&self.endpoint, &format!("create {path}"), error)),
        }
    }

    /// The znode at `path`.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn get(&mut self, path: &str) -> Result<Option<Znode>, ContainerError> {
        let mut body = Frame::default();
        body.text(path).byte(0);
        let found = self.unless_missing(op::GET_DATA, body, path).await?;
        found.map(znode).transpose().map_err(|error| no_answer(&self.endpoint, path, error))
    }

    /// Replaces the data at `path`.
    ///
    /// # Errors
    /// Also when there is no such znode.
    pub async fn set(&mut self, path: &str, data: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        let mut body = Frame::default();
        body.text(path).buffer(data.as_ref()).int(-1);
        let set = self.wire.ask(op::SET_DATA, body).await;
        set.map(drop).map_err(|error| failure(&self.endpoint, &format!("set {path}"), error))
    }

    /// The names of the znodes below `path`.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn children(&mut self, path: &str) -> Result<Vec<String>, ContainerError> {
        let mut body = Frame::default();
        body.text(path).byte(0);
        let Some(mut answer) = self.unless_missing(op::GET_CHILDREN, body, path).await? else {
            return Ok(Vec::new());
        };
        let mut names = || (0..answer.int()?).map(|_| answer.text()).collect::<io::Result<_>>();
        names().map_err(|error| no_answer(&self.endpoint, path, error))
    }

    /// Deletes the znode at `path`; whether there was one.
    ///
    /// # Errors
    /// When the server does not serve, or refuses.
    pub async fn delete(&mut self, path: &str) -> Result<bool, ContainerError> {
        let mut body = Frame::default();
        body.text(path).int(-1);
        Ok(self.unless_missing(op::DELETE, body, path).await?.is_some())
    }

    /// Who may do what with the znode at `path`: for each the permissions' bits, the scheme and the id.
    ///
    /// # Errors
    /// Also when there is no such znode.
    pub async fn acl(&mut self, path: &str) -> Result<Vec<(i32, String, String)>, ContainerError> {
        let mut body = Frame::default();
        body.text(path);
        let answer = self.wire.ask(op::GET_ACL, body).await;
        let mut answer = answer.map_err(|error| failure(&self.endpoint, path, error))?;
        let mut read = || {
            (0..answer.int()?)
                .map(|_| Ok((answer.int()?, answer.text()?, answer.text()?)))
                .collect::<io::Result<_>>()
        };
        read().map_err(|error| no_answer(&self.endpoint, path, error))
    }

    /// Says anew who may do what with the znode at `path`.
    ///
    /// # Errors
    /// Also when there is no such znode, or this user may not.
    pub async fn set_acl(&mut self, path: &str, acl: &[Permitted<'_>]) -> Result<(), ContainerError> {
        let mut body = Frame::default();
        body.text(path).acl(acl).int(-1);
        let set = self.wire.ask(op::SET_ACL, body).await;
        set.map(drop).map_err(|error| failure(&self.endpoint, &format!("permit {path}"), error))
    }

    async fn sync(&mut self) -> Result<(), ContainerError> {
        let mut body = Frame::default();
        body.text("/");
        let synced = self.wire.ask(op::SYNC, body).await;
        synced.map(drop).map_err(|error| failure(&self.endpoint, "sync", error))
    }

    /// Whether the server still knows the session, by looking at the root.
    ///
    /// # Errors
    /// When it does not.
    pub async fn look(&mut self) -> Result<(), ContainerError> {
        let mut body = Frame::default();
        body.text("/").byte(0);
        let looked = self.wire.ask(op::EXISTS, body).await;
        looked.map(drop).map_err(|error| failure(&self.endpoint, "look", error))
    }

    /// Ends the session, and with it all its ephemeral znodes.
    ///
    /// # Errors
    /// When the server does not serve.
    pub async fn close(self) -> Result<(), ContainerError> {
        self.wire.close().await.map_err(|error| failure(&self.endpoint, "close", error))
    }

    async fn unless_missing(
        &mut self,
        op: i32,
        body: Frame,
        path: &str,
    ) -> Result<Option<Answer>, ContainerError> {
        match self.wire.ask(op, body).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Refused(code::NO_NODE)) => Ok(None),
            Err(error) => Err(failure(&self.endpoint, path, error)),
        }
    }
}

fn znode(mut answer: Answer) -> io::Result<Znode> {
    let data = answer.buffer()?;
    let (czxid, _mzxid, _ctime, _mtime) = (answer.long()?, answer.long()?, answer.long()?, answer.long()?);
    let (version, _cversion, _aversion) = (answer.int()?, answer.int()?, answer.int()?);
    let (owner, _length, children) = (answer.long()?, answer.int()?, answer.int()?);
    Ok(Znode { data, czxid, version, owner, children })
}

fn no_answer(endpoint: &str, what: &str, source: io::Error) -> ContainerError {
    ContainerError::NoAnswer { request: format!("{what} at {endpoint}"), source }
}

fn failure(endpoint: &str, what: &str, failure: Failure) -> ContainerError {
    match failure {
        Failure::Io(source) => no_answer(endpoint, what, source),
        Failure::Refused(code) => {
            ContainerError::Refused { url: format!("{what} at {endpoint}"), message: format!("code {code}") }
        }
    }
}
