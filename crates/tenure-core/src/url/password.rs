//! A password that may lie in a file, and is read again when that file rotates.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::Secret;

/// How old what was read from the file may be when a connection is made.
const MAX_AGE: Duration = Duration::from_secs(5);
/// How long a connection waits for the file to be read.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a refused password from a file is tried again before the refusal is final. A Kubernetes secret takes up to
/// about two minutes to reach the files of its pods.
const GRACE: Duration = Duration::from_secs(120);

/// A user's password: fixed, or in a [file](Self::from_file) that is read again when connections are made.
///
/// Clones share what they have read. Its `Debug` shows no password.
#[derive(Clone)]
pub struct Password {
    shared: Arc<Shared>,
}

struct Shared {
    file: Option<PathBuf>,
    now: Mutex<Now>,
}

struct Now {
    latest: Secret,
    /// The one before it: the store may not know the latest yet.
    previous: Option<Secret>,
    /// The one that the store accepted last.
    accepted: Option<Secret>,
    /// When the file was read last; `None` when it has to be read before the next use.
    read: Option<Instant>,
    is_reading: bool,
    /// Why the file cannot be used as it is now.
    unusable: Option<String>,
    /// Since when the store has refused every password.
    refused_since: Option<Instant>,
}

impl Password {
    /// Reads the password from `file`: now, and again when connections are made and when the store refuses it. One newline at its
    /// end is dropped.
    ///
    /// # Errors
    /// When it cannot be read, or is empty; the text says why.
    pub fn from_file(file: impl AsRef<Path>) -> Result<Self, String> {
        let secret = read(file.as_ref())?;
        Ok(Self::new(secret, Some(file.as_ref().to_owned())))
    }

    /// What was read last.
    pub fn latest(&self) -> Secret {
        self.now().latest.clone()
    }

    /// The passwords to log in with: that of the file as it is now, and the one before it, which the store may know still.
    ///
    /// The file is read on a thread of its own. A read that takes long is not waited for.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub async fn candidates(&self) -> Vec<Secret> {
        if let Some(reading) = self.read_again() {
            let _ = timeout(READ_TIMEOUT, reading).await;
        }
        let now = self.now();
        let previous = now.previous.clone().filter(|previous| *previous != now.latest);
        std::iter::once(now.latest.clone()).chain(previous).collect()
    }

    /// The store accepted `secret`.
    pub fn accepted(&self, secret: &Secret) {
        let mut now = self.now();
        now.refused_since = None;
        if now.accepted.as_ref() != Some(secret) {
            now.accepted = Some(secret.clone());
        }
    }

    /// What is permitted to the user was done: no refusal stands any more.
    pub fn served(&self) {
        self.now().refused_since = None;
    }

    /// The store refused every candidate: why to try again, in words. `None` when the refusal is final: the password is in
    /// no file, or has been refused for two minutes.
    pub fn refused(&self) -> Option<String> {
        let file = self.shared.file.as_ref()?;
        let mut now = self.now();
        now.read = None;
        if now.refused_since.is_none() {
            now.refused_since = Some(Instant::now());
            warn!(
                file = %file.display(), grace = ?GRACE,
                "the store refuses the password in the file; the file is read again, and the login tried again"
            );
        }
        let refused_for = now.refused_since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = GRACE.checked_sub(refused_for).filter(|left| !left.is_zero())?;
        let unusable = now.unusable.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        Some(format!(
            "password_file={}{unusable} is read again and the login retried for {} s more",
            file.display(),
            left.as_secs()
        ))
    }

    /// Whether the file has held another password since `secret` was used.
    pub async fn has_changed_since(&self, secret: &Secret) -> bool {
        self.shared.file.is_some() && self.candidates().await.first() != Some(secret)
    }

    fn new(latest: Secret, file: Option<PathBuf>) -> Self {
        let now = Now {
            latest,
            previous: None,
            accepted: None,
            read: Some(Instant::now()),
            is_reading: false,
            unusable: None,
            refused_since: None,
        };
        Self { shared: Arc::new(Shared { file, now: Mutex::new(now) }) }
    }

    /// Reads the file again if there is one and it is time to.
    fn read_again(&self) -> Option<JoinHandle<()>> {
        self.shared.file.as_ref()?;
        {
            let mut now = self.now();
            if now.is_reading || now.read.is_some_and(|at| at.elapsed() < MAX_AGE) {
                return None;
            }
            (now.is_reading, now.read) = (true, Some(Instant::now()));
        }
        let reading = Reading(self.clone());
        Some(spawn_blocking(move || {
            if let Some(file) = &reading.0.shared.file {
                reading.0.take(read(file));
            }
        }))
    }

    fn take(&self, read: Result<Secret, String>) {
        let mut now = self.now();
        match read {
            Ok(secret) => {
                if secret != now.latest {
                    info!(file = ?self.shared.file, "the password in the file has changed, and is used from now on");
                    let before = std::mem::replace(&mut now.latest, secret);
                    now.previous = Some(now.accepted.clone().unwrap_or(before));
                }
                now.unusable = None;
            }
            Err(reason) => {
                if now.unusable.as_ref() != Some(&reason) {
                    warn!(file = ?self.shared.file, %reason, "the password file cannot be used; the password before it still is");
                }
                now.unusable = Some(reason);
            }
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.shared.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Secret> for Password {
    /// A password that stays as it is.
    fn from(secret: Secret) -> Self {
        Self::new(secret, None)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// That the file is being read; dropped with a runtime that goes before it is.
struct Reading(Password);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.now().is_reading = false;
    }
}

fn read(file: &Path) -> Result<Secret, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    // Whoever writes a file in place empties it first.
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(Secret::new(text)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    async fn candidates(password: &Password) -> Vec<String> {
        password.candidates().await.iter().map(|secret| secret.expose().to_owned()).collect()
    }

    /// Hazard G33: what a file holds now comes first, and then what the store accepted last.
    #[tokio::test]
    async fn a_rotated_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "one\n").unwrap();
        let password = Password::from_file(&file).unwrap();
        assert_eq!(candidates(&password).await, ["one"]);
        password.accepted(&Secret::new("one"));
        for (text, expected) in
            [("two", &["two", "one"][..]), ("", &["two", "one"]), ("three\r\n", &["three", "one"])]
        {
            fs::write(&file, text).unwrap();
            // As after a refusal: whatever was read before is out of date.
            assert!(password.refused().is_some());
            assert_eq!(candidates(&password).await, expected);
        }
        password.accepted(&Secret::new("three"));
        fs::write(&file, "four").unwrap();
        assert!(password.refused().is_some());
        assert_eq!(candidates(&password).await, ["four", "three"]);
        assert!(!format!("{password:?}").contains("four"));
    }

    /// Hazard G33: a wrong password in a file is tried again for two minutes; a fixed one is not.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_after_two_minutes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "wrong").unwrap();
        let password = Password::from_file(&file).unwrap();
        for _ in 0..2 {
            let said = password.refused().unwrap();
            assert!(said.contains("retried for 120 s") && !said.contains("wrong"), "{said}");
            advance(GRACE - Duration::from_secs(1)).await;
            assert!(password.refused().unwrap().contains("retried for 1 s"));
            advance(Duration::from_secs(1)).await;
            assert_eq!(password.refused(), None);
            password.accepted(&Secret::new("right"));
        }
        assert_eq!(Password::from(Secret::new("wrong")).refused(), None);
    }
}
