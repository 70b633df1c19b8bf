//! Tests of the resume file.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{ElectionName, FencingToken, spi::SessionRecord};

fn contents() -> Contents {
    Contents {
        sessions: vec![
            SessionRecord::new("694d71ddacfda227", "cdf818194e3a8c32", 7),
            SessionRecord::new("2", "c", 8),
        ],
        tokens: vec![(ElectionName::new("billing").unwrap(), FencingToken::new(8123).unwrap())],
    }
}

/// A directory, and a file in it that a process has left.
fn left_behind() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resume");
    let (file, earlier) = ResumeFile::open(&path).unwrap();
    assert!(matches!(earlier, EarlierContents::Valid(found) if found == Contents::default()));
    file.write(contents(), Durability::Synced).unwrap();
    (directory, path)
}

fn refused(path: &Path) -> String {
    ResumeFile::open(path).unwrap_err()
}

fn ignored(path: &Path) -> String {
    match ResumeFile::open(path).unwrap().1 {
        EarlierContents::Ignored(reason) => reason,
        EarlierContents::Valid(contents) => panic!("{contents:?} are taken for those of a dead process"),
    }
}

/// Hazard G39: the next process finds the sessions that were not closed, in a file for its owner only.
#[test]
fn the_next_process_finds_the_sessions() {
    let (_directory, path) = left_behind();
    let (file, earlier) = ResumeFile::open(&path).unwrap();
    assert!(matches!(earlier, EarlierContents::Valid(found) if found == contents()));
    let mut later = contents();
    later.sessions.remove(0);
    file.write(later.clone(), Durability::Unsynced).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    drop(file);
    let (_, earlier) = ResumeFile::open(&path).unwrap();
    assert!(matches!(earlier, EarlierContents::Valid(found) if found == later));
}

/// Hazard G39: who holds the lock is alive; nobody else may end its sessions.
#[test]
fn a_file_in_use_is_refused() {
    let (_directory, path) = left_behind();
    let holder = ResumeFile::open(&path).unwrap();
    assert!(refused(&path).contains("another live process"), "{}", refused(&path));
    drop(holder);
    ResumeFile::open(&path).unwrap();
}

/// Hazard G39: a lock that is freed within a moment is waited for.
#[test]
fn a_file_that_is_freed_soon_is_opened() {
    let (_directory, path) = left_behind();
    let holder = ResumeFile::open(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(LOCK_PAUSE * 3);
            drop(holder);
        });
        ResumeFile::open(&path).unwrap();
    });
}

/// Hazard G39: a copy of the file says nothing about the process that wrote it.
#[test]
fn a_copy_is_ignored() {
    let (directory, path) = left_behind();
    let copy = directory.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    assert!(ignored(&copy).contains("a copy of another file"));
    // Put in the place of the original, as a restored backup is.
    fs::rename(&copy, &path).unwrap();
    assert!(ignored(&path).contains("a copy of another file"));
}

/// Hazard G39: after a restart of the machine, or on another one, the file says nothing about a process.
#[test]
fn a_file_of_another_boot_is_ignored() {
    let (_directory, path) = left_behind();
    let (origin, sessions) = contents::decode(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(&path, contents::encode(&Origin { boot: "another".into(), ..origin }, &sessions)).unwrap();
    assert!(ignored(&path).contains("before this machine was started"));
    fs::write(&path, "no record").unwrap();
    assert!(ignored(&path).contains("not written as a whole"));
}

/// Hazard G39: others must not be able to read or to change the file.
#[test]
fn a_file_for_others_is_refused() {
    let (directory, path) = left_behind();
    for mode in [0o640, 0o604, 0o660, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let problem = refused(&path);
        assert!(
            problem.contains(&format!("{mode:04o}")) || problem.contains("Permission denied"),
            "{problem}"
        );
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(refused(&link).contains("a symbolic link"), "{}", refused(&link));
    assert!(refused(directory.path()).contains("directory"), "{}", refused(directory.path()));
    // Another user's, if this is root.
    if std::os::unix::fs::chown(&path, Some(4242), None).is_ok() {
        assert!(refused(&path).contains("another user (4242)"), "{}", refused(&path));
    }
}

/// Hazard G39: a file system that is not known to keep the lock is refused.
#[test]
fn another_file_system_is_refused() {
    // `/proc` is one that every Linux machine has; files cannot be created there, and this one exists.
    let file = openat(CWD, "/proc/self/comm", OFlags::RDONLY, Mode::empty()).unwrap();
    let problem = check_file_system(&file).unwrap_err();
    assert!(problem.contains("0x9fa0") && problem.contains("use ext4"), "{problem}");
}

/// Hazard G39: a file that took the place of the locked one is not written to.
#[test]
fn a_replaced_file_is_not_written() {
    let (directory, path) = left_behind();
    let (file, _) = ResumeFile::open(&path).unwrap();
    let other = directory.path().join("other");
    fs::write(&other, "").unwrap();
    fs::rename(&other, &path).unwrap();
    let error = file.write(contents(), Durability::Synced).unwrap_err().to_string();
    assert!(error.contains("replaced by another one"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"");
}
