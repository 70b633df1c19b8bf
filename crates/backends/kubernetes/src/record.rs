//! A Lease: its fields, as client-go writes them, and the annotations that tenure adds.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use tenure_core::{
    Candidate, CandidateId, ElectionName, FencingToken,
    spi::{BackendError, BackendErrorKind, EntryRequest, mark_resign_requested, replacement_payload},
};

/// The name of the election, if that of the Lease is another.
pub(crate) const ELECTION: &str = "tenure/election";
/// The payload of the holder's entry, in base64.
pub(crate) const PAYLOAD: &str = "tenure/payload";
/// The holder's session.
pub(crate) const SESSION: &str = "tenure/session";
/// The holder's fencing token.
pub(crate) const TOKEN: &str = "tenure/token";
/// A random number. A withdrawal changes it, so that the version rises.
pub(crate) const WITHDRAWN: &str = "tenure/withdrawn";

/// A candidate's claim to a Lease, which is what it writes.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The holder identity. No other request has it: it ends with the request's nonce.
    pub(crate) identity: String,
    pub(crate) session: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) seconds: u32,
}

impl Claim {
    pub(crate) fn new(request: &EntryRequest, session: &str, seconds: u32) -> Self {
        let identity = identity(&request.candidate, request.nonce);
        Self { identity, session: session.to_owned(), payload: request.payload(), seconds }
    }
}

/// The holder identity of a request. As client-go's users write theirs: a name, and what makes it unique.
pub(crate) fn identity(candidate: &CandidateId, nonce: u128) -> String {
    format!("{candidate}_{nonce:032x}")
}

/// A Lease that was read.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    lease: Lease,
    uid: String,
    version: u64,
}

