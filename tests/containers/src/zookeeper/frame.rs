//! The encoding of ZooKeeper's client protocol.
//!
//! Numbers are big-endian; texts, buffers and frames are preceded by their length. See
//! `zookeeper-jute/src/main/resources/zookeeper.jute` in ZooKeeper's source.

use std::{collections::VecDeque, io};

use tokio::{io::AsyncReadExt as _, net::TcpStream};

const MAX_FRAME_BYTES: usize = 16 << 20;

/// An entry of an access control list: the permission bits (1 to read, 2 to write, 4 to create children, 8 to delete
/// children, 16 to change the list), a scheme and an id.
pub type AclEntry<'a> = (i32, &'a str, &'a str);

/// A request that is being encoded.
#[derive(Debug, Default)]
pub(super) struct Request(Vec<u8>);

impl Request {
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

    pub(super) fn acl(&mut self, acl: &[AclEntry<'_>]) -> &mut Self {
        self.int(length(acl.len()));
        for (permissions, scheme, id) in acl {
            self.int(*permissions).text(scheme).text(id);
        }
        self
    }

    pub(super) fn append(&mut self, body: &Self) {
        self.0.extend(&body.0);
    }

    /// The frame: the body after its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        [&length(self.0.len()).to_be_bytes()[..], &self.0].concat()
    }
}

fn length(of: usize) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}

/// A response that is being decoded.
#[derive(Debug)]
pub(super) struct Response(VecDeque<u8>);

impl Response {
    pub(super) async fn receive(stream: &mut TcpStream) -> io::Result<Self> {
        let length = usize::try_from(stream.read_i32().await?).map_err(|_| malformed())?;
        if length > MAX_FRAME_BYTES {
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
        // A length of -1 means that there is no buffer.
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
    io::Error::new(io::ErrorKind::InvalidData, "the response does not have the form of ZooKeeper's protocol")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_that_ends_early_is_an_error() {
        let mut request = Request::default();
        request.int(7).text("ab");
        let mut response = Response(request.0.clone().into());
        assert_eq!((response.int().unwrap(), response.text().unwrap().as_str()), (7, "ab"));
        assert!(response.int().is_err());
        let mut short = Response(request.0[..9].to_vec().into());
        assert_eq!(short.int().unwrap(), 7);
        assert!(short.text().is_err());
    }
}
