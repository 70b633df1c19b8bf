//! The output with `--json`, as `docs/reference/json-output.schema.json` defines it.

mod common;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    time::Duration,
};

use common::{RunningCommand, Sandbox, eventually, stdout, store_url, succeed, tenure_command};
use jsonschema::Validator;
use serde_json::{Value, json};
use tenure_containers::{
    SharedConsul, SharedEtcd, SharedKubernetes, SharedPostgres, SharedZookeeper, Version,
};

/// What others can write: control characters, quotes, a line separator, and bytes that are no UTF-8.
const HOSTILE: &[u8] = b"\xff\xfe\0\x1b[2J\"\\\n\r{}\xe2\x80\xa8\xed\xa0\x80";

fn schema() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/json-output.schema.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Refuses fields that the schema does not define: users may meet them, and this version must not have any.
fn forbid_other_fields(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(forbid_other_fields);
            if fields.get("type") == Some(&json!("object")) {
                fields.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(forbid_other_fields),
        _ => {}
    }
}

/// The definition of a command's line.
fn validator(command: &str) -> Validator {
    let mut schema = schema();
    assert!(schema["$defs"][command].is_object(), "{command} has no definition");
    forbid_other_fields(&mut schema);
    schema["$ref"] = json!(format!("#/$defs/{command}"));
    jsonschema::draft202012::new(&schema).unwrap()
}

#[track_caller]
fn assert_valid(command: &str, line: &str) -> Value {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"));
    let errors: Vec<_> = validator(command).iter_errors(&line).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{command}: {errors:?}: {line}");
    line
}

/// The lines of a command, which are valid.
#[track_caller]
fn lines(sandbox: &Sandbox, command: &str) -> Vec<Value> {
    let output = sandbox.tenure(&[command, "--json", "--timeout", "10s"]).output().unwrap();
    stdout(&output).lines().map(|line| assert_valid(command, line)).collect()
}

/// The report of the doctor, which is valid.
fn doctor(store: &str) -> Value {
    let output = tenure_command(&["doctor", "--json", "--store", store]).output().unwrap();
    assert_valid("doctor", stdout(&output).trim_end())
}

/// The first line of `observe`, which is valid.
fn observed(sandbox: &Sandbox) -> Value {
    let mut command = sandbox.tenure(&["observe", "--json"]);
    let mut running = RunningCommand::start(command.stdout(Stdio::piped()));
    let line = BufReader::new(running.stdout()).lines().next().unwrap().unwrap();
    assert_valid("observe", &line)
}

/// All commands, while nobody leads, with a leader, and with several candidates.
fn all_commands_print_what_is_defined(url: &str) {
    all_commands_in(&Sandbox::on(url), 2);
}

/// Of two candidates, the store shows this number.
fn all_commands_in(sandbox: &Sandbox, shown: usize) {
    for command in ["leader", "candidates", "resign"] {
        assert_eq!(lines(sandbox, command), [] as [Value; 0], "{command}");
    }
    assert_eq!(observed(sandbox)["leader"], Value::Null);
    assert_eq!(lines(sandbox, "elections")[0]["elections"], json!([]));

    let start =
        |id| sandbox.start(&["--candidate", id, "--candidate-value", "a\n\u{1b}\"\u{2028}é"], "sleep 1000");
    let _first = start("first");
    eventually("a leader", || (sandbox.candidates().len() == 1).then_some(()));
    let _second = start("second");
    eventually("a candidate", || (sandbox.candidates().len() == shown).then_some(()));
    assert_eq!(lines(sandbox, "leader")[0]["value"], "a\n\u{1b}\"\u{2028}é");
    assert_eq!(lines(sandbox, "candidates").len(), shown);
    let observed = observed(sandbox);
    assert!(observed["leader"]["token"].is_u64(), "{observed}");
    let elections = &lines(sandbox, "elections")[0]["elections"];
    assert_eq!(elections[0]["leader"]["id"], "first");
    if shown > 1 {
        assert_eq!(elections[0]["candidates"][1]["id"], "second");
    }
    assert_eq!(lines(sandbox, "resign")[0]["id"], "first");
    assert_ne!(doctor(&sandbox.url)["diagnoses"], json!([]));
}

#[test]
fn commands_print_what_the_schema_defines_on_local() {
    let sandbox = Sandbox::local();
    all_commands_print_what_is_defined(&sandbox.url);
    assert_eq!(doctor("local:/proc/no")["worst"], "problem");
    assert_eq!(doctor("zookeeper://127.0.0.1:1/?request_timeout=500ms")["worst"], "problem");
}

