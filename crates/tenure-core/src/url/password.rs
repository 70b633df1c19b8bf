//! A password, fixed or in a file that is read again when it rotates.

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
use crate::spi::{
    BackendError,
    BackendErrorKind::{Unauthorized, Unavailable},
};

/// The age after which the file is read again when a connection is made.
const MAX_AGE: Duration = Duration::from_secs(5);
/// How long a connection waits for the file to be read.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a login with a refused password from a file is retried before the refusal is final. A Kubernetes secret takes up to
/// about two minutes to reach the files of its pods.
const REFUSAL_RETRY_TIME: Duration = Duration::from_secs(120);

/// A user's password, fixed or in a [file](Self::from_file) that is read again when connections are made.
///
/// Clones share what was read. Its `Debug` shows no password.
#[derive(Clone)]
pub struct Password {
    shared: Arc<Shared>,
}

struct Shared {
    file: Option<PasswordFile>,
    state: Mutex<State>,
}

/// A file, and how the password is found in its text.
struct PasswordFile {
    path: PathBuf,
    /// The setting that has named it.
    setting: &'static str,
    find: Box<Find>,
}

type Find = dyn Fn(&str) -> Result<Secret, String> + Send + Sync;

struct State {
    latest: Secret,
    /// The password before the latest one: the store may not accept the latest yet.
    previous: Option<Secret>,
    /// The password that the store accepted last.
    accepted: Option<Secret>,
    /// When the file was read last. `None` when it must be read before the next use.
    last_read: Option<Instant>,
    is_reading: bool,
    /// The reason why the current file cannot be used, if so.
    unusable: Option<String>,
    /// Since when the store has refused all passwords.
    refused_since: Option<Instant>,
}

impl Password {
    /// Reads the password from `file`: now, again when connections are made, and again when the store refuses it. One trailing
    /// newline is removed.
    ///
    /// # Errors
    /// When the file cannot be read or is empty. The text is the reason.
    pub fn from_file(file: impl AsRef<Path>) -> Result<Self, String> {
        Self::from_file_with(file, "password_file", |text| {
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            // A program that writes the file in place truncates it first.
            if text.is_empty() { Err("is empty".to_owned()) } else { Ok(Secret::new(text)) }
        })
    }

    /// As [`from_file`](Self::from_file), for a file that has more than the password: `find` finds it in the text, or says why it cannot.
    /// `setting` is the one that names the file.
    ///
    /// # Errors
    /// When the file cannot be read, and those of `find`. The text is the reason.
    pub fn from_file_with(
        file: impl AsRef<Path>,
        setting: &'static str,
        find: impl Fn(&str) -> Result<Secret, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let file = PasswordFile { path: file.as_ref().to_owned(), setting, find: Box::new(find) };
        let secret = file.read()?;
        Ok(Self::new(secret, Some(file)))
    }

    /// The password that was read last.
    pub fn latest(&self) -> Secret {
        self.state().latest.clone()
    }

