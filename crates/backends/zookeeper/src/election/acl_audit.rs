//! Checks who else may delete entries or change their permissions (hazard Z19).
//!
//! A user that may delete below the znodes above entries, or may change their ACL, can end leaderships.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tracing::{debug, warn};
use zookeeper_client::{Acl, AuthId, Error, Permission};

use super::store::ElectionStore;
use crate::transport::connection::Connection;

/// What other users could do, and what to do about it.
pub(crate) const ADVICE: &str = "a user that may create znodes there can take part in elections or keep others out, one that may \
                                 delete znodes can end leaderships; make this user the only one in the ACL (zkCli.sh: setAcl)";

/// How many ids of an ACL are listed.
const MAX_LISTED_IDS: usize = 8;
/// How many characters of an id are shown.
const MAX_ID_CHARS: usize = 200;

/// Checks the ACLs of the root and of an election's znode in the background, and warns where other users have
/// permissions.
///
/// `own_entry` was created by this session: its ACL has our ids, as the servers know them. Clears `checked` if an ACL cannot be
/// read, so that the next entry checks again.
pub(crate) fn start(
    store: &ElectionStore,
    connection: &Arc<Connection>,
    own_entry: &str,
    election_path: String,
    checked: Arc<AtomicBool>,
) {
    let paths = [store.options().root.clone(), election_path];
    let (connection, own_entry) = (Arc::clone(connection), own_entry.to_owned());
    tokio::spawn(async move {
        let own_ids = match ids(&connection, &own_entry).await {
            Ok(own_ids) => own_ids,
            Err(error) => {
                checked.store(false, Relaxed);
                return debug!(own_entry, %error, "cannot read the ids of this user");
            }
        };
        for path in paths {
            match others_permissions(&connection, Some(&own_ids), &path).await {
                Ok(Some(permissions)) => warn!(path, permissions, "{ADVICE}"),
                Ok(None) => {}
                Err(error) => {
                    checked.store(false, Relaxed);
                    debug!(path, %error, "cannot check this ACL");
                }
            }
        }
    });
}

/// The ids in the ACL of the znode at `path`.
pub(crate) async fn ids(connection: &Connection, path: &str) -> Result<Vec<AuthId>, Error> {
    Ok(connection.acl(path).await?.into_iter().map(|acl| acl.auth_id().clone()).collect())
}

/// Describes which other ids may create or delete znodes below `path`, or change its ACL; `None` if there are none. If our
/// own ids are not known, only permissions for everybody are described.
pub(crate) async fn others_permissions(
    connection: &Connection,
    own_ids: Option<&[AuthId]>,
    path: &str,
) -> Result<Option<String>, Error> {
    match connection.acl(path).await {
        Ok(acls) => Ok(describe_others(&acls, own_ids)),
        Err(Error::NoAuth) => Ok(Some("this user may not read its ACL".to_owned())),
        Err(error) => Err(error),
    }
}

fn describe_others(acls: &[Acl], own_ids: Option<&[AuthId]>) -> Option<String> {
    let is_other = |id: &AuthId| match own_ids {
        Some(own_ids) => !own_ids.iter().any(|own| is_same(own, id)),
        None => id == &AuthId::anyone(),
    };
    let mut found = acls.iter().filter(|acl| is_other(acl.auth_id())).filter_map(|acl| {
        let may = |permission| acl.permission().has(permission);
        let verbs = [
            (Permission::CREATE, "create below it"),
            (Permission::DELETE, "delete below it"),
            (Permission::ADMIN, "change its ACL"),
        ];
        let verbs: Vec<_> = verbs.into_iter().filter(|(of, _)| may(*of)).map(|(_, verb)| verb).collect();
        (!verbs.is_empty()).then(|| format!("{} may {}", displayed(acl.auth_id()), verbs.join(", ")))
    });
    let mut listed: Vec<_> = found.by_ref().take(MAX_LISTED_IDS).collect();
    let more = found.count();
    if more > 0 {
        listed.push(format!("so may {more} more"));
    }
    (!listed.is_empty()).then(|| listed.join("; "))
}

/// Whether both ids are the same, as far as the server shows: to a user that may not change an ACL it shows `x` instead of
/// the password's hash (ZOOKEEPER-1392).
fn is_same(own: &AuthId, id: &AuthId) -> bool {
    let is_masked = || own.scheme() == "digest" && id.scheme() == "digest" && id.id().ends_with(":x");
    own == id || (is_masked() && user(own) == user(id))
}

