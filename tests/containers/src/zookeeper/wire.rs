//! ZooKeeper's own protocol, as far as an operator needs it.
//!
//! Numbers are big-endian, texts and buffers have their length before them, and a frame has its own. See
//! `zookeeper-jute/src/main/resources/zookeeper.jute` in ZooKeeper's source.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// No request of a test takes longer, unless the server does not serve.
const PATIENCE: Duration = Duration::from_secs(5);
/// The timeout asked for: so long that no signs of life are needed.
const SESSION_MILLIS: i32 = 60_000;
const LARGEST_FRAME: usize = 16 << 20;
const PASSWORD_BYTES: usize = 16;

/// The codes of the requests.
pub(super) mod op {
    pub(in super::super) const DELETE: i32 = 2;
    pub(in super::super) const EXISTS: i32 = 3;
    pub(in super::super) const GET_DATA: i32 = 4;
    pub(in super::super) const SET_DATA: i32 = 5;
    pub(in super::super) const GET_ACL: i32 = 6;
    pub(in super::super) const SET_ACL: i32 = 7;
    pub(in super::super) const SYNC: i32 = 9;
    pub(in super::super) const GET_CHILDREN: i32 = 8;
    pub(in super::super) const CREATE: i32 = 15;
    pub(in super::super) const CREATE_CONTAINER: i32 = 19;
    pub(super) const AUTH: i32 = 100;
    pub(super) const CLOSE_SESSION: i32 = -11;
}

/// The codes of failures that callers tell apart.
pub(super) mod code {
    pub(in super::super) const NO_NODE: i32 = -101;
    pub(in super::super) const NODE_EXISTS: i32 = -110;
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    /// The server's code.
    Refused(i32),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A connection with a session.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    session: i64,
    xid: i32,
}

impl Wire {
    /// Connects with a new session.
    pub(super) async fn connect(endpoint: &str) -> io::Result<Self> {
        bounded(async {
            let mut stream = TcpStream::connect(endpoint).await?;
            stream.set_nodelay(true)?;
            stream.write_all(&connect_request(0, [0; PASSWORD_BYTES]).bytes()).await?;
            let mut answer = Answer::receive(&mut stream).await?;
            let (_version, granted, session) = (answer.int()?, answer.int()?, answer.long()?);
            if session == 0 || granted <= 0 {
                return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such session"));
            }
            Ok(Self { stream, session, xid: 0 })
        })
        .await
    }

    pub(super) fn session(&self) -> i64 {
        self.session
    }

    /// Authenticates the session: `digest`, `user:password`.
    pub(super) async fn authenticate(&mut self, scheme: &str, auth: &str) -> Result<(), Failure> {
        let mut body = Frame::default();
        body.int(0).text(scheme).buffer(auth.as_bytes());
        self.send(-4, op::AUTH, body).await.map(drop)
    }

    /// Ends the session.
    pub(super) async fn close(mut self) -> Result<(), Failure> {
        self.xid += 1;
        self.send(self.xid, op::CLOSE_SESSION, Frame::default()).await.map(drop)
    }

    /// The answer to one request.
    pub(super) async fn ask(&mut self, op: i32, body: Frame) -> Result<Answer, Failure> {
        self.xid += 1;
        self.send(self.xid, op, body).await
    }

    async fn send(&mut self, xid: i32, op: i32, body: Frame) -> Result<Answer, Failure> {
        let answer = bounded(async {
            let mut request = Frame::default();
            request.int(xid).int(op).0.extend(body.0);
            self.stream.write_all(&request.bytes()).await?;
            loop {
                let mut answer = Answer::receive(&mut self.stream).await?;
                let (answered, _zxid, code) = (answer.int()?, answer.long()?, answer.int()?);
                // Signs of life and watches come in between.
                if answered == xid {
                    return Ok((answer, code));
                }
            }
        })
        .await?;
        match answer {
            (answer, 0) => Ok(answer),
            (_, code) => Err(Failure::Refused(code)),
        }
    }
}

