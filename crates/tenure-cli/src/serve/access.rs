//! Who may use the HTTP interface: holders of the bearer token, and no web page of another site.

use std::{
    fs::File,
    io::Read as _,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY,
            WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use subtle::ConstantTimeEq as _;
use tokio::{task::spawn_blocking, time::sleep};

use super::error::ApiError;
use crate::messages;

/// How often the token file is read, so that the token can be rotated.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// The sizes that a token can have.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

/// What every answer has. The policy is that of the page: nothing from elsewhere, and no script or style but its own files.
const HEADERS: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
];
/// The header with which a browser says whose page loads something.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who may use the HTTP interface.
#[derive(Debug)]
pub(super) struct Access {
    token: Option<TokenFile>,
    /// The address of a loopback listener: requests must name it, or another name of this machine.
    loopback: Option<IpAddr>,
}

/// A bearer token in a file.
struct TokenFile {
    path: PathBuf,
    token: RwLock<Vec<u8>>,
}

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the token, if there is a file with one.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn new(token_file: Option<&Path>, loopback: Option<IpAddr>) -> Result<Self, String> {
        let read = |path: &Path| {
            let token = RwLock::new(read_token(path)?);
            Ok::<_, String>(TokenFile { path: path.to_owned(), token })
        };
        Ok(Self { token: token_file.map(read).transpose()?, loopback })
    }

    /// Reads the token's file again and again. A file that cannot be used is reported, and the last token stays.
    pub(super) async fn follow_token_file(self: Arc<Self>) {
        let Some(file) = &self.token else { return };
        let mut reported = None;
        loop {
            sleep(READ_INTERVAL).await;
            let path = file.path.clone();
            // A file system may be slow, which must not delay renewals.
            let Ok(read) = spawn_blocking(move || read_token(&path)).await else { return };
            match read {
                Ok(token) => {
                    reported = None;
                    *file.token.write().unwrap_or_else(PoisonError::into_inner) = token;
                }
                Err(problem) => {
                    if reported.as_ref() != Some(&problem) {
                        messages::try_print(&format!("{problem}; the previous token stays in use"));
                    }
                    reported = Some(problem);
                }
            }
        }
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(file) = &self.token else { return Ok(()) };
        let given = headers.get(AUTHORIZATION).and_then(|value| bearer_token(value.as_bytes()));
        let token = file.token.read().unwrap_or_else(PoisonError::into_inner);
        let is_equal = given.is_some_and(|given| bool::from(given.ct_eq(token.as_slice())));
        is_equal.then_some(()).ok_or_else(|| {
            let advice =
                "the header `Authorization: Bearer TOKEN` with the token in the sidecar's --token-file";
            ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "the request has no valid token", advice)
        })
    }

    /// Refuses what a browser sends on behalf of a page of another site. A page can reach a loopback address, and after
    /// it has changed what its own name resolves to, it can also read the answers. The sidecar's own page sends no `Origin`: it
    /// only reads.
    fn refuse_other_sites(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let refused = |code, message: String, advice: &str| {
            Err(ApiError::new(StatusCode::FORBIDDEN, code, message, advice))
        };
        if headers.contains_key(ORIGIN) {
            let message = "requests of other web pages are refused".to_owned();
            return refused("forbidden_origin", message, "requests without the header Origin");
        }
        let Some(own) = self.loopback else { return Ok(()) };
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default(),
            _ => "",
        };
        if is_loopback(host, own) {
            return Ok(());
        }
        let message = format!("the host {host:?} is not this machine");
        refused("forbidden_host", message, "the header Host with a loopback address or localhost")
    }
}

/// Refuses what a page of another site loads, whether it can read it or not: it could take the place of subscribers. Browsers send
/// this header to loopback addresses.
fn refuse_loads_by_other_sites(headers: &HeaderMap) -> Result<(), ApiError> {
    let from =
        |site: &str| headers.get_all(FETCH_SITE).iter().any(|value| value.as_bytes() == site.as_bytes());
    if !from("cross-site") && !from("same-site") {
        return Ok(());
    }
    let message = "requests of other web pages are refused";
    let advice = "requests without the header Sec-Fetch-Site, or from the sidecar's own page";
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_origin", message, advice))
}

/// Whether `host`, perhaps with a port, names this machine, on which `own` is listened to.
fn is_loopback(host: &str, own: IpAddr) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address == own || address.is_loopback())
}

