//! The protocol between `tenure run` and its guard: lines of JSON over a socket.
//!
//! `run` first sends open files: see [`GuardFiles`].

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
    /// The socket is closed next, and `run` goes on: it ends the leadership itself.
    Finish,
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
        /// How many processes it had left running when it exited by itself.
        left_running: u32,
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

/// The open files that `run` sends, before the first message. They stay open in the guard when they are closed here.
///
/// Two bytes come with them: whether there is a lock, and whether there is a session.
#[derive(Debug)]
pub(crate) struct GuardFiles<F> {
    /// The program's standard input.
    pub(crate) input: F,
    /// On `local:`, the lock file.
    pub(crate) lock: Option<F>,
    /// On stores with sessions, what the guard needs to end the session.
    pub(crate) session: Option<SessionFiles<F>>,
}

/// What the guard needs to end the session of a `run` that was killed.
#[derive(Debug)]
pub(crate) struct SessionFiles<F> {
    /// The pidfd of `run`. That it is readable is the proof that `run` is dead.
    pub(crate) tenure: F,
    /// The [session](crate::end_session::SessionToEnd).
    pub(crate) session: F,
}

/// How many files are sent at most.
const MAX_FILES: usize = 4;

impl GuardFiles<BorrowedFd<'_>> {
    /// Sends the files to the other end of the socket.
    pub(crate) fn send(&self, to: &UnixStream) -> io::Result<()> {
        let mut files = vec![self.input];
        files.extend(self.lock);
        if let Some(SessionFiles { tenure, session }) = &self.session {
            files.extend([*tenure, *session]);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::Error::other("cannot send open files: there are too many"));
        }
        let kinds = [u8::from(self.lock.is_some()), u8::from(self.session.is_some())];
        sendmsg(to, &[IoSlice::new(&kinds)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl GuardFiles<OwnedFd> {
    /// Receives the files that were [sent](GuardFiles::send).
    pub(crate) fn receive(from: &UnixStream) -> io::Result<Self> {
        let (mut files, [has_lock, has_session]) = receive_files(from)?;
        let expected = 1 + usize::from(has_lock) + 2 * usize::from(has_session);
        // The kernel silently drops files that exceed this process's limit.
        if files.len() != expected {
            return Err(io::Error::other(
                "some of the open files did not arrive; see the limit on open files (ulimit -n)",
            ));
        }
        let mut next = || files.next().ok_or_else(|| io::Error::other("an open file did not arrive"));
        Ok(Self {
            input: next()?,
            lock: has_lock.then(&mut next).transpose()?,
            session: match has_session {
                true => Some(SessionFiles { tenure: next()?, session: next()? }),
                false => None,
            },
        })
    }
}

/// Receives files, and the two bytes with them.
fn receive_files(from: &UnixStream) -> io::Result<(std::vec::IntoIter<OwnedFd>, [bool; 2])> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut kinds = [0; 2];
    let received =
        recvmsg(from.as_fd(), &mut [IoSliceMut::new(&mut kinds)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes < kinds.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    Ok((files.into_iter(), kinds.map(|kind| kind != 0)))
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
        for (has_lock, has_session) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut pipes = [(); 4].map(|()| std::io::pipe().unwrap());
            let [input, lock, tenure, session] = &pipes;
            let session = SessionFiles { tenure: tenure.1.as_fd(), session: session.1.as_fd() };
            let sent = GuardFiles {
                input: input.1.as_fd(),
                lock: has_lock.then(|| lock.1.as_fd()),
                session: has_session.then_some(session),
            };
            sent.send(&here).unwrap();
            let GuardFiles { input, lock, session } = GuardFiles::receive(&there).unwrap();
            assert_eq!((lock.is_some(), session.is_some()), (has_lock, has_session));
            let (tenure, session) = session.map(|files| (files.tenure, files.session)).unzip();
            for (file, (end, writer)) in [Some(input), lock, tenure, session].into_iter().zip(&mut pipes) {
                let Some(file) = file else { continue };
                drop(std::mem::replace(writer, std::io::pipe().unwrap().1));
                std::fs::File::from(file).write_all(b"written through the received file").unwrap();
                let mut read = String::new();
                end.read_to_string(&mut read).unwrap();
                assert_eq!(read, "written through the received file");
            }
        }

        let sent = [
            GuardCommand::Window { stop_at: 1, kill_at: u64::MAX },
            GuardCommand::Stop,
            GuardCommand::Signal(15),
            GuardCommand::Finish,
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