/// Also with entries of Go's library, and such as nobody has written on purpose.
#[tokio::test(flavor = "multi_thread")]
async fn commands_print_what_the_schema_defines_on_etcd() {
    let server = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let root = format!("json-{:016x}", fastrand::u64(..));
    let sandbox = Sandbox::on(format!("etcd://{}/{root}", server.endpoint()));
    all_commands_print_what_is_defined(&sandbox.url);
    let foreign = Sandbox::on(format!("etcd://{}/{root}-foreign", server.endpoint()));
    let admin = server.admin();
    let lease = admin.grant_lease(Duration::from_secs(600)).await.unwrap();
    admin.put_with_lease(&format!("/{root}-foreign/e/{lease:x}"), HOSTILE, lease).await.unwrap();
    admin.put(&format!("/{root}-foreign/e/\u{202e}\"no lease"), HOSTILE).await.unwrap();
    let leader = &lines(&foreign, "leader")[0];
    assert_eq!(
        (&leader["id"], &leader["value"]),
        (&json!(format!("{lease:x}")), &json!(String::from_utf8_lossy(HOSTILE)))
    );
    assert_eq!(lines(&foreign, "candidates").len(), 1);
    assert_eq!(observed(&foreign)["leader"]["session"], format!("{lease:x}"));
    assert_eq!(lines(&foreign, "elections")[0]["elections"][0]["candidate_count"], 1);
    assert_eq!(lines(&foreign, "resign"), [] as [Value; 0], "it takes no resign requests");
    admin.revoke_lease(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_print_what_the_schema_defines_on_zookeeper() {
    let server = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
    let root = format!("json-{:016x}", fastrand::u64(..));
    all_commands_print_what_is_defined(&format!("zookeeper://{}/{root}?ttl=4s", server.endpoint()));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_print_what_the_schema_defines_on_postgres() {
    let server = SharedPostgres::get(Version::Postgres17).await.unwrap();
    let schema = format!("json-{:016x}", fastrand::u64(..));
    all_commands_print_what_is_defined(&store_url("postgres", &server.endpoint(), &schema, "ttl=4s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_print_what_the_schema_defines_on_consul() {
    let server = SharedConsul::get(Version::Consul18).await.unwrap();
    let root = format!("json-{:016x}", fastrand::u64(..));
    all_commands_print_what_is_defined(&store_url("consul", &server.endpoint(), &root, "ttl=4s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_print_what_the_schema_defines_on_kubernetes() {
    let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let namespace = format!("json-{:016x}", fastrand::u64(..));
    server.admin().create_namespace(&namespace).await.unwrap();
    all_commands_in(&Sandbox::on_server("kubernetes", &server.endpoint(), &namespace, "ttl=4s"), 1);
}

/// Every command that has `--json` has a definition, and the schema is one.
#[test]
fn every_command_with_json_output_is_defined() {
    jsonschema::draft202012::meta::validate(&schema()).unwrap();
    let help = stdout(&succeed(&mut tenure_command(&["help"])));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands =
        commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let mut defined = Vec::new();
    for command in commands.filter(|command| *command != "help") {
        if stdout(&succeed(&mut tenure_command(&[command, "--help"]))).contains("--json") {
            validator(command);
            defined.push(command.to_owned());
        }
    }
    assert_eq!(defined, ["leader", "candidates", "observe", "elections", "resign", "doctor"]);
}

/// What the schema refuses, so that the other tests show something.
#[test]
fn the_schema_refuses_other_output() {
    let good = json!({ "election": "e", "id": "a", "token": 1, "value": "", "session": "s" });
    assert!(validator("leader").is_valid(&good));
    for (field, wrong) in [
        ("token", json!(0)),
        ("token", json!("1")),
        ("value", Value::Null),
        ("election", json!("a/b")),
        ("age_ms", json!(-1)),
        ("other", json!(1)),
    ] {
        let mut line = good.clone();
        line[field] = wrong;
        assert!(!validator("leader").is_valid(&line), "{line}");
    }
    assert!(!validator("observe").is_valid(&json!({ "time": "now", "election": "e", "leader": null })));
    assert!(!validator("doctor").is_valid(&json!({ "worst": "ok", "diagnoses": [] })));
}
