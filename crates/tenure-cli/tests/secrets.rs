//! No password is printed, and none can be seen by whoever lists processes.

mod common;

use std::{fs, process::Stdio};

use common::{Running, Stage, bare, children, text};
use tenure_testkit::containers::{SharedZookeeper, Version};

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