impl Record {
    /// # Errors
    /// [`Unavailable`](BackendErrorKind::Unavailable) without a uid, or without a `resourceVersion` that is a number.
    pub(crate) fn new(lease: Lease) -> Result<Self, BackendError> {
        let ObjectMeta { uid, resource_version, .. } = &lease.metadata;
        let version = resource_version.as_deref().and_then(|version| version.parse().ok());
        match (uid.clone(), version) {
            (Some(uid), Some(version)) if version > 0 => Ok(Self { lease, uid, version }),
            _ => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("the Lease has no uid, or its resourceVersion {resource_version:?} is no number"),
            )),
        }
    }

    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// The `resourceVersion`. By contract a number that rises with every write since Kubernetes 1.35; etcd's revision before.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn spec(&self) -> LeaseSpec {
        self.lease.spec.clone().unwrap_or_default()
    }

    pub(crate) fn has_same_spec(&self, other: &Self) -> bool {
        self.lease.spec == other.lease.spec
    }

    /// The holder identity; `None` if nobody holds the Lease.
    pub(crate) fn holder(&self) -> Option<&str> {
        let holder = self.lease.spec.as_ref()?.holder_identity.as_deref()?;
        (!holder.is_empty()).then_some(holder)
    }

    /// The duration that the holder has written.
    pub(crate) fn duration(&self) -> Duration {
        let seconds = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        Duration::from_secs(seconds.and_then(|seconds| seconds.try_into().ok()).unwrap_or(0))
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.lease.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// The payload of the holder's entry. `None` if the holder is not of tenure: client-go leaves the annotations of the holder
    /// before it.
    pub(crate) fn payload(&self) -> Option<Vec<u8>> {
        let (candidate, nonce) = self.holder()?.rsplit_once('_')?;
        let candidate = CandidateId::new(candidate).ok()?;
        let nonce = u128::from_str_radix(nonce, 16).ok()?;
        let payload = BASE64.decode(self.annotation(PAYLOAD)?).ok()?;
        let value = [].into();
        let of_holder = EntryRequest { election: self.election()?, candidate, value, nonce };
        payload.starts_with(&of_holder.payload()).then_some(payload)
    }

    /// The election of this Lease, if its name is that of one.
    pub(crate) fn election(&self) -> Option<ElectionName> {
        let name = self.lease.metadata.name.as_deref()?;
        let election = ElectionName::new(self.annotation(ELECTION).unwrap_or(name)).ok()?;
        (lease_name(&election) == name).then_some(election)
    }

    /// The fencing token that was published.
    pub(crate) fn token(&self) -> Option<u64> {
        self.annotation(TOKEN)?.parse().ok()
    }

    /// The holder as others see it.
    pub(crate) fn candidate(&self) -> Option<Candidate> {
        let holder = self.holder()?;
        let Some(payload) = self.payload() else { return Some(Candidate::decode(holder, holder, &[], None)) };
        let token = self.token().and_then(FencingToken::new);
        let session = self.annotation(SESSION).unwrap_or_default();
        Some(Candidate::decode(holder, session, &payload, token))
    }

    /// Whether `other` shows the same holder, value and token.
    pub(crate) fn shows_same_candidate(&self, other: &Self) -> bool {
        self.holder() == other.holder()
            && [PAYLOAD, TOKEN].iter().all(|name| self.annotation(name) == other.annotation(name))
    }

    /// A new Lease of `claim`.
    pub(crate) fn create(election: &ElectionName, claim: &Claim, wall: Duration) -> Lease {
        let now = micro_time(wall, None);
        let spec = LeaseSpec { lease_transitions: Some(0), ..held_since(claim, &now, &now) };
        let mut lease = absent(election, spec);
        annotate(&mut lease, claim);
        lease
    }

    /// A new Lease that nobody holds.
    pub(crate) fn create_released(election: &ElectionName, wall: Duration) -> Lease {
        let now = micro_time(wall, None);
        let spec = released_at(&now, Some(0));
        let mut lease = absent(election, spec);
        set(&mut lease, WITHDRAWN, Some(random()));
        lease
    }

    /// This Lease, taken by `claim`: the number of transitions rises, as with client-go.
    pub(crate) fn taken(&self, claim: &Claim, wall: Duration) -> Lease {
        let found = self.spec();
        let now = micro_time(wall, found.renew_time.as_ref());
        let transitions = found.lease_transitions.unwrap_or(0).saturating_add(1);
        let spec = LeaseSpec {
            lease_transitions: Some(transitions),
            strategy: found.strategy,
            preferred_holder: found.preferred_holder,
            ..held_since(claim, &now, &now)
        };
        let mut lease = self.with_spec(spec);
        annotate(&mut lease, claim);
        lease
    }

    /// This Lease, renewed by its holder. Only what a renewal changes changes, so that a resign request stays.
    pub(crate) fn renewed(&self, claim: &Claim, token: Option<u64>, wall: Duration) -> Lease {
        let found = self.spec();
        let now = micro_time(wall, found.renew_time.as_ref());
        let acquired = found.acquire_time.clone().unwrap_or_else(|| now.clone());
        let spec = LeaseSpec {
            lease_transitions: Some(found.lease_transitions.unwrap_or(0)),
            strategy: found.strategy,
            preferred_holder: found.preferred_holder,
            ..held_since(claim, &acquired, &now)
        };
        let mut lease = self.with_spec(spec);
        if self.payload().is_none() {
            annotate(&mut lease, claim);
        }
        set(&mut lease, TOKEN, token.map(|token| token.to_string()));
        lease
    }

    /// This Lease with the token of its holder. The spec stays.
    pub(crate) fn with_token(&self, token: u64) -> Lease {
        let mut lease = self.lease.clone();
        set(&mut lease, TOKEN, Some(token.to_string()));
        lease
    }

    /// This Lease with another value of its holder. The spec stays.
    pub(crate) fn with_value(&self, request: &EntryRequest) -> Lease {
        let found = self.payload().unwrap_or_default();
        let mut lease = self.lease.clone();
        set(&mut lease, PAYLOAD, Some(BASE64.encode(replacement_payload(&found, request))));
        lease
    }

    /// This Lease with a resign request for its holder. `None` if that is not of tenure.
    pub(crate) fn with_resign_request(&self) -> Option<Lease> {
        let marked = mark_resign_requested(&self.payload()?)?;
        let mut lease = self.lease.clone();
        set(&mut lease, PAYLOAD, Some(BASE64.encode(marked)));
        Some(lease)
    }

    /// This Lease, released: client-go, too, empties the holder and leaves a duration of one second.
    pub(crate) fn released(&self, wall: Duration) -> Lease {
        let found = self.spec();
        let now = micro_time(wall, found.renew_time.as_ref());
        let spec = LeaseSpec {
            strategy: found.strategy,
            preferred_holder: found.preferred_holder,
            ..released_at(&now, found.lease_transitions)
        };
        let mut lease = self.with_spec(spec);
        for name in [PAYLOAD, SESSION, TOKEN] {
            set(&mut lease, name, None);
        }
        lease
    }

    /// This Lease with another version only: a write that changes nothing leaves the version, and a late write would not conflict.
    pub(crate) fn bumped(&self) -> Lease {
        let mut lease = self.lease.clone();
        set(&mut lease, WITHDRAWN, Some(random()));
        lease
    }

    fn with_spec(&self, spec: LeaseSpec) -> Lease {
        Lease { spec: Some(spec), ..self.lease.clone() }
    }
}

