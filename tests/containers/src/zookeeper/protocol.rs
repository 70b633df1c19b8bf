//! Connections, sessions and requests of ZooKeeper's client protocol.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::zookeeper::frame::{Request, Response};

/// A server that is ready answers every request of a test within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The requested session timeout: long enough that a test needs no pings.
const SESSION_TIMEOUT_MILLIS: i32 = 60_000;
const PASSWORD_BYTES: usize = 16;

/// The types of requests.
pub(super) mod op {
    pub(in crate::zookeeper) const DELETE: i32 = 2;
    pub(in crate::zookeeper) const EXISTS: i32 = 3;
    pub(in crate::zookeeper) const GET_DATA: i32 = 4;
    pub(in crate::zookeeper) const SET_DATA: i32 = 5;
    pub(in crate::zookeeper) const GET_ACL: i32 = 6;
    pub(in crate::zookeeper) const SET_ACL: i32 = 7;
    pub(in crate::zookeeper) const SYNC: i32 = 9;
    pub(in crate::zookeeper) const GET_CHILDREN: i32 = 8;
    pub(in crate::zookeeper) const CREATE: i32 = 15;
    pub(in crate::zookeeper) const CREATE_CONTAINER: i32 = 19;
    pub(super) const AUTH: i32 = 100;
    pub(super) const CLOSE_SESSION: i32 = -11;
}

/// The error codes that callers handle.
pub(super) mod error_code {
    pub(in crate::zookeeper) const NO_NODE: i32 = -101;
    pub(in crate::zookeeper) const NODE_EXISTS: i32 = -110;
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum RequestError {
    Io(io::Error),
    /// The server's error code.
    Refused(i32),
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A connection with a session.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    session: i64,
    xid: i32,
}

impl Connection {
    /// Connects and creates a session.
    pub(super) async fn connect(endpoint: &str) -> io::Result<Self> {
        with_timeout(async {
            let mut stream = TcpStream::connect(endpoint).await?;
            stream.set_nodelay(true)?;
            stream.write_all(&connect_request(0, [0; PASSWORD_BYTES]).encode()).await?;
            let mut response = Response::receive(&mut stream).await?;
            let (_version, granted, session) = (response.int()?, response.int()?, response.long()?);
            if session == 0 || granted <= 0 {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the session does not exist"));
            }
            Ok(Self { stream, session, xid: 0 })
        })
        .await
    }

    pub(super) fn session(&self) -> i64 {
        self.session
    }

    /// Authenticates the session. The scheme `digest` takes `user:password`.
    pub(super) async fn authenticate(&mut self, scheme: &str, auth: &str) -> Result<(), RequestError> {
        let mut body = Request::default();
        body.int(0).text(scheme).buffer(auth.as_bytes());
        self.send(-4, op::AUTH, body).await.map(drop)
    }

    /// Ends the session.
    pub(super) async fn close(mut self) -> Result<(), RequestError> {
        self.xid += 1;
        self.send(self.xid, op::CLOSE_SESSION, Request::default()).await.map(drop)
    }

    /// Sends a request and returns its response.
    pub(super) async fn request(&mut self, op: i32, body: Request) -> Result<Response, RequestError> {
        self.xid += 1;
        self.send(self.xid, op, body).await
    }

    async fn send(&mut self, xid: i32, op: i32, body: Request) -> Result<Response, RequestError> {
        let response = with_timeout(async {
            let mut request = Request::default();
            request.int(xid).int(op).append(&body);
            self.stream.write_all(&request.encode()).await?;
            loop {
                let mut response = Response::receive(&mut self.stream).await?;
                let (answered, _zxid, code) = (response.int()?, response.long()?, response.int()?);
                // Answers to pings and watch events come in between.
                if answered == xid {
                    return Ok((response, code));
                }
            }
        })
        .await?;
        match response {
            (response, 0) => Ok(response),
            (_, code) => Err(RequestError::Refused(code)),
        }
    }
}

/// Takes over the session of another client and closes it. The session's password can be computed from its id.
///
/// Both requests are sent in one write: taking the session over closes the owner's connection, and the owner resumes the
/// session within a millisecond.
pub(super) async fn end_session(endpoint: &str, session: i64) -> io::Result<()> {
    with_timeout(async {
        let mut stream = TcpStream::connect(endpoint).await?;
        let mut close = Request::default();
        close.int(1).int(op::CLOSE_SESSION);
        let requests = [connect_request(session, password_of(session)).encode(), close.encode()].concat();
        stream.write_all(&requests).await?;
        let mut response = Response::receive(&mut stream).await?;
        let (_version, _granted, resumed) = (response.int()?, response.int()?, response.long()?);
        if resumed != session {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the session does not exist"));
        }
        // The server answers, or just closes the connection.
        let _ = Response::receive(&mut stream).await;
        Ok(())
    })
    .await
}

fn connect_request(session: i64, password: [u8; PASSWORD_BYTES]) -> Request {
    let mut request = Request::default();
    request.int(0).long(0).int(SESSION_TIMEOUT_MILLIS).long(session).buffer(&password).byte(0);
    request
}

/// The server's answer to a four-letter command.
pub(super) async fn four_letter_command(endpoint: &str, command: &str) -> io::Result<String> {
    with_timeout(async {
        let mut stream = TcpStream::connect(endpoint).await?;
        stream.write_all(command.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        Ok(response)
    })
    .await
}

async fn with_timeout<T>(request: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(REQUEST_TIMEOUT, request).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A session's password as `ZooKeeperServer.generatePasswd` computes it: the first bytes of a `java.util.Random` whose seed
/// is the id combined with a constant.
fn password_of(session: i64) -> [u8; PASSWORD_BYTES] {
    const SUPER_SECRET: i64 = 0xB341_5C00;
    const MULTIPLIER: i64 = 0x5_DEEC_E66D;
    const MASK: i64 = (1 << 48) - 1;
    let mut state = ((session ^ SUPER_SECRET) ^ MULTIPLIER) & MASK;
    let mut password = [0; PASSWORD_BYTES];
    for four in password.chunks_mut(4) {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        let bytes = (state >> 16).to_le_bytes();
        four.copy_from_slice(&bytes[..4]);
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Java: `new Random(id ^ 0xB3415C00L).nextBytes(new byte[16])`.
    #[test]
    fn the_password_of_a_session_is_computed_from_its_id() {
        for (id, password) in [
            (0x1234, 0x3c18_abe0_5b0e_6182_741d_625d_127c_15b0),
            (0x0100_0a2b_3c4d_0001, 0xbc47_3af4_22c9_4ce5_244b_a1f0_6f87_1acd),
            (-5, 0xd471_44b5_e45e_45c4_9c3b_7fdc_d662_57ba_u128),
        ] {
            assert_eq!(password_of(id), password.to_be_bytes(), "{id:#x}");
        }
    }
}
