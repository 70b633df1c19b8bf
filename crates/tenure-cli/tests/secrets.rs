//! No password is printed, and none can be seen by whoever lists processes.

mod common;

use std::{fs, process::Stdio};

use common::{Running, Stage, bare, children, text};
use tenure_containers::{SharedZookeeper, Version};

const PASSWORD: &str = "Zanzibar4711";

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1/acme";

/// Design rule: passwords never appear in errors, logs or URLs printed, whatever the level.
#[test]
fn no_password_is_printed() {
    let stage = Stage::on(format!("zookeeper://app:{PASSWORD}@{NOWHERE}"));
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
            let mut command = stage.tenure(&[&["-vvv", "--log-format", format], arguments].concat());
            let output = command.env("TENURE_LOG", "trace").output().unwrap();
            printed +=
                &format!("{arguments:?}\n{}{}", text(&output), String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(printed.contains("127.0.0.1:1"), "{printed}");
    let told = printed.lines().find(|line| line.contains(PASSWORD));
    assert_eq!(told, None);
}

/// A URL where none belongs is not repeated by whoever says so.
#[test]
fn no_password_in_a_wrong_place_is_printed() {
    let url = &*format!("etcd://app:{PASSWORD}@{NOWHERE}");
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
        let output = bare(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.is_empty(), "{arguments:?}");
        assert!(!said.contains(PASSWORD) && !text(&output).contains(PASSWORD), "{arguments:?}: {said}");
    }
}

/// What is run on one node only has no use for the store's password, and may be anybody's program.
#[test]
fn no_password_is_handed_to_the_program() {
    for (url, kept) in [
        (format!("etcd://app:{PASSWORD}@{NOWHERE}"), false),
        (format!("etcd://app@{NOWHERE}?password_env=STORE_PASSWORD"), true),
        (format!("etcd://{NOWHERE}"), true),
    ] {
        let stage = Stage::local();
        // The environment's URL is another than the argument's, which names a store that is there.
        let mut command = stage.run(&["--store", &stage.url], "env > environment");
        command.env("TENURE_STORE", &url).env("STORE_PASSWORD", "Quagmire0815").env("HARMLESS", "kept");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let environment = fs::read_to_string(stage.file("environment")).unwrap();
        assert!(environment.contains("HARMLESS=kept"), "{environment}");
        assert_eq!(environment.contains(&format!("TENURE_STORE={url}")), kept, "{environment}");
        assert!(!environment.contains(PASSWORD), "{environment}");
        let named = url.contains("password_env");
        assert_eq!(environment.contains("Quagmire0815"), !named, "{environment}");
    }
}

/// A password in a file, in a variable, or in the URL that is in a variable, is in nobody's arguments: not in tenure's, its
/// guard's or the program's.
#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_an_argument() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let host = server.endpoint();
    for (nth, login) in [format!("app:{PASSWORD}@{host}"), format!("app@{host}")].into_iter().enumerate() {
        for settings in ["ttl=4s", "password_env=STORE_PASSWORD", "password_file=password"] {
            if (nth == 0) != (settings == "ttl=4s") {
                continue;
            }
            let root = format!("secrets-{:016x}", fastrand::u64(..));
            let stage = Stage::on(format!("zookeeper://{login}/{root}?{settings}"));
            fs::write(stage.file("password"), PASSWORD).unwrap();
            let mut command = stage.run(&[], "echo $$ > leads; sleep 600");
            let leads = Running::start(command.env("STORE_PASSWORD", PASSWORD).stderr(Stdio::null()));
            let program = stage.line("leads");
            let mut all = vec![leads.pid().to_string()];
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

/// A variable that is not there is said so, by its name.
#[test]
fn a_password_that_is_not_there_is_asked_for() {
    for (settings, reason) in [
        ("password_env=NO_SUCH_VARIABLE", "the variable of password_env=NO_SUCH_VARIABLE is not set"),
        ("password_env=A&password_file=/b", "give one"),
        ("password_file=/nowhere/pw", "password_file=/nowhere/pw cannot be read"),
    ] {
        let mut command = bare(&["leader"]);
        command
            .env("TENURE_STORE", format!("zookeeper://app@{NOWHERE}?{settings}"))
            .env("TENURE_ELECTION", "e");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{said}");
    }
}