/// The name of an election's Lease. An election whose name is that of an object has it, so that others find it. The others have a name
/// that is computed, and say their election in an annotation.
pub(crate) fn lease_name(election: &ElectionName) -> String {
    use sha2::{Digest as _, Sha256};

    const COMPUTED: &str = "tenure-x-";
    let name = election.as_str();
    if is_object_name(name) && !name.starts_with(COMPUTED) {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("{COMPUTED}{hex}")
}

/// Whether `name` is a DNS subdomain, as the names of objects are.
fn is_object_name(name: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(is_alphanumeric)
            && bytes.last().is_some_and(is_alphanumeric)
            && bytes.iter().all(|byte| is_alphanumeric(byte) || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn absent(election: &ElectionName, spec: LeaseSpec) -> Lease {
    let name = lease_name(election);
    let is_computed = name != election.as_str();
    let metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
    let mut lease = Lease { metadata, spec: Some(spec) };
    set(&mut lease, ELECTION, is_computed.then(|| election.to_string()));
    lease
}

fn held_since(claim: &Claim, acquired: &MicroTime, now: &MicroTime) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(claim.identity.clone()),
        lease_duration_seconds: Some(claim.seconds.try_into().unwrap_or(i32::MAX)),
        acquire_time: Some(acquired.clone()),
        renew_time: Some(now.clone()),
        ..LeaseSpec::default()
    }
}

fn released_at(now: &MicroTime, transitions: Option<i32>) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(now.clone()),
        renew_time: Some(now.clone()),
        lease_transitions: transitions,
        ..LeaseSpec::default()
    }
}

/// The time of day, for others, and later than the renewal before: two renewals never look equal, whatever the clock does.
fn micro_time(wall: Duration, before: Option<&MicroTime>) -> MicroTime {
    let now = i64::try_from(wall.as_micros()).unwrap_or(i64::MAX);
    let micros = before.map_or(now, |before| now.max(before.0.as_microsecond().saturating_add(1)));
    MicroTime(Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX))
}

fn annotate(lease: &mut Lease, claim: &Claim) {
    set(lease, PAYLOAD, Some(BASE64.encode(&claim.payload)));
    set(lease, SESSION, Some(claim.session.clone()));
    set(lease, TOKEN, None);
}

fn set(lease: &mut Lease, name: &str, value: Option<String>) {
    let annotations = &mut lease.metadata.annotations;
    match value {
        Some(value) => {
            annotations.get_or_insert_default().insert(name.to_owned(), value);
        }
        None => {
            annotations.as_mut().and_then(|annotations| annotations.remove(name));
        }
    }
}

fn random() -> String {
    format!("{:016x}", fastrand::u64(..))
}
