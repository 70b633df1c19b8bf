//! What operators see when things go wrong: the transcripts in `docs/guide/troubleshooting.md`. Each test produces one of them, with
//! real processes, servers and faults, and fails if the page shows something else. `cargo xtask transcripts` writes them into the page.

mod common;

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use common::{Sandbox, eventually, kill, succeed};
use tenure_containers::{EtcdServer, PostgresServer, SharedEtcd, SharedZookeeper, Version};
use tenure_testkit::proxy::{Direction, Proxy};

/// With this variable, the transcripts are written into the page instead of being compared with it.
const WRITE: &str = "TENURE_WRITE_TRANSCRIPTS";

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/troubleshooting.md")
}

/// What a user has typed and seen.
struct Transcript {
    name: &'static str,
    lines: Arc<Mutex<Vec<String>>>,
    /// What the page shows in place of addresses, paths and names that differ from run to run.
    replaced: Vec<(String, String)>,
}

impl Transcript {
    fn new(name: &'static str) -> Self {
        Self { name, lines: Arc::default(), replaced: Vec::new() }
    }

    /// Of commands on a store of lock files.
    fn on_files(name: &'static str, sandbox: &Sandbox) -> Self {
        Self::new(name).replace(sandbox.file("store").display().to_string(), "/var/lib/tenure")
    }

    /// Shows `shown` wherever `text` is printed.
    fn replace(mut self, text: impl Into<String>, shown: &str) -> Self {
        self.replaced.push((text.into(), shown.to_owned()));
        self
    }

    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a comment: what happens now.
    fn comment(&self, text: &str) {
        self.lines().push(format!("# {text}"));
    }

    /// Runs a command until it ends. The page shows `typed` in its place.
    fn run(&self, typed: &str, command: &mut Command) {
        self.start(typed, command).end();
    }

    /// Starts a command in the background.
    fn start(&self, typed: &str, command: &mut Command) -> Running<'_> {
        self.lines().push(format!("$ {typed}"));
        let (reader, writer) = std::io::pipe().unwrap();
        let child =
            command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
        // The command has copies of the pipe, which would keep it open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let lines = Arc::clone(&self.lines);
        let reading = thread::spawn(move || {
            for line in BufReader::new(reader).lines().map(Result::unwrap) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Running { transcript: self, child, reading: Some(reading) }
    }

    /// Waits for a line that contains this.
    fn wait_for(&self, text: &str) {
        self.wait_for_several(text, 1);
    }

    fn wait_for_several(&self, text: &str, count: usize) {
        let found = |lines: &[String]| lines.iter().filter(|line| line.contains(text)).count() >= count;
        eventually(&format!("{text:?} in {}", self.name), || found(&self.lines()).then_some(()));
    }

    /// Compares it with the page, or writes it there.
    fn check(self) {
        let mut shown: Vec<String> = self.lines().clone();
        for line in &mut shown {
            for (text, replacement) in &self.replaced {
                *line = line.replace(text, replacement);
            }
        }
        let (begin, end) = (format!("<!-- transcript: {} -->\n```console\n", self.name), "```\n");
        let text = fs::read_to_string(page()).unwrap();
        let start =
            text.find(&begin).unwrap_or_else(|| panic!("the page has no {}", self.name)) + begin.len();
        let length = text[start..].find(end).unwrap();
        if env::var_os(WRITE).is_some() {
            let written = shown.iter().map(|line| format!("{line}\n")).collect::<String>();
            let text = format!("{}{written}{}", &text[..start], &text[start + length..]);
            let mut file = fs::File::create(page()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            return;
        }
        let (on_page, seen) =
            (kinds(text[start..start + length].lines()), kinds(shown.iter().map(String::as_str)));
        // Which requests fail in an outage, and when summaries are due, is a matter of chance.
        let missing: Vec<_> = on_page.difference(&seen).filter(|line| !is_of_the_log(line)).collect();
        let unknown: Vec<_> = seen.difference(&on_page).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "{}: only on the page: {missing:#?}\nonly seen: {unknown:#?}\n`cargo xtask transcripts` writes the page",
            self.name
        );
    }
}

/// The different lines without numbers: times, durations, counts and ids differ from run to run, and how often a line is repeated.
fn kinds<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    lines.map(kind).collect()
}

fn is_of_the_log(kind: &str) -> bool {
    [" WARN ", " INFO ", " ERROR "].iter().any(|level| kind.contains(level))
}

