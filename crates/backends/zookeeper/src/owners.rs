//! Whose the znodes above entries are: whoever may delete below them, or change who may, ends leaderships (hazard Z19).

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::{debug, warn};
use zookeeper_client::{Acl, AuthId, Error, Permission};

use crate::{Shared, connection::Connection};

/// What others could do, and what to do about it.
pub(crate) const REMEDY: &str = "whoever may create there can stand in elections or keep others out, whoever may delete can end \
                                 leaderships; leave this user alone in its ACL (zkCli.sh: setAcl)";

/// So many znodes are remembered.
const REMEMBERED: usize = 20_000;
/// So many ids of an ACL are named.
const NAMED: usize = 8;
/// As much of an id is shown.
const SHOWN: usize = 200;

/// The znodes that a session has looked at, once each.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    looked: Mutex<HashSet<String>>,
}

impl Owners {
    /// Looks at whose the root, the sessions' znode and `election` are, in the background, and warns where they are
    /// not ours alone.
    ///
    /// `pulse` is a znode of ours, whose ACL says who we are: the servers have put it there.
    pub(crate) fn look(
        self: &Arc<Self>,
        shared: &Shared,
        connection: &Arc<Connection>,
        pulse: &str,
        election: String,
    ) {
        if !shared.terms.creator_only {
            return;
        }
        if self.looked().len() > REMEMBERED {
            // Elections come and go: rather look twice than remember them all.
            self.looked().clear();
        }
        let mut paths = vec![shared.config.root.clone(), shared.sessions(), election];
        paths.retain(|path| self.looked().insert(path.clone()));
        if paths.is_empty() {
            return;
        }
        let (this, connection, pulse) = (Arc::clone(self), Arc::clone(connection), pulse.to_owned());
        // Nobody waits for it: who leads is known one answer earlier.
        tokio::spawn(async move {
            let ours = ids(&connection, &pulse).await;
            for path in paths {
                let found = match &ours {
                    Ok(ours) => trouble(&connection, Some(ours), &path).await,
                    Err(error) => Err(error.clone()),
                };
                match found {
                    Ok(Some(trouble)) => warn!(path, trouble, "{REMEDY}"),
                    Ok(None) => {}
                    Err(error) => {
                        debug!(path, %error, "whose that is will be seen with the next entry");
                        this.looked().remove(&path);
                    }
                }
            }
        });
    }

    fn looked(&self) -> MutexGuard<'_, HashSet<String>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who a znode belongs to that was made for its creator alone.
pub(crate) async fn ids(connection: &Connection, path: &str) -> Result<Vec<AuthId>, Error> {
    Ok(connection.acl(path).await?.into_iter().map(|acl| acl.auth_id().clone()).collect())
}

/// Who but us may decide over what lies below a znode, in words; `None` when nobody may. Where it is not known who
/// we are, only what everybody may counts.
pub(crate) async fn trouble(
    connection: &Connection,
    ours: Option<&[AuthId]>,
    path: &str,
) -> Result<Option<String>, Error> {
    match connection.acl(path).await {
        Ok(acls) => Ok(others(&acls, ours)),
        Err(Error::NoAuth) => Ok(Some("this user may not read who may do what below it".to_owned())),
        Err(error) => Err(error),
    }
}

fn others(acls: &[Acl], ours: Option<&[AuthId]>) -> Option<String> {
    let is_other = |id: &AuthId| match ours {
        Some(ours) => !ours.iter().any(|our| is_same(our, id)),
        None => id == &AuthId::anyone(),
    };
    let mut found = acls.iter().filter(|acl| is_other(acl.auth_id())).filter_map(|acl| {
        let may = |permission| acl.permission().has(permission);
        let words = [
            (Permission::CREATE, "create below it"),
            (Permission::DELETE, "delete below it"),
            (Permission::ADMIN, "change who may"),
        ];
        let words: Vec<_> = words.into_iter().filter(|(of, _)| may(*of)).map(|(_, word)| word).collect();
        (!words.is_empty()).then(|| format!("{} may {}", name(acl.auth_id()), words.join(", ")))
    });
    let mut named: Vec<_> = found.by_ref().take(NAMED).collect();
    let more = found.count();
    if more > 0 {
        named.push(format!("so may {more} more"));
    }
    (!named.is_empty()).then(|| named.join("; "))
}

/// Whether both are the same, as far as the server says: to whoever may not change an ACL it shows `x` where the
/// password's hash stands (ZOOKEEPER-1392).
fn is_same(our: &AuthId, id: &AuthId) -> bool {
    let is_masked = || our.scheme() == "digest" && id.scheme() == "digest" && id.id().ends_with(":x");
    our == id || (is_masked() && user(our) == user(id))
}

/// An id for people, without the password's hash.
fn name(id: &AuthId) -> String {
    if id == &AuthId::anyone() {
        return "everybody".to_owned();
    }
    let shown: String = format!("{}:{}", id.scheme(), user(id)).escape_debug().take(SHOWN).collect();
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
    use super::*;

    fn acl(permission: Permission, scheme: &str, id: &str) -> Acl {
        Acl::new(permission, AuthId::new(scheme, id))
    }

    #[test]
    fn whoever_else_may_decide_is_named_and_no_hash() {
        let ours = [AuthId::new("digest", "app:HASH="), AuthId::new("x509", "CN=app")];
        let said = |acls: &[Acl]| others(acls, Some(&ours));
        let own = acl(Permission::ALL, "digest", "app:HASH=");
        assert_eq!(said(&[own.clone(), acl(Permission::ALL, "x509", "CN=app")]), None);
        let reader = acl(Permission::READ | Permission::WRITE, "world", "anyone");
        assert_eq!(said(&[own.clone(), reader]), None, "who may only read decides nothing");
        let all = "create below it, delete below it, change who may";
        assert_eq!(said(&[acl(Permission::ALL, "world", "anyone")]), Some(format!("everybody may {all}")));
        let words = said(&[own, acl(Permission::DELETE, "digest", "app:OTHER=")]).unwrap();
        assert!(
            words.starts_with("digest:app (with another password") && words.ends_with("may delete below it")
        );
        assert!(!words.contains("OTHER"), "{words}");
        assert_eq!(said(&[acl(Permission::ALL, "digest", "app:x")]), None, "masked by the server");
        assert!(said(&[acl(Permission::ALL, "digest", "other:x")]).is_some());
        let escaped = said(&[acl(Permission::ADMIN, "x509", "CN=\u{1b}[31m\n")]).unwrap();
        assert!(!escaped.contains(char::is_control), "{escaped}");
    }

    #[test]
    fn many_others_are_counted() {
        let many: Vec<_> = (0..20).map(|n| acl(Permission::CREATE, "ip", &format!("10.0.0.{n}"))).collect();
        let words = others(&many, Some(&[])).unwrap();
        assert!(words.contains("10.0.0.7") && !words.contains("10.0.0.8"), "{words}");
        assert!(words.ends_with("so may 12 more"), "{words}");
    }

    #[test]
    fn where_we_do_not_know_who_we_are_only_everybody_counts() {
        let somebody = acl(Permission::ALL, "digest", "app:HASH=");
        assert_eq!(others(std::slice::from_ref(&somebody), None), None);
        assert!(others(&[somebody, acl(Permission::CREATE, "world", "anyone")], None).is_some());
    }
}
