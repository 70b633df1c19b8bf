//! No password is printed, and none is visible in the list of processes.

mod common;

use std::{fs, process::Stdio};

use common::{RunningCommand, Sandbox, children, eventually, stdout, tenure_command};
use tenure_containers::{SharedPostgres, SharedZookeeper, Version};
use tenure_testkit::proxy::{Direction, Proxy};

const PASSWORD: &str = "Zanzibar4711";

/// No server listens there.
const NO_SERVER: &str = "127.0.0.1:1/acme";

/// Design rule: passwords never appear in errors, logs or URLs printed, whatever the level.
#[test]
fn no_password_is_printed() {
    for (scheme, user) in [("zookeeper", "app"), ("postgres", "app"), ("consul", "token")] {
        no_password_of_a_url_is_printed(&format!("{scheme}://{user}:{PASSWORD}@{NO_SERVER}"));
    }
}

fn no_password_of_a_url_is_printed(url: &str) {
    let sandbox = Sandbox::on(url);
    let mut printed = String::new();
    for arguments in [
        &["run", "--timeout", "1s", "--", "true"][..],
        &["run", "--timeout", "never", "--", "true"],
        &["leader", "--timeout", "1s"],
        &["candidates", "--json", "--timeout", "1s"],
        &["resign", "--timeout", "1s"],
        &["doctor", "--timeout", "1s"],
        &["run", "--help"],
        &["observe", "--nonsense"],
    ] {
        for format in ["text", "json"] {
            let mut command = sandbox.tenure(&[&["-vvv", "--log-format", format], arguments].concat());
            let output = command.env("TENURE_LOG", "trace").output().unwrap();
            printed +=
                &format!("{arguments:?}\n{}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(printed.contains("127.0.0.1:1"), "{printed}");
    let leaking = printed.lines().find(|line| line.contains(PASSWORD));
    assert_eq!(leaking, None);
}

/// The error about a URL in the wrong place does not contain it.
#[test]
fn no_password_in_a_wrong_place_is_printed() {
    let url = &*format!("etcd://app:{PASSWORD}@{NO_SERVER}");
    let mistyped = &*format!("--stroe={url}");
    let named = &*format!("app:{PASSWORD}@h");
    let setting = &*format!("etcd://h?passwd={PASSWORD}");
    for arguments in [
        &["leader", url][..],
        &[url],
        &[url, "leader"],
        &[named, "leader"],
        &["leader", setting],
        &["leader", mistyped],
        &["leader", "--store", url, "--store", url],
        &["leader", "--timeout", url],
        &["leader", "--election", "e", "--store", url, named],
        &["run", "--ttl", url, "--", "true"],
        &["run", "--stop-signal", url, "--", "true"],
        &["run", "--restart", url, "--", "true"],
        &["completions", url],
        &["--log-format", url, "leader"],
        &["leader", "--election", "e", "--store", setting],
    ] {
        let output = tenure_command(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !stderr.is_empty(), "{arguments:?}");
        assert!(!stderr.contains(PASSWORD) && !stdout(&output).contains(PASSWORD), "{arguments:?}: {stderr}");
    }
}

/// The program does not need the store's password, and may be one that is not trusted with it.
#[test]
fn no_password_is_handed_to_the_program() {
    for (url, kept) in [
        (format!("etcd://app:{PASSWORD}@{NO_SERVER}"), false),
        (format!("etcd://app@{NO_SERVER}?password_env=STORE_PASSWORD"), true),
        (format!("etcd://{NO_SERVER}"), true),
        (format!("postgres://app:{PASSWORD}@{NO_SERVER}"), false),
        (format!("postgres://app@{NO_SERVER}?password_env=STORE_PASSWORD"), true),
        (format!("postgres://app@{NO_SERVER}"), true),
        (format!("consul://token:{PASSWORD}@{NO_SERVER}"), false),
        (format!("consul://{NO_SERVER}?password_env=STORE_PASSWORD"), true),
        (format!("consul://{NO_SERVER}"), true),
    ] {
        let sandbox = Sandbox::local();
        // The option's URL is that of a store that exists, and overrides the environment's.
        let mut command = sandbox.run(&["--store", &sandbox.url], "env > environment");
        command.env("TENURE_STORE", &url).env("STORE_PASSWORD", "Quagmire0815").env("HARMLESS", "kept");
        command.env("PGPASSWORD", "Xylophon4712").env("CONSUL_HTTP_TOKEN", "Yggdrasil4713");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let environment = fs::read_to_string(sandbox.file("environment")).unwrap();
        assert!(environment.contains("HARMLESS=kept"), "{environment}");
        assert_eq!(environment.contains(&format!("TENURE_STORE={url}")), kept, "{environment}");
        assert!(!environment.contains(PASSWORD), "{environment}");
        let named = url.contains("password_env");
        assert_eq!(environment.contains("Quagmire0815"), !named, "{environment}");
        // Only where it is the store's.
        let is_own = url.starts_with("postgres://app@") && !named;
        assert_eq!(environment.contains("Xylophon4712"), !is_own, "{url}: {environment}");
        let is_own = url.starts_with("consul://127") && !named;
        assert_eq!(environment.contains("Yggdrasil4713"), !is_own, "{url}: {environment}");
    }
}

/// A password in a file, in a variable, or in the URL in a variable does not appear in the arguments of tenure, its
/// guard or the program.
#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_an_argument() {
    let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let postgres = SharedPostgres::get(Version::Postgres17).await.unwrap();
    let root = format!("secrets-{:016x}", fastrand::u64(..));
    for (scheme, user, host, path) in [
        ("zookeeper", "app", zookeeper.endpoint(), format!("{root}?")),
        // It accepts any password.
        ("postgres", "postgres", postgres.endpoint(), format!("postgres?schema={root}&")),
    ] {
        for (login, settings) in [
            (format!("{user}:{PASSWORD}"), "ttl=4s"),
            (user.to_owned(), "password_env=STORE_PASSWORD"),
            (user.to_owned(), "password_file=password"),
        ] {
            let sandbox = Sandbox::on(format!("{scheme}://{login}@{host}/{path}{settings}"));
            fs::write(sandbox.file("password"), PASSWORD).unwrap();
            let mut command = sandbox.run(&[], "echo $$ > leads; sleep 600");
            command.env("STORE_PASSWORD", PASSWORD).env("PGPASSWORD", PASSWORD);
            let leader = RunningCommand::start(command.stderr(Stdio::null()));
            let program = sandbox.wait_for_line("leads");
            let mut all = vec![leader.pid().to_string()];
            let mut next = 0;
            while let Some(pid) = all.get(next) {
                all.extend(children(pid.parse().unwrap()));
                next += 1;
            }
            assert!(all.contains(&program) && all.len() > 2, "tenure, its guard and the program: {all:?}");
            for pid in all {
                let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                assert!(!arguments.contains(PASSWORD), "{settings}: {arguments:?}");
            }
        }
    }
}

/// What ends the session of a tenure that was killed needs the password too: it has it from its environment or a file in memory.
#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_an_argument_when_a_session_is_ended() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    for (login, settings) in [
        (format!("app:{PASSWORD}"), "ttl=30s"),
        ("app".to_owned(), "ttl=30s&password_env=STORE_PASSWORD"),
        ("app".to_owned(), "ttl=30s&password_file=password"),
    ] {
        let proxy = Proxy::start(&server.endpoint()).await.unwrap();
        let root = format!("secrets-{:016x}", fastrand::u64(..));
        let url = |host: &str| format!("zookeeper://{login}@{host}/{root}?{settings}");
        let sandbox = Sandbox::on(url(&proxy.endpoint()));
        fs::write(sandbox.file("password"), PASSWORD).unwrap();
        let mut command = sandbox.run(&[], "echo $$ > leads; sleep 600");
        command.env("STORE_PASSWORD", PASSWORD).stderr(Stdio::null());
        let mut leader = RunningCommand::start(&mut command);
        sandbox.wait_for_line("leads");
        let [guard] = &children(leader.pid())[..] else { panic!("tenure has one child, its guard") };
        let arguments = || fs::read_to_string(format!("/proc/{guard}/cmdline")).unwrap_or_default();
        // So that it takes its time.
        proxy.hold(Direction::Both);
        leader.signal("KILL");
        let ending = eventually("the end of the session begins", || {
            Some(arguments()).filter(|arguments| arguments.contains("__end-session"))
        });
        assert!(!ending.contains(PASSWORD) && !ending.contains("app"), "{settings}: {ending:?}");
        proxy.heal();
        let direct = Sandbox::on(url(&server.endpoint()));
        fs::write(direct.file("password"), PASSWORD).unwrap();
        eventually("the end of the session", || {
            let mut candidates = direct.tenure(&["candidates"]);
            let output = candidates.env("STORE_PASSWORD", PASSWORD).output().unwrap();
            (output.status.success() && output.stdout.is_empty()).then_some(())
        });
        leader.wait();
    }
}

/// The error about a missing variable or file contains its name.
#[test]
fn a_missing_password_is_an_error_with_its_name() {
    for (settings, reason) in [
        ("password_env=NO_SUCH_VARIABLE", "the variable of password_env=NO_SUCH_VARIABLE is not set"),
        ("password_env=A&password_file=/b", "give one"),
        ("password_file=/nowhere/pw", "password_file=/nowhere/pw cannot be read"),
    ] {
        let mut command = tenure_command(&["leader"]);
        command
            .env("TENURE_STORE", format!("zookeeper://app@{NO_SERVER}?{settings}"))
            .env("TENURE_ELECTION", "e");
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(reason), "{stderr}");
    }
}
