//! The files of the local store: whatever they contain, the next write can be read, and no number is given twice.
//!
//! A line `---` separates the two copies of the record.

#![no_main]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tenure::ElectionName;
use tenure_local::test_support::{entry, next_number, paths, read, write};

const SECOND_COPY: u64 = 128 * 1024;
const MARK: &[u8] = b"\n---\n";

/// In memory where there is such a place: numbers are synced to the disk, and there are many here.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory can be made")
});

fuzz_target!(|data: &[u8]| {
    let cut = data.windows(MARK.len()).position(|part| part == MARK);
    let (first, second) = cut.map_or((data, None), |cut| (&data[..cut], Some(&data[cut + MARK.len()..])));
    let election = ElectionName::new("e").expect("it is legal");
    let [_, path] = paths(FOLDER.path(), &election);
    fs::create_dir_all(path.parent().expect("it is in a directory")).expect("it can be made");
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("it opens");
    file.write_all_at(first, 0).expect("it is writable");
    if let Some(second) = second {
        file.write_all_at(second, SECOND_COPY).expect("it is writable");
    }

    let found = read(&file).expect("it is readable");
    assert_eq!(found, read(&file).expect("it is readable"), "the same file reads in two ways");
    let last = found.as_ref().map_or(0, |(generation, _)| *generation);
    match (entry(&file).expect("it is readable"), found) {
        (Some((session, payload)), Some((_, body))) => {
            assert!(body.ends_with(&payload) && !session.contains('\n'));
            if str::from_utf8(&body).is_ok() {
                assert_eq!([session.as_bytes(), b"\n", &payload].concat(), body);
            }
        }
        (None, Some((_, body))) => assert!(!body.contains(&b'\n')),
        (None, None) => {}
        (Some(_), None) => panic!("an entry is read of a file without a state"),
    }

    let floor = data.first().map_or(0, |byte| u64::from(*byte) << 56);
    let taken: Vec<_> = (0..3).map(|_| next_number(FOLDER.path(), &election, floor)).collect();
    for (taken, above) in
        taken.iter().zip([last.max(floor)].into_iter().chain(taken.iter().flatten().flatten().copied()))
    {
        match taken {
            Ok(taken) => assert!(taken.expect("nobody has it locked") > above, "{taken:?} after {above}"),
            Err(_) => assert_eq!(above, u64::MAX, "a number is refused that there is"),
        }
    }

    let (last, _) = read(&file).expect("it is readable").unwrap_or_default();
    if let Some(next) = last.checked_add(1) {
        write(&file, next, data).expect("it is small");
        assert_eq!(read(&file).expect("it is readable"), Some((next, data.to_vec())));
    }
});
