//! The images of the test servers: used when present, else made from Debian's packages.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    apt,
    catalog::{Build, IMAGES, Image},
    docker::{self, docker},
    shell::{command, exists, output_within, run, say},
};

/// The time limit for pulling an image; an unreachable registry fails at once.
const PULL_TIMEOUT: Duration = Duration::from_secs(60);
const BUILD_TIMEOUT: Duration = Duration::from_secs(300);
/// The same, with programs that are compiled.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The label that says of what an image was made.
const CONTENTS: &str = "tenure-test-packages";

/// Where programs are built in an image.
const BUILD_DIR: &str = "/tmp/tenure-build";

/// What Debian's own images have, too: packages are installed without waiting for the disk, and start no service.
const OF_AN_IMAGE: [(&str, &str, u32); 2] = [
    ("etc/dpkg/dpkg.cfg.d/tenure-test", "force-unsafe-io\n", 0o644),
    ("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755),
];

/// Makes sure of Docker, and then of all images.
///
/// # Errors
/// When an image is missing and cannot be made here.
pub(crate) fn ensure_with_tools() -> Result<()> {
    docker::ensure()?;
    ensure(&IMAGES)
}

/// Makes those of the images that are missing, or were made of other packages.
///
/// # Errors
/// When one cannot be made here.
pub(crate) fn ensure(images: &[&Image]) -> Result<()> {
    // Two at a time: one unpacks while the other fetches. Each that is done takes the next.
    let waiting = Mutex::new(images.iter());
    let make_next = || {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            ensure_one(match next {
                Some(image) => image,
                None => return Ok(()),
            })?;
        }
    };
    thread::scope(|scope| {
        let making = [scope.spawn(make_next), scope.spawn(make_next)];
        making
            .map(|made| made.join().unwrap_or_else(|_| bail!("making an image has panicked")))
            .into_iter()
            .collect()
    })
}

fn ensure_one(image: &Image) -> Result<()> {
    let tag = image.tag();
    match docker(["image", "inspect", &format!("--format={{{{index .Config.Labels {CONTENTS:?}}}}}"), &tag]) {
        Ok(contents) if image.is_overridden() || contents == image.contents() => {
            say(format!("image {tag} is there"));
            return Ok(());
        }
        Ok(_) => say(format!("image {tag} has other contents: rebuilding it")),
        Err(_) => {}
    }
    let start = Instant::now();
    make(image).with_context(|| {
        format!(
            "there is no image {tag}, and it cannot be made here; name one in {} that has {}",
            image.override_variable, image.needs
        )
    })?;
    say(format!("image {tag} was built in {:.0} s", start.elapsed().as_secs_f32()));
    Ok(())
}

fn make(image: &Image) -> Result<()> {
    let tag = image.tag();
    if image.is_overridden() {
        say(format!("image {tag} is missing: pulling it"));
        return run(&mut command("docker", ["pull", &tag]));
    }
    let base = debian(image.suite)?;
    say(format!("image {tag} is missing: building it on {base}"));
    let folder = tempfile::tempdir()?;
    let packages = image.packages.join(" ");
    let mut recipe = format!(
        "FROM {base} AS packages\nLABEL {CONTENTS}={:?}\nRUN apt-get update && \
         DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {packages} && \
         rm -rf /var/lib/apt/lists /var/cache/apt/archives /usr/sbin/policy-rc.d\n",
        image.contents()
    );
    let mut limit = BUILD_TIMEOUT;
    if let Some(build) = &image.build {
        build.prepare(&folder.path().join("build"))?;
        // A volume, because a container's own file system is slow. What is in it is gone after the step.
        recipe += &format!(
            "FROM packages AS build\nCOPY build {BUILD_DIR}\nVOLUME {BUILD_DIR}\nRUN sh {BUILD_DIR}/script.sh {BUILD_DIR}\n\
             FROM packages\nCOPY --from=build /usr/local/bin /usr/local/bin\n"
        );
        limit = COMPILE_TIMEOUT;
    }
    fs::write(folder.path().join("Dockerfile"), recipe)?;
    // In the network of the machine, whose mirror and proxy may not be reached from a container's own.
    let arguments = ["build", "--quiet", "--network=host", "--force-rm", "--tag", &tag];
    output_within(command("docker", arguments).arg(folder.path()), limit)?;
    Ok(())
}

/// An image of this release of Debian: its own one, or one that is made here.
fn debian(suite: &str) -> Result<String> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // Not the slim one, which installs no manual pages.
    let (official, own) = (format!("debian:{suite}"), format!("tenure-test/debian:{suite}"));
    for tag in [&official, &own] {
        if docker(["image", "inspect", tag]).is_ok() {
            return Ok(tag.clone());
        }
    }
    match output_within(&mut command("docker", ["pull", "--quiet", &official]), PULL_TIMEOUT) {
        Ok(_) => Ok(official),
        Err(error) => {
            say(format!("Debian's image is not available: {error:#}"));
            say(format!("building {own} from Debian's packages"));
            bootstrap(suite, &own)?;
            Ok(own)
        }
    }
}

/// Makes an image with the packages that every Debian system has.
fn bootstrap(suite: &str, tag: &str) -> Result<()> {
    ensure!(apt::is_root(), "building a system from Debian's packages needs root");
    if !exists("debootstrap") {
        apt::install("debootstrap", "debootstrap")?;
    }
    let folder = tempfile::Builder::new().prefix("tenure-image-").tempdir_in("/var/tmp")?;
    let root = folder.path().join("root");
    let mut debootstrap = command("debootstrap", ["--variant=minbase", suite]);
    run(debootstrap.arg(&root).args(apt::mirror()).stdout(Stdio::null()))?;
    for (path, text, mode) in OF_AN_IMAGE {
        let path = root.join(path);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }

    let mut tar = command("tar", ["--create", "--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists"]);
    tar.args(["--exclude=./proc/*", "--exclude=./usr/share/doc", "--exclude=./usr/share/locale"]);
    tar.arg("--directory").arg(&root).arg(".");
    let mut tar = tar.stdout(Stdio::piped()).spawn().context("cannot run tar")?;
    let archive = tar.stdout.take().context("tar's output was piped")?;
    let imported = run(command("docker", ["import", "-", tag]).stdin(archive).stdout(Stdio::null()));
    let packed = tar.wait()?;
    imported?;
    ensure!(packed.success(), "tar failed ({packed})");
    Ok(())
}

impl Build {
    /// Writes the script and its files into a new folder, and fetches the packages as this machine is configured to.
    fn prepare(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (name, text) in self.files.iter().chain([&("script.sh", self.script)]) {
            fs::write(folder.join(name), text)?;
        }
        for wheel in self.wheels {
            if !exists("pip3") {
                apt::install("python3-pip", "pip3")?;
            }
            let mut download =
                command("pip3", ["download", "--quiet", "--no-deps", "--only-binary=:all:", wheel, "--dest"]);
            output_within(download.arg(folder), BUILD_TIMEOUT)?;
        }
        Ok(())
    }
}
