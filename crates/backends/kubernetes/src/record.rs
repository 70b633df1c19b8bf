//! A Lease: its fields, as client-go writes them, and the annotations that tenure adds.

use std::{collections::BTreeMap, time::Duration};

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

/// The duration of a Lease that has none, in seconds: client-go's default.
const DEFAULT_SECONDS: u64 = 15;
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
    /// The duration.
    pub(crate) seconds: i32,
}

type Annotations = BTreeMap<String, String>;

impl Claim {
    pub(crate) fn new(request: &EntryRequest, session: &str, seconds: i32) -> Self {
        let identity = identity(&request.candidate, request.nonce);
        Self { identity, session: session.to_owned(), payload: request.payload(), seconds }
    }

    /// Writes the annotations of the holder. Those of the holder before it may have stayed.
    fn annotate(&self, annotations: &mut Annotations) {
        annotations.insert(PAYLOAD.to_owned(), BASE64.encode(&self.payload));
        annotations.insert(SESSION.to_owned(), self.session.clone());
        annotations.remove(TOKEN);
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

    /// The `resourceVersion`: a number that rises with every write. Kubernetes documents that since 1.35; before, it is etcd's revision.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn has_same_spec(&self, other: &Self) -> bool {
        self.lease.spec == other.lease.spec
    }

    /// The holder identity; `None` if nobody holds the Lease.
    pub(crate) fn holder(&self) -> Option<&str> {
        let holder = self.lease.spec.as_ref()?.holder_identity.as_deref()?;
        (!holder.is_empty()).then_some(holder)
    }

