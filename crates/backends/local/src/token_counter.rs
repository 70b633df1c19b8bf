//! The token counter of an election: the highest number given out, and the lock under which numbers are given out.

use std::{
    fs::{File, TryLockError},
    io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use tenure_core::ElectionName;

use crate::{
    layout::{Layout, is_same_file, open_options, sync_dir},
    record,
};

/// How often locking is retried because the file was replaced meanwhile, before the counter counts as locked.
const MAX_LOCK_ATTEMPTS: usize = 8;

/// A locked counter. No other process or session can lock it until this is dropped.
#[derive(Debug)]
pub(crate) struct TokenCounter {
    file: File,
    path: PathBuf,
}

impl TokenCounter {
    /// Locks the election's counter; `None` if another process or session has locked it. Never waits.
    pub(crate) fn try_lock(layout: &Layout, election: &ElectionName) -> io::Result<Option<Self>> {
        let path = layout.counter(election);
        for _ in 0..MAX_LOCK_ATTEMPTS {
            let file = open_options().read(true).write(true).create(true).truncate(false).open(&path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let counter = Self { file, path: path.clone() };
            // If the file was deleted between opening and locking, others lock the file that replaced it.
            if counter.is_in_place()? {
                return Ok(Some(counter));
            }
        }
        Ok(None)
    }

    /// Whether the file still exists under its name, so that no other process can lock the counter.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        is_same_file(&self.path, &self.file.metadata()?)
    }

    /// Takes the next number, which is higher than `floor` and every number taken before.
    ///
    /// The number is on disk when this returns. A crash before that can at most waste it.
    pub(crate) fn next(&self, floor: u64) -> io::Result<u64> {
        let last = record::read(&self.file)?.map(|r| r.generation);
        if last.is_none() && self.file.metadata()?.len() > 0 {
            tracing::warn!(file = %self.path.display(), "token counter is damaged; continuing from the wall clock");
        }
        let number = last.unwrap_or_else(wall_clock_micros).max(floor).checked_add(1).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the highest possible number has been used")
        })?;
        record::write(&self.file, number, b"")?;
        self.file.sync_data()?;
        if last.is_none()
            && let Some(dir) = self.path.parent()
        {
            sync_dir(dir)?;
        }
        Ok(number)
    }
}

impl Drop for TokenCounter {
    fn drop(&mut self) {
        // Unlocked explicitly, because closing does not unlock while a child between fork and exec shares the file.
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, file = %self.path.display(), "cannot unlock the counter; closing its file unlocks it");
        }
    }
}

/// The number from which to continue if there is no intact counter: the wall clock in microseconds.
///
/// A counter can be missing because it was deleted, or was on a file system that a reboot empties. Resources can still
/// remember its tokens. The clock is ahead of every such token, because creating an entry takes longer than 1 µs.
fn wall_clock_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_store() -> (tempfile::TempDir, Layout, ElectionName) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().into());
        layout.create_dirs().unwrap();
        (dir, layout, ElectionName::new("e").unwrap())
    }

    fn take_number(layout: &Layout, election: &ElectionName) -> u64 {
        TokenCounter::try_lock(layout, election).unwrap().unwrap().next(0).unwrap()
    }

    #[test]
    fn numbers_increase_by_one_and_one_holder_at_a_time_takes_them() {
        let (_dir, layout, election) = new_store();
        let first = take_number(&layout, &election);
        assert_eq!(take_number(&layout, &election), first + 1);
        let locked = TokenCounter::try_lock(&layout, &election).unwrap().unwrap();
        assert!(TokenCounter::try_lock(&layout, &election).unwrap().is_none());
        drop(locked);
        assert_eq!(take_number(&layout, &election), first + 2);
    }

    #[test]
    fn a_number_is_above_the_floor() {
        let (_dir, layout, election) = new_store();
        let counter = TokenCounter::try_lock(&layout, &election).unwrap().unwrap();
        assert_eq!(counter.next(u64::MAX - 1).unwrap(), u64::MAX);
        assert_eq!(counter.next(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_damaged_truncated_or_deleted_counter_never_gives_a_lower_number() {
        let (_dir, layout, election) = new_store();
        let path = layout.counter(&election);
        let mut last = take_number(&layout, &election);
        let damages: [&dyn Fn(); 4] = [
            &|| std::fs::write(&path, "garbage").unwrap(),
            &|| std::fs::write(&path, "").unwrap(),
            &|| std::fs::remove_file(&path).unwrap(),
            &|| std::fs::File::options().write(true).open(&path).unwrap().set_len(30).unwrap(),
        ];
        for damage in damages {
            for _ in 0..5 {
                let number = take_number(&layout, &election);
                assert!(number > last);
                last = number;
            }
            damage();
            let number = take_number(&layout, &election);
            assert!(number > last, "{number} after {last}");
            last = number;
        }
    }

    #[test]
    fn a_counter_deleted_while_it_is_locked_is_not_locked_for_others() {
        let (_dir, layout, election) = new_store();
        let locked = TokenCounter::try_lock(&layout, &election).unwrap().unwrap();
        let last = locked.next(0).unwrap();
        std::fs::remove_file(layout.counter(&election)).unwrap();
        assert!(take_number(&layout, &election) > last);
        assert!(!locked.is_in_place().unwrap());
    }
}
