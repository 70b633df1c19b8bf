//! Recognises file systems whose locks do not end with the process that holds them, or do not reach other mounts.

use std::{io, path::Path};

/// The name of the file system that holds `path`, if its locks are known to be unsuitable; otherwise `None`.
#[cfg(target_os = "linux")]
pub(crate) fn unsuitable_file_system(path: &Path) -> io::Result<Option<&'static str>> {
    Ok(unsuitable_type(rustix::fs::statfs(path)?.f_type as u32))
}

/// Not implemented on this system. The documentation says which file systems are allowed.
#[cfg(not(target_os = "linux"))]
pub(crate) fn unsuitable_file_system(_: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// The name of a file system type, if its locks are known to be unsuitable. The numbers are from Linux's
/// include/uapi/linux/magic.h.
#[cfg(target_os = "linux")]
fn unsuitable_type(number: u32) -> Option<&'static str> {
    Some(match number {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7461_636f => "OCFS2",
        0x0116_1970 => "GFS2",
        0x0bd0_0bd0 => "Lustre",
        0x0102_1997 => "9p",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        // Two FUSE mounts of one directory (bindfs, sshfs, virtiofs, fuse-overlayfs) have separate locks.
        0x6573_5546 => "FUSE",
        _ => return None,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// NFS and SMB cannot be mounted in the tests' containers, so that the table is all that is tested of them.
    #[test]
    fn file_systems_with_unsuitable_locks_are_recognised() {
        for (number, name) in [(0x6969, "NFS"), (0xfe53_4d42, "SMB"), (0x6573_5546, "FUSE")] {
            assert_eq!(unsuitable_type(number), Some(name));
        }
        let suitable =
            [("ext4", 0xef53), ("xfs", 0x5846_5342), ("tmpfs", 0x0102_1994), ("overlayfs", 0x794c_7630)];
        for (name, number) in suitable {
            assert_eq!(unsuitable_type(number), None, "{name}");
        }
    }
}
