//! Sessions in which a test creates, reads and deletes znodes.

use std::io;

use crate::{
    error::ContainerError,
    zookeeper::{
        frame::{AclEntry, Request, Response},
        protocol::{Connection, RequestError, error_code, op},
    },
};

/// All permissions: the sum of the bits that [`AclEntry`] lists.
pub(super) const ALL_PERMISSIONS: i32 = 31;
/// Everybody may do everything.
const OPEN_ACL: [AclEntry<'_>; 1] = [(ALL_PERMISSIONS, "world", "anyone")];

/// A znode with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// The data.
    pub data: Vec<u8>,
    /// The number of the transaction that created it.
    pub czxid: i64,
    /// How often the data was replaced.
    pub version: i32,
    /// The session that owns an ephemeral znode; zero for other znodes.
    pub owner: i64,
    /// The number of children.
    pub children: i32,
}

/// How long a znode exists, and how it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// Until it is deleted.
    Persistent,
    /// Until its session ends.
    Ephemeral,
    /// Until its session ends. The server appends a number to its name.
    EphemeralSequential,
    /// Until its last child is deleted.
    Container,
}

/// A session of an operator. It lasts until this is dropped, and at most a minute.
#[derive(Debug)]
pub struct AdminSession {
    endpoint: String,
    connection: Connection,
}

impl AdminSession {
    /// Opens a session, and authenticates it with a scheme and its data if a login is given.
    pub(super) async fn open(
        endpoint: &str,
        login: Option<&(String, String)>,
    ) -> Result<Self, ContainerError> {
        let connection = Connection::connect(endpoint).await;
        let mut connection = connection.map_err(|error| no_answer(endpoint, "connect", error))?;
        if let Some((scheme, auth)) = login {
            let authenticated = connection.authenticate(scheme, auth).await;
            authenticated.map_err(|error| request_error(endpoint, "auth", error))?;
        }
        Ok(Self { endpoint: endpoint.to_owned(), connection })
    }

    /// The session's id.
    pub fn id(&self) -> i64 {
        self.connection.session()
    }

    /// Creates a znode with which everybody may do everything, and returns its path.
    ///
    /// # Errors
    /// When the znode exists, or the server refuses or does not answer.
    pub async fn create(
        &mut self,
        path: &str,
        data: impl AsRef<[u8]>,
        mode: CreateMode,
    ) -> Result<String, ContainerError> {
        self.create_with_permissions(path, data, mode, ALL_PERMISSIONS).await
    }