/// A line without numbers, without the fields of the log, and without the request that failed in an outage.
fn kind(line: &str) -> String {
    let said = [" does not answer: ", " refuses requests: "].into_iter().find(|said| line.contains(said));
    let (line, rest) = match said.and_then(|said| Some((said, line.split_once(said)?))) {
        Some((said, (line, rest))) => {
            (format!("{line}{said}…"), rest.rfind(';').map_or("", |end| &rest[end..]))
        }
        None => (line.to_owned(), ""),
    };
    let line = line + rest;
    let mut words: Vec<String> = line.split(' ').map(without_numbers).collect();
    if is_of_the_log(&line) {
        words.truncate(words.iter().position(|word| word.contains('=')).unwrap_or(words.len()));
    }
    words.dedup();
    words.join(" ")
}

/// Replaces a number with its unit by `#`, and each number in other words.
fn without_numbers(word: &str) -> String {
    let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if core.starts_with(|c: char| c.is_ascii_digit()) {
        return word.replace(core, "#");
    }
    let mut hidden = String::new();
    for c in word.chars() {
        match c.is_ascii_digit() {
            true if hidden.ends_with('#') => {}
            true => hidden.push('#'),
            false => hidden.push(c),
        }
    }
    hidden
}

/// A command in the background. It is killed when this is dropped.
struct Running<'a> {
    transcript: &'a Transcript,
    child: Child,
    reading: Option<thread::JoinHandle<()>>,
}

impl Running<'_> {
    fn signal(&self, name: &str) {
        kill(name, self.child.id());
    }

    /// Waits until it has ended, and shows its exit code if it failed.
    fn end(mut self) {
        let status = eventually("the command ends", || self.child.try_wait().unwrap());
        if let Some(reading) = self.reading.take() {
            reading.join().unwrap();
        }
        if !status.success() {
            let code = status.code().map_or_else(|| "killed".to_owned(), |code| format!("exit code {code}"));
            self.transcript.comment(&code);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store behind a proxy, which can be cut off, and the transcript with its names.
struct Scene {
    transcript: Transcript,
    proxy: Proxy,
    sandbox: Sandbox,
    /// Keeps a server that the scene started itself, or shares.
    _server: Box<dyn std::any::Any>,
}

impl Scene {
    async fn on_etcd(name: &'static str) -> Self {
        let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
        let endpoint = server.endpoint();
        Self::new(name, "etcd", &endpoint, "10.0.0.1:2379", Box::new(server)).await
    }

    async fn on_zookeeper(name: &'static str) -> Self {
        let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
        let endpoint = server.endpoint();
        Self::new(name, "zookeeper", &endpoint, "10.0.0.1:2181", Box::new(server)).await
    }

    async fn new(
        name: &'static str,
        scheme: &str,
        endpoint: &str,
        shown: &str,
        server: Box<dyn std::any::Any>,
    ) -> Self {
        let proxy = Proxy::start(endpoint).await.unwrap();
        let root = format!("cli-{:016x}", fastrand::u64(..));
        let sandbox = Sandbox::on(format!("{scheme}://{}/{root}?ttl=5s", proxy.endpoint()));
        let transcript = Transcript::new(name)
            .replace(proxy.endpoint(), shown)
            .replace(root, "prod")
            .replace(sandbox.file("").display().to_string().trim_end_matches('/').to_owned(), "/srv/billing");
        Self { transcript, proxy, sandbox, _server: server }
    }

    /// `tenure run` of a program that works until it is stopped.
    fn run(&self, options: &[&str]) -> Command {
        self.sandbox.run(options, "while sleep 0.1; do :; done")
    }
}

/// Case 41. Nothing listens at the store's address.
#[test]
fn run_while_nothing_listens() {
    let sandbox = Sandbox::on("etcd://127.0.0.1:1/prod");
    let transcript = Transcript::new("run-while-nothing-listens").replace("127.0.0.1:1", "10.0.0.1:2379");
    transcript.run("tenure run --timeout 8s -- ./bill", &mut sandbox.run(&["--timeout", "8s"], "true"));
    transcript.check();
}

/// Case 40.
#[test]
fn try_while_nothing_listens() {
    let sandbox = Sandbox::on("zookeeper://127.0.0.1:1/prod");
    let transcript = Transcript::new("try-while-nothing-listens").replace("127.0.0.1:1", "10.0.0.1:2181");
    transcript.run("tenure run --try -- ./bill", &mut sandbox.run(&["--try"], "true"));
    transcript.check();
}

/// Case 41. Connections are accepted, and nothing is answered.
#[test]
fn a_query_on_a_silent_store() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let sandbox = Sandbox::on(format!("etcd://{silent}/prod"));
    let transcript = Transcript::new("query-on-a-silent-store").replace(silent, "10.0.0.1:2379");
    transcript.run("tenure leader", &mut sandbox.tenure(&["leader"]));
    transcript.run("tenure doctor", sandbox.tenure(&["doctor"]).env_remove("TENURE_ELECTION"));
    transcript.check();
}

/// Item 2 of the log: first failure, summary, loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_loses_its_store() {
    let scene = Scene::on_etcd("leader-loses-its-store").await;
    let run = scene.transcript.start("tenure run -- ./bill", &mut scene.run(&[]));
    scene.transcript.wait_for("leads e with token");
    scene.transcript.comment("the network to the store fails");
    scene.proxy.hold(Direction::Both);
    run.end();
    scene.transcript.check();
}

