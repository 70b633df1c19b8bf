//! The glossary's retired words stay out of names and documentation.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Where a retired word is allowed: the beginning of a path, the word, and the reason. An empty word allows all.
const EXCEPTIONS: [(&str, &str, &str); 8] = [
    ("docs/reference/glossary.md", "", "lists the words"),
    ("CHANGELOG.md", "", "names what was renamed"),
    ("tests/suite/repository/vocabulary.rs", "", "tests this test"),
    ("crates/backends/etcd/", "keeper", "etcd-client's type LeaseKeeper"),
    (
        "crates/backends/postgres/",
        "Notice",
        "tokio-postgres's AsyncMessage::Notice, of PostgreSQL's protocol",
    ),
    ("crates/tenure-core/src/engine/", "Leading", "a state of a candidate"),
    ("crates/tenure-axum/", "Leading", "an extractor: the handler runs while this process is leading"),
    ("examples/src/bin/web.rs", "Leading", "the same"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// The files of the tree with this extension, without what is built or vendored.
fn files(extension: &str) -> Vec<(String, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() {
                if name != "target" && name != ".git" && name != "corpus" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// What the glossary's second table retires.
struct Retired {
    /// Words that appear in no name, alone or as a part of it.
    parts: BTreeSet<String>,
    /// Names that nothing has as a whole.
    names: BTreeSet<String>,
    /// Words and phrases that appear on no page.
    phrases: BTreeSet<String>,
}

impl Retired {
    fn of(glossary: &str) -> Self {
        let (mut parts, mut names, mut phrases) = <(BTreeSet<_>, BTreeSet<_>, BTreeSet<_>)>::default();
        let table = glossary.split_once("## Retired words").expect("the glossary has the table").1;
        for line in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [words, _, place] = cells[..] else { panic!("not three cells: {line}") };
            for word in words.split(", ").map(str::to_owned) {
                let is_one_word = word.chars().all(|c| c.is_ascii_lowercase());
                match place {
                    "names and docs" if is_one_word => {
                        phrases.insert(word.clone());
                        parts.insert(word);
                    }
                    "names and docs" if word.contains('_') => _ = names.insert(word),
                    "names and docs" | "docs" => _ = phrases.insert(word),
                    "names" => _ = names.insert(word),
                    other => panic!("not a place: {other}"),
                }
            }
        }
        Self { parts, names, phrases }
    }
}

/// Whether the file may have the word.
fn is_exception(file: &str, word: &str) -> bool {
    EXCEPTIONS
        .iter()
        .any(|(path, allowed, _)| file.starts_with(path) && (allowed.is_empty() || *allowed == word))
}

/// The identifiers that Rust code defines: functions, types, constants, modules, variants are found by how they are declared,
/// variables and fields by `let`, `:`.
fn identifiers(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for line in code.lines() {
        // Comments are prose, and strings are data.
        let line = line.split("//").next().unwrap_or_default();
        let outside = line.split('"').step_by(2);
        for piece in outside {
            let words = piece.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            found.extend(words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())));
        }
    }
    found
}

/// The words of a name: `WitnessGone` and `witness_gone` have two.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    for piece in name.split('_').filter(|piece| !piece.is_empty()) {
        let is_constant = piece.chars().all(|c| !c.is_ascii_lowercase());
        let mut word = String::new();
        for c in piece.chars() {
            if c.is_ascii_uppercase() && !is_constant && !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            word.push(c.to_ascii_lowercase());
        }
        words.push(word);
    }
    words
}

#[test]
fn no_name_has_a_retired_word() {
    let retired = Retired::of(&fs::read_to_string(root().join("docs/reference/glossary.md")).unwrap());
    assert!(retired.parts.len() > 20 && retired.names.len() > 40, "the table was read");
    let mut wrong = Vec::new();
    let files = files("rs");
    assert!(files.len() > 300, "{}", files.len());
    for (file, code) in &files {
        let stem = Path::new(file).file_stem().unwrap().to_str().unwrap();
        for name in identifiers(code).into_iter().chain([stem]) {
            let part = words(name).into_iter().find(|word| retired.parts.contains(word));
            let whole = retired.names.contains(name).then(|| name.to_owned());
            if let Some(word) = whole.or(part)
                && !is_exception(file, &word)
            {
                wrong.push(format!("{file}: {name} ({word})"));
            }
        }
    }
    assert!(wrong.is_empty(), "see docs/reference/glossary.md for what to use:\n{}", wrong.join("\n"));
}

#[test]
fn no_page_and_no_comment_has_a_retired_word() {
    let retired = Retired::of(&fs::read_to_string(root().join("docs/reference/glossary.md")).unwrap());
    assert!(retired.phrases.len() > 25, "the table was read");
    let mut wrong = Vec::new();
    let pages = files("md");
    let comments = files("rs").into_iter().map(|(file, code)| {
        let lines =
            code.lines().filter_map(|line| line.split_once("//").map(|(_, comment)| comment.to_owned()));
        (file, lines.collect::<Vec<_>>().join("\n"))
    });
    for (file, text) in pages.into_iter().chain(comments) {
        // A phrase may be broken over two lines, with the comment's marks between them.
        let text = text.to_lowercase().replace(['\n', '/', '!', '`'], " ");
        let text: Vec<&str> = text.split_whitespace().collect();
        let text = format!(" {} ", text.join(" ").replace(|c: char| ".,;:()[]*|?\"'".contains(c), " "));
        for phrase in &retired.phrases {
            if text.contains(&format!(" {phrase} ")) && !is_exception(&file, phrase) {
                wrong.push(format!("{file}: {phrase}"));
            }
        }
    }
    assert!(wrong.is_empty(), "see docs/reference/glossary.md for what to use:\n{}", wrong.join("\n"));
}

#[test]
fn the_words_of_a_name_are_found() {
    assert_eq!(words("ProbeEntryGone"), ["probe", "entry", "gone"]);
    assert_eq!(words("a_GRACE_PERIOD_mark"), ["a", "grace", "period", "mark"]);
    assert!(identifiers("let stranger = \"mend\"; // keeper").contains("stranger"));
    assert!(!identifiers("let stranger = \"mend\"; // keeper").contains("mend"));
    assert!(!identifiers("let stranger = \"mend\"; // keeper").contains("keeper"));
}
