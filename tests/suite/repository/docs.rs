//! Checks the guides: links have targets, Rust code is compiled, and the metrics that they name exist.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use pulldown_cmark::{CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};
use tenure_testkit::suite::until;
use tenure_tests::CapturedLog;
use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry::LookupSpan};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// Every Markdown page in the repository.
fn pages() -> Vec<PathBuf> {
    let (mut pages, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default();
            // Build output, git's data, and the corpora of the fuzz targets.
            let is_excluded = name == "target" || name == ".git" || name == "corpus";
            if path.is_dir() && !is_excluded {
                folders.push(path);
            } else if !path.is_symlink() && path.extension().is_some_and(|ending| ending == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn events(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// A page's anchors, as GitHub derives them from the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut heading) = (BTreeSet::new(), None::<String>);
    for event in events(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let name = heading.take().unwrap_or_default().to_lowercase();
                let anchor = name.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
                anchors.insert(anchor.map(|c| if c == ' ' { '-' } else { c }).collect());
            }
            _ => {}
        }
    }
    anchors
}

#[test]
fn every_link_has_a_target() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for page in pages() {
        let text = read(&page);
        for event in events(&text) {
            let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event else {
                continue;
            };
            links += 1;
            if dest_url.starts_with("https://") {
                continue;
            }
            let (path, anchor) = dest_url.split_once('#').unwrap_or((&dest_url, ""));
            let target = if path.is_empty() { page.clone() } else { page.with_file_name(path) };
            let found = target.exists() && !dest_url.contains("://");
            let anchored = anchor.is_empty() || (found && anchors(&read(&target)).contains(anchor));
            if !found || !anchored {
                wrong.push(format!("{}: {dest_url}", page.display()));
            }
        }
        // `[words][label]` with an undefined label is plain text to the parser.
        let mut undefined = |broken: pulldown_cmark::BrokenLink<'_>| {
            if matches!(broken.link_type, LinkType::Reference | LinkType::Collapsed) {
                wrong.push(format!("{}: [{}] is undefined", page.display(), broken.reference));
            }
            None
        };
        Parser::new_with_broken_link_callback(&text, Options::ENABLE_TABLES, Some(&mut undefined))
            .for_each(drop);
    }
    assert!(links > 100, "{links}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The page whose Rust blocks are files of an example, one after another.
const GUIDE_TO_BACKENDS: &str = "docs/guide/write-a-backend.md";

/// The documentation tests compile every page that has a Rust block.
#[test]
fn every_rust_block_is_compiled() {
    let compiled =
        [read(&root().join("tests/suite/harness/lib.rs")), read(&root().join("crates/tenure/src/lib.rs"))]
            .concat();
    for page in pages() {
        let rust = events(&read(&page)).any(|event| match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                assert!(!language.contains("ignore"), "{}: {language}", page.display());
                language.split(',').next() == Some("rust")
            }
            _ => false,
        });
        let name = page.strip_prefix(root()).unwrap().display().to_string();
        assert!(
            !rust || name == GUIDE_TO_BACKENDS || compiled.contains(&format!("{name}\")")),
            "{name} has a Rust block that no documentation test compiles"
        );
    }
}

/// The names of tenure's metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    // Targets of the log are named, too.
    let crates = ["tenure_core", "tenure_axum", "tenure_etcd"];
    let named = words.filter(|word| word.starts_with("tenure_") && !crates.contains(word));
    named
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .filter(|word| !word.starts_with("tenure_testkit"))
        .collect()
}

#[test]
fn the_dashboard_and_the_alerts_use_existing_metrics() {
    use tenure::metrics::*;

    let all: BTreeSet<String> = [
        IS_LEADER,
        TRANSITIONS,
        FENCING_TOKEN,
        CAMPAIGN_WAIT,
        TIME_TO_DEADLINE,
        TTL,
        HEARTBEAT,
        OVERRUNS,
        TOKEN_REGRESSIONS,
        FOREIGN_ENTRIES,
        STORE_FAILURES,
    ]
    .map(str::to_owned)
    .into();
    let dashboard = read(&root().join("docs/guide/operating/dashboard.json"));
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().is_some_and(|panels| panels.len() >= 9));
    assert_eq!(metrics(&dashboard), all, "the dashboard shows every metric");
    for rules in ["alerts.yml", "alerts.test.yml"] {
        let used = metrics(&read(&root().join("docs/guide/operating").join(rules)));
        assert!(used.len() > 5 && used.is_subset(&all), "{rules}: {used:?}");
    }
    assert_eq!(metrics(&read(&root().join("docs/guide/operating.md"))), all);
}

