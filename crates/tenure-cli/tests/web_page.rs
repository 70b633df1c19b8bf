//! The web page of `tenure serve`, in a real browser, with real servers.

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::{fs, time::Duration};

use browser::{Browser, View};
use common::{
    RunningCommand, Sandbox, eventually,
    sidecar::{Sidecar, nonce, store_url},
};
use serde_json::{Value, json};
use tenure_containers::{SharedEtcd, SharedZookeeper, Version};
use tenure_testkit::proxy::{Direction, Proxy};

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
/// Markup, an escape sequence, and a character that reverses the text after it.
const HOSTILE_VALUE: &str = "<img src=x onerror=\"document.title='attacked'\">\u{1b}[2J\u{2028}\u{202e}abc";

/// A candidate of an election. Returns once it has entered.
fn candidate(sandbox: &Sandbox, election: &str, id: &str, value: &str) -> RunningCommand {
    let entered = sandbox.start(&["--election", election, "--id", id, "--value", value], "sleep 1000");
    eventually("its entry", || {
        let mut command = sandbox.tenure(&["candidates", "--election", election]);
        let listed = common::stdout(&common::succeed(&mut command));
        listed.lines().any(|line| line.starts_with(&format!("{id}\t"))).then_some(())
    });
    entered
}

fn stop(mut candidate: RunningCommand) {
    candidate.signal("TERM");
    candidate.wait();
}

/// An expression for the text of the cell of an election with this label.
fn cell(election: &str, label: &str) -> String {
    format!(
        "[...document.querySelectorAll('#rows tr')].find(row => row.querySelector('th').innerText === '{election}')\
         ?.querySelector('td[data-label=\"{label}\"]').textContent"
    )
}

/// Opens the page, and waits until it shows elections.
fn open(browser: &Browser, sidecar: &Sidecar) {
    browser.open(&format!("http://{}/", sidecar.address));
    browser.wait_for("document.getElementById('state').dataset.state === 'live'");
}

fn reload(browser: &Browser) {
    browser.run("window.isOld = true; location.reload();");
    browser.wait_for("!window.isOld && document.readyState === 'complete'");
}

