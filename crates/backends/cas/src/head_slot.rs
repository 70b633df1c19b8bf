//! What an election's record says while a leadership stands.

use std::fmt;

use tenure_core::{FencingToken, LeadershipHandle};

use crate::{record::election_key, session::CasSession, store::CasStore};

/// The first slot of an election's record, for an adapter whose store can check it in a transaction of the leader's.
///
/// While the leadership stands, the record, which is JSON, has this `token`, and the first element of its `queue` has this `nonce`. Nobody
/// else leads before the record has been swapped.
pub struct HeadSlot<'a, S> {
    /// The store that the leadership is in.
    pub store: &'a S,
    /// The key of the election's record.
    pub key: String,
    /// The fencing token.
    pub token: FencingToken,
    /// The nonce of the slot.
    pub nonce: &'a str,
}

impl<'a, S: CasStore> HeadSlot<'a, S> {
    /// The slot of a leadership. `None` if it is one of another kind of store, or another backend wraps the store.
    pub fn of(leadership: &'a LeadershipHandle) -> Option<Self> {
        let session = leadership.backend_session::<CasSession<S>>()?;
        let (_, nonce) = leadership.entry().rsplit_once('#')?;
        let (key, token) = (election_key(leadership.election()), leadership.fencing_token());
        Some(Self { store: session.store(), key, token, nonce })
    }
}

impl<S> fmt::Debug for HeadSlot<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HeadSlot");
        debug.field("key", &self.key).field("token", &self.token).field("nonce", &self.nonce);
        debug.finish_non_exhaustive()
    }
}