/// Writes a log to `log`, as far as `filter` lets it through.
fn log_to<S>(log: &CapturedLog, filter: &str) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let log = log.clone();
    fmt::layer().with_ansi(false).with_writer(move || log.clone()).with_filter(EnvFilter::new(filter))
}

/// Case 31, for users of the library: the filter in the guide leaves out what ZooKeeper's client repeats, and nothing else of an
/// outage.
#[tokio::test(flavor = "multi_thread")]
async fn the_filter_of_the_guide_leaves_out_the_warnings_of_the_zookeeper_client() {
    use tracing_subscriber::layer::SubscriberExt as _;

    let page = read(&root().join("docs/guide/operating.md"));
    let filter = page.split_once("EnvFilter::new(\"").and_then(|(_, rest)| rest.split_once('"'));
    let (filter, _) = filter.expect("the guide has a filter");
    let (all, filtered) = (CapturedLog::default(), CapturedLog::default());
    let subscriber =
        tracing_subscriber::registry().with(log_to(&all, "info")).with(log_to(&filtered, filter));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    // What listens there closes each connection.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let elector = tenure::connect(&format!("zookeeper://{endpoint}/x")).await.unwrap();
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    let outage = "a request to the store failed; trying again";
    until("both have logged the outage, and one the client", async || {
        all.text().contains("zookeeper_client") && filtered.text().contains(outage)
    })
    .await;
    campaign.abort();
    let filtered = filtered.text();
    assert!(!filtered.contains("zookeeper_client"), "{filtered}");
    assert!(filtered.contains(&format!("store=\"zookeeper {endpoint}\"")), "{filtered}");
}

/// Case 46: the unit files in the guide are those that the package has, and that tests/packages.rs of the command runs.
#[test]
fn the_guide_shows_the_unit_files_as_they_are() {
    let page = read(&root().join("docs/guide/operating/systemd.md"));
    // In a list they are indented.
    let page: String = page.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    for file in ["tenure@.service", "tenure.conf", "tenure.env"] {
        let text = read(&root().join("packaging/systemd").join(file));
        assert!(
            page.contains(&text),
            "docs/guide/operating/systemd.md differs from packaging/systemd/{file}"
        );
    }
}

/// The code of the guide to backends is the example that is tested, all of it.
#[test]
fn the_guide_to_backends_shows_the_tested_code() {
    let code = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    };
    let page = read(&root().join(GUIDE_TO_BACKENDS));
    let (mut shown, mut is_rust) = (Vec::new(), false);
    for event in events(&page) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => is_rust = &*language == "rust",
            Event::End(TagEnd::CodeBlock) => is_rust = false,
            Event::Text(text) if is_rust => shown.extend(code(&text)),
            _ => {}
        }
    }
    let files = ["src/lib.rs", "tests/conformance.rs", "tests/scheme.rs"];
    let folder = root().join("examples/directory-store");
    let [adapter, suite, program] = files.map(|file| code(&read(&folder.join(file))));
    let lines = adapter.iter().filter(|line| !line.trim_start().starts_with("//")).count();
    assert!(lines <= 150, "the adapter has {lines} lines");
    assert!(page.contains(&format!("an adapter of {lines} lines")), "the page says how many lines: {lines}");
    let tested = [adapter, suite, program].concat();
    for (number, (shown, tested)) in shown.iter().zip(&tested).enumerate() {
        assert_eq!(shown, tested, "{GUIDE_TO_BACKENDS}, line {number} of its code");
    }
    assert_eq!(shown.len(), tested.len(), "the page shows all of {files:?}");
}

/// Case 63: the README names every Rust version that a manifest requires.
#[test]
fn the_readme_names_the_rust_versions() {
    let readme = read(&root().join("README.md"));
    for manifest in ["Cargo.toml", "examples/Cargo.toml", "examples/billing/Cargo.toml"] {
        let text = read(&root().join(manifest));
        let version = text.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'));
        let version = version.unwrap_or_else(|| panic!("{manifest} requires no Rust version"));
        assert!(readme.contains(version), "README.md lacks {version}, which {manifest} requires");
    }
}
