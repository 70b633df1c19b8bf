//! The answers of servers to `tenure doctor`: versions, and ZooKeeper's `srvr`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure_core::internal::printable;
use tenure_etcd::test_support::known_bug;
use tenure_zookeeper::test_support::diagnose_srvr as answered;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    etcd(&text);
    zookeeper(&text);
});

/// A version is judged by its three numbers, and by nothing else.
fn etcd(version: &str) {
    let said = known_bug(version);
    let parts: Vec<_> = version.split(['.', '-', '+']).collect();
    let numbers: Vec<u32> = parts.iter().take(3).filter_map(|part| part.parse().ok()).collect();
    let &[major, minor, patch] = numbers.as_slice() else {
        assert_eq!(said, None, "{version}");
        return;
    };
    assert_eq!(said, known_bug(&format!("{major}.{minor}.{patch}+any-thing.1")), "{version}");
    if (major, minor) < (3, 4) {
        assert!(said.is_some(), "{version}");
    }
    // Nothing gets worse by an update within one release line.
    if let (None, Some(next)) = (&said, patch.checked_add(1)) {
        assert_eq!(known_bug(&format!("{major}.{minor}.{next}")), None, "{version}");
    }
}

/// What is told of a server is what it has said, and an old one is never called good.
fn zookeeper(answer: &str) {
    let Some((version, mode, diagnoses)) = answered(answer) else { return };
    assert!(answer.contains(&version) && answer.contains(&mode));
    assert!(!version.contains([' ', ',', '\n']) && !mode.contains('\n') && mode.trim() == mode);
    assert!(!diagnoses.is_empty());
    let shown = printable(&version, 1024);
    for diagnosis in &diagnoses {
        assert_eq!(printable(&diagnosis.text, usize::MAX), diagnosis.text, "fit to be printed");
        assert!(diagnosis.text.contains(shown.trim_end_matches('…')), "{}", diagnosis.text);
    }
    let (again, part, _) =
        answered(&format!("Zookeeper version: {version}, built\nMode: {mode}\n")).expect("it is one");
    assert_eq!((again, part), (version, mode));
}
