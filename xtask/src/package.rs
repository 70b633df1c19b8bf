//! `cargo xtask package`: a Debian package and a container image of the command.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::{
    docker,
    shell::{cargo, command, output, root, run, say, target},
    tools,
};

/// The user of the image.
const USER: &str = "65532";
/// The authorities' certificates, where Debian and Fedora have them.
const CERTIFICATES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const IMAGE_CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// What to make, and of what.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this package
    #[arg(value_enum)]
    kind: Option<Kind>,
    /// Packages this binary, in place of a release build with all features
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where the packages are written; by default `packages` in cargo's target directory
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// Compresses the Debian package less, which takes a fraction of the time
    #[arg(long)]
    fast: bool,
    /// The image's name; by default `tenure` and the version
    #[arg(long, value_name = "IMAGE")]
    tag: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A Debian package
    Deb,
    /// A container image
    Image,
}

/// Makes the packages.
///
/// # Errors
/// When something is missing that cannot be installed here, or a step fails.
pub(crate) fn package(options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => release_build()?,
    };
    let version = output(&mut command(&binary.display().to_string(), ["--version"]))?;
    let version = version.strip_prefix("tenure ").with_context(|| format!("its version is {version}"))?;
    let folder = options.output.clone().unwrap_or_else(|| target().join("packages"));
    let folder = std::path::absolute(folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    if options.kind != Some(Kind::Image) {
        deb(&binary, &folder, options.fast)?;
    }
    if options.kind != Some(Kind::Deb) {
        let tag = options.tag.clone().unwrap_or_else(|| format!("tenure:{version}"));
        image(&binary, &tag, &folder.join(format!("tenure-{version}-image.tar")), &folder)?;
    }
    Ok(())
}

fn release_build() -> Result<PathBuf> {
    tools::ensure_for_build()?;
    run(&mut cargo(["build", "--release", "--package=tenure-cli", "--all-features"]))?;
    Ok(std::path::absolute(target())?.join("release").join("tenure"))
}

/// The metadata is in the command's manifest. There, `target/release` is what is staged here.
fn deb(binary: &Path, folder: &Path, fast: bool) -> Result<()> {
    tools::ensure_for_packages()?;
    let staged = empty(&folder.join("staged"))?;
    let release = staged.join("release");
    let (man, completions) = (release.join("man"), release.join("completions"));
    fs::create_dir_all(&completions)?;
    fs::copy(binary, release.join("tenure"))?;
    let tenure = release.join("tenure").display().to_string();
    run(command(&tenure, ["man", "--dir"]).arg(&man))?;
    // cargo-deb does it for pages that are no build products only.
    let pages = fs::read_dir(&man)?.map(|page| Ok(page?.path())).collect::<Result<Vec<_>>>()?;
    run(command("gzip", ["--best", "--no-name"]).args(pages))?;
    for (shell, name) in [("bash", "tenure.bash"), ("zsh", "_tenure"), ("fish", "tenure.fish")] {
        fs::write(completions.join(name), output(&mut command(&tenure, ["completions", shell]))? + "\n")?;
    }
    let mut deb = cargo(["deb", "--package=tenure-cli", "--no-build", "--output"]);
    deb.arg(folder).args(fast.then_some("--fast"));
    run(deb.current_dir(root()?).env("CARGO_TARGET_DIR", &staged))?;
    fs::remove_dir_all(&staged)?;
    Ok(())
}

/// The image has nothing but what is copied here from this machine.
fn image(binary: &Path, tag: &str, archive: &Path, folder: &Path) -> Result<()> {
    docker::ensure()?;
    let context = empty(&folder.join("context"))?;
    let files = context.join("root");
    fs::create_dir_all(files.join("usr/bin"))?;
    fs::create_dir_all(files.join("etc"))?;
    fs::create_dir_all(context.join("home"))?;
    run(command("strip", ["-o"]).arg(files.join("usr/bin/tenure")).arg(binary))?;
    for library in libraries(&output(command("ldd", [""; 0]).arg(binary))?)? {
        copy(&library, &files, library.strip_prefix("/")?)?;
    }
    let certificates = CERTIFICATES.map(Path::new).into_iter().find(|path| path.exists());
    let certificates = certificates.with_context(|| {
        format!("no CA certificates in {}: install ca-certificates", CERTIFICATES.join(" or "))
    })?;
    copy(certificates, &files, Path::new(IMAGE_CERTIFICATES))?;
    let user = format!(
        "root:x:0:0:root:/:/sbin/nologin\ntenure:x:{USER}:{USER}:tenure:/home/tenure:/sbin/nologin\n"
    );
    fs::write(files.join("etc/passwd"), user)?;
    fs::write(files.join("etc/group"), format!("root:x:0:\ntenure:x:{USER}:\n"))?;
    // Without this file, the C library asks DNS before it reads /etc/hosts.
    fs::write(files.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    let recipe = root()?.join("packaging/container/Dockerfile");
    run(command("docker", ["build", "--quiet", "--tag", tag, "--file"]).arg(recipe).arg(&context))?;
    run(command("docker", ["save", "--output"]).arg(archive).arg(tag))?;
    fs::remove_dir_all(&context)?;
    say(format!("the image is {tag}, and in {}", archive.display()));
    Ok(())
}

/// Copies a file, also through symbolic links, to `path` below `files`.
fn copy(from: &Path, files: &Path, path: &Path) -> Result<()> {
    let to = files.join(path);
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// An empty directory in place of whatever is there.
fn empty(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}

/// The paths of the libraries that `ldd` has found.
fn libraries(listed: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in listed.lines().map(str::trim) {
        ensure!(!line.ends_with("not found"), "{line}");
        // `NAME => PATH (ADDRESS)`, or for the loader `PATH (ADDRESS)`. The kernel's own has no path.
        let path = line.rsplit_once(" => ").map_or(line, |(_, path)| path);
        if let Some((path, _)) = path.split_once(" (").filter(|(path, _)| path.starts_with('/')) {
            libraries.push(path.into());
        }
    }
    if libraries.is_empty() {
        bail!("ldd lists no library, although the command is linked with the C library: {listed}");
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_are_those_with_a_path() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = libraries(listed).unwrap();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert!(libraries("\tlibx.so.1 => not found\n").is_err());
        assert!(libraries("\tstatically linked\n").is_err());
    }
}
