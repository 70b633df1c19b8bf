//! The file of a candidate's entry. It is locked before it becomes visible, and the entry is alive while it is locked.

use std::{
    fs::{self, File, Metadata, TryLockError},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    layout::{entry_file, is_not_found, is_same_file, open_options, resign_request_file, temp_file},
    record,
};

/// An entry of this process, kept alive by the lock on its open file.
#[derive(Debug)]
pub(crate) struct OwnEntry {
    file: File,
    metadata: Metadata,
    path: PathBuf,
    number: u64,
    session: String,
    generation: AtomicU64,
}

impl OwnEntry {
    /// Creates the entry `number` in `dir`. The caller must hold the lock of the election's counter.
    ///
    /// The file is locked before it gets its final name. Therefore no reader sees a live entry without its lock, and
    /// no reader's attempt to lock the file conflicts with this one.
    pub(crate) fn create(dir: &Path, number: u64, session: &str, payload: &[u8]) -> io::Result<Self> {
        let temp_path = dir.join(temp_file(number));
        let path = dir.join(entry_file(number));
        let file = open_options().read(true).write(true).create_new(true).open(&temp_path)?;
        let published = (|| {
            file.try_lock()?;
            record::write(&file, 1, &body(session, payload))?;
            fs::rename(&temp_path, &path)?;
            file.metadata()
        })();
        let metadata = published.inspect_err(|_| {
            if let Err(error) = fs::remove_file(&temp_path) {
                tracing::debug!(%error, file = %temp_path.display(), "cannot remove a temporary file; the next candidate removes it");
            }
        })?;
        let session = session.to_owned();
        Ok(Self { file, metadata, path, number, session, generation: AtomicU64::new(1) })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A duplicate of the open file. The lock lasts until both are closed.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Whether other candidates still find the entry, because its file was neither deleted nor moved.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        is_same_file(&self.path, &self.metadata)
    }

