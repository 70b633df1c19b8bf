//! A real Prometheus scrapes two nodes of the web example: it accepts every query of the dashboard and every alert rule, and a
//! crash of the leader fires no alert.

use std::{fs, net::TcpListener, path::Path, process::Command, time::Duration};

use reqwest::Url;
use serde_json::Value;
use tenure_testkit::program::Program;

/// The panels that show something on the local store while nothing fails. The others are about heartbeats and failures.
const ALWAYS_SHOWN: [u64; 5] = [1, 2, 3, 4, 7];

fn start_node(store: &str) -> (Program, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_web"));
    command.args(["--listen", "127.0.0.1:0", "--store", store, "--election", "tickets"]);
    let mut program = Program::start(&mut command).unwrap();
    let address = program.wait_for("listening on http://").split_off("listening on http://".len());
    (program, address)
}

struct Prometheus {
    _program: Program,
    address: String,
}

impl Prometheus {
    fn start(folder: &Path, targets: &[&str], rules: &str) -> Self {
        fs::write(folder.join("alerts.yml"), rules).unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs: [{{job_name: web, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.arg("--log.level=error");
        let program = Program::start(&mut command).unwrap_or_else(|error| {
            panic!(
                "prometheus: {error}; `cargo xtask test` installs it (on Debian, the package `prometheus`)"
            )
        });
        Self { _program: program, address: format!("http://127.0.0.1:{port}") }
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let url = Url::parse_with_params(&format!("{}{path}", self.address), parameters).unwrap();
        reqwest::get(url).await.ok()?.json().await.ok()
    }

    /// The series that a query finds.
    async fn query(&self, query: &str) -> Vec<Value> {
        let answer = self.get("/api/v1/query", &[("query", query)]).await.expect("it answers");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    async fn wait_for(&self, query: &str) {
        let found = async {
            // Its answer is no JSON until it is ready.
            while self.get("/api/v1/status/buildinfo", &[]).await.is_none() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            while self.query(query).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), found)
            .await
            .unwrap_or_else(|_| panic!("never: {query}"));
    }
}

#[tokio::test]
async fn prometheus_accepts_the_dashboard_and_the_alerts() {
    let operating = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/guide/operating");
    let read = |name: &str| fs::read_to_string(operating.join(name)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let rules = read("alerts.yml").replace("job=\"billing\"", "job=\"web\"");
    let folder = tempfile::tempdir().unwrap();
    let store = format!("local:{}", folder.path().join("elections").display());
    let mut leader = start_node(&store);
    let follower = start_node(&store);
    let prometheus = Prometheus::start(folder.path(), &[&leader.1, &follower.1], &rules);
    prometheus.wait_for("sum(tenure_is_leader) == 1 and count(tenure_is_leader) == 2").await;
    // An increase needs two scrapes.
    prometheus.wait_for("increase(tenure_transitions_total[30s])").await;

    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query =
                query.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$election", ".*");
            let found = prometheus.query(&query).await;
            let is_shown = panel["id"].as_u64().is_some_and(|id| ALWAYS_SHOWN.contains(&id));
            assert!(!is_shown || !found.is_empty(), "{query} finds nothing");
        }
    }

    leader.0.kill();
    let led_by_follower = format!("tenure_is_leader{{instance=\"{}\"}} == 1", follower.1);
    prometheus.wait_for(&led_by_follower).await;
    prometheus.wait_for("sum(tenure_is_leader) == 1 and count(tenure_is_leader) == 1").await;
    assert_eq!(prometheus.query("ALERTS{alertstate=\"firing\"}").await, Vec::<Value>::new());
    let answer = prometheus.get("/api/v1/rules", &[]).await.unwrap();
    let rules = answer["data"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 9 && rules.iter().all(|rule| rule["health"] == "ok"), "{answer}");
}
