//! The protocol between `tenure run` and its guard: lines of JSON over a socket.
//!
//! `run` first sends open files: the program's standard input, and the lock file on `local:`.

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

/// A message from `run` to the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GuardCommand {
    /// How long the program may run. It replaces the time limits before. Times are in nanoseconds of `CLOCK_BOOTTIME`.
    Window {
        /// When the program gets the stop signal.
        stop_at: u64,
        /// When the program is killed.
        kill_at: u64,
    },
    /// Send the stop signal to the program now.
    Stop,
    /// Send this signal to the program.
    Signal(i32),
}

/// A message from the guard to `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GuardEvent {
    /// The program runs, and gets the signals that its terminal sends.
    Started,
    /// The program has ended, and no process of it is left.
    Ended {
        /// How the program ended.
        exit: ProgramExit,
        /// Whether the guard stopped or killed it because its time limit was reached.
        time_limit_reached: bool,
    },
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProgramExit {
    /// The program exited with this code.
    Exited(i32),
    /// This signal ended the program.
    Signaled(i32),
}

/// How many files are sent at most.
const MAX_FILES: usize = 2;

/// Sends open files to the other end of the socket. They stay open there when they are closed here.
pub(crate) fn send_files(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("cannot send open files: there are too many"));
    }
    let count = [u8::try_from(files.len()).unwrap_or(u8::MAX)];
    sendmsg(to, &[IoSlice::new(&count)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the files of one [`send_files`].
pub(crate) fn receive_files(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
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
    // The kernel silently drops files that exceed this process's limit.
    if files.len() != usize::from(byte[0]) {
        return Err(io::Error::other(
            "some of the open files did not arrive; see the limit on open files (ulimit -n)",
        ));
    }
    Ok(files)
}

/// Encodes a message as a line.
pub(crate) fn encode_line(message: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(message)? + "\n")
}

/// Decodes messages from lines that arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    unread: Vec<u8>,
}

impl LineReader {
    /// Reads the messages that are available. Returns `None` when the other end is closed.
    ///
    /// A blocking socket waits until there is something to read. The result can be empty if that is less than a line.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing to read and the socket is non-blocking, and on invalid messages.
    pub(crate) fn read<M: DeserializeOwned>(&mut self, from: &mut UnixStream) -> io::Result<Option<Vec<M>>> {
        let mut buffer = [0; 4096];
        let mut messages = Vec::new();
        let length = match from.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if is_disconnected(&error) => 0,
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

/// Whether the error means that the other end is closed.
pub(crate) fn is_disconnected(error: &io::Error) -> bool {
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
        std::fs::File::from(file).write_all(b"written through the received file").unwrap();
        let mut read = String::new();
        end.read_to_string(&mut read).unwrap();
        assert_eq!(read, "written through the received file");

        let sent = [
            GuardCommand::Window { stop_at: 1, kill_at: u64::MAX },
            GuardCommand::Stop,
            GuardCommand::Signal(15),
        ];
        let all: String = sent.iter().map(|command| encode_line(command).unwrap()).collect();
        let (first, rest) = all.split_at(7);
        let mut lines = LineReader::default();
        here.write_all(first.as_bytes()).unwrap();
        assert_eq!(lines.read::<GuardCommand>(&mut there).unwrap(), Some(vec![]));
        here.write_all(rest.as_bytes()).unwrap();
        assert_eq!(lines.read(&mut there).unwrap(), Some(sent.to_vec()));
        drop(here);
        assert_eq!(lines.read::<GuardCommand>(&mut there).unwrap(), None);
    }
}
