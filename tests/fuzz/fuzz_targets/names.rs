//! Names of elections and candidates, and of entries in every store. An accepted name belongs to exactly one election.
//!
//! The first line is a name, the second another one, the third a number.

#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use tenure::{CandidateId, ElectionName};
use tenure_etcd::test_support as etcd;
use tenure_local::test_support as local;
use tenure_zookeeper::{Layout, test_support as zookeeper};

const LAYOUTS: [Layout; 3] = [Layout::Tenure, Layout::Curator, Layout::Kazoo];

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (name, other, number) = (line(), line(), line());
    election(name, other, number.parse().unwrap_or(1));
    candidate(name);
    znode(name);
    znodes_made(number.parse().unwrap_or(7), other.parse().unwrap_or(7), number.parse().unwrap_or(8));
    file(name, number.parse().unwrap_or(1));
});

/// An election's name is kept as it is, and is one part of a key, a path or a directory, apart from any other's.
fn election(name: &str, other: &str, lease: i64) {
    let election = match ElectionName::new(name) {
        Ok(election) => election,
        Err(error) => return is_readable(&error.to_string()),
    };
    assert_eq!((election.as_str(), election.to_string().parse().as_ref()), (name, Ok(&election)));
    for path in local::paths(Path::new("/d/x"), &election) {
        let parts: Vec<_> = path.components().collect();
        assert_eq!((parts.len(), parts.last()), (5, Some(&Component::Normal(name.as_ref()))), "{path:?}");
    }
    let (all, entry) = (etcd::election_key("/acme", &election), etcd::entry_key("/acme", &election, lease));
    assert_eq!(etcd::names_its_lease(&all, entry.as_bytes(), lease), lease != 0);
    assert!(!etcd::names_its_lease(&all, entry.as_bytes(), lease.wrapping_add(1)));
    if etcd::names_its_lease(&all, other.as_bytes(), lease) {
        assert_eq!(other, entry, "a key that is no entry's is taken for one");
    }
    if let Ok(other) = ElectionName::new(other)
        && other != election
    {
        let others = etcd::election_key("/acme", &other);
        assert!(!entry.starts_with(&others), "{entry} lies in {others}");
        assert!(!etcd::names_its_lease(&others, entry.as_bytes(), lease));
    }
}

fn candidate(id: &str) {
    match CandidateId::new(id) {
        Ok(known) => assert_eq!((known.as_str(), known.to_string().parse()), (id, Ok(known.clone()))),
        Err(error) => is_readable(&error.to_string()),
    }
}

/// The message has no control characters, and no more of the name than helps.
fn is_readable(message: &str) {
    assert!(message.len() < 2_000 && !message.chars().any(char::is_control), "{message:?}");
}

/// A znode's number is the one that its name ends with, and nothing but a candidate's name has one.
fn znode(name: &str) {
    for layout in LAYOUTS {
        let Some(number) = zookeeper::number(layout, name) else { continue };
        let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let minus = name[..digits].ends_with('-') && layout != Layout::Tenure
            || name[..digits].ends_with("--") && layout == Layout::Tenure;
        // Curator's mark has a minus of its own.
        let minus = minus && (layout != Layout::Curator || !name[..digits].ends_with("latch-"));
        let written: i64 = name[digits..].parse().expect("a number has digits at its end");
        match minus && written > 0 {
            false => assert_eq!(i64::try_from(number), Ok(written), "{layout} {name}"),
            true => {
                assert_eq!(
                    i64::from(u32::try_from(number).expect("of 32 bits").cast_signed()),
                    -written,
                    "{layout} {name}"
                );
            }
        }
        if layout == Layout::Tenure {
            let guid = u128::from_str_radix(&name[2..34], 16).expect("a GUID is hexadecimal");
            let prefix = zookeeper::prefix(layout, guid);
            assert!(name.strip_prefix(&prefix).is_some_and(|rest| rest.len() >= 10), "{name}");
        }
    }
    if let Ok(layout) = name.parse::<Layout>() {
        assert_eq!(layout.to_string(), name);
    }
}

/// Names as we and ZooKeeper make them give back their numbers, in one layout only and in their order.
fn znodes_made(nonce: u128, first: i32, second: i32) {
    for layout in LAYOUTS {
        let number = |number: i32| {
            let name = format!("{}{number:010}", zookeeper::prefix(layout, nonce));
            for other in LAYOUTS {
                assert_eq!(zookeeper::number(other, &name).is_some(), other == layout, "{other} {name}");
            }
            zookeeper::number(layout, &name)
        };
        // The counter of a parent goes from 0 up, and over into the negative.
        let (own, others) = (first.cast_unsigned(), second.cast_unsigned());
        assert_eq!((number(first), number(second)), (Some(u64::from(own)), Some(u64::from(others))));
    }
}

/// A file's name is an entry's, an entry's to be, a wish's, or none of them; and is written in one way only.
fn file(name: &str, number: u64) {
    let read = |name: &str| {
        [local::entry_number(name), local::is_new_file(name).then_some(0), local::resign_number(name)]
    };
    let [entry, new, resign] = read(name);
    assert!([entry, new, resign].iter().flatten().count() <= 1, "{name}");
    let names = entry.or(resign).map(local::file_names);
    if let Some([as_entry, _, as_wish]) = names {
        assert_eq!(name, if entry.is_some() { as_entry } else { as_wish });
    }
    let given = (number > 0).then_some(number);
    let [entry, new, resign] = local::file_names(number);
    assert_eq!(read(&entry), [given, None, None]);
    assert_eq!(read(&new), [None, given.map(|_| 0), None]);
    assert_eq!(read(&resign), [None, None, given]);
}