    /// The duration that the holder has written; without one, client-go's default.
    pub(crate) fn duration(&self) -> Duration {
        let seconds = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        Duration::from_secs(seconds.and_then(|seconds| seconds.try_into().ok()).unwrap_or(DEFAULT_SECONDS))
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

    /// A new Lease of `claim`, or of nobody, for a withdrawal.
    pub(crate) fn create(election: &ElectionName, claim: Option<&Claim>, wall: Duration) -> Lease {
        let name = lease_name(election);
        let mut annotations = Annotations::new();
        if name != election.as_str() {
            annotations.insert(ELECTION.to_owned(), election.to_string());
        }
        let mut spec = LeaseSpec { lease_transitions: Some(0), ..LeaseSpec::default() };
        match claim {
            Some(claim) => acquire(&mut spec, &mut annotations, claim, wall),
            None => release(&mut spec, &mut annotations, wall),
        }
        let metadata =
            ObjectMeta { name: Some(name), annotations: Some(annotations), ..ObjectMeta::default() };
        Lease { metadata, spec: Some(spec) }
    }

    /// This Lease, taken by `claim`: the number of transitions rises, as with client-go.
    pub(crate) fn taken(&self, claim: &Claim, wall: Duration) -> Lease {
        self.changed(|spec, annotations| {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
            acquire(spec, annotations, claim, wall);
        })
    }

    /// This Lease, renewed by its holder, with its token. A resign request stays.
    pub(crate) fn renewed(&self, claim: &Claim, token: Option<u64>, wall: Duration) -> Lease {
        let is_intact = self.payload().is_some();
        self.changed(|spec, annotations| {
            if !is_intact {
                claim.annotate(annotations);
            }
            if let Some(token) = token {
                annotations.insert(TOKEN.to_owned(), token.to_string());
            }
            spec.lease_duration_seconds = Some(claim.seconds);
            spec.renew_time = Some(later_time(spec, wall));
        })
    }

    /// This Lease, released: client-go, too, empties the holder and leaves a duration of one second.
    pub(crate) fn released(&self, wall: Duration) -> Lease {
        self.changed(|spec, annotations| release(spec, annotations, wall))
    }

    /// This Lease with the token of its holder. The spec stays.
    pub(crate) fn with_token(&self, token: u64) -> Lease {
        self.annotated(TOKEN, token.to_string())
    }

    /// This Lease with another value of its holder. The spec stays.
    pub(crate) fn with_value(&self, request: &EntryRequest) -> Lease {
        let found = self.payload().unwrap_or_default();
        self.annotated(PAYLOAD, BASE64.encode(replacement_payload(&found, request)))
    }

    /// This Lease with a resign request for its holder. `None` if that is not of tenure.
    pub(crate) fn with_resign_request(&self) -> Option<Lease> {
        let marked = mark_resign_requested(&self.payload()?)?;
        Some(self.annotated(PAYLOAD, BASE64.encode(marked)))
    }

    /// This Lease with another version only: a write that changes nothing leaves the version, and a late write would not conflict.
    pub(crate) fn bumped(&self) -> Lease {
        self.annotated(WITHDRAWN, format!("{:016x}", fastrand::u64(..)))
    }

    fn annotated(&self, name: &str, value: String) -> Lease {
        self.changed(|_, annotations| {
            annotations.insert(name.to_owned(), value);
        })
    }

    fn changed(&self, change: impl FnOnce(&mut LeaseSpec, &mut Annotations)) -> Lease {
        let mut lease = self.lease.clone();
        change(lease.spec.get_or_insert_default(), lease.metadata.annotations.get_or_insert_default());
        lease
    }
}

fn acquire(spec: &mut LeaseSpec, annotations: &mut Annotations, claim: &Claim, wall: Duration) {
    let now = later_time(spec, wall);
    spec.holder_identity = Some(claim.identity.clone());
    spec.lease_duration_seconds = Some(claim.seconds);
    (spec.acquire_time, spec.renew_time) = (Some(now.clone()), Some(now));
    claim.annotate(annotations);
}

fn release(spec: &mut LeaseSpec, annotations: &mut Annotations, wall: Duration) {
    let now = later_time(spec, wall);
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    (spec.acquire_time, spec.renew_time) = (Some(now.clone()), Some(now));
    for name in [PAYLOAD, SESSION, TOKEN] {
        annotations.remove(name);
    }
}

/// The time of day, for others, and later than the renewal before: two renewals never look equal, whatever the clock does.
fn later_time(spec: &LeaseSpec, wall: Duration) -> MicroTime {
    let now = i64::try_from(wall.as_micros()).unwrap_or(i64::MAX);
    let before = spec.renew_time.as_ref().map(|before| before.0.as_microsecond().saturating_add(1));
    let micros = before.map_or(now, |least| now.max(least));
    // After the last time that there is, the present one is another, too.
    let time = Timestamp::from_microsecond(micros).or_else(|_| Timestamp::from_microsecond(now));
    MicroTime(time.unwrap_or(Timestamp::MIN))
}

/// The name of an election's Lease. An election whose name is that of an object has it, so that others find it. The others have a name
/// that is computed, and say their election in an annotation.
pub(crate) fn lease_name(election: &ElectionName) -> String {
    let name = election.as_str();
    if is_object_name(name) && !name.starts_with(COMPUTED) { name.to_owned() } else { computed_name(name) }
}

/// The value of a label that names an election: its name if that is legal, and a computed one otherwise.
pub(crate) fn label_value(election: &ElectionName) -> String {
    let name = election.as_str();
    let is_alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_legal = name.len() <= 63
        && name.bytes().all(is_inner)
        && is_alphanumeric(name.as_bytes().first())
        && is_alphanumeric(name.as_bytes().last());
    if is_legal && !name.starts_with(COMPUTED) { name.to_owned() } else { computed_name(name) }
}

/// How names begin that are computed.
const COMPUTED: &str = "tenure-x-";

fn computed_name(name: &str) -> String {
    use sha2::{Digest as _, Sha256};

    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("{COMPUTED}{hex}")
}

/// Whether `name` is a DNS subdomain, as the names of objects are.
pub(crate) fn is_object_name(name: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(is_alphanumeric)
            && bytes.last().is_some_and(is_alphanumeric)
            && bytes.iter().all(|byte| is_alphanumeric(byte) || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two renewals differ, also where no later time can be written.
    #[test]
    fn renewals_never_look_equal() {
        let wall = Duration::from_secs(1_700_000_000);
        let mut spec = LeaseSpec { renew_time: Some(MicroTime(Timestamp::MAX)), ..LeaseSpec::default() };
        let mut earlier = spec.renew_time.clone();
        for _ in 0..3 {
            spec.renew_time = Some(later_time(&spec, wall));
            assert_ne!(spec.renew_time, earlier);
            earlier = spec.renew_time.clone();
        }
    }

    #[test]
    fn a_label_names_the_election() {
        let value = |name: &str| label_value(&ElectionName::new(name).unwrap());
        for name in ["invoices", "Billing_2.eu", "a", &"x".repeat(63)] {
            assert_eq!(value(name), name);
        }
        for name in ["-", "a-", "tenure-x-1", &"x".repeat(64)] {
            let value = value(name);
            assert!(value.starts_with(COMPUTED) && value.len() == 49, "{value}");
        }
    }
}
