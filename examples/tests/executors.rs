//! Each executor's program leads, greets, resigns and ends.

use std::process::Command;

#[test]
fn a_program_on_each_executor_leads_after_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("local:{}", directory.path().display());
    let mut last_token: u64 = 0;
    for (program, who) in [
        (env!("CARGO_BIN_EXE_current_thread"), "tokio"),
        (env!("CARGO_BIN_EXE_on_smol"), "smol"),
        (env!("CARGO_BIN_EXE_futures_executor"), "futures"),
        (env!("CARGO_BIN_EXE_blocking"), "a thread"),
    ] {
        let ended = Command::new(program).arg(&store).output().unwrap();
        let output = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success(), "{program}: {output}{}", String::from_utf8_lossy(&ended.stderr));
        let greeting = output.lines().next().unwrap();
        let token = greeting.strip_prefix(&format!("hello from {who}, token ")).unwrap().parse().unwrap();
        assert!(token > last_token, "{greeting}, after token {last_token}");
        last_token = token;
    }
}
