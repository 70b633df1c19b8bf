//! One candidate's file: made locked, alive while locked.

use std::{
    fs::{self, File, Metadata, TryLockError},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    layout::{entry_file, is_absent, leads_to, new_file, open_options, resign_file},
    record,
};

/// An entry of ours, kept alive by the lock on its open file.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    identity: Metadata,
    path: PathBuf,
    number: u64,
    session: String,
    generation: AtomicU64,
}

impl Held {
    /// Makes the entry `number` in `dir`. To be called with the election's counter locked.
    ///
    /// The file is locked before it gets its name, so that nobody ever sees a living
    /// entry unlocked, or finds its own lock attempt in the owner's way.
    pub(crate) fn make(dir: &Path, number: u64, session: &str, payload: &[u8]) -> io::Result<Self> {
        let new = dir.join(new_file(number));
        let path = dir.join(entry_file(number));
        let file = open_options().read(true).write(true).create_new(true).open(&new)?;
        let named = (|| {
            file.try_lock()?;
            record::write(&file, 1, &body(session, payload))?;
            fs::rename(&new, &path)?;
            file.metadata()
        })();
        let identity = named.inspect_err(|_| {
            if let Err(error) = fs::remove_file(&new) {
                tracing::debug!(%error, file = %new.display(), "left for the next candidate to remove");
            }
        })?;
        let session = session.to_owned();
        Ok(Self { file, identity, path, number, session, generation: AtomicU64::new(1) })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A duplicate of the open file: the lock is on both.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Whether others still find the entry: nobody has deleted or moved its file.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        leads_to(&self.path, &self.identity)
    }

    /// Replaces the payload. One caller at a time.
    pub(crate) fn replace(&self, payload: &[u8]) -> io::Result<()> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        record::write(&self.file, generation, &body(&self.session, payload))
    }

    /// Whether somebody has asked its candidate to resign.
    pub(crate) fn is_asked_to_resign(&self) -> bool {
        self.path.with_file_name(resign_file(self.number)).is_file()
    }

    /// Ends the entry's life: it counts for nobody when this returns.
    ///
    /// # Errors
    /// When neither removing nor unlocking the file worked.
    pub(crate) fn release(&self) -> io::Result<()> {
        let removed = match self.is_in_place() {
            Ok(true) => fs::remove_file(&self.path),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if self.is_asked_to_resign()
            && let Err(error) = fs::remove_file(self.path.with_file_name(resign_file(self.number)))
        {
            tracing::debug!(%error, "left for the next candidate to remove");
        }
        // An entry without its lock is dead, removed or not.
        match (removed, self.file.unlock()) {
            (Err(error), Ok(())) if !is_absent(&error) => {
                tracing::warn!(%error, file = %self.path.display(), "a dead entry's file stays behind");
                Ok(())
            }
            (Err(_), Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Not left to closing: a child that is between fork and exec shares the lock,
        // and a watcher that is told of the closing shall find the lock free.
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, file = %self.path.display(), "the entry's lock goes with its file");
        }
    }
}

/// What is known of an entry's file.
#[derive(Debug)]
pub(crate) enum Look {
    /// There is none, or something that no candidate made.
    Absent,
    /// Its owner has gone, for good: no file is ever locked a second time.
    Dead,
    /// Its owner lives.
    Living(File),
}

/// Looks whether the entry at `path` lives.
///
/// The lock it tries is a shared one, so that two who look at once both get it; and
/// the file is open for reading only, so that closing it wakes no watcher.
pub(crate) fn look(path: &Path) -> io::Result<Look> {
    let file = match open_options().read(true).open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(Look::Absent),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Ok(Look::Absent);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(Look::Absent);
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(Look::Dead),
        Err(TryLockError::WouldBlock) => Ok(Look::Living(file)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// An entry's session and payload; nothing when its content is not what a candidate wrote.
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
        let held = Held::make(dir.path(), 1, "s", b"payload").unwrap();
        let Look::Living(file) = look(held.path()).unwrap() else { panic!("dead") };
        assert_eq!(read(&file).unwrap(), Some(("s".into(), b"payload".to_vec())));
        held.replace(b"other").unwrap();
        assert_eq!(read(&file).unwrap(), Some(("s".into(), b"other".to_vec())));
        held.release().unwrap();
        assert!(matches!(look(held.path()).unwrap(), Look::Absent));
        held.release().unwrap();

        let held = Held::make(dir.path(), 2, "s", b"").unwrap();
        let path = held.path().to_owned();
        drop(held);
        assert!(matches!(look(&path).unwrap(), Look::Dead));
    }

    /// An entry of a living owner is never taken for dead, not even as it appears.
    #[test]
    fn a_living_entry_is_never_seen_unlocked() {
        let dir = tempfile::tempdir().unwrap();
        let last = 500;
        std::thread::scope(|s| {
            let looker = s.spawn(|| {
                for number in 1..=last {
                    let path = dir.path().join(entry_file(number));
                    loop {
                        match look(&path).unwrap() {
                            Look::Absent => std::hint::spin_loop(),
                            Look::Dead => return Err(number),
                            Look::Living(_) => break,
                        }
                    }
                }
                Ok(())
            });
            let held: Vec<_> = (1..=last).map(|n| Held::make(dir.path(), n, "s", b"").unwrap()).collect();
            assert_eq!(looker.join().unwrap(), Ok(()));
            drop(held);
        });
    }

    #[test]
    fn any_number_of_lookers_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(entry_file(1));
        fs::write(&path, "").unwrap();
        let first = open_options().read(true).open(&path).unwrap();
        first.try_lock_shared().unwrap();
        assert!(matches!(look(&path).unwrap(), Look::Dead));
    }

    #[test]
    fn an_entry_that_was_moved_or_replaced_is_not_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::make(dir.path(), 1, "s", b"").unwrap();
        assert!(held.is_in_place().unwrap());
        fs::rename(held.path(), dir.path().join("elsewhere")).unwrap();
        assert!(!held.is_in_place().unwrap());
        fs::write(held.path(), "somebody else's").unwrap();
        assert!(!held.is_in_place().unwrap());
        held.release().unwrap();
        assert!(held.path().exists(), "what is not ours is not deleted");
    }

    #[test]
    fn links_pipes_and_directories_are_no_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(look(&path).unwrap(), Look::Absent));
        assert!(matches!(look(dir.path()).unwrap(), Look::Absent));
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(look(&pipe).unwrap(), Look::Absent));
    }
}
