//! Runs `tenure serve`, and sends requests to it.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::{RunningCommand, eventually, tenure_command};

/// How long a request may take: longer than the longest wait for an election.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The time on a clock that runs while the machine is suspended.
pub(crate) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

/// A nonce that no other candidate has.
pub(crate) fn nonce() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// The URL of a new root at this server.
pub(crate) fn store_url(scheme: &str, endpoint: &str, settings: &str) -> String {
    super::store_url(scheme, endpoint, &format!("serve-{:016x}", fastrand::u64(..)), settings)
}

/// A running `tenure serve`. It is killed when this is dropped.
pub(crate) struct Sidecar {
    pub(crate) command: RunningCommand,
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    stderr: Arc<Mutex<String>>,
}

impl Sidecar {
    /// Starts it on a free port.
    pub(crate) fn start(url: &str) -> Self {
        Self::start_with(url, &["--listen", "127.0.0.1:0"])
    }

    pub(crate) fn start_with(url: &str, options: &[&str]) -> Self {
        let mut command = tenure_command(&[&["serve"], options].concat());
        Self::spawn(command.env("TENURE_STORE", url))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut command = RunningCommand::start(command.stderr(Stdio::piped()));
        let stderr = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(command.stderr()).lines(), Arc::clone(&stderr));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut written = written.lock().unwrap();
                written.push_str(&line);
                written.push('\n');
            }
        });
        let address = eventually("the sidecar serves", || {
            let stderr = stderr.lock().unwrap();
            let line = stderr.lines().find_map(|line| line.strip_prefix("tenure: serves "))?;
            let address = line.split(" for ").next()?;
            Some(address.trim_start_matches("http://").to_owned())
        });
        Self { command, address, stderr }
    }

    /// What it has written to the standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn send(&self, request: &Request) -> Answer {
        request.send_to(connect(&self.address))
    }

    /// Campaigns, and waits for the election for at most `wait`.
    pub(crate) fn campaign(&self, election: &str, nonce: &str, wait: Duration) -> Answer {
        self.campaign_with(election, json!({ "nonce": nonce, "wait_ms": wait.as_millis() }))
    }

    pub(crate) fn campaign_with(&self, election: &str, body: Value) -> Answer {
        self.send(&Request::new("POST", &format!("/v1/elections/{election}/campaign")).json(&body))
    }

    pub(crate) fn renew(&self, election: &str, lease: &str) -> Answer {
        self.send(&Request::new("POST", &format!("/v1/elections/{election}/renew")).lease(lease))
    }

    pub(crate) fn resign(&self, election: &str, lease: &str) -> Answer {
        self.send(&Request::new("DELETE", &format!("/v1/elections/{election}/campaign")).lease(lease))
    }

    pub(crate) fn leader(&self, election: &str) -> Answer {
        self.send(&Request::new("GET", &format!("/v1/elections/{election}")))
    }
}

/// A request.
pub(crate) struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header, or replaces the host.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn lease(self, lease: &str) -> Self {
        self.header("Tenure-Lease", lease)
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("Content-Type", content_type)
    }

    /// The request as it is sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text.push_str("Host: localhost\r\n");
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", self.body.len()));
        [text.as_bytes(), &self.body].concat()
    }

    /// Sends it, and reads the whole answer.
    pub(crate) fn send_to(&self, mut stream: impl Read + Write) -> Answer {
        // A server that refuses a large request may not read all of it.
        let _ = stream.write_all(&self.bytes());
        Answer::read(stream).unwrap()
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: Value,
}

impl Answer {
    fn read(mut stream: impl Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        // Some servers keep the connection open.
        while !is_complete(&bytes) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if bytes.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        Ok(Self { status, headers: head.to_ascii_lowercase(), body })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// The field of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{self:?}");
        self.body
    }

    /// The code of an error, which must be complete.
    #[track_caller]
    pub(crate) fn error(&self) -> (u16, &str) {
        let field = |name: &str| self.body["error"][name].as_str().unwrap_or_else(|| panic!("{self:?}"));
        assert!(!field("message").is_empty() && !field("advice").is_empty());
        (self.status, field("code"))
    }
}

/// Whether these bytes are an answer with the whole body that it announces.
fn is_complete(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() >= end + 4 + length)
}

/// For how long a client may consider itself leader.
#[track_caller]
pub(crate) fn valid_for(grant: &Value) -> Duration {
    Duration::from_millis(grant["valid_for_ms"].as_u64().unwrap_or_else(|| panic!("{grant}")))
}

/// The secret id of a lease.
#[track_caller]
pub(crate) fn lease_of(answer: &Value) -> String {
    answer["lease"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Connects with a bound on every wait.
pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).unwrap();
    stream
}