/// The lowest contrast of a text that is shown, with the text. Placeholders are texts, too.
const LOWEST_CONTRAST: &str = "
    const parse = color => {
        const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
        return { r, g, b, a };
    };
    const over = (top, under) => Object.fromEntries(['r', 'g', 'b'].map(
        key => [key, top[key] * top.a + under[key] * (1 - top.a)]).concat([['a', 1]]));
    const backgroundOf = node => {
        if (!node) return parse(getComputedStyle(document.body).backgroundColor);
        const own = parse(getComputedStyle(node).backgroundColor);
        return own.a === 1 ? own : over(own, backgroundOf(node.parentElement));
    };
    const luminance = ({ r, g, b }) => {
        const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const contrast = (node, color) => {
        const background = backgroundOf(node);
        const [dark, light] = [luminance(over(parse(color), background)), luminance(background)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    let lowest = { ratio: 100, text: '', count: 0 };
    const add = (ratio, text) => {
        lowest.count += 1;
        if (ratio < lowest.ratio) Object.assign(lowest, { ratio, text });
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let text; (text = walker.nextNode());) {
        const node = text.parentElement;
        if (!text.data.trim() || !node.checkVisibility() || node.closest('noscript')) continue;
        add(contrast(node, getComputedStyle(node).color), text.data);
        if (node.closest('[data-label]')) add(contrast(node, getComputedStyle(node.closest('[data-label]'), '::before').color), 'label');
    }
    for (const input of document.querySelectorAll('input[placeholder]')) {
        if (input.checkVisibility()) add(contrast(input, getComputedStyle(input, '::placeholder').color), input.placeholder);
    }
    return lowest;";

/// Checks what holds for everything that the page shows, in all sizes and color schemes, and takes a picture of each.
fn check_all_views(browser: &Browser, name: &str) {
    for (view, size) in [(View::DESKTOP, "desktop"), (View::PHONE, "phone")] {
        for (view, scheme) in [(view, "light"), (view.dark(), "dark")] {
            browser.show_as(view);
            let name = format!("{name}-{size}-{scheme}");
            assert_eq!(browser.value("innerWidth"), view.width, "{name}");
            assert_eq!(browser.value("matchMedia('(prefers-color-scheme: dark)').matches"), view.is_dark);
            let background = browser.text("getComputedStyle(document.body).backgroundColor");
            assert_eq!(background == "rgb(17, 20, 26)", view.is_dark, "{name}: {background}");
            browser.take_picture(&name);
            let width = browser.value("document.documentElement.scrollWidth");
            assert!(width.as_u64().unwrap() <= view.width.into(), "{name}: the page scrolls to {width}");
            let wide = browser.value(
                "[...document.querySelectorAll('body *')].filter(node => node.checkVisibility() && \
                 node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('.table')).map(node => node.outerHTML)",
            );
            assert_eq!(wide, json!([]), "{name}");
            let lowest = browser.run(LOWEST_CONTRAST);
            assert!(lowest["ratio"].as_f64().unwrap() >= 4.5, "{name}: {lowest}");
            assert!(lowest["count"].as_u64().unwrap() > 5, "{name}: {lowest}");
            check_names(browser, &name);
        }
    }
    browser.show_as(View::DESKTOP);
}

/// Everything that can be used has a name for people who do not see it.
fn check_names(browser: &Browser, name: &str) {
    browser.chromium("Accessibility.enable", &json!({}));
    let tree = browser.chromium("Accessibility.getFullAXTree", &json!({}));
    let nodes: Vec<_> =
        tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false).collect();
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
    let has_name = |node: &Value| node["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty());
    let mut count = 0;
    for node in &nodes {
        if ["button", "link", "textbox", "searchbox", "table", "columnheader", "heading"]
            .contains(&role(node).as_str())
        {
            count += 1;
            assert!(has_name(node), "{name}: {node}");
        }
    }
    assert!(count > 2, "{name}: {nodes:#?}");
    if browser.value("document.querySelector('#rows tr')?.checkVisibility() ?? false") == true {
        for expected in ["table", "row", "rowheader", "columnheader", "cell", "caption"] {
            assert!(nodes.iter().any(|node| role(node) == expected), "{name} has no {expected}");
        }
    }
}

/// The title is set by an attack that succeeds.
fn assert_unharmed(browser: &Browser) {
    assert_eq!(browser.value("document.querySelectorAll('img, main script, iframe').length"), 0);
    assert!(browser.text("document.title").ends_with("Elections - tenure"));
    assert_eq!(browser.console(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_are_shown_live_in_all_views() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let url = store_url("etcd", &server.endpoint(), "ttl=20s");
    let sandbox = Sandbox::on(&url);
    let first = candidate(&sandbox, "billing", "first", "10.0.0.1:80");
    let second = candidate(&sandbox, "billing", "second", HOSTILE_VALUE);
    let _third = candidate(&sandbox, "reports", "host-3-4713-0123456789abcdef", "10.0.0.3:80");
    let sidecar = Sidecar::start(&url);
    let lease = sidecar.campaign("mail", &nonce(), Duration::from_secs(20)).expect(200);
    let secret = lease["lease"].as_str().unwrap().to_owned();
    let browser = Browser::start();
    browser.show_as(View::DESKTOP);
    open(&browser, &sidecar);
    let rows = "[...document.querySelectorAll('#rows th')].map(cell => cell.innerText).join()";
    assert_eq!(browser.text(rows), "billing,mail,reports");
    assert_eq!(browser.text(&cell("billing", "Leader")), "first");
    assert_eq!(browser.text(&cell("billing", "Waiting")), "1");
    assert!(browser.text(&cell("billing", "For")).starts_with("≥ "), "it has begun before");
    assert_eq!(browser.text(&cell("mail", "Token")), lease["token"].to_string());
    assert_eq!(browser.text("document.getElementById('caption').innerText"), "3 elections");
    assert!(browser.page_text().contains(&format!("etcd {}", server.endpoint())));
    let read = browser.text("document.getElementById('state').innerText");
    browser.wait_for(&format!("document.getElementById('state').innerText !== {}", json!(read)));

    // A change of leader, without loading the page again. Rows that have not changed stay as they are.
    browser.run(
        "window.marker = document.querySelectorAll('#rows tr')[2]; marker.cells[1].firstChild.marked = true;",
    );
    stop(first);
    browser.wait_for(&format!("{} === 'second'", cell("billing", "Leader")));
    assert_eq!(
        browser.value(
            "document.querySelectorAll('#rows tr')[2] === marker && marker.cells[1].firstChild.marked"
        ),
        true
    );
    assert!(!browser.text(&cell("billing", "For")).starts_with('≥'), "its beginning was seen");
    assert_eq!(browser.value("document.querySelector('#rows tr').className"), "changed");
    browser.wait_for_text("billing: second leads with token");
    browser.wait_for("document.getElementById('announcer').textContent === 'billing: second leads.'");
    check_all_views(&browser, "list");

    // By keyboard: filter, then the first link.
    browser.run("document.activeElement.blur()");
    browser.press(TAB);
    assert_eq!(browser.value("document.activeElement.id"), "filter");
    assert_ne!(browser.value("getComputedStyle(document.activeElement).outlineStyle"), "none");
    browser.press("bill");
    browser.wait_for("document.getElementById('caption').innerText === '1 of 3 elections'");
    assert_eq!(
        browser
            .text("[...document.querySelectorAll('#rows tr:not([hidden]) th')].map(c => c.innerText).join()"),
        "billing"
    );
    browser.press(TAB);
    assert_eq!(browser.value("document.activeElement.innerText"), "billing");
    assert_ne!(browser.value("getComputedStyle(document.activeElement).outlineStyle"), "none");
    browser.press(ENTER);
    browser.wait_for("document.activeElement.id === 'details-name'");

    // The details, with what another process wrote as text.
    let shown = "<img src=x onerror=\"document.title='attacked'\">\\u{1b}[2J\\u{2028}\\u{202e}abc";
    browser.wait_for_text(shown);
    let waits = candidate(&sandbox, "billing", "fourth", "10.0.0.4:80");
    browser.wait_for_text("2 candidates in the queue");
    let queue = "[...document.querySelectorAll('#queue th')].map(cell => cell.innerText).join()";
    assert_eq!(browser.text(queue), "second,fourth");
    assert!(browser.page_text().contains("10.0.0.4:80"));
    check_all_views(&browser, "details");
    browser.press(TAB);
    browser.click("#back");
    browser.wait_for("document.activeElement.innerText === 'billing'");

    // Nobody leads, which the store has said.
    stop(waits);
    stop(second);
    browser.wait_for(&format!("{} === 'nobody'", cell("billing", "Leader")));
    browser.wait_for_text("billing: vacant, after second");
    assert!(!browser.text("document.documentElement.outerHTML").contains(&secret));
    assert_unharmed(&browser);
}

/// An outage of the store: what is shown is said to be old, and never that nobody leads.
async fn an_outage_is_said(scheme: &str, endpoint: String) {
    let proxy = Proxy::start(&endpoint).await.unwrap();
    let root = format!("web-{:016x}", fastrand::u64(..));
    let healthy = Sandbox::on(format!("{scheme}://{endpoint}/{root}"));
    let first = candidate(&healthy, "billing", "first", "");
    let vacated = candidate(&healthy, "reports", "third", "");
    let sidecar = Sidecar::start(&format!("{scheme}://{}/{root}?ttl=20s", proxy.endpoint()));
    let browser = Browser::start();
    browser.show_as(View::DESKTOP);
    open(&browser, &sidecar);
    assert_eq!(browser.text(&cell("billing", "Leader")), "first");
    stop(vacated);
    browser.wait_for(&format!("{} === 'nobody'", cell("reports", "Leader")));
    proxy.blackhole(Direction::Both);
    browser.wait_for("document.getElementById('state').dataset.state === 'old'");
    let notice = browser.text("document.getElementById('notice').innerText");
    assert!(notice.starts_with(&format!("No answer from {scheme} {} since ", proxy.endpoint())), "{notice}");
    assert!(notice.contains("Who leads now is not known.") && notice.contains("tenure doctor"), "{notice}");
    assert_eq!(browser.text(&cell("billing", "Leader")), "first", "what was read last");
    // What was vacant is said to have been so, at a time.
    browser.wait_for(&format!("{}.startsWith('nobody at ')", cell("reports", "Leader")));
    assert!(browser.text("document.getElementById('caption').innerText").contains("as of "));
    let age = browser.text(&cell("billing", "For"));
    check_all_views(&browser, &format!("outage-{scheme}"));
    assert_eq!(browser.text(&cell("billing", "For")), age, "no time is added that nobody has seen");
    // A page that is opened meanwhile does not know anything.
    reload(&browser);
    browser.wait_for("document.getElementById('notice').innerText.startsWith('No answer')");
    assert!(!browser.page_text().contains("nobody leads"));
    stop(first);
    proxy.heal();
    browser.wait_for("document.getElementById('state').dataset.state === 'live'");
    browser.wait_for(&format!("{} !== 'first'", cell("billing", "Leader")));
    assert_eq!(browser.value("document.getElementById('notice').checkVisibility()"), false);
    assert_unharmed(&browser);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_etcd_is_said() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    an_outage_is_said("etcd", server.endpoint()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_zookeeper_is_said() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    an_outage_is_said("zookeeper", server.endpoint()).await;
}

/// A store that has never answered: nothing is known, and no election is shown as vacant.
#[test]
fn a_store_that_never_answers_is_said() {
    let sidecar = Sidecar::start("etcd://127.0.0.1:1/x?ttl=4s");
    let browser = Browser::start();
    browser.open(&format!("http://{}/", sidecar.address));
    browser.wait_for_text("No answer from etcd 127.0.0.1:1 since ");
    browser.wait_for_text("Nothing is known yet.");
    let text = browser.page_text();
    assert!(!text.contains("nobody") && !text.contains("No election"), "{text}");
}

/// A page whose sidecar has gone says so, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_restarts_is_found_again() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let url = store_url("etcd", &server.endpoint(), "ttl=20s");
    let sandbox = Sandbox::on(&url);
    let first = candidate(&sandbox, "billing", "first", "");
    let _second = candidate(&sandbox, "billing", "second", "");
    let mut sidecar = Sidecar::start(&url);
    let address = sidecar.address.clone();
    let browser = Browser::start();
    browser.show_as(View::DESKTOP);
    open(&browser, &sidecar);
    sidecar.command.signal("KILL");
    sidecar.command.wait();
    browser.wait_for_text("Not connected since ");
    browser.wait_for_text("the sidecar does not answer. This was read at ");
    assert_eq!(browser.value("document.getElementById('state').dataset.state"), "old");
    assert_eq!(browser.text(&cell("billing", "Leader")), "first");
    check_all_views(&browser, "gone");
    stop(first);
    drop(sidecar);
    let _sidecar = Sidecar::start_with(&url, &["--listen", &address]);
    browser.wait_for("document.getElementById('state').dataset.state === 'live'");
    browser.wait_for(&format!("{} === 'second'", cell("billing", "Leader")));
    // The browser itself reports each connection that is refused.
    let console = browser.console();
    assert!(console.iter().all(|line| line.contains("net::ERR_")), "{console:?}");
}

/// With a token, the page has no data before it is given.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_for_the_token() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let url = store_url("etcd", &server.endpoint(), "ttl=20s");
    let sandbox = Sandbox::on(&url);
    let _first = candidate(&sandbox, "billing", "first", "");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "the-token-of-the-test\n").unwrap();
    let path = file.path().to_str().unwrap();
    let sidecar = Sidecar::start_with(&url, &["--listen", "0.0.0.0:0", "--token-file", path]);
    let port = sidecar.address.rsplit_once(':').unwrap().1;
    let browser = Browser::start();
    browser.show_as(View::DESKTOP);
    browser.open(&format!("http://127.0.0.1:{port}/"));
    browser.wait_for("document.activeElement.id === 'token'");
    assert!(!browser.page_text().contains("first") && !browser.page_text().contains(&server.endpoint()));
    check_all_views(&browser, "token");
    browser.press(&format!("the-wrong-token-of-it{ENTER}"));
    browser.wait_for_text("The sidecar has refused this token.");
    browser.wait_for("document.activeElement.id === 'token'");
    browser.press(&format!("the-token-of-the-test{ENTER}"));
    browser.wait_for(&format!("{} === 'first'", cell("billing", "Leader")));
    assert_eq!(browser.value("document.getElementById('token-form').checkVisibility()"), false);
    // Until the tab is closed, and in no place that lasts longer.
    reload(&browser);
    browser.wait_for(&format!("{} === 'first'", cell("billing", "Leader")));
    assert_eq!(browser.value("document.cookie + JSON.stringify(localStorage)"), "{}");
    let console = browser.console();
    assert!(console.iter().all(|line| line.contains("401 (Unauthorized)")), "{console:?}");
    fs::write(&file, "another-token-of-it\n").unwrap();
    // A connection that is open stays so; a new one needs the new token.
    eventually("the new token counts", || {
        reload(&browser);
        let form = "document.getElementById('token-form').checkVisibility()";
        browser.wait_for(&format!("{form} || document.getElementById('state').dataset.state === 'live'"));
        (browser.value(form) == true).then_some(())
    });
}

/// As many elections as are read: a change touches only the rows that have changed.
#[tokio::test(flavor = "multi_thread")]
async fn many_elections_are_shown_without_drawing_all_again() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let url = store_url("etcd", &server.endpoint(), "ttl=60s");
    let elector = tenure::connect(&url).await.unwrap();
    let names: Vec<_> = (0..510).map(|number| format!("service-{number:04}")).collect();
    let campaigns = names.iter().map(|name| elector.campaign(name));
    let mut leaderships = futures::future::try_join_all(campaigns).await.unwrap();
    let sidecar = Sidecar::start(&url);
    let browser = Browser::start();
    browser.show_as(View::PHONE);
    open(&browser, &sidecar);
    browser.wait_for("document.querySelectorAll('#rows tr').length === 500");
    browser.wait_for_text("These are the first 500 of 510 elections.");
    // Durations change all the time.
    browser.run(
        "window.touched = new Set();
         new MutationObserver(records => records.forEach(({ target }) => {
             const node = target.nodeType === Node.TEXT_NODE ? target.parentElement : target;
             if (node && !node.closest('.since')) touched.add(node.closest('tr')?.cells[0].innerText ?? '-');
         })).observe(document.getElementById('rows'), { subtree: true, childList: true, characterData: true, attributes: true });",
    );
    leaderships.remove(250).resign().await.unwrap();
    browser.wait_for(&format!("{} === 'nobody'", cell("service-0250", "Leader")));
    // The next one takes its place among those that are read.
    browser.wait_for("document.querySelectorAll('#rows tr').length === 501");
    assert_eq!(browser.value("[...touched].sort().join()"), "-,service-0250,service-0500");
    assert!(browser.text(&cell("service-0500", "For")).starts_with("≥ "), "it was not read before");
    let width = browser.value("document.documentElement.scrollWidth");
    assert!(width.as_u64().unwrap() <= 360, "{width}");
    // Others are found by the beginning of their names.
    browser.type_into("#prefix", "service-05");
    browser.click("#prefix-form button");
    browser.wait_for("document.querySelectorAll('#rows tr').length === 10");
    assert!(browser.page_text().contains("names that begin with service-05"));
    assert_unharmed(&browser);
}
