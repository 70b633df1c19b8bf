//! The address that `tenure serve` listens on.

use std::{
    fmt,
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io,
    net::{IpAddr, SocketAddr},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{Mode, OFlags},
    process::umask,
};
use tokio::net::{TcpListener, UnixListener};

use crate::exit::UsageError;

/// The longest path of a Unix socket.
const MAX_SOCKET_PATH: usize = 107;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether only this machine's processes can connect, or only those of this user.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// The address of a loopback listener, whose `Host` headers are checked.
    pub(super) fn loopback(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) if address.ip().is_loopback() => Some(address.ip()),
            _ => None,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "allowed are IP:PORT, such as 127.0.0.1:8377 or [::1]:8377, and unix:/PATH, such as unix:/run/user/1000/tenure.sock";
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!("the path of a socket must be absolute; {ALLOWED}"));
            }
            if path.len() > MAX_SOCKET_PATH {
                return Err(format!("the path of a socket has at most {MAX_SOCKET_PATH} bytes"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        text.parse().map(Self::Tcp).map_err(|_| ALLOWED.to_owned())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Listens on `address`. A Unix socket can be used by this user alone.
    ///
    /// Must be called while this process has one thread: it changes the file creation mask for a moment.
    ///
    /// # Errors
    /// When another process listens there, or the system refuses.
    pub(super) fn bind(address: &ListenAddress) -> Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)
                    .with_context(|| format!("cannot listen on {address}"))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            ListenAddress::Unix(path) => {
                // Until the socket is closed: another process may find a stale socket just before this one replaces it, and would
                // remove the new one.
                let lock = LockFile::acquire(path)?;
                remove_stale(path)?;
                // The mask, not a later change of the mode: nobody may connect in between.
                let before = umask(Mode::from_raw_mode(0o177));
                let bound = UnixListener::bind(path);
                umask(before);
                let listener = bound.with_context(|| format!("cannot listen on unix:{}", path.display()))?;
                Ok(Self::Unix(listener, SocketFile { path: path.clone(), id: file_id(path)?, _lock: lock }))
            }
        }
    }

    /// The address, with the port that the system has chosen.
    pub(super) fn address(&self) -> Result<ListenAddress> {
        Ok(match self {
            Self::Tcp(listener) => ListenAddress::Tcp(listener.local_addr()?),
            Self::Unix(_, file) => ListenAddress::Unix(file.path.clone()),
        })
    }
}

/// Removes the socket that an earlier process has left.
fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.with_context(|| format!("cannot examine {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        let path = path.display();
        return Err(
            UsageError(format!("{path} exists and is no socket: remove it, or listen elsewhere")).into()
        );
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove the old socket {}", path.display()))
        }
        Ok(_) => Err(is_in_use(path).into()),
        Err(error) => Err(error).with_context(|| format!("cannot examine {}", path.display())),
    }
}

fn is_in_use(path: &Path) -> UsageError {
    let path = path.display();
    UsageError(format!("another process listens on unix:{path}: stop it, or listen elsewhere"))
}

/// The lock on `SOCKET.lock`, which one process at a time can have. The kernel releases it when the process ends. The file is
/// removed when this is dropped; of a process that was killed it stays, and is locked by the next one.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    id: (u64, u64),
    /// Locked while it is open.
    _file: File,
}

impl LockFile {
    /// Locks the file beside this socket.
    ///
    /// # Errors
    /// When another process has the lock, the file belongs to another program, or the system refuses.
    fn acquire(socket: &Path) -> Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let cannot = || format!("cannot lock {}: if no `tenure serve` runs there, remove it", path.display());
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            // A pipe without a reader must not keep it waiting.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = options.custom_flags(flags.bits().cast_signed()).open(&path).with_context(cannot)?;
            let metadata = file.metadata().with_context(cannot)?;
            if !metadata.is_file() || metadata.len() > 0 {
                let path = path.display();
                let message = format!(
                    "{path} belongs to another program, such as the one whose socket that is: listen elsewhere"
                );
                return Err(UsageError(message).into());
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(is_in_use(socket).into()),
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            }
            // The process that had the lock may have removed the file since.
            let id = id_of(&metadata);
            if file_id(&path).is_ok_and(|now| now == id) {
                return Ok(Self { path, id, _file: file });
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Still locked.
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket's file, which is removed when this is dropped, unless another process has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
    /// Dropped after the socket was removed.
    _lock: LockFile,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    Ok(id_of(&fs::symlink_metadata(path)?))
}

/// Device and inode.
fn id_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_and_a_port_or_a_socket() {
        let parsed = |text: &str| text.parse::<ListenAddress>();
        assert_eq!(parsed("unix:/run/t.sock"), Ok(ListenAddress::Unix("/run/t.sock".into())));
        for (text, is_local) in
            [("127.0.0.1:0", true), ("[::1]:80", true), ("0.0.0.0:80", false), ("10.0.0.7:80", false)]
        {
            assert_eq!(parsed(text).unwrap().is_local(), is_local, "{text}");
        }
        for text in ["", "80", "localhost:80", "127.0.0.1", "http://127.0.0.1:80", "unix:", "unix:t.sock"] {
            assert!(parsed(text).unwrap_err().contains("allowed are IP:PORT"), "{text}");
        }
        assert!(parsed(&format!("unix:/{}", "x".repeat(200))).unwrap_err().contains("at most 107"));
    }

    /// Of several that find the socket of a killed process at once, one replaces it.
    #[test]
    fn one_of_several_replaces_a_stale_socket() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for round in 0..200 {
            let path = folder.path().join(format!("{round}.sock"));
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let address = ListenAddress::Unix(path.clone());
            let barrier = std::sync::Barrier::new(3);
            let bind = || {
                let _context = runtime.enter();
                barrier.wait();
                Listener::bind(&address)
            };
            let bound: Vec<_> = std::thread::scope(|scope| {
                let threads = [(); 3].map(|()| scope.spawn(bind));
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (listeners, refused): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
            assert_eq!(listeners.len(), 1, "{refused:?}");
            for error in refused.into_iter().map(Result::unwrap_err) {
                assert!(
                    error.is::<UsageError>() && error.to_string().contains("another process"),
                    "{error:?}"
                );
            }
            UnixStream::connect(&path).unwrap();
            drop(listeners);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "neither socket nor lock is left");
        }
    }
}