    /// Replaces the payload. Calls must not overlap.
    pub(crate) fn replace_payload(&self, payload: &[u8]) -> io::Result<()> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        record::write(&self.file, generation, &body(&self.session, payload))
    }

    /// Whether the candidate of this entry has been requested to resign.
    pub(crate) fn is_resign_requested(&self) -> bool {
        self.resign_request_path().is_file()
    }

    fn resign_request_path(&self) -> PathBuf {
        self.path.with_file_name(resign_request_file(self.number))
    }

    /// Removes and unlocks the file. When this returns, the entry is dead for every candidate.
    ///
    /// # Errors
    /// If the file could be neither removed nor unlocked.
    pub(crate) fn release(&self) -> io::Result<()> {
        let removed = match self.is_in_place() {
            Ok(true) => fs::remove_file(&self.path),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if self.is_resign_requested()
            && let Err(error) = fs::remove_file(self.resign_request_path())
        {
            tracing::debug!(%error, "cannot remove a resign request; the next candidate removes it");
        }
        // An unlocked entry is dead, even if its file still exists.
        match (removed, self.file.unlock()) {
            (Err(error), Ok(())) if !is_not_found(&error) => {
                tracing::warn!(%error, file = %self.path.display(), "cannot remove the file of a dead entry");
                Ok(())
            }
            (Err(_), Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for OwnEntry {
    fn drop(&mut self) {
        // Unlocked explicitly, because closing does not unlock while a child between fork and exec shares the file.
        // Also, a watcher that is notified of the closing should find the file unlocked.
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, file = %self.path.display(), "cannot unlock the entry; closing its file unlocks it");
        }
    }
}

/// The state of an entry's file, from [`entry_state`].
#[derive(Debug)]
pub(crate) enum EntryState {
    /// The file does not exist, or no candidate has created it.
    Absent,
    /// The candidate has left. This is final, because a file is locked only once.
    Dead,
    /// The candidate is in the election. The file is open for reading.
    Alive(File),
}

/// Determines whether the entry at `path` is alive, by trying to lock it.
///
/// The attempted lock is shared, so that two readers can hold it at the same time. The file is opened for reading only,
/// so that closing it notifies no watcher.
pub(crate) fn entry_state(path: &Path) -> io::Result<EntryState> {
    let file = match open_options().read(true).open(path) {
        Ok(file) => file,
        Err(error) if is_not_found(&error) => return Ok(EntryState::Absent),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Ok(EntryState::Absent);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(EntryState::Absent);
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(EntryState::Dead),
        Err(TryLockError::WouldBlock) => Ok(EntryState::Alive(file)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The session and the payload of an entry; `None` if its content was not written by a candidate.
pub(crate) fn read(file: &File) -> io::Result<Option<(String, Vec<u8>)>> {
    let Some(record) = record::read(file)? else { return Ok(None) };
    let Some(end) = record.body.iter().position(|b| *b == b'\n') else { return Ok(None) };
    let session = String::from_utf8_lossy(&record.body[..end]).into_owned();
    Ok(Some((session, record.body[end + 1..].to_vec())))
}

fn body(session: &str, payload: &[u8]) -> Vec<u8> {
    [session.as_bytes(), b"\n", payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_until_it_is_released_or_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let entry = OwnEntry::create(dir.path(), 1, "s", b"payload").unwrap();
        let EntryState::Alive(file) = entry_state(entry.path()).unwrap() else { panic!("dead") };
        assert_eq!(read(&file).unwrap(), Some(("s".into(), b"payload".to_vec())));
        entry.replace_payload(b"other").unwrap();
        assert_eq!(read(&file).unwrap(), Some(("s".into(), b"other".to_vec())));
        entry.release().unwrap();
        assert!(matches!(entry_state(entry.path()).unwrap(), EntryState::Absent));
        entry.release().unwrap();

        let entry = OwnEntry::create(dir.path(), 2, "s", b"").unwrap();
        let path = entry.path().to_owned();
        drop(entry);
        assert!(matches!(entry_state(&path).unwrap(), EntryState::Dead));
    }

    /// A live entry never counts as dead, not even while it is being created.
    #[test]
    fn a_live_entry_is_never_seen_unlocked() {
        let dir = tempfile::tempdir().unwrap();
        let last = 500;
        std::thread::scope(|s| {
            let reader = s.spawn(|| {
                for number in 1..=last {
                    let path = dir.path().join(entry_file(number));
                    loop {
                        match entry_state(&path).unwrap() {
                            EntryState::Absent => std::hint::spin_loop(),
                            EntryState::Dead => return Err(number),
                            EntryState::Alive(_) => break,
                        }
                    }
                }
                Ok(())
            });
            let entries: Vec<_> =
                (1..=last).map(|n| OwnEntry::create(dir.path(), n, "s", b"").unwrap()).collect();
            assert_eq!(reader.join().unwrap(), Ok(()));
            drop(entries);
        });
    }

    #[test]
    fn concurrent_readers_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(entry_file(1));
        fs::write(&path, "").unwrap();
        let first = open_options().read(true).open(&path).unwrap();
        first.try_lock_shared().unwrap();
        assert!(matches!(entry_state(&path).unwrap(), EntryState::Dead));
    }

    #[test]
    fn an_entry_that_was_moved_or_replaced_is_not_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let entry = OwnEntry::create(dir.path(), 1, "s", b"").unwrap();
        assert!(entry.is_in_place().unwrap());
        fs::rename(entry.path(), dir.path().join("elsewhere")).unwrap();
        assert!(!entry.is_in_place().unwrap());
        fs::write(entry.path(), "somebody else's").unwrap();
        assert!(!entry.is_in_place().unwrap());
        entry.release().unwrap();
        assert!(entry.path().exists(), "a foreign file is not deleted");
    }

    #[test]
    fn links_pipes_and_directories_are_not_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(entry_state(&path).unwrap(), EntryState::Absent));
        assert!(matches!(entry_state(dir.path()).unwrap(), EntryState::Absent));
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(entry_state(&pipe).unwrap(), EntryState::Absent));
    }
}