/// First failure, summaries, recovery.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_in_an_outage() {
    let scene = Scene::on_zookeeper("standby-in-an-outage").await;
    let other = scene.sandbox.start(&["--id", "other"], "echo > leads; while sleep 0.1; do :; done");
    scene.sandbox.wait_for_line("leads");
    let standby = scene.transcript.start("tenure run -- ./bill", &mut scene.run(&[]));
    scene.transcript.wait_for("other leads");
    scene.transcript.comment("the network to the store fails");
    scene.proxy.cut();
    scene.transcript.wait_for("still fail");
    drop(other);
    scene.transcript.comment("and works again");
    scene.proxy.heal();
    scene.transcript.wait_for("leads e with token");
    scene.transcript.comment("SIGTERM");
    standby.signal("TERM");
    standby.end();
    scene.transcript.check();
}

/// Case 52.
#[tokio::test(flavor = "multi_thread")]
async fn observing_a_frozen_store() {
    let scene = Scene::on_etcd("observing-a-frozen-store").await;
    let observe = scene.transcript.start("tenure observe", &mut scene.sandbox.tenure(&["observe"]));
    scene.transcript.wait_for("-");
    scene.transcript.comment("the store is frozen");
    scene.proxy.hold(Direction::Both);
    scene.transcript.wait_for("does not answer");
    scene.transcript.comment("and works again");
    scene.proxy.heal();
    scene.transcript.wait_for("answers again");
    scene.transcript.comment("SIGTERM");
    observe.signal("TERM");
    observe.end();
    scene.transcript.check();
}

/// Case 50, and hazard E17.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_without_space() {
    let server = EtcdServer::start(Version::Etcd35).await.unwrap();
    server.admin().activate_no_space_alarm().await.unwrap();
    let endpoint = server.endpoint().to_owned();
    let scene = Scene::new("etcd-without-space", "etcd", &endpoint, "10.0.0.1:2379", Box::new(server)).await;
    scene.transcript.run("tenure run --timeout 8s -- ./bill", &mut scene.run(&["--timeout", "8s"]));
    let mut doctor = scene.sandbox.tenure(&["doctor"]);
    scene.transcript.run("tenure doctor", doctor.env_remove("TENURE_ELECTION"));
    scene.transcript.check();
}

/// The error contains what an owner of the database has to run.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_without_rights() {
    let server = PostgresServer::start(Version::Postgres17).await.unwrap();
    let admin = server.admin().create_database("billing").await.unwrap();
    admin.execute("CREATE ROLE app LOGIN").await.unwrap();
    let sandbox = Sandbox::on(admin.url().replacen("postgres@", "app@", 1));
    let transcript = Transcript::new("postgres-without-rights").replace(server.endpoint(), "10.0.0.1:5432");
    transcript.run("tenure run -- ./bill", &mut sandbox.run(&[], "true"));
    transcript.check();
}

/// Case 65, and hazard G35.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store() {
    let server = EtcdServer::start(Version::Etcd35).await.unwrap();
    for _ in 0..20 {
        server.admin().put("/other", "x").await.unwrap();
    }
    let endpoint = server.endpoint().to_owned();
    let scene = Scene::new("wiped-store", "etcd", &endpoint, "10.0.0.1:2379", Box::new(())).await;
    let run = scene
        .transcript
        .start("tenure run --restart always -- ./bill", &mut scene.run(&["--restart", "always"]));
    scene.transcript.wait_for("leads e with token");
    scene.transcript.comment("the store is restarted with an empty disk");
    server.wipe().await.unwrap();
    scene.transcript.wait_for("token_regression");
    scene.transcript.wait_for_several("leads e with token", 2);
    scene.transcript.comment("SIGTERM");
    run.signal("TERM");
    run.end();
    drop(server);
    scene.transcript.check();
}

