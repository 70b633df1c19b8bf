//! The images of the test servers: used when present, else made from Debian's packages.

use std::{
    collections::BTreeSet,
    env,
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

/// The time limit for pulling an image. Most unreachable registries fail at once.
const PULL_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for building one.
const BUILD_TIMEOUT: Duration = Duration::from_secs(900);
/// The same, with programs that are compiled.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The label that says of what an image was made.
const CONTENTS: &str = "tenure-test-packages";

/// A version, to be raised when images of the same packages are made in another way: then existing ones are made again.
const RECIPE: u32 = 2;

/// Proxies that the build of an image uses as this machine does.
const PROXIES: [&str; 6] = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// Where programs are built in an image.
const BUILD_DIR: &str = "/tmp/tenure-build";

/// Files (path, text, mode) that Debian's official images have, and debootstrap does not write: packages are installed without flushing to the
/// disk, and start no service.
const BASE_IMAGE_FILES: [(&str, &str, u32); 2] = [
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
    match contents_of(&tag) {
        Ok(contents) if image.is_overridden() || contents == contents_wanted(image) => {
            say(format!("image {tag} is there"));
            return Ok(());
        }
        Ok(_) => say(format!("image {tag} has other contents: rebuilding it")),
        Err(_) => say(format!("image {tag} is missing")),
    }
    let start = Instant::now();
    make(image).with_context(|| {
        format!(
            "there is no image {tag}, and it cannot be made here; name one in {} that has {}",
            image.override_variable, image.needs
        )
    })?;
    say(format!("image {tag} was made in {:.0} s", start.elapsed().as_secs_f32()));
    Ok(())
}

/// Reads of what an image was made.
fn contents_of(tag: &str) -> Result<String> {
    docker(["image", "inspect", &format!("--format={{{{index .Config.Labels {CONTENTS:?}}}}}"), tag])
}

fn contents_wanted(image: &Image) -> String {
    format!("{}, recipe {RECIPE}", image.contents())
}

fn make(image: &Image) -> Result<()> {
    if image.is_overridden() {
        return run(&mut command("docker", ["pull", &image.tag()]));
    }
    let on_official_base = official_base(image.suite).and_then(|base| build(image, &base));
    if let Err(error) = on_official_base {
        let failed = format!("{} cannot be built on Debian's image: {error:#}", image.tag());
        say(&failed);
        bootstrapped_base(image.suite).and_then(|base| build(image, &base)).context(failed)?;
    }
    Ok(())
}

fn build(image: &Image, base: &str) -> Result<()> {
    say(format!("building {} on {base}", image.tag()));
    let (folder, log) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
    let packages = image.packages.join(" ");
    // Without policy-rc.d in the end, so that a package that a test installs can start its services.
    let mut recipe = format!(
        "FROM {base} AS packages\nLABEL {CONTENTS}={:?}\nRUN apt-get update && \
         DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {packages} && \
         apt-get clean && rm -rf /var/lib/apt/lists /usr/sbin/policy-rc.d\n",
        contents_wanted(image)
    );
    if let Some(build) = &image.build {
        build.prepare(&folder.path().join("build"))?;
        // In a volume, because the layers of a container are a slow file system. Only /usr/local/bin gets into the image.
        recipe += &format!(
            "FROM packages AS build\nCOPY build {BUILD_DIR}\nVOLUME {BUILD_DIR}\nRUN sh {BUILD_DIR}/script.sh {BUILD_DIR}\n\
             FROM packages\nCOPY --from=build /usr/local/bin /usr/local/bin\n"
        );
    }
    fs::write(folder.path().join("Dockerfile"), recipe)?;
    let mut build = command("sh", ["-c", "exec docker build \"$@\" >\"$0\" 2>&1"]);
    // In the host's network: its mirror or proxy may be out of reach from the network of a container.
    build.arg(log.path()).args(["--network=host", "--force-rm", "--tag", &image.tag()]);
    build.args(
        PROXIES.iter().filter(|name| env::var_os(name).is_some()).map(|name| format!("--build-arg={name}")),
    );
    let limit = if image.build.is_some() { COMPILE_TIMEOUT } else { BUILD_TIMEOUT };
    output_within(build.arg(folder.path()), limit).with_context(|| {
        let said = fs::read_to_string(log.path()).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    })?;
    Ok(())
}

/// Debian's own image of this release, which is pulled if it is missing. Not the slim one: its dpkg leaves out manual pages and documentation,
/// which a test of the Debian package reads.
fn official_base(suite: &'static str) -> Result<String> {
    /// The releases that could not be pulled. Each is tried once.
    static UNAVAILABLE: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let mut unavailable = UNAVAILABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let tag = format!("debian:{suite}");
    ensure!(!unavailable.contains(suite), "{tag} is not available");
    if docker(["image", "inspect", &tag]).is_err()
        && let Err(error) = output_within(&mut command("docker", ["pull", "--quiet", &tag]), PULL_TIMEOUT)
    {
        unavailable.insert(suite);
        return Err(error);
    }
    Ok(tag)
}

/// A base image that is made with debootstrap, if it is missing.
fn bootstrapped_base(suite: &str) -> Result<String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let tag = format!("tenure-test/debian:{suite}");
    let contents = format!("recipe {RECIPE} of {}", apt::mirror().unwrap_or_default());
    if contents_of(&tag).is_ok_and(|found| found == contents) {
        return Ok(tag);
    }
    say(format!("making {tag} from Debian's packages"));
    bootstrap(suite, &tag, &contents)?;
    Ok(tag)
}

/// Makes a base image with debootstrap: of the essential packages and apt (`minbase`).
fn bootstrap(suite: &str, tag: &str, contents: &str) -> Result<()> {
    ensure!(apt::is_root(), "building a system from Debian's packages needs root");
    if !exists("debootstrap") {
        apt::install("debootstrap", "debootstrap")?;
    }
    let folder = tempfile::Builder::new().prefix("tenure-image-").tempdir_in("/var/tmp")?;
    let root = folder.path().join("root");
    let mut debootstrap = command("debootstrap", ["--variant=minbase", suite]);
    run(debootstrap.arg(&root).args(apt::mirror()).stdout(Stdio::null()))?;
    for (path, text, mode) in BASE_IMAGE_FILES {
        let path = root.join(path);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }

    let mut tar = command("tar", ["--create", "--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists"]);
    tar.args(["--exclude=./proc/*", "--exclude=./usr/share/doc", "--exclude=./usr/share/locale"]);
    tar.arg("--directory").arg(&root).arg(".");
    let mut tar = tar.stdout(Stdio::piped()).spawn().context("cannot run tar")?;
    let archive = tar.stdout.take().context("tar's output was piped")?;
    let label = format!("--change=LABEL {CONTENTS}={contents:?}");
    // Dropped at once, with its end of the pipe: tar would wait for a reader if the import failed.
    let imported = run(command("docker", ["import", &label, "-", tag]).stdin(archive).stdout(Stdio::null()));
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
