//! What `run` and the guard say to each other: a line of JSON each, over a socket.
//!
//! First come open files: the program's standard input, and whatever keeps the leadership.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What the guard is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// How long the program may go on, as things stand; in nanoseconds of CLOCK_BOOTTIME.
    Window {
        /// When it is told to stop.
        stop_at: u64,
        /// When it is killed.
        kill_at: u64,
    },
    /// It is told to stop now.
    Stop,
    /// It is sent this signal.
    Signal(i32),
}

/// What the guard answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The program runs, and hears what its terminal sends.
    Started,
    /// Nothing of it is left.
    Ended {
        /// How it ended.
        how: Ended,
        /// Whether the guard had told it to stop, or killed it, because its time was up.
        out_of_time: bool,
    },
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// The program returned this.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

/// The most files that are handed over.
const MOST_FILES: usize = 2;

/// Hands open files over, which are dropped at the other end only.
pub(crate) fn send_files(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files to hand over"));
    }
    let count = [u8::try_from(files.len()).unwrap_or(u8::MAX)];
    sendmsg(to, &[IoSlice::new(&count)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes what [`send_files`] hands over.
pub(crate) fn receive_files(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received =
        recvmsg(from.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    // What this process has no room for is left out without a word.
    if files.len() != usize::from(byte[0]) {
        return Err(io::Error::other("some of the files that were handed over did not arrive"));
    }
    Ok(files)
}

/// A message as it is sent.
pub(crate) fn line(message: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(message)? + "\n")
}

/// Lines that arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    unread: Vec<u8>,
}

impl Lines {
    /// Reads what there is, waiting for something unless the socket does not wait; `None` when the other end is gone.
    ///
    /// # Errors
    /// Also when there is nothing, and the socket does not wait.
    pub(crate) fn read<M: DeserializeOwned>(&mut self, from: &mut UnixStream) -> io::Result<Option<Vec<M>>> {
        let mut buffer = [0; 4096];
        let mut messages = Vec::new();
        let length = match from.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if is_gone(&error) => 0,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(None);
        }
        self.unread.extend_from_slice(&buffer[..length]);
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            messages.push(serde_json::from_slice(&line)?);
        }
        Ok(Some(messages))
    }
}

/// Whether the other end has gone, and what it had not read with it.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn files_and_lines_arrive_as_they_were_sent() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (mut end, file) = std::io::pipe().unwrap();
        send_files(&here, &[file.as_fd()]).unwrap();
        drop(file);
        let files = receive_files(&there).unwrap();
        let [file] = <[OwnedFd; 1]>::try_from(files).unwrap();
        std::fs::File::from(file).write_all(b"through another hand").unwrap();
        let mut read = String::new();
        end.read_to_string(&mut read).unwrap();
        assert_eq!(read, "through another hand");

        let sent = [Order::Window { stop_at: 1, kill_at: u64::MAX }, Order::Stop, Order::Signal(15)];
        let all: String = sent.iter().map(|order| line(order).unwrap()).collect();
        let (first, rest) = all.split_at(7);
        let mut lines = Lines::default();
        here.write_all(first.as_bytes()).unwrap();
        assert_eq!(lines.read::<Order>(&mut there).unwrap(), Some(vec![]));
        here.write_all(rest.as_bytes()).unwrap();
        assert_eq!(lines.read(&mut there).unwrap(), Some(sent.to_vec()));
        drop(here);
        assert_eq!(lines.read::<Order>(&mut there).unwrap(), None);
    }
}