    /// The passwords to log in with: the current one of the file, and the one before it, which the store may still accept.
    ///
    /// The file is read on a separate thread. A read that takes long is not waited for.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn candidates(&self) -> Vec<Secret> {
        if let Some(reading) = self.start_reading() {
            let _ = timeout(READ_TIMEOUT, reading).await;
        }
        let state = self.state();
        let previous = state.previous.clone().filter(|previous| *previous != state.latest);
        std::iter::once(state.latest.clone()).chain(previous).collect()
    }

    /// Calls `attempt` with each of the [candidates](Self::candidates) until the store accepts one. Records the accepted one, or that all were
    /// refused.
    ///
    /// `attempt` fails with [`Unauthorized`] when the store refuses the password. After any other error no further password is tried.
    ///
    /// # Errors
    /// The last error of `attempt`. A refusal is [`Unavailable`] while the file of the password is read again (see [`refused`](Self::refused)).
    ///
    /// # Cancellation safety
    /// That of the future of `attempt`. If the future is dropped, nothing is recorded.
    pub async fn try_each<T, F>(&self, attempt: impl Fn(Secret) -> F + Send) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let mut refusal = None;
        for secret in self.candidates().await {
            match attempt(secret.clone()).await {
                Ok(done) => {
                    self.accepted(&secret);
                    return Ok(done);
                }
                Err(error) if error.kind() == Unauthorized => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        let refusal = refusal.unwrap_or_else(|| BackendError::new(Unauthorized, "there is no password"));
        Err(match self.refused() {
            Some(retry) => BackendError::new(Unavailable, format!("{refusal}; {retry}")),
            None => refusal,
        })
    }

    /// Records that the store accepted `secret`.
    pub fn accepted(&self, secret: &Secret) {
        let mut state = self.state();
        state.refused_since = None;
        if state.accepted.as_ref() != Some(secret) {
            state.accepted = Some(secret.clone());
        }
    }

    /// Records that the store carried out a request of the user, which ends the retries after a refusal.
    pub fn served(&self) {
        self.state().refused_since = None;
    }

    /// Records that the store refused all [candidates](Self::candidates). Returns the reason to retry, or `None` when the
    /// refusal is final: the password is not in a file, or has been refused for two minutes.
    pub fn refused(&self) -> Option<String> {
        let file = self.shared.file.as_ref()?;
        let mut state = self.state();
        state.last_read = None;
        if state.refused_since.is_none() {
            state.refused_since = Some(Instant::now());
            warn!(
                file = %file.path.display(), retry_time = ?REFUSAL_RETRY_TIME,
                "the store refuses the password in the file; reading the file again and retrying the login"
            );
        }
        let refused_for = state.refused_since.map_or(Duration::ZERO, |since| since.elapsed());
        let remaining =
            REFUSAL_RETRY_TIME.checked_sub(refused_for).filter(|remaining| !remaining.is_zero())?;
        let unusable = state.unusable.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        Some(format!(
            "{}={}{unusable} is read again and the login retried for {} s more",
            file.setting,
            file.path.display(),
            remaining.as_secs()
        ))
    }

    /// Whether the password in the file is no longer `secret`.
    pub async fn has_changed_since(&self, secret: &Secret) -> bool {
        self.shared.file.is_some() && self.candidates().await.first() != Some(secret)
    }

    fn new(latest: Secret, file: Option<PasswordFile>) -> Self {
        let state = State {
            latest,
            previous: None,
            accepted: None,
            last_read: Some(Instant::now()),
            is_reading: false,
            unusable: None,
            refused_since: None,
        };
        Self { shared: Arc::new(Shared { file, state: Mutex::new(state) }) }
    }

    /// Starts to read the file, if there is one and it was last read long enough ago.
    fn start_reading(&self) -> Option<JoinHandle<()>> {
        self.shared.file.as_ref()?;
        {
            let mut state = self.state();
            if state.is_reading || state.last_read.is_some_and(|at| at.elapsed() < MAX_AGE) {
                return None;
            }
            (state.is_reading, state.last_read) = (true, Some(Instant::now()));
        }
        let reading = ReadingGuard(self.clone());
        Some(spawn_blocking(move || {
            if let Some(file) = &reading.0.shared.file {
                reading.0.apply(file.read());
            }
        }))
    }

    fn apply(&self, read: Result<Secret, String>) {
        let mut state = self.state();
        match read {
            Ok(secret) => {
                if secret != state.latest {
                    info!(file = ?self.path(), "the password in the file has changed; using it");
                    let before = std::mem::replace(&mut state.latest, secret);
                    state.previous = Some(state.accepted.clone().unwrap_or(before));
                }
                state.unusable = None;
            }
            Err(reason) => {
                if state.unusable.as_ref() != Some(&reason) {
                    warn!(file = ?self.path(), %reason, "the password file cannot be used; using the previous password");
                }
                state.unusable = Some(reason);
            }
        }
    }

    fn path(&self) -> Option<&Path> {
        self.shared.file.as_ref().map(|file| &*file.path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Secret> for Password {
    /// A fixed password.
    fn from(secret: Secret) -> Self {
        Self::new(secret, None)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Marks that the file is being read. Also dropped when the runtime is shut down before it was read.
struct ReadingGuard(Password);

impl Drop for ReadingGuard {
    fn drop(&mut self) {
        self.0.state().is_reading = false;
    }
}

impl PasswordFile {
    fn read(&self) -> Result<Secret, String> {
        let text = fs::read_to_string(&self.path).map_err(|error| format!("cannot be read: {error}"))?;
        (self.find)(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    async fn candidates(password: &Password) -> Vec<String> {
        password.candidates().await.iter().map(|secret| secret.expose().to_owned()).collect()
    }

    /// Hazard G33: the current password of the file comes first, then the one that the store accepted last.
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
            // After a refusal, the password that was read before is outdated.
            assert!(password.refused().is_some());
            assert_eq!(candidates(&password).await, expected);
        }
        password.accepted(&Secret::new("three"));
        fs::write(&file, "four").unwrap();
        assert!(password.refused().is_some());
        assert_eq!(candidates(&password).await, ["four", "three"]);
        assert!(!format!("{password:?}").contains("four"));
    }

    /// Hazard G33: a login tries the previous password, too, and only a refusal leads to the next one.
    #[tokio::test]
    async fn a_login_tries_each_password() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "one").unwrap();
        let password = Password::from_file(&file).unwrap();
        let only = |accepted: &'static str, kind| {
            password.try_each(move |secret| async move {
                let error = || BackendError::new(kind, "refused");
                if secret.expose() == accepted { Ok(secret) } else { Err(error()) }
            })
        };
        assert!(only("one", Unauthorized).await.is_ok());
        fs::write(&file, "two").unwrap();
        let error = only("neither", Unauthorized).await.unwrap_err();
        assert_eq!(error.kind(), Unavailable, "the file is read again");
        assert!(error.to_string().starts_with("refused; password_file="), "{error}");
        while password.latest().expose() != "two" {
            password.refused();
            password.candidates().await;
        }
        assert_eq!(only("one", Unauthorized).await.unwrap().expose(), "one");
        assert_eq!(only("one", Unavailable).await.unwrap_err().to_string(), "refused");
        let fixed = Password::from(Secret::new("wrong"));
        let error = fixed.try_each(|_| async { Err::<(), _>(BackendError::new(Unauthorized, "refused")) });
        assert_eq!(error.await.unwrap_err().kind(), Unauthorized);
    }

    /// Hazard G33: the login with a wrong password in a file is retried for two minutes; with a fixed one it is not.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_after_two_minutes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "wrong").unwrap();
        let password = Password::from_file(&file).unwrap();
        for _ in 0..2 {
            let reason = password.refused().unwrap();
            assert!(reason.contains("retried for 120 s") && !reason.contains("wrong"), "{reason}");
            advance(REFUSAL_RETRY_TIME - Duration::from_secs(1)).await;
            assert!(password.refused().unwrap().contains("retried for 1 s"));
            advance(Duration::from_secs(1)).await;
            assert_eq!(password.refused(), None);
            password.accepted(&Secret::new("right"));
        }
        assert_eq!(Password::from(Secret::new("wrong")).refused(), None);
    }
}