/// The token in an `Authorization` header.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Reads a token.
///
/// # Errors
/// What is wrong with the file, without its contents.
fn read_token(path: &Path) -> Result<Vec<u8>, String> {
    let problem = |text: &dyn std::fmt::Display| format!("the token file {}: {text}", path.display());
    let file = File::open(path).map_err(|error| problem(&error))?;
    let metadata = file.metadata().map_err(|error| problem(&error))?;
    if !metadata.is_file() {
        return Err(problem(&"is not a regular file"));
    }
    if metadata.mode() & 0o007 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(problem(&format_args!(
            "every user of this machine has access to it (mode {mode:o}): chmod o-rwx"
        )));
    }
    let mut token = Vec::new();
    let limit = *TOKEN_BYTES.end() as u64 + 3;
    file.take(limit).read_to_end(&mut token).map_err(|error| problem(&error))?;
    let token = token.trim_ascii_end();
    if !TOKEN_BYTES.contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        return Err(problem(&format_args!(
            "a token has {} to {} visible ASCII characters, for example those of `openssl rand -hex 32`",
            TOKEN_BYTES.start(),
            TOKEN_BYTES.end()
        )));
    }
    Ok(token.to_vec())
}

/// Admits or refuses a request. No answer may be stored: validity is counted from when the request was sent.
pub(super) async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let mut response = match access.refuse_other_sites(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Admits or refuses a request for data.
pub(super) async fn check_token(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let mut response = match refuse_loads_by_other_sites(headers).and_then(|()| access.check_token(headers)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn headers(entries: &[(&'static str, &str)]) -> HeaderMap {
        entries.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let access = Access::new(None, Some("127.0.0.1".parse().unwrap())).unwrap();
        for host in ["127.0.0.1:8377", "localhost", "LOCALHOST:80", "[::1]:8377", "127.8.0.1"] {
            assert!(access.refuse_other_sites(&headers(&[("host", host)])).is_ok(), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:8377", "127.0.0.1.evil.example", "10.0.0.7", "[::2]:80"]
        {
            assert!(access.refuse_other_sites(&headers(&[("host", host)])).is_err(), "{host}");
        }
        assert!(access.refuse_other_sites(&headers(&[])).is_err());
        assert!(
            access.refuse_other_sites(&headers(&[("host", "localhost"), ("host", "evil.example")])).is_err()
        );
        let from_page = [("host", "localhost:8377"), ("origin", "http://localhost:8377")];
        assert!(access.refuse_other_sites(&headers(&from_page)).is_err());
        let socket = Access::new(None, None).unwrap();
        assert!(socket.refuse_other_sites(&headers(&[("host", "tenure")])).is_ok());
        assert!(socket.refuse_other_sites(&headers(&from_page)).is_err());
    }

    #[test]
    fn a_page_of_another_site_loads_no_data() {
        for (site, is_admitted) in
            [("same-origin", true), ("none", true), ("cross-site", false), ("same-site", false)]
        {
            let headers = headers(&[("sec-fetch-site", site)]);
            assert_eq!(refuse_loads_by_other_sites(&headers).is_ok(), is_admitted, "{site}");
        }
        assert!(refuse_loads_by_other_sites(&headers(&[])).is_ok());
    }

    #[test]
    fn a_token_is_required_if_there_is_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "0123456789abcdef\n").unwrap();
        let access = Access::new(Some(file.path()), None).unwrap();
        assert!(!format!("{access:?}").contains("abcdef"));
        let check = |value: &str| access.check_token(&headers(&[("authorization", value)]));
        assert!(check("Bearer 0123456789abcdef").is_ok() && check("bearer 0123456789abcdef").is_ok());
        for wrong in ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Basic 0123456789abcdef"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert!(access.check_token(&headers(&[])).is_err());
    }

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let problem = || read_token(file.path()).unwrap_err();
        for text in ["", "short", "0123456789abcdef 0", "0123456789\0abcdef"] {
            fs::write(&file, text).unwrap();
            assert!(problem().contains("16 to 1024 visible ASCII characters"), "{text}");
        }
        fs::write(&file, "0123456789abcdef").unwrap();
        for mode in [0o604, 0o602, 0o644] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert!(problem().contains("chmod o-rwx"), "{mode:o}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_token(file.path()).unwrap(), b"0123456789abcdef");
        assert!(read_token(Path::new("/nonexistent")).unwrap_err().contains("No such file"));
        assert!(read_token(Path::new("/tmp")).unwrap_err().contains("not a regular file"));
    }
}
