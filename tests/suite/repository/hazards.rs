//! Checks that the tests named by `docs/assurance/hazards.md` and `docs/assurance/threat-model.md` exist.

use std::{collections::BTreeSet, fs, path::Path};

/// The number of each hazard and the tests that its row names, as file and function.
fn rows(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let number = cells.next()?.to_owned();
            let (kind, digits) = number.split_at_checked(1)?;
            if !"GEZCK".contains(kind) || digits.parse::<u8>().is_err() {
                return None;
            }
            Some((number, tests(cells.last()?)))
        })
        .collect()
}

/// The tests that a text links to, as file and function.
fn tests(text: &str) -> Vec<(String, String)> {
    let links = text.split("[`").skip(1).filter_map(|test| {
        let (name, rest) = test.split_once("`](../../")?;
        Some((rest.split_once(')')?.0.to_owned(), name.to_owned()))
    });
    links.filter(|(file, _)| file.ends_with(".rs")).collect()
}

/// The doc comment of a function.
fn doc_of(source: &str, function: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| {
        let line = line.strip_prefix("pub(super) ").unwrap_or(line);
        line.strip_prefix("async ")
            .unwrap_or(line)
            .strip_prefix("fn ")
            .is_some_and(|rest| rest.strip_prefix(function).is_some_and(|rest| rest.starts_with(['(', '<'])))
    })?;
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
    Some(above.filter(|line| line.starts_with("///")).copied().collect::<Vec<_>>().join(" "))
}

/// Every hazard names at least one test. Each of them exists, and its doc comment has the hazard's number.
#[test]
fn every_hazard_has_the_tests_that_the_page_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let rows = rows(&fs::read_to_string(root.join("docs/assurance/hazards.md")).unwrap());
    let numbers: BTreeSet<&str> = rows.iter().map(|(number, _)| number.as_str()).collect();
    let expected = (1..=40).map(|n| format!("G{n}"));
    let expected = expected.chain((1..=21).map(|n| format!("E{n}")));
    let expected = expected.chain((1..=24).map(|n| format!("Z{n}")));
    let expected = expected.chain((1..=16).map(|n| format!("C{n}")));
    let expected = expected.chain((1..=5).map(|n| format!("K{n}")));
    for number in expected {
        assert!(numbers.contains(number.as_str()), "{number} is not on the page");
    }
    for (number, tests) in &rows {
        assert!(!tests.is_empty(), "{number} has no test");
        for (file, name) in tests {
            let source =
                fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            let doc = doc_of(&source, name).unwrap_or_else(|| panic!("{number}: {file} has no test {name}"));
            let has_number = doc.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == number);
            assert!(has_number, "the doc comment of {name} in {file} lacks {number}: {doc}");
        }
    }
}

/// Every test that the threat model names exists.
#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let named = tests(&fs::read_to_string(root.join("docs/assurance/threat-model.md")).unwrap());
    assert!(named.len() >= 8, "{named:?}");
    for (file, name) in named {
        let source = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(doc_of(&source, &name).is_some(), "{file} has no test {name}");
    }
}