    /// Creates a znode on which everybody has these permissions, the sum of the bits that [`AclEntry`] lists.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub async fn create_with_permissions(
        &mut self,
        path: &str,
        data: impl AsRef<[u8]>,
        mode: CreateMode,
        permissions: i32,
    ) -> Result<String, ContainerError> {
        self.create_with_acl(path, data, mode, &[(permissions, "world", "anyone")]).await
    }

    /// Creates a znode with this access control list.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub async fn create_with_acl(
        &mut self,
        path: &str,
        data: impl AsRef<[u8]>,
        mode: CreateMode,
        acl: &[AclEntry<'_>],
    ) -> Result<String, ContainerError> {
        let created = self.try_create(path, data.as_ref(), mode, acl).await;
        created.map_err(|error| request_error(&self.endpoint, &format!("create {path}"), error))
    }

    async fn try_create(
        &mut self,
        path: &str,
        data: &[u8],
        mode: CreateMode,
        acl: &[AclEntry<'_>],
    ) -> Result<String, RequestError> {
        let (op, flags) = match mode {
            CreateMode::Persistent => (op::CREATE, 0),
            CreateMode::Ephemeral => (op::CREATE, 1),
            CreateMode::EphemeralSequential => (op::CREATE, 3),
            CreateMode::Container => (op::CREATE_CONTAINER, 4),
        };
        let mut body = Request::default();
        body.text(path).buffer(data).acl(acl).int(flags);
        Ok(self.connection.request(op, body).await?.text()?)
    }

    pub(super) async fn create_if_missing(&mut self, path: &str) -> Result<(), ContainerError> {
        match self.try_create(path, &[], CreateMode::Persistent, &OPEN_ACL).await {
            Ok(_) | Err(RequestError::Refused(error_code::NODE_EXISTS)) => Ok(()),
            Err(error) => Err(request_error(&self.endpoint, &format!("create {path}"), error)),
        }
    }

    /// The znode at `path`, if it exists.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn get(&mut self, path: &str) -> Result<Option<Znode>, ContainerError> {
        let mut body = Request::default();
        body.text(path).byte(0);
        let found = self.request_unless_missing(op::GET_DATA, body, path).await?;
        found.map(decode_znode).transpose().map_err(|error| no_answer(&self.endpoint, path, error))
    }

    /// Replaces the data of the znode at `path`.
    ///
    /// # Errors
    /// When the znode does not exist, or the server refuses or does not answer.
    pub async fn set(&mut self, path: &str, data: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        let mut body = Request::default();
        body.text(path).buffer(data.as_ref()).int(-1);
        let set = self.connection.request(op::SET_DATA, body).await;
        set.map(drop).map_err(|error| request_error(&self.endpoint, &format!("set {path}"), error))
    }

    /// The names of the children of the znode at `path`; none if it does not exist.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn children(&mut self, path: &str) -> Result<Vec<String>, ContainerError> {
        let mut body = Request::default();
        body.text(path).byte(0);
        let Some(mut response) = self.request_unless_missing(op::GET_CHILDREN, body, path).await? else {
            return Ok(Vec::new());
        };
        let mut names = || (0..response.int()?).map(|_| response.text()).collect::<io::Result<_>>();
        names().map_err(|error| no_answer(&self.endpoint, path, error))
    }

    /// Deletes the znode at `path`; returns whether it existed.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn delete(&mut self, path: &str) -> Result<bool, ContainerError> {
        let mut body = Request::default();
        body.text(path).int(-1);
        Ok(self.request_unless_missing(op::DELETE, body, path).await?.is_some())
    }

    /// The access control list of the znode at `path`: permission bits, scheme and id of each entry.
    ///
    /// # Errors
    /// When the znode does not exist, or the server refuses or does not answer.
    pub async fn acl(&mut self, path: &str) -> Result<Vec<(i32, String, String)>, ContainerError> {
        let mut body = Request::default();
        body.text(path);
        let response = self.connection.request(op::GET_ACL, body).await;
        let mut response = response.map_err(|error| request_error(&self.endpoint, path, error))?;
        let mut read = || {
            (0..response.int()?)
                .map(|_| Ok((response.int()?, response.text()?, response.text()?)))
                .collect::<io::Result<_>>()
        };
        read().map_err(|error| no_answer(&self.endpoint, path, error))
    }

    /// Replaces the access control list of the znode at `path`.
    ///
    /// # Errors
    /// When the znode does not exist, this user may not change the list, or the server does not answer.
    pub async fn set_acl(&mut self, path: &str, acl: &[AclEntry<'_>]) -> Result<(), ContainerError> {
        let mut body = Request::default();
        body.text(path).acl(acl).int(-1);
        let set = self.connection.request(op::SET_ACL, body).await;
        set.map(drop).map_err(|error| request_error(&self.endpoint, &format!("setAcl {path}"), error))
    }

    pub(super) async fn sync(&mut self) -> Result<(), ContainerError> {
        let mut body = Request::default();
        body.text("/");
        let synced = self.connection.request(op::SYNC, body).await;
        synced.map(drop).map_err(|error| request_error(&self.endpoint, "sync", error))
    }

    /// Succeeds if the session is alive: reads the root znode.
    ///
    /// # Errors
    /// When the session has ended, or the server does not answer.
    pub async fn check_alive(&mut self) -> Result<(), ContainerError> {
        let mut body = Request::default();
        body.text("/").byte(0);
        let alive = self.connection.request(op::EXISTS, body).await;
        alive.map(drop).map_err(|error| request_error(&self.endpoint, "exists /", error))
    }

    /// Closes the session, which deletes its ephemeral znodes.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn close(self) -> Result<(), ContainerError> {
        self.connection.close().await.map_err(|error| request_error(&self.endpoint, "close", error))
    }

    /// The response, or `None` if the znode does not exist.
    async fn request_unless_missing(
        &mut self,
        op: i32,
        body: Request,
        path: &str,
    ) -> Result<Option<Response>, ContainerError> {
        match self.connection.request(op, body).await {
            Ok(response) => Ok(Some(response)),
            Err(RequestError::Refused(error_code::NO_NODE)) => Ok(None),
            Err(error) => Err(request_error(&self.endpoint, path, error)),
        }
    }
}

fn decode_znode(mut response: Response) -> io::Result<Znode> {
    let data = response.buffer()?;
    let (czxid, _mzxid, _ctime, _mtime) =
        (response.long()?, response.long()?, response.long()?, response.long()?);
    let (version, _cversion, _aversion) = (response.int()?, response.int()?, response.int()?);
    let (owner, _length, children) = (response.long()?, response.int()?, response.int()?);
    Ok(Znode { data, czxid, version, owner, children })
}

pub(super) fn no_answer(endpoint: &str, what: &str, source: io::Error) -> ContainerError {
    ContainerError::NoAnswer { request: format!("{what} at {endpoint}"), source }
}

pub(super) fn request_error(endpoint: &str, what: &str, error: RequestError) -> ContainerError {
    match error {
        RequestError::Io(source) => no_answer(endpoint, what, source),
        RequestError::Refused(code) => ContainerError::Refused {
            request: format!("{what} at {endpoint}"),
            message: format!("code {code}"),
        },
    }
}
