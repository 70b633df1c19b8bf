//! Who is ahead of whom among the entries of one election.

use std::{fs, io, path::Path};

use crate::{
    counter::Counter,
    entry::{Held, Look, look},
    layout::{entry_file, entry_number, is_absent, is_new_file, resign_number},
};

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody living is ahead.
    First {
        /// Whether dead entries are in the directory.
        tidy: bool,
    },
    /// The entry with this number is just ahead.
    Behind(u64),
    /// The entry's file is no longer there.
    Gone,
}

/// Where `held` stands.
///
/// This needs no lock. Whoever has a lower number was given it, locked and named its
/// file before `held` got its own number, all under the counter's lock. So every
/// living entry ahead has been in the directory since before `held` was, and death is
/// final: those ahead can only become fewer, and none is overlooked.
pub(crate) fn standing(held: &Held, dir: &Path) -> io::Result<Standing> {
    let numbers = numbers(dir)?;
    let mut tidy = false;
    for number in numbers.into_iter().rev().filter(|n| *n < held.number()) {
        match look(&dir.join(entry_file(number)))? {
            Look::Absent => {}
            Look::Dead => tidy = true,
            Look::Living(_) => {
                let here = held.is_in_place()?;
                return Ok(if here { Standing::Behind(number) } else { Standing::Gone });
            }
        }
    }
    // Asked last: leading counts only with an entry that outlived all departures.
    Ok(if held.is_in_place()? { Standing::First { tidy } } else { Standing::Gone })
}

/// The numbers of all entries in `dir`, dead ones too, in order; none when it does not exist.
pub(crate) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = names(dir)?.iter().filter_map(|n| entry_number(n)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What [`sweep`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Whether somebody leads.
    pub(crate) taken: bool,
    /// The highest number there was; zero when there was none.
    pub(crate) highest: u64,
}

/// Removes what the dead have left: their entries, and entries half made.
///
/// The counter's lock makes this safe: nobody is making an entry meanwhile, and
/// nobody else removes, so that the file looked at is the file removed.
pub(crate) fn sweep(dir: &Path, _locked: &Counter) -> io::Result<Swept> {
    let names = names(dir)?;
    for name in names.iter().filter(|n| is_new_file(n)) {
        remove_dead(&dir.join(name))?;
    }
    let mut swept = Swept { taken: false, highest: 0 };
    let mut living = Vec::new();
    for number in names.iter().filter_map(|n| entry_number(n)) {
        let path = dir.join(entry_file(number));
        // A directory or a link of that name is nobody's entry.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            swept.highest = swept.highest.max(number);
        }
        if remove_dead(&path)? {
            living.push(number);
        }
    }
    swept.taken = !living.is_empty();
    // Wishes that came too late. A file of that name which is none is a stranger's.
    for asked in names.iter().filter(|n| resign_number(n).is_some_and(|n| !living.contains(&n))) {
        let path = dir.join(asked);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == 0) {
            remove(&path)?;
        }
    }
    Ok(swept)
}

/// Removes the file if it is dead; whether it lives.
fn remove_dead(path: &Path) -> io::Result<bool> {
    match look(path)? {
        Look::Absent => Ok(false),
        Look::Living(_) => Ok(true),
        Look::Dead => remove(path).map(|()| false),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
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
    use crate::layout::{Layout, new_file};

    #[test]
    fn the_nearest_living_entry_is_just_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let make = |n| Held::make(dir.path(), n, "s", b"").unwrap();
        let (one, two, three, four) = (make(1), make(2), make(3), make(4));
        assert_eq!(standing(&one, dir.path()).unwrap(), Standing::First { tidy: false });
        assert_eq!(standing(&four, dir.path()).unwrap(), Standing::Behind(3));
        drop(three);
        assert_eq!(standing(&four, dir.path()).unwrap(), Standing::Behind(2));
        drop(one);
        assert_eq!(standing(&four, dir.path()).unwrap(), Standing::Behind(2));
        assert_eq!(standing(&two, dir.path()).unwrap(), Standing::First { tidy: true });
        fs::remove_file(two.path()).unwrap();
        assert_eq!(standing(&two, dir.path()).unwrap(), Standing::Gone);
        assert_eq!(standing(&four, dir.path()).unwrap(), Standing::First { tidy: true });
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(standing(&four, dir.path()).unwrap(), Standing::Gone);
    }

    /// What a crash at each step of entering leaves: a number, a file half made, an entry.
    #[test]
    fn what_the_dead_have_left_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().into());
        layout.make().unwrap();
        let counter = Counter::try_lock(&layout, &ElectionName::new("e").unwrap()).unwrap().unwrap();
        let dir = root.path();
        for dead in [new_file(1), new_file(9), entry_file(1), entry_file(2)] {
            fs::write(dir.join(dead), "").unwrap();
        }
        for garbage in ["README", ".new-x", "entry-1"] {
            fs::write(dir.join(garbage), "").unwrap();
        }
        fs::create_dir(dir.join(entry_file(3))).unwrap();
        let _held = Held::make(dir, 4, "s", b"").unwrap();
        fs::write(dir.join(entry_file(5)), "").unwrap();
        assert_eq!(sweep(dir, &counter).unwrap(), Swept { taken: true, highest: 5 });
        let mut left = names(dir).unwrap();
        left.sort();
        let expected = [".new-x", "README", "elections", &entry_file(3), &entry_file(4), "entry-1", "tokens"];
        assert_eq!(left, {
            let mut e = expected.map(str::to_owned);
            e.sort();
            e
        });
    }
}