/// Takes somebody else's session over, whose password follows from its id, and ends it.
///
/// In one breath: its owner, whose connection this breaks, takes it back within a millisecond.
pub(super) async fn end_session(endpoint: &str, session: i64) -> io::Result<()> {
    bounded(async {
        let mut stream = TcpStream::connect(endpoint).await?;
        let mut close = Frame::default();
        close.int(1).int(op::CLOSE_SESSION);
        let both = [connect_request(session, password_of(session)).bytes(), close.bytes()].concat();
        stream.write_all(&both).await?;
        let mut answer = Answer::receive(&mut stream).await?;
        let (_version, _granted, resumed) = (answer.int()?, answer.int()?, answer.long()?);
        if resumed != session {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such session"));
        }
        // Answered, or the connection just ends.
        let _ = Answer::receive(&mut stream).await;
        Ok(())
    })
    .await
}

fn connect_request(session: i64, password: [u8; PASSWORD_BYTES]) -> Frame {
    let mut request = Frame::default();
    request.int(0).long(0).int(SESSION_MILLIS).long(session).buffer(&password).byte(0);
    request
}

/// What the server says to one of its words of four letters.
pub(super) async fn four_letters(endpoint: &str, word: &str) -> io::Result<String> {
    bounded(async {
        let mut stream = TcpStream::connect(endpoint).await?;
        stream.write_all(word.as_bytes()).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok(said)
    })
    .await
}

async fn bounded<T>(request: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, request).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A session's password, as `ZooKeeperServer.generatePasswd` has it: the first bytes of a
/// `java.util.Random` whose seed is the id and a number that is no secret.
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

/// A request being written.
#[derive(Debug, Default)]
pub(super) struct Frame(Vec<u8>);

impl Frame {
    pub(super) fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn int(&mut self, value: i32) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn long(&mut self, value: i64) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn buffer(&mut self, value: &[u8]) -> &mut Self {
        self.int(length(value.len())).0.extend(value);
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.buffer(value.as_bytes())
    }

    pub(super) fn acl(&mut self, permitted: &[super::admin::Permitted<'_>]) -> &mut Self {
        self.int(length(permitted.len()));
        for (permissions, scheme, id) in permitted {
            self.int(*permissions).text(scheme).text(id);
        }
        self
    }

    fn bytes(&self) -> Vec<u8> {
        [&length(self.0.len()).to_be_bytes()[..], &self.0].concat()
    }
}

fn length(of: usize) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}

/// An answer being read.
#[derive(Debug)]
pub(super) struct Answer(std::collections::VecDeque<u8>);

impl Answer {
    async fn receive(stream: &mut TcpStream) -> io::Result<Self> {
        let length = usize::try_from(stream.read_i32().await?).map_err(|_| malformed())?;
        if length > LARGEST_FRAME {
            return Err(malformed());
        }
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        Ok(Self(bytes.into()))
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes: Vec<u8> = self.0.drain(..N.min(self.0.len())).collect();
        bytes.try_into().map_err(|_| malformed())
    }

    pub(super) fn int(&mut self) -> io::Result<i32> {
        self.take().map(i32::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> io::Result<i64> {
        self.take().map(i64::from_be_bytes)
    }

    pub(super) fn buffer(&mut self) -> io::Result<Vec<u8>> {
        // A length of -1 stands for none.
        let length = usize::try_from(self.int()?.max(0)).map_err(|_| malformed())?;
        if length > self.0.len() {
            return Err(malformed());
        }
        Ok(self.0.drain(..length).collect())
    }

    pub(super) fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.buffer()?).map_err(|_| malformed())
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer that is not of ZooKeeper's form")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Java itself says: `new Random(id ^ 0xB3415C00L).nextBytes(new byte[16])`.
    #[test]
    fn a_sessions_password_follows_from_its_id() {
        for (id, password) in [
            (0x1234, 0x3c18_abe0_5b0e_6182_741d_625d_127c_15b0),
            (0x0100_0a2b_3c4d_0001, 0xbc47_3af4_22c9_4ce5_244b_a1f0_6f87_1acd),
            (-5, 0xd471_44b5_e45e_45c4_9c3b_7fdc_d662_57ba_u128),
        ] {
            assert_eq!(password_of(id), password.to_be_bytes(), "{id:#x}");
        }
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        let mut frame = Frame::default();
        frame.int(7).text("ab");
        let mut answer = Answer(frame.0.clone().into());
        assert_eq!((answer.int().unwrap(), answer.text().unwrap().as_str()), (7, "ab"));
        assert!(answer.int().is_err());
        let mut short = Answer(frame.0[..9].to_vec().into());
        assert_eq!(short.int().unwrap(), 7);
        assert!(short.text().is_err());
    }
}
