//! Installs Debian packages, and finds the mirror that they come from.

use std::{
    fs,
    sync::{Mutex, Once, PoisonError},
};

use anyhow::{Result, bail, ensure};

use crate::shell::{command, exists, output, run, say};

/// Installs a package.
///
/// # Errors
/// When this is not Debian or not run by root; the error says what to install by hand.
pub(crate) fn install(package: &str, purpose: &str) -> Result<()> {
    if !exists("apt-get") {
        bail!(
            "{purpose} is missing, and this is no Debian system: install it by hand (on Debian, `{package}`)"
        );
    }
    ensure!(is_root(), "{purpose} is missing: run this as root, or first `sudo apt-get install {package}`");
    // apt serves one at a time.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    say(format!("{purpose} is missing: installing Debian's {package}"));
    update();
    let arguments = ["install", "--yes", "--no-install-recommends", package];
    run(command("apt-get", arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Fetches the package lists, once. A failure is only printed, because old lists may be enough.
fn update() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = run(&mut command("apt-get", ["update"])) {
            say(format!("apt-get update failed; continuing with the old package lists: {error:#}"));
        }
    });
}

pub(crate) fn is_root() -> bool {
    output(&mut command("id", ["-u"])).is_ok_and(|id| id == "0")
}

/// The mirror of Debian that this machine uses; `None` when it is not Debian.
pub(crate) fn mirror() -> Option<String> {
    let system = fs::read_to_string("/etc/os-release").ok()?;
    if !system.lines().any(|line| line == "ID=debian") {
        return None;
    }
    let format = "$(RELEASE) $(COMPONENT) $(REPO_URI)";
    let arguments = ["indextargets", "--format", format, "Created-By: Packages"];
    mirror_of(&output(&mut command("apt-get", arguments)).ok()?)
}

/// The mirror of the release itself, not that of its updates or of other vendors.
fn mirror_of(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [release, "main", uri] if !release.contains('-') && uri.contains("/debian") => Some(uri.to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::mirror_of;

    #[test]
    fn the_mirror_is_the_one_of_the_release_itself() {
        let targets = "trixie-security main http://mirror.example/debian-security/\n\
                       nodistro main http://other.example/\n\
                       trixie main http://mirror.example/debian/\n\
                       trixie-updates main http://mirror.example/debian/";
        assert_eq!(mirror_of(targets).as_deref(), Some("http://mirror.example/debian/"));
    }

    #[test]
    fn without_a_source_for_the_release_there_is_no_mirror() {
        assert_eq!(mirror_of("trixie-security main http://mirror.example/debian-security/"), None);
    }
}