/// A member that does not answer is named; the others serve.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let endpoint = server.endpoint();
    let sandbox = Sandbox::on(format!("etcd://{endpoint},127.0.0.1:1/prod"));
    let transcript = Transcript::new("dead-member")
        .replace(endpoint, "10.0.0.1:2379")
        .replace("127.0.0.1:1", "10.0.0.2:2379");
    transcript.run("tenure doctor", sandbox.tenure(&["doctor"]).env_remove("TENURE_ELECTION"));
    transcript.check();
}

/// Case 42.
#[test]
fn too_few_open_files() {
    let sandbox = Sandbox::local();
    let transcript = Transcript::on_files("too-few-open-files", &sandbox);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=8:8", env!("CARGO_BIN_EXE_tenure"), "run", "--store", &sandbox.url]);
    transcript.run("(ulimit -n 8; tenure run -- ./bill)", command.args(["--election", "e", "--", "true"]));
    transcript.check();
}

/// Case 45.
#[test]
fn a_store_on_fuse() {
    let sandbox = Sandbox::local();
    let (source, target) = (sandbox.file("source"), sandbox.file("shared"));
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(&target).unwrap();
    succeed(Command::new("bindfs").args([&source, &target]).stdin(Stdio::null()));
    let transcript = Transcript::new("store-on-fuse").replace(target.display().to_string(), "/mnt/shared");
    let store = format!("local:{}/elections", target.display());
    let mut run = sandbox.tenure(&["run", "--store", &store, "--", "true"]);
    transcript.run("tenure run --store local:/mnt/shared/elections -- ./bill", &mut run);
    succeed(Command::new("umount").arg("--lazy").arg(&target));
    transcript.check();
}

/// Case 47.
#[test]
fn a_nested_run() {
    let sandbox = Sandbox::local();
    let transcript = Transcript::on_files("nested-run", &sandbox);
    let script = format!("exec {} run -- true", env!("CARGO_BIN_EXE_tenure"));
    transcript.run("tenure run -- sh -c 'tenure run -- ./bill'", &mut sandbox.run(&[], &script));
    transcript.check();
}

/// Case 49.
#[test]
fn a_program_that_becomes_a_daemon() {
    let sandbox = Sandbox::local();
    let transcript = Transcript::on_files("daemon", &sandbox);
    let script = "setsid sleep 1000 & while ! pgrep -s $! > /dev/null; do sleep 0.01; done";
    transcript.run("tenure run -- ./bill --daemon", &mut sandbox.run(&[], script));
    transcript.check();
}

/// Cases 48 and 51.
#[test]
fn wrong_settings() {
    let sandbox = Sandbox::on("etcd://127.0.0.1:1/prod?tll=5s");
    let transcript = Transcript::new("wrong-settings").replace("127.0.0.1:1", "10.0.0.1:2379");
    transcript
        .run("tenure leader --store 'etcd://10.0.0.1:2379/prod?tll=5s'", &mut sandbox.tenure(&["leader"]));
    let local = Sandbox::local();
    transcript.run("tenure run --ttl 100ms -- ./bill", &mut local.run(&["--ttl", "100ms"], "true"));
    transcript.run("tenure run --ttl 5x -- ./bill", &mut local.run(&["--ttl", "5x"], "true"));
    transcript.check();
}

/// Case 52.
#[test]
fn nobody_leads() {
    let sandbox = Sandbox::local();
    let transcript = Transcript::on_files("nobody-leads", &sandbox);
    transcript.run("tenure leader", &mut sandbox.tenure(&["leader"]));
    transcript.run("tenure resign", &mut sandbox.tenure(&["resign"]));
    transcript.check();
}

/// The guard of a program is killed.
#[test]
fn a_killed_guard() {
    let sandbox = Sandbox::local();
    let transcript = Transcript::on_files("killed-guard", &sandbox);
    let run = transcript
        .start("tenure run -- ./bill", &mut sandbox.run(&[], "echo > leads; while sleep 0.1; do :; done"));
    sandbox.wait_for_line("leads");
    transcript.comment("someone kills the process `tenure __guard`");
    kill("KILL", &common::children(run.child.id())[0]);
    run.end();
    transcript.check();
}
