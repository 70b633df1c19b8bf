//! A headless Chromium, controlled by the WebDriver protocol.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    RunningCommand, eventually,
    sidecar::{Request, connect},
};

/// The key of an element's id in the protocol.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// What a page can look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) width: u16,
    pub(crate) height: u16,
    pub(crate) is_dark: bool,
}

impl View {
    pub(crate) const DESKTOP: Self = Self { width: 1280, height: 900, is_dark: false };
    pub(crate) const PHONE: Self = Self { width: 360, height: 740, is_dark: false };

    pub(crate) fn dark(self) -> Self {
        Self { is_dark: true, ..self }
    }
}

/// A browser with one tab. It ends when this is dropped.
pub(crate) struct Browser {
    driver: RunningCommand,
    address: String,
    session: String,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = TempDir::new().unwrap();
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let found = Command::new("chromedriver").arg("--version").output();
        assert!(
            found.is_ok_and(|output| output.status.success()),
            "chromedriver is missing: `cargo xtask test` installs it (on Debian, the packages `chromium` and `chromium-driver`)"
        );
        let mut driver = RunningCommand::start(&mut command);
        let mut lines = BufReader::new(driver.stdout()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let address = format!("127.0.0.1:{}", port.expect("chromedriver says its port"));
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            // That of a container is small.
            "--disable-dev-shm-usage".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        if rustix::process::geteuid().is_root() {
            arguments.push("--no-sandbox".to_owned());
        }
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let session =
            browser.send("POST", "/session", &json!({ "capabilities": { "alwaysMatch": capabilities } }));
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// Sends a command. Fails with what the driver says.
    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_send(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_send(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let request = Request::new(method, path);
        let request = if method == "POST" { request.json(body) } else { request };
        let answer = request.send_to(connect(&self.address));
        let value = answer.body["value"].clone();
        if answer.status == 200 { Ok(value) } else { Err(value) }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.send("POST", &format!("{}{path}", self.session), body)
    }

    /// A command of Chromium's own protocol.
    pub(crate) fn chromium(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    pub(crate) fn show_as(&self, view: View) {
        let View { width, height, is_dark } = view;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.chromium("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({ "features": [
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ] });
        self.chromium("Emulation.setEmulatedMedia", &media);
    }

    pub(crate) fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        self.run(&format!("return ({expression});"))
    }

    /// The text of an expression in the page.
    pub(crate) fn text(&self, expression: &str) -> String {
        let value = self.value(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression}: {value}")).to_owned()
    }

    /// What a script in the page returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression in the page is true.
    pub(crate) fn wait_for(&self, expression: &str) {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(expression, || (self.value(expression) == true).then_some(()))
        }));
        found.unwrap_or_else(|_| panic!("not within the time: {expression}\n{}", self.page_text()));
    }

    /// What a person sees.
    pub(crate) fn page_text(&self) -> String {
        self.text("document.body.innerText")
    }

    /// Waits until a person sees this.
    pub(crate) fn wait_for_text(&self, text: &str) {
        self.wait_for(&format!("document.body.innerText.includes({})", json!(text)));
    }

    fn element(&self, selector: &str) -> String {
        let element = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        format!("/element/{}", element[ELEMENT].as_str().unwrap())
    }

    pub(crate) fn click(&self, selector: &str) {
        self.post(&format!("{}/click", self.element(selector)), &json!({}));
    }

    /// Types into a field.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        self.post(&format!("{}/value", self.element(selector)), &json!({ "text": text }));
    }

    /// Presses keys where the focus is.
    pub(crate) fn press(&self, keys: &str) {
        let actions: Vec<_> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
    }

    /// What the page has written to the console since the last call, warnings and errors of the browser included.
    pub(crate) fn console(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        entries
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Writes a picture of the page to the target directory.
    pub(crate) fn take_picture(&self, name: &str) {
        let picture = self
            .chromium("Page.captureScreenshot", &json!({ "format": "png", "captureBeyondViewport": false }));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("web_page");
        fs::create_dir_all(&folder).unwrap();
        let bytes = BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let request = Request::new("DELETE", &self.session);
        if !self.session.is_empty() && !std::thread::panicking() {
            request.send_to(connect(&self.address));
        }
        // What is left of it.
        let group = format!("-{}", self.driver.pid());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
    }
}
