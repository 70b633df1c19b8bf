//! The README's example in a crate of its own, as a new user would build it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// The first code block of this language in a page.
fn code_block<'a>(page: &'a str, language: &str) -> &'a str {
    let start =
        page.find(&format!("```{language}")).unwrap_or_else(|| panic!("the page has a {language} block"));
    let body = &page[start..];
    let body = &body[body.find('\n').unwrap() + 1..];
    &body[..body.find("```").unwrap()]
}

/// The README's two code blocks make a crate that compiles, leads, prints a greeting, and exits on Ctrl-C.
#[test]
fn the_readme_example_builds_and_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let crate_dir = root.join("target/newcomer");
    fs::create_dir_all(crate_dir.join("src")).unwrap();

    let tenure = root.join("crates/tenure");
    let dependencies = code_block(&readme, "toml")
        .replace("git = \"…\"", &format!("path = {:?}", tenure.display().to_string()));
    assert!(dependencies.contains("path ="), "the README's dependency is {dependencies}");
    let manifest =
        format!("[package]\nname = \"newcomer\"\nedition = \"2024\"\n\n{dependencies}\n[workspace]\n");
    fs::write(crate_dir.join("Cargo.toml"), manifest).unwrap();
    // The same versions of dependencies as in this workspace.
    fs::copy(root.join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    let store = tempfile::tempdir().unwrap();
    let main = code_block(&readme, "rust").replace("/tmp/tenure-start", &store.path().display().to_string());
    fs::write(crate_dir.join("src/main.rs"), main).unwrap();

    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet"])
        .current_dir(&crate_dir)
        .env("CARGO_TARGET_DIR", crate_dir.join("target"))
        .status()
        .unwrap();
    assert!(built.success());

    let mut program =
        Command::new(crate_dir.join("target/debug/newcomer")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let greeting = lines.next().expect("it prints a greeting").unwrap();
    let id = rustix::process::Pid::from_raw(program.id().cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert!(greeting.starts_with("hello from ") && greeting.contains(", token "), "{greeting}");
    assert!(program.wait().unwrap().success(), "Ctrl-C ends it with success");
}
