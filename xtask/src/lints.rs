//! Checks that every package takes the workspace's lints, one of which forbids unsafe code, and where the exceptions are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    metadata::Metadata,
    shell::{root, say},
};

/// The fuzz targets. Their macro expands to functions that C calls, which the lint counts as unsafe code, so that they are
/// searched for the word instead.
const FUZZ_TARGETS: &str = "tests/fuzz/fuzz_targets";

/// The packages with lints of their own, and the only file in each that may have unsafe code.
const EXCEPTIONS: [(&str, &str); 2] =
    [("crates/tenure-mmap", "src/mappings.rs"), ("tests/processes", "src/fork.rs")];
/// What one person reads at once.
const MAX_LINES_OF_EXCEPTION: usize = 250;

/// Checks the workspace's manifests, and the fuzz targets' text.
///
/// # Errors
/// When one of them allows unsafe code.
pub(crate) fn check(metadata: &Metadata) -> Result<()> {
    let manifest = read(&root()?.join("Cargo.toml"))?;
    ensure!(
        has(&manifest, "[workspace.lints.rust]", "unsafe_code = \"forbid\""),
        "the workspace does not forbid unsafe code"
    );
    for path in metadata.manifests() {
        let package = path.parent().context("a manifest is in a folder")?;
        if let Some((_, file)) = EXCEPTIONS.iter().find(|(exception, _)| package.ends_with(exception)) {
            check_exception(package, file)?;
            continue;
        }
        let inherits = has(&read(&path)?, "[lints]", "workspace = true");
        ensure!(
            inherits,
            "{} does not take the workspace's lints: `[lints] workspace = true`",
            path.display()
        );
    }
    for target in fs::read_dir(root()?.join(FUZZ_TARGETS)).context(FUZZ_TARGETS)? {
        let path = target?.path();
        let unsafe_code = read(&path)?.lines().any(mentions_unsafe);
        ensure!(!unsafe_code, "{} has unsafe code", path.display());
    }
    say("unsafe code is forbidden, except in one file of tenure-mmap and one of the tests");
    Ok(())
}

/// Checks that only `file` of `package` has unsafe code.
fn check_exception(package: &Path, file: &str) -> Result<()> {
    let manifest = read(&package.join("Cargo.toml"))?;
    ensure!(
        has(&manifest, "[lints.rust]", "unsafe_code = \"deny\""),
        "{} does not deny unsafe code",
        package.display()
    );
    for path in sources(package)? {
        let text = read(&path)?;
        if path == package.join(file) {
            let lines = text.lines().count();
            ensure!(
                lines <= MAX_LINES_OF_EXCEPTION,
                "{} has unsafe code and {lines} lines: at most {MAX_LINES_OF_EXCEPTION} are allowed",
                path.display()
            );
        } else {
            ensure!(!text.lines().any(mentions_unsafe), "{} has unsafe code", path.display());
        }
    }
    Ok(())
}

/// The Rust files below `directory`.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Whether `line` stands in the table that begins with `header`.
fn has(manifest: &str, header: &str, line: &str) -> bool {
    let table = manifest.lines().map(str::trim).skip_while(|found| *found != header).skip(1);
    table.take_while(|found| !found.starts_with('[')).any(|found| found == line)
}

fn mentions_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_in_its_own_table_only() {
        let manifest =
            "[package]\nworkspace = true\n\n[lints]\n# a comment\nworkspace = true\n[lints.rust]\nx = 1\n";
        assert!(has(manifest, "[lints]", "workspace = true"));
        assert!(!has(manifest, "[lints.rust]", "workspace = true"));
        assert!(!has("[package]\nworkspace = true\n", "[lints]", "workspace = true"));
    }

    #[test]
    fn unsafe_code_is_a_word_of_its_own() {
        assert!(mentions_unsafe("    unsafe { x() } // y"));
        assert!(!mentions_unsafe("// unsafe"));
        assert!(!mentions_unsafe("forbid(unsafe_code)"));
    }
}
