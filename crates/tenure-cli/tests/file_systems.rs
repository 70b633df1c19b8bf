//! `local:` on file systems whose locks do not exclude other processes.

mod common;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use common::{Sandbox, code_and_stderr, stdout, succeed, tenure_command};

/// A directory that is mounted a second time over FUSE. It is unmounted when this is dropped.
struct FuseMount(PathBuf);

impl FuseMount {
    fn new(sandbox: &Sandbox, name: &str) -> Self {
        let (source, target) = (sandbox.file("source"), sandbox.file(name));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&target).unwrap();
        succeed(Command::new("bindfs").args([&source, &target]).stdin(Stdio::null()));
        Self(target)
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Case 45. A lock that is taken through one mount does not exclude a process that uses the other.
#[test]
fn two_fuse_mounts_of_one_directory_are_refused() {
    let sandbox = Sandbox::local();
    for name in ["first", "second"] {
        let mount = FuseMount::new(&sandbox, name);
        let store = format!("local:{}", mount.0.join("store").display());
        let run = ["run", "--store", &store, "--", "touch", "ran"];
        let (code, stderr) = code_and_stderr(&mut sandbox.tenure(&run));
        assert_eq!(code, Some(69), "{stderr}");
        assert!(stderr.contains("its file system is FUSE") && stderr.contains("a volume"), "{stderr}");
        let doctor = tenure_command(&["doctor", "--store", &store]).output().unwrap();
        assert_eq!(doctor.status.code(), Some(69));
        let diagnosis = stdout(&doctor);
        assert!(diagnosis.starts_with("problem  store: ") && diagnosis.contains("FUSE"), "{diagnosis}");
    }
    assert!(!sandbox.file("ran").exists());
}