/// An id for display, without the password's hash.
fn displayed(id: &AuthId) -> String {
    if id == &AuthId::anyone() {
        return "everybody".to_owned();
    }
    let shown: String = format!("{}:{}", id.scheme(), user(id)).escape_debug().take(MAX_ID_CHARS).collect();
    match id.scheme() {
        "digest" => format!("{shown} (with another password, if it is this user)"),
        _ => shown,
    }
}

fn user(id: &AuthId) -> &str {
    match id.scheme() {
        "digest" => id.id().split_once(':').map_or(id.id(), |(user, _)| user),
        _ => id.id(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::{
        election::{layout::Layout, session_bounds::SessionBounds},
        transport::{
            connect_options::ConnectOptions,
            ensemble::Ensemble,
            scripted_server::{Answer, GRANTED_TTL, Request, ScriptedServer},
        },
    };

    fn acl(permission: Permission, scheme: &str, id: &str) -> Acl {
        Acl::new(permission, AuthId::new(scheme, id))
    }

    #[test]
    fn other_users_with_permissions_are_named_without_hashes() {
        let own_ids = [AuthId::new("digest", "app:HASH="), AuthId::new("x509", "CN=app")];
        let described = |acls: &[Acl]| describe_others(acls, Some(&own_ids));
        let own = acl(Permission::ALL, "digest", "app:HASH=");
        assert_eq!(described(&[own.clone(), acl(Permission::ALL, "x509", "CN=app")]), None);
        let reader = acl(Permission::READ | Permission::WRITE, "world", "anyone");
        assert_eq!(described(&[own.clone(), reader]), None, "reading and writing data end no leadership");
        let all = "create below it, delete below it, change its ACL";
        assert_eq!(
            described(&[acl(Permission::ALL, "world", "anyone")]),
            Some(format!("everybody may {all}"))
        );
        let text = described(&[own, acl(Permission::DELETE, "digest", "app:OTHER=")]).unwrap();
        assert!(
            text.starts_with("digest:app (with another password") && text.ends_with("may delete below it")
        );
        assert!(!text.contains("OTHER"), "{text}");
        assert_eq!(described(&[acl(Permission::ALL, "digest", "app:x")]), None, "masked by the server");
        assert!(described(&[acl(Permission::ALL, "digest", "other:x")]).is_some());
        let escaped = described(&[acl(Permission::ADMIN, "x509", "CN=\u{1b}[31m\n")]).unwrap();
        assert!(!escaped.contains(char::is_control), "{escaped}");
    }

    #[test]
    fn many_others_are_counted() {
        let many: Vec<_> = (0..20).map(|n| acl(Permission::CREATE, "ip", &format!("10.0.0.{n}"))).collect();
        let text = describe_others(&many, Some(&[])).unwrap();
        assert!(text.contains("10.0.0.7") && !text.contains("10.0.0.8"), "{text}");
        assert!(text.ends_with("so may 12 more"), "{text}");
    }

    #[test]
    fn without_own_ids_only_everybody_counts() {
        let somebody = acl(Permission::ALL, "digest", "app:HASH=");
        assert_eq!(describe_others(std::slice::from_ref(&somebody), None), None);
        assert!(describe_others(&[somebody, acl(Permission::CREATE, "world", "anyone")], None).is_some());
    }

    /// A check that failed is repeated: with the next entry.
    #[tokio::test]
    async fn a_failed_check_does_not_count() {
        let server = ScriptedServer::start(|request| {
            let answer = match request {
                Request::Connect { .. } => Answer::Session(7),
                _ => Answer::Disconnect,
            };
            Box::pin(async { answer })
        })
        .await;
        let options = ConnectOptions::for_tests(GRANTED_TTL);
        let connection = Connection::open(&options, server.address(), GRANTED_TTL, None).await.unwrap();
        let ensemble = Ensemble::new(options, vec![server.address().to_owned()]);
        let store = ElectionStore::new(Layout::Tenure, SessionBounds::default(), ensemble);
        let checked = Arc::new(AtomicBool::new(true));
        start(&store, &Arc::new(connection), "/root/own", "/root/e".to_owned(), Arc::clone(&checked));
        let is_cleared = async {
            while checked.load(Relaxed) {
                tokio::task::yield_now().await;
            }
        };
        timeout(GRANTED_TTL, is_cleared).await.expect("it is cleared");
    }
}
