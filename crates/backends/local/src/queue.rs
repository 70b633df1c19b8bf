//! The queue of an election: which entries are ahead of which, and the removal of dead ones.

use std::{fs, io, path::Path};

use crate::{
    entry::{EntryState, OwnEntry, entry_state},
    layout::{entry_file, entry_number, is_not_found, is_temp_file, resign_request_number},
    token_counter::TokenCounter,
};

/// The position of an entry in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueuePosition {
    /// No live entry is ahead.
    First {
        /// Whether dead entries were found ahead.
        dead_entries: bool,
    },
    /// The live entry with this number is the predecessor.
    Behind(u64),
    /// The entry's file no longer exists.
    Gone,
}

/// The position of `own` among the entries in `dir`.
///
/// This needs no lock. A candidate with a lower number received its number, and locked and renamed its file, before
/// `own` received its number; each of them held the counter's lock. Therefore every live entry ahead of `own` has been
/// in the directory for longer than `own`. A dead entry stays dead, so that the entries ahead can only become fewer,
/// and none is missed.
pub(crate) fn queue_position(own: &OwnEntry, dir: &Path) -> io::Result<QueuePosition> {
    let numbers = entry_numbers(dir)?;
    let mut dead_entries = false;
    for number in numbers.into_iter().rev().filter(|n| *n < own.number()) {
        match entry_state(&dir.join(entry_file(number)))? {
            EntryState::Absent => {}
            EntryState::Dead => dead_entries = true,
            EntryState::Alive(_) => {
                let in_place = own.is_in_place()?;
                return Ok(if in_place { QueuePosition::Behind(number) } else { QueuePosition::Gone });
            }
        }
    }
    // Checked last: an entry leads only if it still exists after all predecessors have left.
    Ok(if own.is_in_place()? { QueuePosition::First { dead_entries } } else { QueuePosition::Gone })
}

/// The numbers of all entries in `dir` in ascending order, including dead ones; none if `dir` does not exist.
pub(crate) fn entry_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = file_names(dir)?.iter().filter_map(|n| entry_number(n)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The outcome of [`sweep`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SweepOutcome {
    /// Whether a live entry remains.
    pub(crate) has_leader: bool,
    /// The highest entry number found; zero if there was no entry.
    pub(crate) highest_number: u64,
}

/// Removes the files of dead candidates: entries, entries that were being created, and resign requests.
///
/// The caller must hold the counter's lock. Then no candidate creates an entry meanwhile, and no other process removes
/// files, so that the file that was checked is the file that is removed.
pub(crate) fn sweep(dir: &Path, _locked: &TokenCounter) -> io::Result<SweepOutcome> {
    let names = file_names(dir)?;
    for name in names.iter().filter(|n| is_temp_file(n)) {
        remove_if_dead(&dir.join(name))?;
    }
    let mut outcome = SweepOutcome { has_leader: false, highest_number: 0 };
    let mut live_numbers = Vec::new();
    for number in names.iter().filter_map(|n| entry_number(n)) {
        let path = dir.join(entry_file(number));
        // A directory or a symbolic link with such a name is not an entry.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            outcome.highest_number = outcome.highest_number.max(number);
        }
        if remove_if_dead(&path)? {
            live_numbers.push(number);
        }
    }
    outcome.has_leader = !live_numbers.is_empty();
    // Resign requests that came too late. A file with such a name and another content is foreign.
    for name in names.iter().filter(|n| resign_request_number(n).is_some_and(|n| !live_numbers.contains(&n)))
    {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == 0) {
            remove(&path)?;
        }
    }
    Ok(outcome)
}

/// Removes the file if its entry is dead. Returns whether the entry is alive.
fn remove_if_dead(path: &Path) -> io::Result<bool> {
    match entry_state(path)? {
        EntryState::Absent => Ok(false),
        EntryState::Alive(_) => Ok(true),
        EntryState::Dead => remove(path).map(|()| false),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The names of the files in `dir`; none if it does not exist, or is not a directory.
pub(crate) fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_not_found(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use tenure_core::ElectionName;

    use super::*;
    use crate::layout::{Layout, temp_file};

    #[test]
    fn the_nearest_live_entry_is_the_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let create = |n| OwnEntry::create(dir.path(), n, "s", b"").unwrap();
        let (one, two, three, four) = (create(1), create(2), create(3), create(4));
        assert_eq!(queue_position(&one, dir.path()).unwrap(), QueuePosition::First { dead_entries: false });
        assert_eq!(queue_position(&four, dir.path()).unwrap(), QueuePosition::Behind(3));
        drop(three);
        assert_eq!(queue_position(&four, dir.path()).unwrap(), QueuePosition::Behind(2));
        drop(one);
        assert_eq!(queue_position(&four, dir.path()).unwrap(), QueuePosition::Behind(2));
        assert_eq!(queue_position(&two, dir.path()).unwrap(), QueuePosition::First { dead_entries: true });
        fs::remove_file(two.path()).unwrap();
        assert_eq!(queue_position(&two, dir.path()).unwrap(), QueuePosition::Gone);
        assert_eq!(queue_position(&four, dir.path()).unwrap(), QueuePosition::First { dead_entries: true });
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(queue_position(&four, dir.path()).unwrap(), QueuePosition::Gone);
    }

    /// A crash at each step of entering leaves a number, a temporary file, or an entry.
    #[test]
    fn only_files_of_dead_candidates_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().into());
        layout.create_dirs().unwrap();
        let counter = TokenCounter::try_lock(&layout, &ElectionName::new("e").unwrap()).unwrap().unwrap();
        let dir = root.path();
        for dead_file in [temp_file(1), temp_file(9), entry_file(1), entry_file(2)] {
            fs::write(dir.join(dead_file), "").unwrap();
        }
        for foreign_file in ["README", ".new-x", "entry-1"] {
            fs::write(dir.join(foreign_file), "").unwrap();
        }
        fs::create_dir(dir.join(entry_file(3))).unwrap();
        let _entry = OwnEntry::create(dir, 4, "s", b"").unwrap();
        fs::write(dir.join(entry_file(5)), "").unwrap();
        assert_eq!(sweep(dir, &counter).unwrap(), SweepOutcome { has_leader: true, highest_number: 5 });
        let mut remaining = file_names(dir).unwrap();
        remaining.sort();
        let expected = [".new-x", "README", "elections", &entry_file(3), &entry_file(4), "entry-1", "tokens"];
        assert_eq!(remaining, {
            let mut expected = expected.map(str::to_owned);
            expected.sort();
            expected
        });
    }
}
