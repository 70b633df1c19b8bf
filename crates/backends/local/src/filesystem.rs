//! Recognises file systems whose locks do not end with the process that holds them.

use std::{io, path::Path};

/// The name of the network file system that holds `path`; `None` if it is on no network file system known here.
#[cfg(target_os = "linux")]
pub(crate) fn network_file_system(path: &Path) -> io::Result<Option<&'static str>> {
    // The numbers are from Linux's include/uapi/linux/magic.h.
    Ok(match rustix::fs::statfs(path)?.f_type as u32 {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x7461_636f => Some("OCFS2"),
        0x0116_1970 => Some("GFS2"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x0102_1997 => Some("9p"),
        0x4750_4653 => Some("GPFS"),
        0x1983_0326 => Some("BeeGFS"),
        _ => None,
    })
}

/// Not implemented on this system. The documentation says which file systems are allowed.
#[cfg(not(target_os = "linux"))]
pub(crate) fn network_file_system(_: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}
