//! A backend outside this workspace, as a third party would write it, connects by a scheme of its own.

use std::{fs, path::Path, process::Command};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if !fs::read(&target).is_ok_and(|old| old == fs::read(entry.path()).unwrap()) {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The crate is built with the versions of dependencies of this workspace, and its tests pass, the conformance suite among
/// them.
#[test]
fn a_backend_outside_the_workspace_has_a_scheme_and_passes_the_suite() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    // As deep as the original, so that the paths of its dependencies are right.
    let crate_dir = root.join("target/third-party");
    copy(&root.join("tests/third-party"), &crate_dir);
    fs::copy(root.join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    let tested = Command::new(env!("CARGO"))
        .args(["test", "--quiet"])
        .current_dir(&crate_dir)
        // Shared with the crate of the README's example: the dependencies are built once.
        .env("CARGO_TARGET_DIR", root.join("target/newcomer/target"))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&tested.stdout);
    assert!(tested.status.success(), "{output}{}", String::from_utf8_lossy(&tested.stderr));
    let passed: usize = output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<usize>().ok())
        .sum();
    assert!(passed > 10, "the suite was not run: {output}");
}
