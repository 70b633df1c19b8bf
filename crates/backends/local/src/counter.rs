//! An election's counter: the highest number given out, and the lock under which numbers are given.

use std::{
    fs::{File, TryLockError},
    io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use tenure_core::ElectionName;

use crate::{
    layout::{Layout, leads_to, open_options, sync_dir},
    record,
};

/// How often the file may be replaced under us before we say that it is busy.
const ATTEMPTS: usize = 8;

/// The counter, locked against every other process and session until it is dropped.
#[derive(Debug)]
pub(crate) struct Counter {
    file: File,
    path: PathBuf,
}

impl Counter {
    /// Locks the election's counter; `None` when another has it locked. Never waits.
    pub(crate) fn try_lock(layout: &Layout, election: &ElectionName) -> io::Result<Option<Self>> {
        let path = layout.counter(election);
        for _ in 0..ATTEMPTS {
            let file = open_options().read(true).write(true).create(true).truncate(false).open(&path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let counter = Self { file, path: path.clone() };
            // Deleted between opening and locking: others lock the file that took its place.
            if counter.is_in_place()? {
                return Ok(Some(counter));
            }
        }
        Ok(None)
    }

    /// Whether nobody has deleted the file; then nobody else has the counter locked.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        leads_to(&self.path, &self.file.metadata()?)
    }

    /// Takes the next number, greater than any taken before and than `floor`.
    ///
    /// It is on disk when this returns. A crash at any point before wastes it at most.
    pub(crate) fn next(&self, floor: u64) -> io::Result<u64> {
        let last = record::read(&self.file)?.map(|r| r.generation);
        if last.is_none() && self.file.metadata()?.len() > 0 {
            tracing::warn!(file = %self.path.display(), "the token counter is damaged; going on from the clock");
        }
        let number = last
            .unwrap_or_else(from_the_clock)
            .max(floor)
            .checked_add(1)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no higher number is left"))?;
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

impl Drop for Counter {
    fn drop(&mut self) {
        // Not left to closing: a child that is between fork and exec shares the lock.
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, file = %self.path.display(), "the counter's lock goes with its file");
        }
    }
}

/// Where numbers start when no counter is there to go on from.
///
/// A counter may be missing because it was deleted, or was on a file system that a
/// reboot empties, while resources still remember tokens. Microseconds outrun any
/// counter: an entry takes longer than that to make.
fn from_the_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> (tempfile::TempDir, Layout, ElectionName) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().into());
        layout.make().unwrap();
        (dir, layout, ElectionName::new("e").unwrap())
    }

    fn take(layout: &Layout, election: &ElectionName) -> u64 {
        Counter::try_lock(layout, election).unwrap().unwrap().next(0).unwrap()
    }

    #[test]
    fn numbers_go_up_by_one_and_one_holder_at_a_time_takes_them() {
        let (_dir, layout, election) = setting();
        let first = take(&layout, &election);
        assert_eq!(take(&layout, &election), first + 1);
        let held = Counter::try_lock(&layout, &election).unwrap().unwrap();
        assert!(Counter::try_lock(&layout, &election).unwrap().is_none());
        drop(held);
        assert_eq!(take(&layout, &election), first + 2);
    }

    #[test]
    fn a_number_is_above_the_floor() {
        let (_dir, layout, election) = setting();
        let counter = Counter::try_lock(&layout, &election).unwrap().unwrap();
        assert_eq!(counter.next(u64::MAX - 1).unwrap(), u64::MAX);
        assert_eq!(counter.next(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_damaged_truncated_or_deleted_counter_never_gives_a_lower_number() {
        let (_dir, layout, election) = setting();
        let path = layout.counter(&election);
        let mut last = take(&layout, &election);
        let damages: [&dyn Fn(); 4] = [
            &|| std::fs::write(&path, "garbage").unwrap(),
            &|| std::fs::write(&path, "").unwrap(),
            &|| std::fs::remove_file(&path).unwrap(),
            &|| std::fs::File::options().write(true).open(&path).unwrap().set_len(30).unwrap(),
        ];
        for damage in damages {
            for _ in 0..5 {
                let number = take(&layout, &election);
                assert!(number > last);
                last = number;
            }
            damage();
            let number = take(&layout, &election);
            assert!(number > last, "{number} after {last}");
            last = number;
        }
    }

    #[test]
    fn a_counter_deleted_while_it_is_locked_is_not_locked_for_others() {
        let (_dir, layout, election) = setting();
        let held = Counter::try_lock(&layout, &election).unwrap().unwrap();
        let last = held.next(0).unwrap();
        std::fs::remove_file(layout.counter(&election)).unwrap();
        assert!(take(&layout, &election) > last);
        assert!(!held.is_in_place().unwrap());
    }
}
